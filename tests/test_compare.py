"""Runs side by side: when one arrives at another's end, and a page that holds what the runs hold."""

import json
import shutil

import numpy as np
import pytest

from pv_vae_jax.cli.main import run_command
from pv_vae_jax.evaluation.convergence import running_mean, steps_to_target
from pv_vae_jax.report import paper_table
from pv_vae_jax.report.page import short_names
from pv_vae_jax.report.run_comparison import SAME, runs_in, scores_by_name, stored_scores
from pv_vae_jax.report.run_page import (
    EvaluatedRun,
    Pictures,
    accuracy_and_generation,
    side_by_side,
    verdicts,
    write_runs,
)
from pv_vae_jax.typing import ConfigError
from studies.probes import __main__ as probes
from tests.test_cli import fails, pv_vae, tiny_experiment  # noqa: F401


def test_a_run_arrives_where_its_mean_is_as_low_as_the_others_end():
    steps = np.arange(10, 1010, 10)
    slow, fast = 1 / steps, 1 / (2 * steps)
    there = steps_to_target(steps, fast, steps, slow)
    assert there.step == pytest.approx(500, abs=60) and there.sooner == pytest.approx(0.5, abs=0.06)
    never = steps_to_target(steps, slow, steps, fast)
    assert never.step is None and never.sooner is None
    assert steps_to_target(steps, slow, steps, slow).step == 1000
    late = steps_to_target(2 * steps, fast, steps, slow)
    assert late.sooner == pytest.approx(0, abs=0.1)
    with pytest.raises(ValueError, match="at least one point"):
        steps_to_target([], [], steps, slow)


def test_running_means_look_back_only():
    values = np.zeros(40)
    values[20] = 1
    mean = running_mean(values)
    assert not mean[:20].any() and mean[20] == 0.25 and not mean[24:].any()
    np.testing.assert_allclose(running_mean([3.0, 1.0], share=1.0), [3, 2])


def evaluated(name):
    rng = np.random.default_rng(0)
    stage = {"psnr_db": 25.5, "ssim": 0.8, "scored": "4 clips", "prediction": None, "steps": 3}
    metrics = {
        "model": "t2s4c4",
        "stages": {"video": stage},
        "parameters": {"encoder": 10_000, "decoder": 20_000},
        "devices": ["1 x cpu"],
    }
    curves = {"video": [{"step": i, "mse": 1 / (i + 1), "frames_per_second": 100.0} for i in range(5)]}
    clip = rng.integers(0, 256, (1, 5, 16, 16, 3), dtype=np.uint8)
    samples = {"jump": (rng.integers(0, 256, (2, 5, 16, 16, 3), dtype=np.uint8), ())}
    cells = [("Original", clip[0], None), ("Reconstruction", clip[0], 5), ("saw 3 of 5", clip[0], 3)]
    pictures = Pictures(curves, [("jump", "jump: a.mp4", cells)], samples=samples)
    return EvaluatedRun(name, metrics, pictures, {"Frechet distance (x)": 12.25})


def test_page_holds_tables_curves_and_clips_of_all_runs(tmp_path):
    runs = [evaluated("<b>a"), evaluated("b"), evaluated("c")]
    write_runs(tmp_path / "page.html", runs, "noise")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;a" in page and "<b>a" not in page
    for part in ("generation", "reconstruction", "cost"):
        for name in paper_table()[part]:
            assert f"{name} (paper)" in page
    assert "146.4" in page and "12.25" in page and "25.5" in page and page.count(" reaches the end of ") == 6
    assert page.count("<svg") == 1 + 3 * 2 and page.count("<video") == 3 + 3 or "PyAV" in page
    assert "http" not in page.split("<body>")[0] and 'src="http' not in page
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_better_prediction_is_set_against_better_generation():
    def run(name, error, distance):
        made = evaluated(name)
        made.last["prediction"] = None if error is None else {"average": error}
        made.scores.clear()
        made.scores["distance"] = distance
        return made

    runs = [run("a", 0.03, 5.0), run("b", 0.02, 4.0), run("c", 0.05, 9.0), run("d", None, 1.0)]
    points, correlation = accuracy_and_generation(runs)["distance"]
    assert [name for name, *_ in points] == ["a", "b", "c"] and correlation == pytest.approx(1)
    runs[1].scores["distance"] = 20.0
    assert accuracy_and_generation(runs)["distance"][1] == pytest.approx(-0.5)
    assert np.isnan(accuracy_and_generation(runs[:2])["distance"][1])
    assert accuracy_and_generation(runs[2:]) == {}


def test_papers_numbers_are_those_of_its_tables():
    paper = paper_table()
    ours = paper["generation"]["PV-VAE"]
    assert (ours["FVD"], ours["KVD"], ours["IS"]) == (146.37, 14.52, 69.72)
    assert paper["reconstruction"]["Wan2.2 VAE"]["PSNR"] == 33.78 and paper["cost"]["SSVAE"]["training, it/s"] == 3.92
    assert all(paper[part].keys() == paper["generation"].keys() for part in ("reconstruction", "cost"))
    titles = [table["title"] for table in paper["ablations"]["tables"]]
    assert [title.split(":")[0] for title in titles] == ["Table 4", "Table 5", "Table 6"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_experiment):  # noqa: F811
    """A run of stage video, evaluated by its training, and a copy whose curve is longer."""
    root = tmp_path_factory.mktemp("compared")
    only = [f"--config.{stage}.steps=0" for stage in ("image", "decoder", "diffusion")]
    flags = ["--config.video.objective.gan=0.0", "--config.video.steps=2", *only]
    status, _, error = pv_vae("train", "--config", tiny_experiment, "--workdir", root / "a", *flags)
    assert status == 0, error
    shutil.copytree(root / "a", root / "b")
    curve = root / "b" / "video" / "metrics.jsonl"
    curve.write_text(curve.read_text() + json.dumps({"step": 3, "mse": 1e-6, "frames_per_second": 1.0}) + "\n")
    return root


def test_command_compares_runs(runs, tmp_path):
    before = sorted(runs.rglob("*"))
    (runs / "a" / "report" / "scores.json").write_text(json.dumps([{"name": "FVD", "value": 321.5, "card": {}}]))
    status, out, error = pv_vae("evaluate", runs / "a", runs / "b", "--out", tmp_path / "x" / "page.html")
    assert status == 0, error
    (runs / "a" / "report" / "scores.json").unlink()
    assert sorted(runs.rglob("*")) == before  # nothing is written into runs
    page, tree = (tmp_path / "x" / "page.html").read_text(), json.loads((tmp_path / "x" / "page.json").read_text())
    assert "321.5" in page and tree["runs"]["a"]["scores"] == {"FVD": 321.5} and "FVD 321.5" in out
    arrivals = tree["convergence"]["video"]
    assert arrivals["a reaches the end of b"]["of"] == 3 and arrivals["a reaches the end of b"]["step"] is None
    assert arrivals["b reaches the end of a"]["step"] <= 3


def test_scores_of_other_protocols_or_clips_have_columns_of_their_own(tmp_path):
    def report(run, **files):
        (tmp_path / run).mkdir()
        for name, (protocol, clips, value) in files.items():
            card = {"protocol": {"name": protocol}, "fake": {"scored": clips}}
            score = {"name": "FVD", "value": value, "card": card}
            (tmp_path / run / f"{name}.json").write_text(json.dumps([score, {"name": "none", "value": None}]))
        return stored_scores(tmp_path / run)

    a, b = report("a", x=("paper", 24, 1.0)), report("b", x=("paper", 24, 2.0))
    c = report("c", x=("paper", 24, 3.0), y=("stylegan-v", 24, 4.0), z=("paper", 8, 5.0))
    again = report("d", x=("paper", 24, 1.0), y=("paper", 24, 2.0))
    assert scores_by_name([again]) == [{"FVD: paper, 24 clips": 1.0, "FVD: paper, 24 clips, y": 2.0}]
    assert scores_by_name([a, b]) == [{"FVD": 1.0}, {"FVD": 2.0}]
    paper, other, few = "FVD: paper, 24 clips", "FVD: stylegan-v, 24 clips", "FVD: paper, 8 clips"
    assert scores_by_name([a, c]) == [{paper: 1.0}, {paper: 3.0, other: 4.0, few: 5.0}]


def test_what_does_not_compare_is_refused(runs, tmp_path, capsys):
    assert pv_vae("compare", "a", "b") == (2, "", "pv-vae: 'compare' is now 'pv-vae evaluate A B'\n")
    assert "--clips: these measure one run" in fails("evaluate", runs / "a", runs / "b", "--clips=2")
    assert "--paired: these compare sets" in fails("evaluate", runs / "a", runs / "b", "--paired")
    assert "named twice" in fails("evaluate", runs / "a", runs / "a")
    assert "holds no run" in fails("evaluate", runs / "a", tmp_path)
    assert "must end in .html" in fails("evaluate", runs / "a", runs / "b", "--out", tmp_path / "x.pdf")
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "file" / "x.html")
    for call in (("evaluate", "none", "other"), ("evaluate", "--real=none", "--fake=none"), ("analyze", "none")):
        line = fails(*call, *out)  # told before anything is read or computed
        assert "cannot write into" in line and "choose another --out" in line
    assert run_command(probes, "probes", ["none", *map(str, out)]) in (1, 2)
    assert "cannot write into" in capsys.readouterr().err
    path = runs / "b" / "config.json"
    config = path.read_text()
    path.write_text(config.replace('"size": 16', '"size": 32'))
    assert "data.size is 32 in b and 16 in a" in fails("evaluate", runs / "a", runs / "b")
    path.write_text(config)
    report = runs / "b" / "report" / "metrics.json"
    report.rename(report.with_suffix(".aside"))
    assert "pv-vae evaluate --workdir" in fails("evaluate", runs / "a", runs / "b")
    report.with_suffix(".aside").rename(report)
    assert set(SAME) == {"source", "fold", "frames", "size", "fit", "stride"}


def test_short_names_are_those_of_folders_and_of_models_on_the_hub():
    assert short_names(["runs/a", "hf://me/b"], "model") == {"a": "runs/a", "b": "hf://me/b"}
    with pytest.raises(ConfigError, match="a model is named twice"):
        short_names(["hf://me/b", "hf://me/b"], "model")


def test_the_same_clips_open_the_page_in_a_row_for_one_run_and_in_a_row_for_each_kind_of_several():
    ((name, rows),) = side_by_side([evaluated("a")])
    assert name == "jump: a.mp4" and [kind for kind, _ in rows] == ["Clip"]
    assert [cell[0] for cell in rows[0][1]] == ["Truth", "Reconstruction", "Prediction, saw 3", "Sample"]
    ((_, rows),) = side_by_side([evaluated("a"), evaluated("b")])
    assert [kind for kind, _ in rows] == ["Reconstruction", "Prediction", "Sample"]
    assert [cell[0] for cell in rows[1][1]] == ["Truth", "a, saw 3", "b, saw 3"]
    other = evaluated("a")  # a clip stands beside the sample of its class
    jump, slide = other.pictures.samples.pop("jump"), (np.zeros((1, 5, 16, 16, 3), np.uint8), ())
    other.pictures.samples.update(slide=slide, jump=jump)
    assert side_by_side([other])[0][1][0][1][-1][1].any()
    assert side_by_side([EvaluatedRun("a", evaluated("a").metrics, Pictures())]) == []


def test_verdicts_name_what_a_stage_should_beat():
    rivals = {name: {"psnr_db": psnr, "scored": "4 clips"} for name, psnr in (("small", 20.0), ("large", 31.0))}
    metrics = evaluated("a").metrics | {"baselines": rivals}
    assert verdicts(metrics)["video"] == "reconstructs at 25.50 dB PSNR, shipped large at 31.00"
    on_training_clips = metrics | {"protocol": {"split": "train"}}
    assert verdicts(on_training_clips)["video"].startswith("reconstructs clips it was trained on at 25.50 dB PSNR")
    images = {"image": metrics["stages"]["video"] | {"scored": "the middle frame of 4 clips"}}
    assert verdicts(metrics | {"stages": images})["image"] == "reconstructs at 25.50 dB PSNR"
    guesses = {"average_copying": 0.2, "average_extrapolation": 0.1}
    for error, against, word in ((0.05, -0.75, "predicts motion"), (0.15, -0.25, "does not beat both guesses yet")):
        metrics["stages"]["video"]["prediction"] = {"average": error, "against_copying": against} | guesses
        line = verdicts(metrics)["video"]
        assert line.endswith(word) and f"{-against:.0%} below that of copying" in line


def test_a_folder_of_runs_stands_for_those_that_are_evaluated(runs):
    assert runs_in([str(runs)]) == [str(runs / "a"), str(runs / "b")]
    assert runs_in([str(runs / "a"), "none"]) == [str(runs / "a"), "none"]

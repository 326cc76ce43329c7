"""`python -m studies.ablation`: cells share stages, statistics are right on curves made by hand, the page follows."""

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from pv_vae_jax.cli.main import run_command
from pv_vae_jax.data.sources import class_names, open_source
from pv_vae_jax.data.synthetic import simulate
from pv_vae_jax.locks import locked
from pv_vae_jax.report import paper_table
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.configs import (
    DataConfig,
    DiffusionConfig,
    Experiment,
    LatentsConfig,
    LatteConfig,
    MeshConfig,
    OptimizerConfig,
    VAEConfig,
    VAEStageConfig,
)
from pv_vae_jax.typing import ConfigError
from studies.ablation import __main__ as command
from studies.ablation import cells, measure
from studies.ablation.page import write_pages
from studies.ablation.plan import Row, Study, load_study
from studies.ablation.results import (
    Estimate,
    against,
    curves,
    over_seeds,
    prediction_correlation,
    reach,
    read_results,
    steps_to_reach,
)
from tests.test_lpips import seeded_lpips

ROOT = Path(__file__).resolve().parents[1]
TABLES = paper_table()["ablations"]["tables"]
ROWS = [row["row"] for row in TABLES[0]["rows"]]
FAST = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)


def tiny_study() -> Study:
    stage = dict(batch_size=4, optimizer=FAST, ema_decay=0.5)
    experiment = Experiment(
        data=DataConfig(clips=16, test_clips=8, frames=5, size=16, threads=1),
        vae=VAEConfig(
            patch=2,
            latent_channels=4,
            time_factors=(2,),
            space_factors=(2,),
            encoder_widths=(8, 8),
            decoder_widths=(8, 8),
            encoder_blocks=1,
            decoder_blocks=1,
            mid_attention=False,
            lowering="direct",
        ),
        image=VAEStageConfig(images=True, steps=2, **stage),
        video=VAEStageConfig(steps=2, drop_ratio=1.0, drop_form="filled", drop_per_example=True, **stage),
        decoder=VAEStageConfig(steps=2, frozen=("encoder", "pad"), **stage),
        latents=LatentsConfig(clips=8, batch_size=4),
        latte=LatteConfig(latent_channels=4, depth=2, width=8, heads=2),
        diffusion=DiffusionConfig(steps=4, batch_size=4, optimizer=FAST),
        mesh=MeshConfig(data=1),
    )
    # Two rows of one program each stage: what a test compiles is most of its time.
    rows = (Row(ROWS[0], {"video.flip": 0.0}), Row(ROWS[2]), Row(ROWS[3], decoder_of=ROWS[2]))
    return Study("tiny", "sprites", experiment, rows, seeds=(0,), scores=2, clips=4, sampling_steps=1).validate()


def study_command(*arguments: str) -> int:
    return run_command(command, "python -m studies.ablation", arguments)


# What is planned.


def test_cells_are_ordered_so_that_a_part_of_a_study_is_a_table():
    study = dataclasses.replace(tiny_study(), seeds=(0, 1))
    order = [(cell.row.name, cell.seed) for cell in study.cells()]
    assert order == [(row.name, seed) for seed in (0, 1) for row in study.rows]
    names = [cell.name for cell in study.cells()]
    assert len(set(names)) == len(names)


def test_a_cell_is_named_by_what_decides_its_numbers():
    study = tiny_study()
    faster = dataclasses.replace(study.experiment, log_every=3, mesh=MeshConfig(data=2), name="other")
    longer = dataclasses.replace(study.experiment, diffusion=dataclasses.replace(study.experiment.diffusion, steps=6))
    names = [[c.name for c in dataclasses.replace(study, experiment=e).cells()] for e in (faster, longer)]
    same = [c.name for c in study.cells()]
    assert names[0] == same and not set(names[1]) & set(same)
    changed = (Row(ROWS[2], {"video.flip": 0.0}), study.rows[2])
    other = dataclasses.replace(study, rows=changed)
    assert other.cell(changed[1], 0).name != study.cell(study.rows[2], 0).name, "its encoder is another"


def test_rows_differ_by_their_settings_alone():
    """The shipped studies: of table 4, each row changes one thing."""
    for name in ("synthetic", "mixed", "real"):
        study = load_study(ROOT / "experiments" / f"study_{name}.py")
        baseline, predictive, motion, tuned = (study.row(name) for name in ROWS)
        first, second, third = (study.cell(row, 0).experiment for row in (baseline, predictive, motion))
        video = dataclasses.replace(first.video, drop_ratio=1.0)
        assert dataclasses.replace(first, video=video) == second and first.video.drop_ratio == 0
        objective = dataclasses.replace(second.video.objective, motion=1.0)
        video = dataclasses.replace(second.video, objective=objective)
        assert dataclasses.replace(second, video=video) == third and second.video.objective.motion == 0
        assert tuned.decoder_of == motion.name and len(study.seeds) >= 3


def test_ablations_change_one_setting_of_the_row_that_they_are_compared_with():
    study = load_study(ROOT / "experiments" / "study_ablations.py")
    assert [row.name for row in study.rows[:3]] == list(ROWS[:3]) and len(study.seeds) >= 3
    changed = set()
    for row in study.rows[3:]:
        (one,) = set(row.settings.items()) - set(study.row(row.compared_with).settings.items())
        changed.add(one)
        assert row.compared_with in ROWS[1:3], row.name
    assert len(changed) == len(study.rows[3:])
    keys = {study.cell(row, 0).key for row in study.rows}
    assert len(keys) == len(study.rows), "each trains something else"


def test_decoders_are_tuned_of_models_that_the_ablations_train():
    ablations, tuned = (load_study(ROOT / "experiments" / f"study_{name}.py") for name in ("ablations", "tuned"))
    trained = {cell.folder for cell in ablations.cells()}
    for cell in tuned.cells():
        assert (cell.base or cell).folder in trained, cell.name
        assert cell.experiment.decoder.steps == cell.experiment.video.steps
    rows = [row for row in tuned.rows if row.decoder_of]
    assert {row.decoder_of for row in rows} == {ROWS[0], ROWS[2], "Rising ratio"} and tuned.seeds == ablations.seeds
    assert all(row.settings == tuned.row(row.decoder_of).settings for row in rows), "nothing else differs"


def test_only_cells_that_tune_a_decoder_are_named_by_how():
    study = load_study(ROOT / "experiments" / "study_synthetic.py")
    other = load_study(ROOT / "experiments" / "study_synthetic.py", {"decoder.steps": "7"})
    for row in study.rows:
        assert (study.cell(row, 0).key == other.cell(row, 0).key) == (not row.decoder_of), row.name
    control = study.rows[-1]
    assert study.row(control.decoder_of) == study.rows[0] and control.settings == study.rows[0].settings


def test_stored_cells_have_the_names_that_the_committed_studies_compute():
    """Days of training are found again by them."""
    checked = 0
    for path in sorted((ROOT / "experiments").glob("study_*.py")):
        if path.stem == "study_motion":  # its cells are of `studies.motion`
            continue
        study = load_study(path)
        stored = ROOT / "docs" / "results" / study.name
        if not stored.exists():
            continue
        names = [cell.name for cell in study.cells()]
        assert json.loads((stored / "study.json").read_text())["cells"] == names, study.name
        for found in stored.glob("*-seed*.json"):
            assert found.stem in names, f"{found} is of other settings than {path.name}: it would be trained again"
            assert json.loads(found.read_text())["key"] == found.stem.rpartition("-")[2]
            checked += 1
    assert checked >= 91


def test_a_cell_is_named_by_what_its_clips_are_not_by_where_they_lie(tmp_path):
    def name(folder: str, content: bytes) -> str:
        for split in ("train", "test"):
            (tmp_path / folder / split).mkdir(parents=True)
            (tmp_path / folder / split / "a.mp4").write_bytes(content)
        source = {"data.source": str(tmp_path / folder)}
        study = load_study(ROOT / "experiments" / "study_real.py", source)
        return next(study.cells()).name

    here, elsewhere, others = name("here", b"clip"), name("elsewhere", b"clip"), name("others", b"longer clip")
    assert here == elsewhere != others


def test_plans_that_cannot_work_are_refused(tmp_path):
    study = tiny_study()
    with pytest.raises(ConfigError, match="distinct names"):
        dataclasses.replace(study, rows=(study.rows[0], study.rows[0])).validate()
    with pytest.raises(ConfigError, match="must be a row before it"):
        dataclasses.replace(study, rows=study.rows[::2]).validate()
    with pytest.raises(ConfigError, match="compared with 'c', which must be a row before it"):
        dataclasses.replace(study, rows=(Row("a"), Row("b", compared_with="c"))).validate()
    with pytest.raises(ConfigError, match="drop_rat"):
        dataclasses.replace(study, rows=(Row("a", {"video.drop_rat": 1.0}),)).validate()
    with pytest.raises(ConfigError, match="must be a multiple of scores"):
        dataclasses.replace(study, scores=3).validate()
    with pytest.raises(ConfigError, match="no study file"):
        load_study(tmp_path / "none.py")
    row = "from studies.ablation.plan import Row\n\ndef get_study():\n    return "
    for text, says in (
        ("x = 1\n", r"does not define get_study\(\)$"),
        (row + "Row('a', setings={})\n", "wrong.py, line 4: TypeError: .*setings"),
        (row + "Row('a')\n", r"get_study\(\) in .* must return Study, got Row"),
        (
            "def get_config():\n    pass\n",
            r"does not define get_study\(\) but get_config\(\): use pv-vae train --config",
        ),
    ):
        (tmp_path / "wrong.py").write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_study(tmp_path / "wrong.py")


def test_settings_of_the_command_reach_every_row(tmp_path):
    path = ROOT / "experiments" / "study_real.py"
    study = load_study(path, {"data.source": str(tmp_path), "video.steps": "7"})
    assert {(c.experiment.data.source, c.experiment.video.steps) for c in study.cells()} == {(str(tmp_path), 7)}
    with pytest.raises(ConfigError, match="video.stepz"):
        load_study(path, {"video.stepz": "7"})


def test_a_part_of_a_study_is_named_by_rows_and_seeds():
    study = load_study(ROOT / "experiments" / "study_synthetic.py")
    names = lambda *part: [(cell.row.name, cell.seed) for cell in study.part(*part)]  # noqa: E731
    assert names() == [(cell.row.name, cell.seed) for cell in study.cells()]
    assert names(["baseline", "+ Motion-aware Objective"], ["3"]) == [(ROWS[0], 3), (ROWS[2], 3)]
    assert names((), ["1", "0"]) == [(row.name, seed) for seed in (0, 1) for row in study.rows]
    with pytest.raises(ConfigError, match="has no row 'mine': there are baseline, predictive-reconstruction, motion-"):
        study.part(["Mine"])
    with pytest.raises(ConfigError, match="has no seed '7': there are 0, 1, 2, 3, 4"):
        study.part((), ["7"])


def test_the_page_takes_no_flags_of_the_training(tmp_path, capsys):
    for flag in ("--rows=a", "--lpips=alexnet", "--config=x.py", "--config.video.steps=3"):
        assert study_command("--pages", f"--results={tmp_path}", flag) == 2
        assert f"leave out {flag.split('=')[0].split('.')[0]}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_trial_does_not_land_among_the_published_scores(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(
        cells, "run_study", lambda study, workdir, results, most, published, part: ran.append((results, part))
    )
    call = ["--config", str(ROOT / "experiments" / "study_real.py"), "--workdir", str(tmp_path)]
    call += [f"--config.data.source={tmp_path}", "--rows=baseline", "--seeds=0,2"]
    assert study_command(*call, "--config.video.steps=7") == 2
    assert f"add --results={tmp_path}/results" in capsys.readouterr().err and not ran
    assert study_command(*call, "--config.video.steps=7", f"--results={tmp_path}/results") == 0
    assert study_command(*call) == 0
    assert [results for results, _ in ran] == [tmp_path / "results" / "real", Path("docs/results/real")]
    assert [[(c.row.name, c.seed) for c in part] for _, part in ran] == 2 * [[(ROWS[0], 0), (ROWS[0], 2)]]


def test_the_study_of_the_guide_is_valid(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "studies.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.chdir(ROOT)
    study = load_study(tmp_path / "mine.py")
    (slug,) = re.findall(r"--config mine.py .*--rows=(\S+)", page)
    (cell,) = study.part([slug], ["0"])
    assert cell.experiment.video.drop_ratio == 0.5 and len(study.rows) == 3


# Worlds.


def test_families_of_a_world_may_be_chosen():
    settings = dict(frames=9, size=16, split="train", seed=1, clips=12)
    plain = open_source("synthetic", **settings)
    named = open_source("synthetic:bounce,orbit,fall,swing", **settings)
    mixed = open_source("synthetic:bounce,walk,fall,still", **settings)
    assert mixed.class_names == class_names("synthetic:bounce,walk,fall,still") == ("bounce", "walk", "fall", "still")
    for i in range(12):
        clips = [source[i] for source in (plain, named, mixed)]
        assert np.array_equal(clips[0]["video"], clips[1]["video"]) and clips[0]["label"] == i % 4
        assert np.array_equal(clips[0]["video"], clips[2]["video"]) == (i % 4 in (0, 2)), "the families that are shared"
    still = mixed[3]["video"]
    assert (still == still[:1]).all()
    paths = np.stack([mixed.scene(i).sprites[0].position for i in (1, 5, 9)])
    assert np.abs(np.diff(paths, axis=1)).max(axis=(1, 2)).min() > 0.02 and (paths > 0).all() and (paths < 1).all()
    steps = np.diff(np.stack([simulate(0, i, 9, 0, 1, ("walk",)).sprites[0].position for i in range(200)]), axis=1)
    ahead = np.mean(steps[:, 1:] * steps[:, :-1]) / np.mean(steps**2)
    assert abs(ahead) < 0.1, "no step tells the next"
    with pytest.raises(ValueError, match="families of motion are"):
        open_source("synthetic:jump", **settings)
    with pytest.raises(ConfigError, match="name each once"):
        Experiment(data=DataConfig(source="synthetic:walk,walk")).validate()


# What is trained.


def tuned_scores(cell, base):
    """What the fixture below scores of a row that tunes a decoder."""
    kept = (base.folder("diffusion") / "checkpoints" / "8").exists()
    return {"cell": cell.name, "base": base.workdir.name, "states": kept}


@pytest.fixture
def stages(monkeypatch):
    """Names of the stages that ran, `<folder>/<stage>`; each only leaves its result, and a score is the cell's name."""
    ran = []

    def run(run, stage):
        ran.append(f"{run.workdir.name.rsplit('-', 1)[0]}/{stage}")
        run.result(stage).parent.mkdir(parents=True, exist_ok=True)
        run.result(stage).write_text("{}")
        (run.folder(stage) / "checkpoints" / "8").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(cells, "train_stage", run)
    monkeypatch.setattr(cells, "measure_whole", lambda cell, r, published: {"cell": cell.name})
    monkeypatch.setattr(cells, "measure_decoder", lambda cell, r, base, published: tuned_scores(cell, base))
    return ran


def test_cells_share_stages_and_a_killed_study_goes_on(stages, tmp_path, monkeypatch):
    study = dataclasses.replace(tiny_study(), seeds=(0, 1)).validate()
    whole = ["video", "latents", "diffusion"]
    first, second, tuned = (row.slug for row in study.rows)
    of = lambda name, seed, names: [f"{name}-seed{seed}/{stage}" for stage in names]  # noqa: E731
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores", most=1)
    assert stages == of("image", 0, ["image"]) + of(first, 0, whole)

    train = cells.train_stage

    def failing(run, stage):
        if stage == "diffusion":
            stages.append("cut")
            raise KeyboardInterrupt
        train(run, stage)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells, "train_stage", failing)
        cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    assert stages[4:] == of(second, 0, whole[:2]) + ["cut"], "the image stage is shared"
    assert len(list((tmp_path / "scores").glob("*-seed*.json"))) == 1, "no scores of a cell that is not finished"

    cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    rest = of(second, 0, whole[2:]) + of(tuned, 0, ["decoder"]) + of("image", 1, ["image"])
    assert stages[7:] == rest + of(first, 1, whole) + of(second, 1, whole) + of(tuned, 1, ["decoder"])
    found = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "scores").glob("*-seed*.json")}
    assert set(found) == {cell.name for cell in study.cells()}
    tuned_cell = study.cell(study.rows[2], 1)
    base = study.cell(study.rows[1], 1).folder
    said = {"cell": tuned_cell.name, "base": base, "states": True}
    assert found[tuned_cell.name].pop("draws") == 2
    assert list(found[tuned_cell.name].pop("seconds")) == ["decoder"] and found[tuned_cell.name] == said
    assert not list((tmp_path / "runs").glob("*/diffusion/checkpoints")), "all are scored"

    done = len(stages)
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    assert len(stages) == done, "a finished study trains nothing"
    (tmp_path / "scores" / f"{tuned_cell.name}.json").unlink()
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    assert len(stages) == done, "lost scores are made again from the models"


def test_a_part_of_a_study_leaves_the_states_that_the_rest_scores(stages, tmp_path):
    """A row that tunes a decoder, run first, trains what it tunes and does not score it."""
    study, runs, scores = tiny_study(), tmp_path / "runs", tmp_path / "scores"
    _, second, tuned = study.cells()
    cells.run_study(study, runs, scores, part=study.part([tuned.row.slug]))
    assert {p.stem for p in scores.glob("*-seed*.json")} == {tuned.name}
    assert (cells.folder(second, runs) / "diffusion" / "checkpoints").exists()
    assert json.loads((scores / "study.json").read_text())["cells"] == [cell.name for cell in study.cells()]
    cells.run_study(study, runs, scores)
    assert not list(runs.glob("*/diffusion/checkpoints")) and len(stages) == len(set(stages))


def test_other_scores_need_no_other_training(stages, tmp_path):
    study = tiny_study()
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    done = len(stages)
    for changed in (dict(clips=2), dict(scores=1), dict(sampling_steps=2), dict(reference="train")):
        other = dataclasses.replace(study, **changed).validate()
        cells.run_study(other, tmp_path / "runs", tmp_path / "scores")
        assert not {c.name for c in other.cells()} & {c.name for c in study.cells()}
    assert len(stages) == done and len(list((tmp_path / "scores").glob("*-seed*.json"))) == 5 * len(study.rows)
    longer = dataclasses.replace(study.experiment, diffusion=dataclasses.replace(study.experiment.diffusion, steps=6))
    assert not {c.folder for c in dataclasses.replace(study, experiment=longer).cells()} & {
        c.folder for c in study.cells()
    }


def test_a_study_of_ends_leaves_the_states_that_another_scores(stages, tmp_path):
    study = tiny_study()
    *_, tuned = study.cells()
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores", most=2)
    cells.run_study(dataclasses.replace(study, scores=1), tmp_path / "runs", tmp_path / "ends")
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    assert json.loads((tmp_path / "scores" / f"{tuned.name}.json").read_text())["states"]


def test_processes_share_a_study(stages, tmp_path, capsys):
    """Each takes cells that no other has; the decoder's row waits for the one it tunes."""
    study, runs, scores = tiny_study(), tmp_path / "runs", tmp_path / "scores"
    first, second, tuned = study.cells()
    runs.mkdir()
    with locked(runs / f".{second.folder}.lock"):
        cells.run_study(study, runs, scores)
        assert {p.stem for p in scores.glob("*-seed*.json")} == {first.name}
        heard = capsys.readouterr().err
        assert all(f"another process trains {cell.name}" in heard for cell in (second, tuned))
    cells.run_study(study, runs, scores)
    assert {p.stem for p in scores.glob("*-seed*.json")} == {cell.name for cell in study.cells()}
    assert "another process" not in capsys.readouterr().err and len(stages) == len(set(stages))


def test_a_decoder_is_tuned_for_scores_whose_runs_are_gone(stages, tmp_path):
    study = tiny_study()
    _, second, tuned = study.cells()
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores", most=2)
    shutil.rmtree(tmp_path / "runs")
    del stages[:]
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    assert [name.split("/")[1] for name in stages] == ["image", "video", "latents", "diffusion", "decoder"]
    assert (tmp_path / "scores" / f"{tuned.name}.json").exists() and stages[1].startswith(second.row.slug)


def test_the_class_probe_reads_what_the_latents_hold(monkeypatch):
    """It is fitted to clips of the training split and scored on others; clips of one class have none."""
    rng, model = np.random.default_rng(0), SimpleNamespace(vae=None, vae_params=None)

    def latents(label: np.ndarray, strength: float) -> np.ndarray:
        means = rng.standard_normal((len(label), 3, 2, 2, 4)).astype(np.float32)
        means[np.arange(len(label)), 1, 0, 1, label] += strength
        return means

    def probed(strength: float) -> dict:
        train, test = np.arange(200) % 4, np.minimum(np.arange(120) % 5, 3)
        asked = []
        monkeypatch.setattr(measure, "_clips", lambda run, *which: asked.append(which) or (np.zeros((200, 1)), train))
        scored = SimpleNamespace(means=latents(train, strength))
        monkeypatch.setattr(measure, "score_reconstruction", lambda *_, **__: scored)
        found = measure._class_probe(None, model, 200, latents(test, strength), test)
        assert asked == [("train", 200)] and found["clips"] == 200
        return found

    assert probed(20.0)["accuracy"] == 1 and probed(0.0)["accuracy"] < 0.5
    assert probed(0.0)["chance"] == 0.2, "class 0 is the first of the commonest"
    one = np.zeros(8, int)
    assert measure._class_probe(None, model, 8, latents(one, 0.0), one) is None


def test_weights_that_cannot_score_are_told_before_training(stages, tmp_path):
    for published, says in (
        (measure.Published(i3d=tmp_path / "none.pt"), "none.pt"),
        (measure.Published(lpips=("alexnet", tmp_path / "none.pth", tmp_path)), "no weights file"),
        (measure.Published(lpips=seeded_lpips(tmp_path)), "at least 32 pixels, got data.size=16"),
    ):
        with pytest.raises((OSError, ConfigError), match=says):
            cells.run_study(tiny_study(), tmp_path / "runs", tmp_path / "scores", published=published)
    assert not stages and not (tmp_path / "scores").exists()


@pytest.mark.slow  # every stage and every measure has programs of its own to compile
def test_a_cell_is_trained_and_scored(tmp_path):
    """For real, two rows: one trains everything, the other the decoder alone."""
    study = tiny_study()
    data = dataclasses.replace(study.experiment.data, size=32)  # the least that LPIPS can see
    experiment = dataclasses.replace(study.experiment, data=data)
    study = dataclasses.replace(study, rows=study.rows[1:], experiment=experiment).validate()
    published = measure.Published(lpips=seeded_lpips(tmp_path))
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores", published=published)
    whole, tuned = (json.loads((tmp_path / "scores" / f"{c.name}.json").read_text()) for c in study.cells())
    assert set(whole["seconds"]) == {"image", "video", "latents", "diffusion"} and set(tuned["seconds"]) == {"decoder"}
    for cell, steps in ((whole, [2, 4]), (tuned, [2, 4])):
        for network in ("own", "random"):
            curve = cell["curve"][network]
            assert curve["step"] == steps and np.isfinite(curve["frechet"]).all() and len(curve["kernel"]) == len(steps)
            assert curve["frechet"][-1] == cell["generation"][network]["frechet"]
    assert whole["floor"] == tuned["floor"], "the same real clips"
    assert whole["latents"]["class_probe"]["clips"] == 8 and 0 <= whole["latents"]["class_probe"]["accuracy"] <= 1
    assert whole["latents"] == tuned["latents"] and whole["reconstruction"] != tuned["reconstruction"]
    looks = [c["reconstruction"].pop("perceptual") for c in (whole, tuned)]
    assert min(looks) > 0 and looks[0] != looks[1] and "features = lpips-alexnet" in whole["perceptual"]
    assert not list((tmp_path / "runs").glob("*/diffusion/checkpoints")), "states that are scored go"
    first, last = study.cells()
    (tmp_path / "scores" / f"{last.name}.json").unlink()
    cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    again = json.loads((tmp_path / "scores" / f"{last.name}.json").read_text())
    assert again["curve"]["own"]["step"] == [4] and again["generation"] == tuned["generation"], "what is left of it"
    (tmp_path / "scores" / f"{first.name}.json").unlink()
    with pytest.raises(ConfigError, match="remove that folder"):  # its states along training are gone
        cells.run_study(study, tmp_path / "runs", tmp_path / "scores")
    ends = dataclasses.replace(study, scores=1).validate()
    cells.run_study(ends, tmp_path / "runs", tmp_path / "scores")
    for cell, before in zip(ends.cells(), (whole, tuned), strict=True):
        end = json.loads((tmp_path / "scores" / f"{cell.name}.json").read_text())
        assert end["generation"] == before["generation"] and not end["seconds"], "the finished models are enough"


# What the scores say.


def test_steps_to_reach_is_the_running_minimum_over_the_logarithm():
    steps = [100, 200, 400, 800]
    assert steps_to_reach(steps, [8, 4, 2, 1], 8) == 100 == steps_to_reach(steps, [8, 4, 2, 1], 20)
    assert steps_to_reach(steps, [8, 4, 2, 1], 4) == pytest.approx(200)
    assert steps_to_reach(steps, [8, 4, 2, 1], 3) == pytest.approx(200 * 2**0.5)
    assert steps_to_reach(steps, [8, 4, 6, 2], 3) == pytest.approx(400 * 2**0.5), "a step back is no step forward"
    assert steps_to_reach(steps, [8, 4, 2, 1], 0.5) == float("inf")


def test_intervals_are_students():
    assert over_seeds([3.0]) == Estimate(3.0, 1) and over_seeds([3.0]).sign == 0
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3) == 2 - found.low
    assert found.sign == 0 and over_seeds([1.0, 1.1, 0.9]).sign == 1 and over_seeds([-1.0, -1.1, -0.9]).sign == -1
    rng = np.random.default_rng(0)
    draws = [over_seeds(list(rng.standard_normal(4))) for _ in range(2_000)]
    assert np.mean([e.low < 0 < e.high for e in draws]) == pytest.approx(0.95, abs=0.02)


def cell(row: str, seed: int, distances: list[float], error: float, width: float = 0.1) -> dict:
    """Scores of a cell with these distances along training."""
    curve = {"step": [100, 200, 400][-len(distances) :], "frechet": distances, "kernel": distances}
    last = distances[-1]
    interval = [last * (1 - width), last * (1 + width)]
    final = {"frechet": last, "kernel": last, "frechet_interval": interval, "kernel_interval": interval}
    return {
        "row": row,
        "seed": seed,
        "parameters": {"vae": 10, "transformer": 20},
        "clips": {"scored": 4, "latents": 8, "reference": "test"},
        "steps": {"video": 2, "diffusion": 400},
        "device": "cpu",
        "versions": {"jax": "1"},
        "seconds": {"video": 3.5},
        "generation": {"own": final},
        "curve": {"own": curve},
        "floor": {"own": {"frechet": 0.5, "kernel": 0.01}},
        "reconstruction": {"psnr": 30.0 + error, "ssim": 0.9, "frechet": {"own": 1.0 + error}},
        "prediction": {"predicted": [error, error], "copying": [0.5, 1.5], "extrapolation": [2.0, 2.0]},
        "latents": {"temporal_distance": 1.0, "curve": [0.5, 1.0], "std": 2.0},
    }


def store(folder: Path, found: list[dict], seeds=(0, 1, 2)) -> dict:
    """Write scores as a study leaves them; returns its plan."""
    plan = {"name": "made", "world": "numbers", "rows": [{"name": row} for row in ROWS], "seeds": list(seeds)}
    (folder / "made").mkdir(parents=True, exist_ok=True)
    write_json(folder / "made" / "study.json", plan)
    for c in found:
        write_json(folder / "made" / f"{ROWS.index(c['row'])}-{c['seed']}.json", c)
    return plan


def made() -> list[dict]:
    """Three seeds in which each row generates better than the one before, and the second reconstructs worse."""
    found = []
    for seed in (0, 1, 2):
        shift = 0.1 * seed
        found += [
            cell(ROWS[0], seed, [16 + shift, 8 + shift, 4 + shift], 0.9),
            cell(ROWS[1], seed, [8 + shift, 4 + shift, 3 + shift], 0.4 + 0.01 * seed),
            cell(ROWS[2], seed, [6 + shift, 3 + shift, 2 + shift], 0.3 + 0.01 * seed),
            cell(ROWS[3], seed, [1.5 + shift], 0.3 + 0.01 * seed),
        ]
    return found


def test_differences_are_taken_seed_by_seed(tmp_path):
    store(tmp_path, made())
    (study,) = read_results(tmp_path)
    assert study.rows == ROWS and study.seeds(ROWS[0]) == [0, 1, 2] and study.networks == ["own"]
    assert study.estimate(ROWS[0], "generation.own.frechet").mean == pytest.approx(4.1)
    difference = study.difference(ROWS[1], ROWS[0], "generation.own.frechet")
    assert difference.mean == pytest.approx(-1) and difference.high == pytest.approx(-1), "what seeds share cancels"
    assert study.estimate(ROWS[0], against("copying")).mean == pytest.approx(0.9)
    assert study.estimate(ROWS[0], "generation.i3d.frechet") is None
    (tmp_path / "made" / "1-2.json").unlink()
    (study,) = read_results(tmp_path)
    assert study.difference(ROWS[1], ROWS[0], "generation.own.frechet").count == 2


def test_differences_of_one_device_leave_the_others_out(tmp_path):
    found = made()
    found[4]["device"] = found[6]["device"] = "gpu"  # the baseline of seed 1, and the motion term's
    store(tmp_path, found)
    (study,) = read_results(tmp_path)
    count = lambda row, **only: study.difference(row, ROWS[0], "generation.own.frechet", **only).count  # noqa: E731
    assert count(ROWS[1]) == 3 and count(ROWS[1], one_device=True) == 2 and count(ROWS[2], one_device=True) == 3
    write_pages(tmp_path)
    less = (tmp_path / "made" / "README.md").read_text().split("## Each row less")[1].split("\n## ")[0]
    assert f"| {ROWS[1]}, both on one device: 2 of 3 seeds | -1 [-1, -1] |" in less
    assert f"{ROWS[2]}, both" not in less, "all of its seeds are"


def test_correlation_is_told_within_seeds_and_over_all(tmp_path):
    """Seeds that differ in both make a correlation that no seed has."""
    store(tmp_path, [])
    shape = {0: (0.0, 0.0), 1: (1.0, 2.0), 2: (2.0, 1.0)}  # falls within a seed: farther with less error
    for seed, (error, distance) in shape.items():
        for i, row in enumerate(ROWS[:3]):
            c = cell(row, seed, [8.0, 5.0, 3 + distance - 0.1 * i], 0.5 + error + 0.1 * i)
            write_json(tmp_path / "made" / f"{i}-{seed}.json", c)
    (study,) = read_results(tmp_path)
    found = prediction_correlation(study, "own", ROWS[:3])
    assert found.within == pytest.approx(-1) and found.pooled > 0 and (found.cells, found.seeds) == (9, 3)
    few = prediction_correlation(study, "own", ROWS[:2])
    assert np.isnan(few.within) and few.seeds == 0 and few.cells == 6
    plan = json.loads((tmp_path / "made" / "study.json").read_text())
    plan["rows"][0]["settings"] = {"video.drop_ratio": 0.0}
    write_json(tmp_path / "made" / "study.json", plan)
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "| all rows | own | -1.00 | 3 |" in text and "| rows that withhold frames | own | - | 0 |" in text


def test_reach_compares_with_the_end_of_the_baseline(tmp_path):
    store(tmp_path, made())
    (study,) = read_results(tmp_path)
    one, two, three = (reach(study, row, ROWS[0], "own") for row in ROWS[:3])
    assert one.seeds == [1, 1, 1] == pytest.approx([one.mean.mean, one.mean.low, one.mean.high])
    assert two.mean.mean == pytest.approx(0.5) and two.earliest == 0.25
    assert 0.25 < three.mean.mean < 0.5 and three.seeds[0] == pytest.approx(2 ** (2 / 3) / 4)
    assert reach(study, ROWS[3], ROWS[0], "own") is None, "its end alone is scored"
    apart = [c if c["row"] != ROWS[1] else cell(ROWS[1], c["seed"], shape(c["seed"]), 0.4) for c in made()]
    store(tmp_path, apart)
    (study,) = read_results(tmp_path)
    found = reach(study, ROWS[1], ROWS[0], "own")
    assert found.seeds == pytest.approx([0.25, 0.5, 1]) and found.mean.mean == pytest.approx(0.5)
    half = 4.303 * np.log(2) / 3**0.5
    assert (found.mean.low, found.mean.high) == pytest.approx((0.5 * np.exp(-half), 0.5 * np.exp(half)), rel=1e-3)
    never = [c if (c["row"], c["seed"]) != (ROWS[1], 2) else cell(ROWS[1], 2, [20.0, 10.0, 9.0], 0.4) for c in apart]
    store(tmp_path, never)
    (study,) = read_results(tmp_path)
    found = reach(study, ROWS[1], ROWS[0], "own")
    assert found.seeds == [pytest.approx(0.25), pytest.approx(0.5), float("inf")] and found.mean is None
    write_pages(tmp_path)
    page = (tmp_path / "made" / "README.md").read_text()
    assert f"| {ROWS[1]} | Frechet, own | 2 of 3 seeds | 2 of 3 seeds | 25 %, 50 %, not reached |" in page


def shape(seed: int) -> list[float]:
    """A curve that gets to the baseline's end of `made` at the first, second or third score."""
    end = 4 + 0.1 * seed
    return [end if step >= seed else 30.0 - step for step in range(3)]


def test_reach_tells_an_early_dip_from_what_stays(tmp_path):
    dip = [c if c["row"] != ROWS[1] else cell(ROWS[1], c["seed"], [4.0, 16.0, 2.0], 0.4) for c in made()]
    store(tmp_path, dip)
    (study,) = read_results(tmp_path)
    first, last = (reach(study, ROWS[1], ROWS[0], "own", stays=stays) for stays in (False, True))
    assert first.seeds == [0.25] * 3 and first.mean.mean == pytest.approx(0.25)
    assert last.seeds[0] == pytest.approx(2 ** (12 / 14) / 2) and 0.5 < last.mean.mean < 1
    assert reach(study, ROWS[0], ROWS[0], "own", stays=True).seeds == [1, 1, 1]


def test_cells_scored_at_other_steps_share_a_chart(tmp_path):
    """A cell that was interrupted, and one of which the end alone is left."""
    found = made()
    found[0]["curve"]["own"] = {"step": [200, 400], "frechet": [8.0, 4.0], "kernel": [8.0, 4.0]}
    found[4] = cell(ROWS[0], 1, [4.1], 0.9)
    store(tmp_path, found)
    (study,) = read_results(tmp_path)
    steps, values = curves(study, ROWS[0], "own")
    assert steps == [200, 400] and values == pytest.approx(np.array([[8, 4], [8.2, 4.2]]))
    assert curves(study, ROWS[3], "own")[0] == [400]
    found[0]["curve"]["own"]["step"] = [150, 400]
    store(tmp_path, found)
    (study,) = read_results(tmp_path)
    steps, values = curves(study, ROWS[0], "own")
    assert steps == [150, 200, 400] and values[1] == pytest.approx([16.2 + np.log2(1.5) * -8, 8.2, 4.2])
    assert len(reach(study, ROWS[0], ROWS[0], "own").seeds) == 2
    write_pages(tmp_path)


def test_the_page_of_ends_shows_no_curves(tmp_path):
    ends = [cell(c["row"], c["seed"], c["curve"]["own"]["frechet"][-1:], 0.5) | {"seconds": {}} for c in made()]
    store(tmp_path, ends)
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "Along training" not in text and "training-own" not in text and "Seconds a stage" not in text
    assert not list(tmp_path.glob("made/training-*"))
    store(tmp_path, made())
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "Along training" in text and "Seconds a stage" in text and list(tmp_path.glob("made/training-*"))


def test_the_page_tells_the_decoders_steps_where_a_row_tunes_one(tmp_path):
    plan = store(tmp_path, [c | {"steps": c["steps"] | {"decoder": 7}} for c in made()])
    write_pages(tmp_path)
    assert "decoder 7" not in (tmp_path / "made" / "README.md").read_text()
    plan["rows"][-1]["decoder_of"] = ROWS[2]
    write_json(tmp_path / "made" / "study.json", plan)
    write_pages(tmp_path)
    assert "decoder 7" in (tmp_path / "made" / "README.md").read_text()


def test_the_page_says_what_the_scores_say(tmp_path):
    store(tmp_path, made())
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "12 of 12 planned" in text and "| + Predictive Reconstruction | Frechet, own | 50 % [50 %, 50 %] |" in text
    step = "| Baseline → + Predictive Reconstruction |"
    assert f"{step} Frechet, own | gFVD -18.48 | -1 [-1, -1] | agrees, interval excludes 0 |" in text
    assert f"{step} PSNR | PSNR -1.97 | -0.49 [-0.515, -0.465] | agrees, interval excludes 0 |" in text
    assert f"{step} rFrechet, own | rFVD +2.63 | -0.49 [-0.515, -0.465] | **disagrees**, interval excludes 0 |" in text
    assert "| 15 % |" not in text and "174.8" in text
    for picture in re.findall(r"\]\((.*?\.svg)\)", text):
        svg = (tmp_path / "made" / picture).read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg") and "nan" not in svg
    first = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_pages(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == first, "twice the same"
    assert "## Rows that the paper" not in text
    (tmp_path / "made" / "notes.md").write_text("A remark.\n")
    write_pages(tmp_path)
    assert "## Remarks\n\nA remark.\n" in (tmp_path / "made" / "README.md").read_text()


def test_rows_that_no_table_has_stand_beside_what_they_are_compared_with(tmp_path):
    other = {"name": "Infilling", "settings": {"video.drop_pattern": "infill"}, "compared_with": ROWS[1]}
    found = [c for c in made() if c["row"] in ROWS[:2]]
    plan = store(tmp_path, found)
    plan["rows"] = [{"name": ROWS[0]}, {"name": ROWS[1]}, other, other | {"name": "Not run"}]
    write_json(tmp_path / "made" / "study.json", plan)
    for seed in (0, 1):
        distances = [8 + 0.1 * seed, 4 + 0.1 * seed, 2.5 + 0.1 * seed]
        write_json(tmp_path / "made" / f"infill-{seed}.json", cell("Infilling", seed, distances, 0.2 + 0.01 * seed))
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    table = text.split("## Rows that the paper does not have")[1].split("\n## ")[0]
    assert "| Infilling | `video.drop_pattern=infill` | 2 | 2.55 " in table and f"| {ROWS[1]} |  | 3 | 3.1 " in table
    assert f"| {ROWS[1]} → Infilling | Frechet, own | -0.5 [-0.5, -0.5] | excludes 0 |" in table
    assert f"| {ROWS[1]} → Infilling | prediction error | -0.2 " in table
    assert "Not run" not in table and ROWS[0] not in table
    paper = text.split(f"## {TABLES[0]['title']}")[1].split("\n## ")[0]
    assert ROWS[1] in paper and ROWS[2] not in paper, "a row of the table that is not planned"


def test_a_study_without_rows_of_the_paper_makes_a_page(tmp_path):
    plan = store(tmp_path, [])
    write_json(tmp_path / "made" / "study.json", plan | {"rows": [{"name": "a"}, {"name": "b"}]})
    for row in "ab":
        write_json(tmp_path / "made" / f"{row}.json", cell(row, 0, [4.0, 3.0, 2.0 if row == "b" else 2.5], 0.3))
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "## Table" not in text and "| a → b | Frechet, own | -0.5 | one seed |" in text
    assert "| a → a |" not in text and "| a |  | 1 | 2.5 " in text


def test_a_score_that_older_cells_lack_is_not_measured(tmp_path):
    found = made()
    for c in found:
        if c["row"] == ROWS[1] or (c["row"], c["seed"]) == (ROWS[2], 0):
            c["latents"]["class_probe"] = {"accuracy": 0.75, "chance": 0.25, "clips": 4}
    store(tmp_path, found)
    write_pages(tmp_path)
    latents = (tmp_path / "made" / "README.md").read_text().split("## Latents")[1]
    assert f"| {ROWS[0]} | 1 [1, 1] | 2 [2, 2] | not measured | not measured |" in latents
    assert f"| {ROWS[1]} | 1 [1, 1] | 2 [2, 2] | 0.75 [0.75, 0.75] | 0.25 [0.25, 0.25] |" in latents
    assert f"| {ROWS[2]} | 1 [1, 1] | 2 [2, 2] | 0.75 (1 of 3 seeds) | 0.25 (1 of 3 seeds) |" in latents


def test_a_perceptual_distance_has_columns_where_every_cell_has_it(tmp_path):
    found = made()
    for c in found:
        c["perceptual"], c["reconstruction"]["perceptual"] = "LPIPS (AlexNet)", 0.25 + 0.5 * (c["row"] == ROWS[1])
    store(tmp_path, found)
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert text.count("| PSNR | SSIM | LPIPS (AlexNet) |") == 2, "the rows, and each less the first"
    assert re.search(rf"^\| {re.escape(ROWS[1])} \|.*\| 0.9 \[0.9, 0.9\] \| 0.75 \[0.75, 0.75\] \|", text, re.MULTILINE)
    assert re.search(rf"^\| {re.escape(ROWS[1])} \|.*\| \+0.5 \[0.5, 0.5\] \|", text, re.MULTILINE), "less the first"
    write_json(tmp_path / "made" / "0-0.json", found[0] | {"perceptual": "LPIPS (VGG)"})
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "LPIPS" not in text and "which is left out; 12 of 12 have one" in text


def test_a_part_of_a_study_makes_a_page_that_says_so(tmp_path):
    store(tmp_path, [c for c in made() if c["seed"] == 0 and c["row"] in ROWS[:2]])
    write_pages(tmp_path)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "2 of 12 planned" in text and "agrees, one seed" in text
    assert "| + Motion-aware Objective | 0 | - |" in text
    assert "3 [2.7, 3.3] clips" in text, "one seed: the interval over clips"


def test_damaged_and_doubled_scores_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no scores"):
        write_pages(tmp_path)
    store(tmp_path, made())
    stale = copy.deepcopy(made()[0])
    write_json(tmp_path / "made" / "stale.json", stale)
    with pytest.raises(ConfigError, match="second cell .* too old to say which"):
        read_results(tmp_path)
    write_json(tmp_path / "made" / "stale.json", stale | {"row": "Other"})
    with pytest.raises(ConfigError, match="does not have"):
        read_results(tmp_path)
    plan = json.loads((tmp_path / "made" / "study.json").read_text())
    names = [p.stem for p in (tmp_path / "made").glob("?-?.json")]
    write_json(tmp_path / "made" / "study.json", plan | {"cells": names})
    write_json(tmp_path / "made" / "stale.json", stale)
    with pytest.raises(ConfigError, match="stale.json was made with other settings.* of this row and seed is none"):
        read_results(tmp_path)
    write_json(tmp_path / "made" / "study.json", plan | {"cells": [*names, "stale-seed0-11111111"]})
    (tmp_path / "made" / "stale.json").rename(tmp_path / "made" / "stale-seed0-00000000.json")
    with pytest.raises(ConfigError, match="is stale-seed0-11111111: remove stale-seed0-00000000.json, or start"):
        read_results(tmp_path)
    (tmp_path / "made" / "stale-seed0-00000000.json").rename(tmp_path / "made" / "stale.json")
    (tmp_path / "made" / "stale.json").write_text('{"row": ')
    with pytest.raises(ConfigError, match="damaged"):
        read_results(tmp_path)


def drawn(path: Path) -> tuple[list[str], list[float]]:
    """Words and coordinates of a chart; the rest of the file is matplotlib's, whose versions may differ."""
    svg = path.read_text()
    words = re.findall(r'(?:aria-label="|<text[^>]*>)([^"<]*)', svg)
    return words, [float(number) for d in re.findall(r' d="([^"]*)"', svg) for number in re.findall(r"[-\d.]+", d)]


def test_the_pages_in_the_repository_are_those_of_the_stored_scores(tmp_path):
    stored = ROOT / "docs" / "results"
    shutil.copytree(stored, tmp_path / "results", ignore=shutil.ignore_patterns("*.svg", "README.md"))
    written = write_pages(tmp_path / "results")
    assert len(written) > 8
    for made in written:
        page = stored / made.relative_to(tmp_path / "results")
        assert made.read_text() == page.read_text(), "run python -m studies.ablation --pages"
        for part in page.read_text().split("Signs, each row less the one before")[1:]:
            summary, table = part.split("\n##")[0].split("| step |")
            for sign, said in (("agrees", "as in the paper"), ("**disagrees**", "against it")):
                verdicts = [line.split(" | ")[-1] for line in table.splitlines() if f"| {sign}, " in line]
                told = re.findall(rf"(\d+) \((\d+) significantly\) {said}", summary)
                assert sum(int(n) for n, _ in told) == len(verdicts)
                assert sum(int(n) for _, n in told) == sum("excludes 0" in verdict for verdict in verdicts)
    for picture in sorted(stored.rglob("*.svg")):
        again, kept = (drawn(folder / picture.relative_to(stored)) for folder in (tmp_path / "results", stored))
        assert again[0] == kept[0] and again[1] == pytest.approx(kept[1], abs=0.5), picture
    for notes in stored.rglob("notes.md"):
        assert not re.search(r"\d", notes.read_text()), "numbers come from the scores"

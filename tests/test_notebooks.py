"""The notebooks run from top to bottom on a CPU, and what is kept of their outputs is whole."""

import dataclasses
import glob
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import pv_vae_jax
from pv_vae_jax.report.figures import png
from pv_vae_jax.report.notebook import Figure, show_clips, show_curves, show_pictures
from pv_vae_jax.train import stages
from pv_vae_jax.train.configs import Experiment, Objective, VAEStageConfig
from pv_vae_jax.typing import ConfigError
from pv_vae_jax.versions import versions

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The others take more than their share of `make test`.
FAST = ("reconstruct_and_predict",)
sys.path.insert(0, str(ROOT / "notebooks"))


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


# Execution.


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=() if p.stem in FAST else pytest.mark.slow) for p in NOTEBOOKS],
)
def test_a_notebook_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[test]'")
    # As a reader would meet it: one device, this clone's package, and a kernel that knows nothing of these tests.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ["PV_VAE_CACHE"])
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    before = path.read_bytes()
    # A process of its own: what a client of Jupyter leaves behind must not meet other tests.
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), f"--into={tmp_path}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before
    kept = [cell for cell in cells(path) if shown(cell)]
    new = [cell for cell in cells(tmp_path / path.name) if shown(cell)]
    assert [shown(cell) for cell in new] == [shown(cell) for cell in kept], "make notebooks keeps the new outputs"


def shown(cell: dict) -> list[str]:
    """Kinds of output of a cell, progress left out."""
    outputs = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    return [sorted(o["data"])[0] if "data" in o else o["output_type"] for o in outputs]


# What is kept.


def test_there_are_six_and_together_they_are_small():
    assert len(NOTEBOOKS) == 6 and set(FAST) < {path.stem for path in NOTEBOOKS}
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 2e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_kept_whole(path):
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {o["output_type"] for o in outputs} <= {"stream", "execute_result", "display_data"}
    assert "stderr" not in {o.get("name") for o in outputs}
    assert any("image/png" in o.get("data", {}) for o in outputs), "there is something to see"
    for output in outputs:
        words = text(output.get("text", "")) + text(output.get("data", {}).get("text/plain", ""))
        # Folders of the machine that ran it: the home, the clone, the temporary folder.
        assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work|Users|private|var|content|opt)\b", words), words
        assert "Warning" not in words and "Error" not in words, words


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_ends_with_something_to_look_at(path):
    *_, last = cells(path)
    kinds = {kind for output in last["outputs"] for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}, kinds


def test_cells_say_how_long_they_took_where_they_were_timed():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e '.[test]'")
    from run import time_cells

    def timed(source: str, seconds: float):
        at = {"iopub.execute_input": "2026-01-01T10:00:00.0+00:00"}
        at["shell.execute_reply"] = f"2026-01-01T10:00:{seconds:04.1f}+00:00"
        return nbformat.v4.new_code_cell(source, metadata={"execution": at})

    lines = ("set up", "quick", "# 9 s on a toaster\nslow", "# 3 s on a laptop\n# 9 s on a toaster\nslow")
    code = [timed(source, seconds) for source, seconds in zip(lines, (50, 0.4, 12.4, 59.9), strict=True)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), *code])
    time_cells(notebook, "a toaster")
    assert [cell.source for cell in notebook.cells] == [
        *("text", "set up", "quick", "# 12 s on a toaster\nslow"),
        "# 60 s on a toaster\n# 3 s on a laptop\nslow",
    ]


@pytest.mark.parametrize("length, frames", [(40, 17), (28, 13)])
def test_the_first_notebook_takes_a_video_of_the_reader(length, frames, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    from pv_vae_jax.data.synthetic import SyntheticVideos
    from pv_vae_jax.data.video_writing import write_video

    write_video(tmp_path / "mine.mp4", SyntheticVideos(clips=1, frames=length, size=64)[0]["video"][:, :, :48])
    (code,) = (
        text(cell["source"])
        for cell in cells(ROOT / "notebooks" / "reconstruct_and_predict.ipynb")
        if "VIDEO = " in text(cell["source"])
    )
    names = {"FRAMES": 17}
    exec(code.replace('VIDEO = ""', f"VIDEO = {str(tmp_path / 'mine.mp4')!r}"), names)
    assert names["video"].shape == (1, frames, 64, 64, 3) and names["FRAMES"] == frames
    assert names["NAME"] == "small-real"


def test_setup_is_the_same_everywhere_and_installs_where_the_package_is_missing():
    setups = {text(cells(path)[0]["source"]) for path in NOTEBOOKS}
    assert len(setups) == 1
    (setup,) = setups
    for path in NOTEBOOKS:
        second = text(cells(path)[1]["source"])
        assert "jax.devices()" in second and '"tpu":' in second and "__version__" in second, path.name
    calls: list[str] = []
    code = re.sub(r'^( *)%pip install --quiet "(.*)"$', r"\1pip(f'''\2''')", setup, flags=re.MULTILINE)
    assert "%" not in code
    wheel = ["pv_vae_jax-0.1.0-py3-none-any.whl"]
    for devices, tool, clone, wheels in (
        (["/dev/accel0"], None, True, wheel),
        ([], "nvidia-smi", False, []),
        ([], None, False, wheel),
    ):
        found = {"/dev/accel*": devices, "pv_vae_jax-*.whl": wheels}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            patch.setattr(glob, "glob", lambda pattern, found=found: found.get(pattern, []))
            patch.setattr(shutil, "which", lambda name, tool=tool: tool)
            patch.setattr(os.path, "exists", lambda name, clone=clone: clone)
            exec(code, {"pip": calls.append})
    assert calls == [
        "..[video,tpu]",
        "pv_vae_jax[video,cuda12]",
        "pv_vae_jax-0.1.0-py3-none-any.whl[video]",
    ]
    calls.clear()
    exec(code, {"pip": calls.append})  # the package is here
    assert not calls


def test_setup_restarts_a_runtime_whose_jax_is_older_than_the_installed(capsys, monkeypatch):
    code = re.sub("%pip install .*", "pass", text(cells(NOTEBOOKS[0])[0]["source"]))
    restarts: list[bool] = []
    kernel = types.SimpleNamespace(do_shutdown=lambda restart: restarts.append(restart))
    run = lambda: exec(code, {"get_ipython": lambda: types.SimpleNamespace(kernel=kernel)})  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run()
    assert not restarts and not capsys.readouterr().out, "what is in memory is what is installed"
    # Colab of August 2026.
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(__version__="0.7.2"))
    run()
    assert restarts == [True] and "this runtime holds an older jax: run all cells once more" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_of_notebooks_lead_somewhere(path):
    prose = "\n".join(text(cell["source"]) for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    for file in re.findall(r"`((?:docs|experiments|launch)/\S+?)`", prose):
        assert (ROOT / file).exists(), file


# What notebooks show things with.


def test_clips_play_and_borders_tell_what_was_seen():
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install -e '.[video]'")
    clips = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), np.uint8)
    figure = show_clips(clips, clips, seen=(None, 3), side=8, fps=10)
    opened = image.open(io.BytesIO(figure._repr_mimebundle_()["image/png"]))
    assert opened.n_frames == 5 and opened.info["duration"] == 100 and opened.info["loop"] == 0
    for t in range(5):
        opened.seek(t)
        picture = np.asarray(opened.convert("RGB"))
        assert picture.shape == (28, 28, 3)
        np.testing.assert_array_equal(picture[3:11, 3:11], clips[0, t])
        np.testing.assert_array_equal(picture[17:25, 17:25], clips[1, t])
        assert len(set(picture[0, :14].ravel())) <= 3 and tuple(picture[0, 0]) != tuple(picture[0, 14])
        blue, orange = (38, 110, 214), (242, 125, 12)
        assert tuple(picture[0, 14]) == (blue if t < 3 else orange)


def test_still_pictures_are_plain_png():
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install -e '.[video]'")
    pictures = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    opened = image.open(io.BytesIO(show_pictures(pictures, pictures[:, ::4, ::4], side=16).data))
    assert opened.size == (3 * 16 + 2 * 4, 2 * 16 + 4) and getattr(opened, "n_frames", 1) == 1
    shown = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(shown[:16:2, 20:36:2], pictures[1])
    np.testing.assert_array_equal(shown[20::8, :16:8], pictures[0, ::4, ::4])
    assert b"acTL" not in png(pictures[:1])


def test_curves_are_drawn_for_each_run_and_term():
    rows = [{"step": i, "loss": 1 / i, "kl": 2.0} for i in range(1, 50)]
    figure = show_curves("a < b", rows, "loss", "kl", log=True)
    drawing = figure._repr_mimebundle_()["image/svg+xml"]
    root = ElementTree.fromstring(drawing)  # a file of its own: well-formed, nothing loaded
    assert (
        len(set(re.findall(r"stroke: var\(--c(\d+)", drawing))) == 2
        and "a &lt; b" in drawing
        and drawing.count("http") == 1
    )  # its own namespace
    assert root.attrib["aria-label"].endswith("kl ends at 2")
    two = show_curves("loss", {"well": rows, "unwell": rows[:9]}, "loss").data.decode()
    assert "unwell 0.111" in two and ">well 0.0204" in two
    with pytest.raises(ValueError, match="no values"):
        show_curves("t", rows, "gan")


def test_figures_say_what_they_cannot_show(tmp_path):
    clips = np.zeros((1, 2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="to_uint8"):
        show_clips(clips.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(n, t, h, w, 3\) of one shape"):
        show_clips(clips, clips[:, :1])
    with pytest.raises(ValueError, match="as many pictures"):
        show_pictures(clips[0], clips[0, :1])
    figure = show_pictures(clips[0])
    figure.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == figure.data and isinstance(figure, Figure)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and "bytes" in repr(figure)


# What notebooks train with.


def test_train_goes_through_the_stages_that_have_steps(monkeypatch, tmp_path):
    experiment = Experiment(image=VAEStageConfig(images=True, steps=1), video=VAEStageConfig(steps=1))
    began = []

    def finish(run, stage, perceptual, features):
        assert perceptual is None and features is None
        began.append(stage)
        run.result(stage).parent.mkdir(parents=True)
        run.result(stage).touch()

    monkeypatch.setattr(stages, "train_stage", finish)
    run = stages.train(experiment, tmp_path / "run", ["image"])
    assert began == ["image"] and run.finished("image") and not run.finished("video")
    stages.train(experiment, tmp_path / "run")
    assert began == ["image", "video"], "finished stages are left alone, those without steps left out"
    with pytest.raises(ConfigError, match="stages must be among image, video.* got 'vidoe'"):
        stages.train(experiment, tmp_path / "run", ["vidoe"])
    with pytest.raises(ConfigError, match="seed"):
        stages.train(dataclasses.replace(experiment, seed=-1), tmp_path / "other")
    perceptual = dataclasses.replace(experiment.video, objective=Objective(perceptual=1.0))
    with pytest.raises(ConfigError, match="video.objective.perceptual needs a network"):
        stages.train(dataclasses.replace(experiment, video=perceptual), tmp_path / "third")


def test_the_version_is_that_of_the_distribution():
    assert re.fullmatch(r"\d+\.\d+\.\d+", pv_vae_jax.__version__)
    assert f'version="{pv_vae_jax.__version__}"' in (ROOT / "setup.py").read_text()


def test_records_can_be_made_from_a_clone_that_is_not_installed():
    found = versions(("pv_vae_jax_elsewhere", "numpy"))
    assert found == {"pv_vae_jax_elsewhere": "not installed", "numpy": np.__version__}

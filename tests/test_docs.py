"""What the documents say is so: their commands parse, their programs run, their errors are the real ones."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import math
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from pv_vae_jax.cli.main import COMMANDS, main
from pv_vae_jax.train.config_files import load_experiment, override, parse_overrides
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.typing import ShapeError
from studies.ablation.plan import load_study

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "launch"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def lines_of(script: str) -> list[str]:
    """Commands of a shell block: continued lines joined, comments gone."""
    joined = re.sub(r"\\\n\s*", "", script)
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()) if line]


COMMAND_LINES = [
    pytest.param(line, id=f"{page.name}: {line[:60]}")
    for page in PAGES
    for block in blocks(page, "sh")
    for line in lines_of(block)
]
# Commands of this repository beside `pv-vae`, run with `python -m`.
LAB = (
    "studies",
    "studies.ablation",
    "studies.probes",
    "studies.features",
    "studies.motion",
    "studies.arena",
    "benchmarks",
)
# Commands within a sentence; words in capitals stand for something.
SENTENCE = r"`(pv-vae [a-z]+ -[^`]*|python -m (?:studies|benchmarks)[.a-z]* -[^`]*|python launch [^`]*)`"
INLINE = sorted({code for page in PAGES for code in re.findall(SENTENCE, page.read_text())})


# Commands.


def check_make(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def check_command(words: list[str], complete: bool = True) -> None:
    """The command's own parser takes the flags, and the configuration the overrides."""
    import importlib

    name, *rest = words
    assert name in COMMANDS or name in LAB, name
    module = importlib.import_module(f"{name}.__main__" if name in LAB else f"pv_vae_jax.cli.{name}")
    values = flags.FlagValues()
    values.set_gnu_getopt()
    module.define_flags(values)
    rest, overrides = parse_overrides(rest)
    if complete:
        values([name, *rest])
    else:  # a fragment need not have the required flags
        known = {f"--{flag}" for flag in values} | {f"--no{flag}" for flag in values}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known
    overrides = {key: value for key, value in overrides.items() if not (value.isupper() or "FOLDER" in value)}
    if name == "convert":
        from pv_vae_jax.models.vae import VAEConfig

        override(VAEConfig.wan22(), overrides)
    elif name == "benchmarks":
        from benchmarks.__main__ import find_bench

        if overrides:
            override(find_bench(rest[0]).Settings(), overrides)
    elif name == "studies.features":
        from pv_vae_jax.train.config_files import run_config
        from studies.features.training import FeatureTraining

        given = values.config if complete else None
        override(run_config(ROOT / given, FeatureTraining) if given else FeatureTraining(), overrides)
    elif name == "studies.ablation":
        if complete and values.config:
            load_study(ROOT / values.config)
    elif complete and "config" in values and not values.config.isupper():  # FILE stands for one
        load_experiment(ROOT / values.config if "/" in values.config else values.config, overrides)
    else:
        override(Experiment(), overrides)


def check_launch(words: list[str]) -> None:
    """Launchers are run, dry; what they hand on must be flags of `pv-vae train`."""
    import importlib

    backend, argv = ("local", words[1:]) if words[0] == "launch/local.py" else (words[1], words[2:])
    module, experiments = importlib.import_module(backend), []

    def parse(*arguments, **least):
        found = original(*arguments, **least)
        experiments.append(found[0])
        return found

    original, module.parse = module.parse, parse
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert module.main([*argv, *([] if "--dry-run" in argv else ["--dry-run"])]) == 0
    finally:
        module.parse = original
    assert "--workdir" in out.getvalue()
    for run in experiments[0].runs():
        check_command(list(run.arguments[2:]))
        check_batches(run.arguments, devices(words))


def devices(words: list[str]) -> int:
    """How many a launch command asks for, as far as its words say."""
    said = {word: int(n) for word, n in itertools.pairwise(words) if word.startswith("--") and n.isdigit()}
    each = said.get("--gpus-per-node", 8 if "--gpu" in words else said.get("--cpu-devices", said.get("--gpus", 1)))
    count = each * said.get("--nodes", 1) * said.get("--processes", 1)
    for flag, word in itertools.pairwise(words):
        if flag == "--topology":
            count = math.prod(map(int, word.split("x")))
        elif flag in ("--tpu", "--device-type") and (chips := re.search(r"-(\d+)$", word)):
            count = int(chips.group(1))
        elif flag == "--vertex":
            count = int(word.split("=")[1])
    return count


def check_batches(arguments, count: int) -> None:
    """The run would not end on its devices with a batch that they cannot split."""
    (config,) = (value for flag, value in itertools.pairwise(arguments) if flag == "--config")
    experiment = load_experiment(ROOT / config, parse_overrides([a for a in arguments if a.startswith("--config.")])[1])
    for stage in ("image", "video", "decoder"):
        assert getattr(experiment, stage).batch_size % count == 0, f"{config} on {count} devices"


def check_pip(words: list[str]) -> None:
    import ast

    tree = ast.parse((ROOT / "setup.py").read_text())
    (extras,) = (
        {key.value for key in node.value.keys}
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXTRAS"
    )
    assert words[0] == "install"
    for extra in re.findall(r"(?:\.|pv_vae_jax)\[([\w,]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= extras | {"dev"}, extra


def check_files(words: list[str]) -> None:
    """Of tools that are not ours, the files that they are given."""
    for word in words:
        if re.fullmatch(r"(launch|docs|tests|benchmarks|experiments)/\S+", word):
            assert (ROOT / word).exists(), word


def check(line: str) -> None:
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables
        words.pop(0)
    program, *rest = words
    if program == "make":
        check_make(rest)
    elif program == "pv-vae":
        check_command(rest)
    elif program == "pip":
        check_pip(rest)
    elif program == "python" and rest[0] == "-m" and rest[1] in LAB:
        if rest[1] != "studies":  # lists them
            check_command(rest[1:])
    elif program == "python" and rest[0] in ("launch", "launch/local.py"):
        check_launch(rest)
    else:
        known = program in ("docker", "pre-commit", "mkdocs", "git", "cd", "tensorboard", "xprof")
        known |= program == "python" and "/" in rest[0]
        assert known, f"this test does not know how to check {line!r}"
        check_files(rest)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_of_the_documents_would_run(line):
    check(line)


@pytest.mark.parametrize("code", INLINE)
def test_commands_within_sentences_have_flags_that_exist(code):
    words = shlex.split(code)
    if words[0] == "pv-vae":
        check_command(words[1:], complete=False)
    elif words[1] == "-m":
        check_command(words[2:], complete=False)
    elif not re.search(r"\b[A-Z]{3,}\b", code) and "--config" in code:
        check_launch(words[1:])
    else:
        assert words[2] in ("BACKEND", "local", "local.py") or (ROOT / "launch" / f"{words[2]}.py").exists()


def test_wrong_commands_are_noticed():
    """The checks above can fail."""
    for line in (
        "make dmo",
        "pv-vae trian --config experiments/demo.py --workdir w",
        "pv-vae train --config experiments/demo.py --workdri w",
        "pv-vae train --config experiments/demo.py --workdir w --config.video.step=3",
        "pv-vae convert a b --config.encoder_width=8",
        "pip install '.[vidoe]'",
        "python launch local --config c --workdir w --sweep seed=1",
        "python launch local --config experiments/demo.py --workdir w --parallell 3",
        "python launch slurm --config experiments/demo.py --workdir w --config.video.step=3",
        "python launch slurm --config experiments/demo.py --workdir /w --nodes 2 --gpus-per-node 8 --time 1:00:00",
        "docker build --file launch/Dockerfile.tpu",
        "wget x",
    ):
        with pytest.raises((Exception, SystemExit)):  # each check has an error of its own
            check(line)
    assert len(COMMAND_LINES) > 25 and len(INLINE) >= 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_flags(name):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["pv-vae", name, "--help"]) == 0
    assert f"pv-vae {name}" in out.getvalue() and "--" in out.getvalue()


# The commands run. Their experiment is replaced by one of the same name that takes seconds, their files by small ones.

# What is added to a command that begins like this, to keep it short.
SHORTER = {
    "pv-vae sample": "--steps=2",
    "pv-vae evaluate --real": "--clips=8 --nointervals",
    "pv-vae analyze": "--clips=4 --frames=5 --size=16",
    "pv-vae prepare": "--min_frames=5",
    "python docs/model_table.py": "--clips=4",
    "python docs/moving_picture.py": "--side=32",
    "python -m studies.probes": "--clips=8 --test_clips=4 --steps=2",
    "pv-vae inspect --config experiments/demo.py --stage video --config.mesh": "--config.video.batch_size=8",
}
# Not run here, and why.
ELSEWHERE = {
    "pv-vae convert": "tests/test_convert.py runs them, on narrow networks",
    "pv-vae publish": "tests/test_hub.py publishes, to an endpoint of its own",
    "python -m studies.features": "training a feature network takes hours, and tests/test_protocol.py measures",
    "--topology": "needs libtpu: tests/test_topology.py",
    "gs://": "tests/test_storage_gcs.py trains, reads and writes there",
    "experiments/paper_": "needs accelerators; checked at full size above",
    "experiments/wan22_": "tests/test_wan_predictive.py runs them, on narrow networks",
    "runs/light": "tests/test_wan_predictive.py trains a light decoder",
    "--coordinator": "tests/test_processes.py runs several processes",
    "runs/muon": "demo at other rates: nothing that the others do not run",
    "runs/adamw": "the same",
    "runs/paper": "needs the paper's run",
    "images/unwell": "of runs with other settings, drawn as the curves of the demo are",
    "runs/gan": "the settings of a run that is unwell",
    "runs/blocks": "tests/test_steps.py trains every pattern",
    "runs/aligned": "tests/test_regularisers.py trains with these terms",
    "runs/small": "the demo at another size",
    "runs/large": "the same",
    "python -m benchmarks": "tests/test_bench.py runs them at their smallest",
    "python -m studies.ablation": "tests/test_study.py trains a cell",
    "--features=i3d": "needs I3D's weights: tests/test_features.py computes it with random ones",
    "python -m studies.arena": "tests/test_arena.py takes every step",
    "runs/demo --stage": "tests/test_cli.py tunes a decoder beside diffusion",
    "--config.evaluation": "tests/test_watching.py trains with it",
    "--profile": "the same",
}


RUN = ("data", "evaluation", "fvd", "recipes", "scaling", "tutorial")  # pages of docs/ whose commands run here


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with everything that the documents' commands name, and the demo trained."""
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    from pv_vae_jax.data.synthetic import SyntheticVideos
    from pv_vae_jax.data.video_writing import write_video
    from tests.test_cli import TINY_EXPERIMENT

    place = tmp_path_factory.mktemp("workplace")
    world = SyntheticVideos(clips=16, frames=25, size=32)
    videos = np.stack([world[i]["video"] for i in range(16)])
    (place / "experiments").mkdir()
    (place / "experiments" / "demo.py").write_text(TINY_EXPERIMENT)
    write_video(place / "clip.mp4", SyntheticVideos(clips=1, frames=33, size=32)[0]["video"], fps=8)
    for name in ("clips", "folder", "generated"):
        for i, video in enumerate(videos):
            path = place / name / world.class_names[i % 2] / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, video, fps=24)
    np.savez(place / "samples.npz", video=videos[:, :17])
    np.save(place / "in.npy", videos[:, :17])
    np.save(place / "out.npy", videos[:, 1:18])
    np.savez(place / "theirs.npz", mean=np.random.default_rng(0).normal(size=(8, 5, 4, 4, 8)))
    (place / "docs" / "images").mkdir(parents=True)
    with contextlib.chdir(place):
        run_command("pv-vae train --config experiments/demo.py --workdir runs/demo")
    for name in "ab":
        shutil.copytree(place / "runs" / "demo" / "video" / "model", place / "models" / name)
    for name in ("a", "b", "other"):
        shutil.copytree(place / "runs" / "demo", place / "runs" / name)
    return place


def run_command(line: str) -> str:
    """A documented command, shortened, in this process; what it prints."""
    shorter = [more for start, more in SHORTER.items() if line.startswith(start)]
    line = line.replace("--config=demo ", "--config=experiments/demo.py ")  # the small one
    words = shlex.split(f"{line} {shorter[-1]}" if shorter else line)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        if words[0] == "pv-vae":
            assert main(words) == 0, f"{line}\n{err.getvalue()}"
        else:
            runpy.run_path(str(ROOT / words[1]), {"sys": sys}, "documents")["main"](words[2:])
    return out.getvalue()


def executable(page: str) -> list[str]:
    lines = [line for block in blocks(ROOT / page, "sh") for line in lines_of(block)]
    ours = [line for line in lines if line.startswith(("pv-vae ", "python docs/"))]
    return [line for line in ours if not any(mark in line for mark in ELSEWHERE)]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in RUN)])
def test_the_commands_of_a_page_run(page, workplace, tmp_path, monkeypatch):
    lines = executable(page)
    assert lines
    place = tmp_path / "place"
    shutil.copytree(workplace, place)
    if page == "docs/data.md":  # trains the demo on other clips
        shutil.rmtree(place / "runs")
    monkeypatch.chdir(place)
    for line in lines:
        run_command(line)
    left = {
        "README.md": [
            "out/clip_reconstruction.mp4",
            "out/clip_prediction.mp4",
            "out/samples_orbit.mp4",
            "moving.webp",
        ],
        "docs/data.md": ["runs/demo/report/report.html"],
        "docs/evaluation.md": ["analysis", "comparison.html"],
        "docs/fvd.md": ["s.json"],
        "docs/recipes.md": ["docs/images/recipe_kl.svg", "runs/well/report/report.html"],
        "docs/scaling.md": [],
        "docs/tutorial.md": ["runs/mine/report/report.html", "out/clip_prediction.mp4", "out/samples.npz"],
    }[page]
    assert all((place / name).exists() for name in left), left
    if page == "docs/tutorial.md":  # and its program, with the model that the commands trained
        names = program(page, place, monkeypatch)
        assert names["drawn"].shape == names["shown"].shape == names["video"].shape == (1, 17, 32, 32, 3)
        assert names["clips"].shape[0] == 1 and names["clips"].dtype == np.uint8


def test_every_command_of_ours_is_run_or_says_where():
    pages = [str(page.relative_to(ROOT)) for page in PAGES]
    run = {page for page in pages if executable(page)}
    assert run == {"README.md", *(f"docs/{name}.md" for name in RUN)}
    for reason in ELSEWHERE.values():
        for file in re.findall(r"tests/\w+\.py", reason):
            assert (ROOT / file).exists(), file
    lines = [str(param.values[0]) for param in COMMAND_LINES]
    assert all(any(mark in line for line in lines) for mark in ELSEWHERE), "what no page names any more"
    assert all(any(line.startswith(start) for line in lines) for start in SHORTER)


# Programs.


def program(page: str, tmp_path: Path, monkeypatch, without: str = "") -> dict:
    """The page's Python blocks, run in order in an empty folder; the names they leave.

    Sections whose headings match `without` are left out: they stand alone, but for the page's first block.
    """
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "documents"}
    for section in re.split(r"^## ", (ROOT / page).read_text(), flags=re.MULTILINE):
        if not (without and re.match(without, section)):
            for block in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
                exec(compile(block, page, "exec"), names)
    return names


IMPORTING = "A model as a pytree", "Flax NNX", "A mesh of your own", "Weights for PyTorch", "A clip from"


def test_the_importing_page_has_the_sections_that_are_tested():
    sections = re.findall(r"^## (.*)", (ROOT / "docs/importing.md").read_text(), re.MULTILINE)
    assert len(sections) == len(IMPORTING) and all(any(s.startswith(i) for s in sections) for i in IMPORTING)


def test_the_method_in_plain_optax(tmp_path, monkeypatch):
    from pv_vae_jax import load

    names = program("docs/plain_jax.md", tmp_path, monkeypatch)
    for losses in (names["vae_losses"], names["latte_losses"]):
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert names["clips"].shape == (2, *names["video"].shape[1:]) and np.isfinite(names["clips"]).all()
    np.testing.assert_allclose(names["data"].std((0, 1, 2, 3)), 1, rtol=1e-3)
    again = load(tmp_path / "mine")
    assert again.diffusion.latent_shape == names["data"].shape[1:]
    np.testing.assert_allclose(again.encode(names["video"]), names["latents"], atol=1e-5)


def test_modules_as_pytrees(tmp_path, monkeypatch):
    names = program("docs/importing.md", tmp_path, monkeypatch, without="|".join(IMPORTING[1:]))
    slopes = jax.eval_shape(jax.grad(names["loss"]), names["one"])
    assert jax.tree.structure(slopes) == jax.tree.structure(names["one"])
    np.testing.assert_allclose(names["ensemble"][0], names["latents"], atol=1e-5)
    assert float(jnp.abs(names["ensemble"][1] - names["latents"]).max()) > 1e-4
    assert names["drawn"].shape == names["video"].shape and names["half"].vae.config.dtype == "bfloat16"


def test_flax_nnx_and_a_foreign_mesh(tmp_path, monkeypatch):
    from flax import nnx

    names = program("docs/importing.md", tmp_path, monkeypatch, without="|".join((IMPORTING[0], *IMPORTING[3:])))
    video, params = names["video"], names["params"]
    # NNX holds the parameters that were put in, and gives what Linen gives.
    np.testing.assert_allclose(names["value"], jnp.mean(jnp.square(names["whole"] - video)), rtol=1e-5)
    held = nnx.to_pure_dict(nnx.state(names["codec"], nnx.Param))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(held), jax.tree.leaves(params), strict=True))
    norms = [float(jnp.abs(g).sum()) for g in jax.tree.leaves(names["gradients"])]
    assert np.isfinite(norms).all() and sum(n > 0 for n in norms) > 10
    # A foreign mesh: really split, equal numbers.
    kernels = [p for p in jax.tree.leaves(names["sharded_params"]) if not p.sharding.is_fully_replicated]
    assert len(kernels) > 4 and len(names["sharded"].sharding.device_set) == jax.device_count()
    np.testing.assert_allclose(names["sharded"], names["whole"], atol=1e-5)


def test_a_clip_from_a_file_is_coded_and_scored(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    from pv_vae_jax.data.synthetic import SyntheticVideos
    from pv_vae_jax.data.video_writing import write_video

    video = SyntheticVideos(clips=1, frames=20, size=32)[0]["video"]
    write_video(tmp_path / "clip.mp4", np.pad(video, ((0, 0), (0, 0), (0, 6), (0, 0)), mode="edge"))
    names = program("docs/importing.md", tmp_path, monkeypatch, without="|".join(IMPORTING[:4]))
    assert names["clips"].shape == names["shown"].shape == (2, 9, 32, 32, 3) and names["codes"].shape[:2] == (2, 3)
    assert names["scores"]["psnr"] > 20 and 0 < names["scores"]["ssim"] < 1 and names["scores"]["frechet"] > 0


def test_exported_weights_work_in_pytorch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[benchmark]'")
    from safetensors.torch import load_file

    from pv_vae_jax.layers.conv import causal_conv3d

    without = "|".join((*IMPORTING[:3], IMPORTING[4]))
    params = program("docs/importing.md", tmp_path, monkeypatch, without=without)["params"]
    tensors = load_file(tmp_path / "vae.safetensors")
    weight, bias = tensors["decoder.stem.kernel"], tensors["decoder.stem.bias"]
    kernel = params["decoder"]["stem"]["kernel"]
    assert kernel.shape[:3] == (3, 3, 3) and weight.shape[2:] == (3, 3, 3)
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6, kernel.shape[3])).astype(np.float32)
    ours = causal_conv3d(jnp.asarray(x), kernel, params["decoder"]["stem"]["bias"])
    padded = torch.nn.functional.pad(torch.from_numpy(np.moveaxis(x, -1, 1)), (1, 1, 1, 1, 2, 0))
    theirs = torch.nn.functional.conv3d(padded, weight, bias)
    np.testing.assert_allclose(np.moveaxis(theirs.numpy(), 1, -1), ours, atol=1e-5)


def test_the_models_of_the_contributing_page_work(tmp_path, monkeypatch):
    names = program("CONTRIBUTING.md", tmp_path, monkeypatch)
    from pv_vae_jax.data.pipeline import train_batches
    from pv_vae_jax.model import Model, load, save
    from pv_vae_jax.models.registry import KINDS
    from pv_vae_jax.pixels import to_float
    from pv_vae_jax.predictive import predict_filled, predict_truncated

    # The dataset feeds the pipeline, and repeats itself.
    source = names["MovingBars"](clips=6, frames=5, size=16)
    draw = lambda: next(train_batches(source, batch_size=4, seed=3, start_step=2))  # noqa: E731
    batch = draw()
    assert batch["video"].shape == (4, 5, 16, 16, 3) and batch["video"].dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(draw()), strict=True))
    assert batch["video"].min() == 0 and batch["video"].max() == 255
    # The model predicts, the same in both forms, and a gradient reaches its pad.
    video = jnp.asarray(to_float(batch["video"]))
    model = names["LinearVAE"](names["LinearConfig"]())
    params = jax.jit(model.init)(jax.random.key(0), video)["params"]
    forms = [
        jax.jit(lambda p: predict_truncated(model, p, video, 2, None).latents)(params),
        jax.jit(lambda p: predict_filled(model, p, video, jnp.asarray(2), None).latents)(params),
    ]
    np.testing.assert_allclose(*forms, atol=1e-6)
    slope = jax.grad(lambda p: jnp.square(predict_truncated(model, p, video, 2, None).latents).sum())(params)
    assert float(jnp.abs(slope["pad"]["token"]).min()) > 0
    with pytest.raises(ShapeError, match="not a multiple of 4"):
        model.apply({"params": params}, video[:, :, :15], method="encode")
    with pytest.raises(ValueError, match="add it to models/registry.py"):
        save(tmp_path, Model(model, params))
    monkeypatch.setitem(KINDS, "linear", (names["LinearConfig"], names["LinearVAE"]))
    save(tmp_path, Model(model, params))
    assert load(tmp_path).vae == model
    # The metric knows still from moving.
    still = np.full((2, 5, 16, 16, 3), 7, np.uint8)
    moving = still + np.arange(5, dtype=np.uint8)[:, None, None, None] * 3
    assert names["flicker"](still, still + 9) == 0 and names["flicker"](still, moving) == pytest.approx(3)
    assert names["reconstruction_flicker"](model, params, batch["video"]) > 0


def test_the_loss_term_of_the_contributing_page_is_trained_and_logged(tmp_path):
    (patch,) = blocks(ROOT / "CONTRIBUTING.md", "diff")
    (tmp_path / "pv_vae_jax").mkdir()
    path = shutil.copy(ROOT / "pv_vae_jax" / "losses.py", tmp_path / "pv_vae_jax")
    subprocess.run(["git", "apply", "-p1"], input=patch, text=True, cwd=tmp_path, check=True, timeout=60)
    spec = importlib.util.spec_from_file_location("losses_with_a_term", path)
    sys.modules[spec.name] = losses = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(losses)
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 1, 3, 4, 4, 3)).astype(np.float32)
    before, terms = losses.pixel_terms(losses.Objective(), *clips)
    assert "edges" not in terms  # off: nothing is computed
    after, terms = losses.pixel_terms(losses.Objective(edges=0.5), *clips)
    assert float(after) == pytest.approx(float(before + 0.5 * terms["edges"])) and terms["edges"] > 0


def test_the_reading_order_is_short():
    """The files that hold the method, which docs/reading.md leads through."""
    files = re.findall(r"^\| \d \| `([\w/]+\.py)`", (ROOT / "docs" / "reading.md").read_text(), re.MULTILINE)
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    for file, first, after in (
        ("losses.py", "def local_correlation", "def generator_hinge"),
        ("flow.py", "def shift_time", "def interpolate"),
    ):
        text = (ROOT / "pv_vae_jax" / file).read_text()
        lines -= len(text[text.index(first) : text.index(after)].splitlines())
    assert len(files) == 7 and lines <= 1_100


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_programs_name_what_the_package_has(page):
    """Blocks that need files of others are not run; what they import is there."""
    import importlib

    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        for module, names in re.findall(r"^from (pv_vae_jax[\w.]*) import ([\w, ]+)$", block, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{page.name}: {module}.{name}"


# Reference.


def test_the_reference_is_made_of_the_code():
    for name, make in REFERENCE["PAGES"].items():
        assert make() == (ROOT / "docs" / name).read_text(), "run python docs/reference.py"


def test_every_config_of_an_experiment_is_in_the_reference():
    def classes(cls: type) -> set[type]:
        hints = typing.get_type_hints(cls)
        found = [c for hint in hints.values() for c in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(c)]
        return {cls}.union(*map(classes, found))

    assert classes(Experiment) == set(REFERENCE["SECTIONS"])


def test_what_lacks_a_description_is_named():
    @dataclasses.dataclass(frozen=True)
    class Half:
        """Half described.

        Attributes:
          a, b: two of them,
            on two lines.
        """

        a: int = 1
        b: float = 2.0
        c: str = ""

    assert REFERENCE["described"](Half) == dict.fromkeys("ab", "two of them, on two lines.")
    with pytest.raises(SystemExit, match="Half.c has no description: add it under Attributes"):
        REFERENCE["section"](Half, "half")

    class Silent:
        """A command."""

        @staticmethod
        def define_flags(values):
            flags.DEFINE_string("quiet", None, "", flag_values=values)

    with pytest.raises(SystemExit, match="pv-vae silent --quiet has no help"):
        REFERENCE["command"]("pv-vae silent", Silent)


# Links.

LINKED = [*PAGES, *sorted((ROOT / "docs" / "results").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and mkdocs make them."""
    headings = re.findall(
        r"^#+ (.*)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_pages_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if page.is_relative_to(docs := ROOT / "docs"):  # the site is built of that folder, without most of its code
            assert path.is_relative_to(docs) and (path.suffix != ".py" or path.name == "arena_entry.py"), target
        assert not anchor or anchor in anchors(path), f"{page.name}: {target} has no heading #{anchor}"


def test_every_page_is_on_the_front_page_of_the_documents():
    """A reader finds each from docs/index.md; pages of single studies from docs/results.md."""
    for front, pages in (("index.md", "*.md"), ("results.md", "results/**/*.md")):
        text = (ROOT / "docs" / front).read_text()
        for page in (ROOT / "docs").glob(pages):
            path = page.relative_to(ROOT / "docs").as_posix()
            assert (
                path == "index.md"
                or f"({path})" in text
                or page.with_name("study.json").exists()
                and page.name == "notes.md"
            ), path

"""What the documents say is so: their commands parse, their programs run, their errors are the real ones."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from pv_vae_jax.cli.main import COMMANDS, main
from pv_vae_jax.config import Experiment, load_experiment, override, parse_overrides
from pv_vae_jax.typing import ShapeError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "launch"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


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
# Commands within a sentence; words in capitals stand for something.
INLINE = sorted(
    {code for page in PAGES for code in re.findall(r"`(pv-vae [a-z]+ -[^`]*|python launch [^`]*)`", page.read_text())}
)


# Commands.


def check_make(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def check_pv_vae(words: list[str], complete: bool = True) -> None:
    """The command's own parser takes the flags, and the configuration the overrides."""
    import importlib

    name, *rest = words
    assert name in COMMANDS, name
    module = importlib.import_module(f"pv_vae_jax.cli.{name}")
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
        from pv_vae_jax.models.sizes import SIZES

        override(SIZES["wan22"], overrides)
    elif name == "features":
        from pv_vae_jax.config import run_config
        from pv_vae_jax.evaluation.feature_training import FeatureTraining

        given = values.config if complete else None
        override(run_config(ROOT / given, FeatureTraining) if given else FeatureTraining(), overrides)
    elif complete and "config" in values and not values.config.isupper():  # FILE stands for one
        load_experiment(ROOT / values.config, overrides)
    else:
        override(Experiment(), overrides)


def check_launch(words: list[str]) -> None:
    """Launchers are run, dry; what they hand on must be flags of `pv-vae train`."""
    import importlib

    backend, argv = ("local", words[1:]) if words[0] == "launch/local.py" else (words[1], words[2:])
    module, experiments = importlib.import_module(backend), []

    def parse(*arguments):
        found = original(*arguments)
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
        check_pv_vae(list(run.arguments[2:]))


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
        check_pv_vae(rest)
    elif program == "pip":
        check_pip(rest)
    elif program == "python" and rest[0] in ("launch", "launch/local.py"):
        check_launch(rest)
    else:
        known = program in ("docker", "pre-commit", "mkdocs", "git", "cd") or (program == "python" and "/" in rest[0])
        assert known, f"this test does not know how to check {line!r}"
        check_files(rest)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_of_the_documents_would_run(line):
    check(line)


@pytest.mark.parametrize("code", INLINE)
def test_commands_within_sentences_have_flags_that_exist(code):
    words = shlex.split(code)
    if words[0] == "pv-vae":
        check_pv_vae(words[1:], complete=False)
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


IMPORTING = "Plain JAX", "A module as a pytree", "Flax NNX", "A mesh of your own", "Weights for PyTorch"


def test_the_importing_page_has_the_sections_that_are_tested():
    sections = re.findall(r"^## (.*)", (ROOT / "docs/importing.md").read_text(), re.MULTILINE)
    assert len(sections) == len(IMPORTING) and all(any(s.startswith(i) for s in sections) for i in IMPORTING)


def test_plain_jax_and_modules_as_pytrees(tmp_path, monkeypatch):
    names = program("docs/importing.md", tmp_path, monkeypatch, without="|".join(IMPORTING[2:]))
    assert names["losses"][-1] < names["losses"][0]
    slopes = jax.eval_shape(jax.grad(names["loss"]), names["one"])
    assert jax.tree.structure(slopes) == jax.tree.structure(names["one"])
    np.testing.assert_allclose(names["ensemble"][0], names["latents"], atol=1e-5)
    assert float(jnp.abs(names["ensemble"][1] - names["latents"]).max()) > 1e-4


def test_flax_nnx_and_a_foreign_mesh(tmp_path, monkeypatch):
    from flax import nnx

    names = program("docs/importing.md", tmp_path, monkeypatch, without="|".join(IMPORTING[:2]))
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


def test_exported_weights_work_in_pytorch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[benchmark]'")
    from safetensors.torch import load_file

    from pv_vae_jax.layers.conv import causal_conv3d

    params = program("docs/importing.md", tmp_path, monkeypatch, without="|".join(IMPORTING[:4]))["params"]
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
    from pv_vae_jax.pixels import to_float
    from pv_vae_jax.predictive import predict_filled, predict_truncated

    # The dataset feeds the pipeline, and repeats itself.
    source = names["MovingBars"](clips=6, frames=5, size=16)
    draw = lambda: next(train_batches(source, batch_size=4, seed=3, max_dropped=2, start_step=2))  # noqa: E731
    batch = draw()
    assert batch["video"].shape == (4, 5, 16, 16, 3) and batch["video"].dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(draw()), strict=True))
    assert batch["video"].min() == 0 and batch["video"].max() == 255
    assert source.image(0, np.random.default_rng(0))["video"].shape == (1, 16, 16, 3)
    # The model predicts, the same in both forms, and a gradient reaches its pad.
    video = jnp.asarray(to_float(batch["video"]))
    model = names["LinearVAE"](names["LinearConfig"]())
    params = jax.jit(model.init)(jax.random.key(0), video)["params"]
    forms = [
        jax.jit(lambda p: predict_truncated(model, p, video, 2, None).features)(params),
        jax.jit(lambda p: predict_filled(model, p, video, jnp.asarray(2), None).features)(params),
    ]
    np.testing.assert_allclose(*forms, atol=1e-6)
    slope = jax.grad(lambda p: jnp.square(predict_truncated(model, p, video, 2, None).features).sum())(params)
    assert float(jnp.abs(slope["pad"]["token"]).min()) > 0
    with pytest.raises(ShapeError, match="not a multiple of 4"):
        model.apply({"params": params}, video[:, :, :15], method="encode")
    # The metric knows still from moving.
    still = np.full((2, 5, 16, 16, 3), 7, np.uint8)
    moving = still + np.arange(5, dtype=np.uint8)[:, None, None, None] * 3
    assert names["flicker"](still, still + 9) == 0 and names["flicker"](still, moving) == pytest.approx(3)
    assert names["reconstruction_flicker"](model, params, batch["video"]) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_programs_name_what_the_package_has(page):
    """Blocks that need files of others are not run; what they import is there."""
    import importlib

    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        for module, names in re.findall(r"^from (pv_vae_jax[\w.]*) import ([\w, ]+)$", block, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{page.name}: {module}.{name}"

"""The package is typed for those who use it: names are exported, and pyright finds nothing in the public API."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYRIGHT = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")

# What a checker sees must be what it should: each line with the type that pyright must reveal.
PROGRAM = """
import jax

from pv_vae_jax import VAE, Latte, LatteConfig, VAEConfig, euler, load, to_float, to_uint8
from pv_vae_jax.data import read_video
from pv_vae_jax.report.notebook import show_clips
from pv_vae_jax.train.stages import train

model = VAE(VAEConfig(latent_channels=16))
tiny = load("tiny-synthetic")
video = jax.numpy.zeros((1, 5, 32, 32, 3))
latents = tiny.vae.apply({"params": tiny.vae_params}, video, method="encode").mode
reveal_type(model.config.latent_frames(17))  # int
reveal_type(tiny.predict(video, 1))  # Array
reveal_type(tiny.encode(video))  # Array
reveal_type(read_video("a.mp4"))  # ndarray
reveal_type(to_uint8(video))  # Array
reveal_type(Latte(LatteConfig(depth=2)).config.depth)  # int
"""
WRONG = """
from pv_vae_jax import VAEConfig, load

VAEConfig(latent_channel=16)
load(3)
"""


def check(*arguments: str) -> subprocess.CompletedProcess:
    command = [str(PYRIGHT), "--pythonpath", sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed: pip install -e '.[types]'")
def test_pyright_finds_nothing():
    done = check()
    assert done.returncode == 0 and "0 errors, 0 warnings" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed: pip install -e '.[types]'")
def test_a_program_of_a_user_is_checked(tmp_path):
    (tmp_path / "good.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    good, wrong = (check(str(tmp_path / name)) for name in ("good.py", "wrong.py"))
    assert good.returncode == 0, good.stdout
    assert re.findall(r'is "(\w+)', good.stdout) == re.findall(r"# (\w+)$", PROGRAM, re.MULTILINE)
    assert wrong.returncode == 1 and "2 errors" in wrong.stdout, wrong.stdout


def lists() -> dict[str, list[str]]:
    """The lists of names that packages export: package -> modules that the names come from."""
    found = {}
    for file in sorted((ROOT / "pv_vae_jax").rglob("__init__.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                package = ".".join(file.parent.relative_to(ROOT).parts)
                found[package] = [import_.module for import_ in node.body for _ in import_.names]
    return found


@pytest.mark.parametrize("package", lists())
def test_names_are_exported_to_type_checkers(package):
    """In a typed package, an import counts as exported if `__all__`, a literal, names it."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (names,) = (
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
    )
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = [alias.name for node in block.body for alias in node.names]
    assert names == sorted(imported) == module.__all__ and set(names) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_every_package_that_others_import_has_a_list():
    rooms = ("layers", "models", "data", "sharding", "evaluation", "report", "convert")
    assert {"pv_vae_jax", *(f"pv_vae_jax.{room}" for room in rooms)} <= set(lists())


def test_every_file_of_the_package_is_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    assert settings["include"] == ["pv_vae_jax"] and not {"ignore", "exclude"} & set(settings)

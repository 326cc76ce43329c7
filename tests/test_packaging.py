"""What an installation holds: version, licence, modules, weights, entry point; and what the Makefile promises."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ["demo", "demo_long", "demo_transformer", "paper_latte", "paper_vae", "small_real"]


def setup_py(*arguments: str) -> str:
    pytest.importorskip("setuptools", reason="setuptools is not installed: pip install -e '.[test]'")
    # setuptools announces deprecations of running setup.py; what it prints is all that counts here.
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def keyword(name: str) -> ast.expr:
    """Value of a keyword of the `setup(...)` call, unevaluated."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup":
            return next(k.value for k in node.keywords if k.arg == name)
    raise AssertionError("setup.py calls setup()")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The files a wheel would carry, built outside the source tree."""
    folder = tmp_path_factory.mktemp("build")
    setup_py("build_py", "--build-lib", str(folder))
    return folder


def test_metadata_has_one_place():
    name, version, licence = setup_py("--name", "--version", "--license").split()
    assert (name, licence) == ("pv_vae_jax", "Apache-2.0")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert "[project]" not in (ROOT / "pyproject.toml").read_text()
    assert ast.literal_eval(keyword("python_requires")) == ">=3.11"


def test_wheel_holds_the_package_and_nothing_else(built):
    assert [p.name for p in built.iterdir()] == ["pv_vae_jax"]
    modules = {p.relative_to(ROOT) for p in (ROOT / "pv_vae_jax").rglob("*.py")}
    shipped = {Path("pv_vae_jax", "experiments", f"{name}.py") for name in SHIPPED}
    assert {p.relative_to(built) for p in built.rglob("*.py")} == modules | shipped


def test_an_installed_package_finds_its_experiments_by_name(built, tmp_path):
    """Elsewhere than in the clone. What needs `studies/` is not shipped, and not offered either."""
    code = (
        "import pv_vae_jax\nfrom pv_vae_jax.train import load_experiment\n"
        f"assert pv_vae_jax.__file__.startswith({str(built)!r})\n"
        f"print(*(load_experiment(name).name for name in {SHIPPED!r}))\n"
        "load_experiment('study_synthetic')"
    )
    env = {**os.environ, "PYTHONPATH": str(built)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [name.replace("_", "-") for name in SHIPPED], done.stderr
    assert f"unknown experiment 'study_synthetic': shipped are {', '.join(SHIPPED)};" in done.stderr


def test_wheel_holds_the_weights(built):
    weights = {p.relative_to(ROOT) for p in (ROOT / "pv_vae_jax" / "weights").rglob("*") if p.is_file()}
    data = {p for p in weights if p.suffix in (".safetensors", ".json")}
    assert {p.relative_to(built) for p in built.rglob("*") if p.suffix in (".safetensors", ".json")} >= data
    # Data only: a pickle or a script among the weights would run code of others on load.
    assert not {p for p in weights - data if p.suffix not in (".py", ".md", ".pyc")}
    assert sum((ROOT / p).stat().st_size for p in data) < 18e6  # 10 of small-real, 6 of tiny-synthetic


def test_wheel_says_that_it_is_typed(built):
    assert (built / "pv_vae_jax" / "py.typed").exists()


def test_wheel_has_tables_and_templates(built):
    for name in ("report/paper.json", "report/templates/page.html", "convert/wan.json", "evaluation/networks/i3d.json"):
        assert (built / "pv_vae_jax" / name).read_text() == (ROOT / "pv_vae_jax" / name).read_text()


def test_entry_point_exists():
    (script,) = ast.literal_eval(keyword("entry_points"))["console_scripts"]
    command, target = re.fullmatch(r"(\S+) = (\S+)", script).groups()
    module, _, function = target.partition(":")
    assert command == "pv-vae"
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
    assert function in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def test_licence_is_complete():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:2] == ["Apache", "License"] and "END OF TERMS AND CONDITIONS" in text
    assert [f"   {n}. " in text for n in range(1, 10)] == [True] * 9


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "exec make test"
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("arguments", "config", "source", "workdir"),
    [
        (["demo"], "demo", None, "runs/demo"),
        (["demo", "DATA=some/clips"], "demo", "some/clips", "runs/demo-clips"),
        (["demo", "DATA=/x/my clips/"], "demo", "/x/my clips/", "runs/demo-my clips"),
        (["demo", "WORKDIR=elsewhere"], "demo", None, "elsewhere"),
        (["demo-long", "DATA=b"], "demo_long", "b", "runs/demo-long-b"),
    ],
)
def test_make_demo_names_data_and_work_directory(arguments, config, source, workdir):
    """Different data go to different work directories; the command is the documented one."""
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "WORKDIR", "DATA", "ARGS")}
    out = subprocess.run(["make", "-n", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    command = next(line for line in out.stdout.splitlines() if "pv-vae" in line)
    assert f'train --config experiments/{config}.py --workdir "{workdir}"' in command
    assert (f'--config.data.source="{source}"' in command) if source else ("data.source" not in command)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_what_to_do_about_an_old_python(tmp_path):
    """A Python below 3.11 is refused before anything is installed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).touch()
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.8.2; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "test", f"PYTHON={old}"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert out.returncode and "Python 3.8.2" in out.stderr and "PYTHON=" in out.stderr
    assert not (tmp_path / ".venv").exists()

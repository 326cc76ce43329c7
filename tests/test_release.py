"""What a release carries besides the code: changelog, citation, hooks, a documentation site, a light import."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pv_vae_jax

ROOT = Path(__file__).resolve().parents[1]
SETUP = ast.parse((ROOT / "setup.py").read_text())


def setup_value(name: str) -> str:
    """A keyword of `setup(...)`, which is a literal."""
    return next(ast.literal_eval(n.value) for n in ast.walk(SETUP) if isinstance(n, ast.keyword) and n.arg == name)


def test_the_changelog_has_this_version_and_the_next():
    headings = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" and headings[1] == setup_value("version")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(citation) and all(set(author) == {"name"} for author in citation["authors"])
    assert citation["version"] == setup_value("version") and citation["license"] == setup_value("license")
    assert citation["preferred-citation"]["url"].endswith("2605.02134")


def test_the_hooks_are_those_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    *repository["hooks"], types = repository["hooks"]
    assert types["entry"] == "make types" and "\ntypes: " in (ROOT / "Makefile").read_text()
    wanted = re.findall(
        r"ruff (check|format)", re.search(r"^lint:.*\n(\t.*\n)+", (ROOT / "Makefile").read_text(), re.M)[0]
    )
    assert [hook["entry"].split()[:2] for hook in repository["hooks"]] == [["ruff", verb] for verb in wanted]
    written = {node.value for node in ast.walk(SETUP) if isinstance(node, ast.Constant)}
    for hook in repository["hooks"]:
        assert set(hook["additional_dependencies"]) <= written  # the bound of the extra `test`


def test_the_reference_names_everything_public():
    page = (ROOT / "docs" / "api.md").read_text()
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    assert set(pv_vae_jax.__all__) <= shown


def leaves(entries: list[dict]) -> list[str]:
    """Pages of a navigation, at any depth."""
    values = [value for entry in entries for value in entry.values()]
    return [page for value in values for page in (leaves(value) if isinstance(value, list) else [value])]


def test_the_site_has_every_page():
    class Loader(yaml.SafeLoader):
        """mkdocs.yml may hold tags of its own."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    docs = ROOT / "docs"
    pages = [*docs.glob("*.md"), *docs.glob("results/*.md"), *docs.glob("results/*/README.md")]
    assert sorted(leaves(config["nav"])) == sorted(path.relative_to(docs).as_posix() for path in pages)


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "WARNING -" not in done.stderr, done.stderr
    page = (tmp_path / "api.html").read_text()
    assert "predict_truncated" in page and "see <code>heads</code>" in page  # entries of several names, docs/pairs.py
    assert [path.name for path in tmp_path.rglob("*.py")] == ["arena_entry.py"], "what a page links to"


def test_importing_costs_little_more_than_jax_and_flax():
    """Every public name: measured 0.02 s of processor time above `import jax, flax.linen`; 0.3 s is the promise."""
    code = (
        "import time, jax, flax.linen\n"
        "began = time.process_time()\n"
        "import pv_vae_jax\n"
        "for name in pv_vae_jax.__all__: getattr(pv_vae_jax, name)\n"
        "print(time.process_time() - began)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    spent: list[float] = []
    while len(spent) < 5 and min(spent, default=1.0) >= 0.3:  # what runs beside it may take its caches
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
        spent.append(float(done.stdout))
    assert min(spent) < 0.3, spent

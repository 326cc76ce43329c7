"""What the README shows, runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pv_vae_jax.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_library_example_runs_alone():
    """All python blocks, in order, in one fresh interpreter: no mesh, no configuration file, no grain."""
    (block,) = BLOCKS
    code = block + (
        "\nimport sys, jax.numpy as jnp\n"
        "assert latents.shape == (1, 5, 4, 4, 64) and output.shape == drawn.shape == video.shape\n"
        "assert clips.shape == (2, 17, 32, 32, 3)\n"
        "loss = lambda model, x: jnp.mean(jnp.square(model.reconstruct(x) - x))\n"
        "gradient = jax.jit(jax.grad(loss))(model, pv_vae_jax.to_float(video)).vae_params\n"
        "norms = jax.tree.map(lambda g: float(jnp.abs(g).sum()), gradient)\n"
        "assert all(jnp.isfinite(n) for n in jax.tree.leaves(norms))\n"
        "assert sum(jax.tree.leaves(norms['encoder'])) > 0 and sum(jax.tree.leaves(norms['decoder'])) > 0\n"
        "heavy = [m for m in ('grain', 'orbax', 'av', 'ml_collections', 'tensorflow') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": os.environ["PV_VAE_CACHE"]}  # compiling takes most of the time
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, cwd=ROOT / "docs")
    assert done.returncode == 0, done.stderr


def test_the_library_example_is_short():
    assert sum(len(block.strip().splitlines()) for block in BLOCKS) <= 9  # 18 before there was a model to hold
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")) + ["README.md"])
def test_links_and_commands_exist(page):
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), f"{page} links to {target}"
    for name in re.findall(r"pv-vae ([a-z]+) ", text):
        assert name in COMMANDS, f"{page} names pv-vae {name}"
    for file in re.findall(r"\b((?:experiments|launch|tests|benchmarks)/\w+\.py)", text):
        assert (ROOT / file).exists(), f"{page} names {file}"


def test_the_table_of_the_study_is_that_of_the_results():
    text = (ROOT / "README.md").read_text().split("## Does prediction help diffusion?")[1].split("\n## ")[0]
    study = (ROOT / "docs" / "results" / "synthetic" / "README.md").read_text()
    gains = study.split("## Each row less `Baseline`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\S[^|]*) \| \d+ \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) >= 4
    for name, cells in rows:
        (line,) = (line for line in gains.splitlines() if line.startswith(f"| {name} |"))
        assert set(cells.split(" | ")) <= set(line.strip("| ").split(" | ")), name
    told = re.search(
        r"after (\d+ %) of the steps (\[.*?\]) by\s+the kernel\s+distance and (\d+ % \[.*?\]) by the Frechet", text
    )
    for distance, share in (("kernel", " ".join(told.groups()[:2])), ("Frechet", told.group(3))):
        (line,) = (x for x in study.splitlines() if x.startswith(f"| + Decoder Fine-tuning | {distance}, own | "))
        assert line.split(" | ")[3] == share

"""What the README shows, runs."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax import load
from pv_vae_jax.cli.main import COMMANDS
from pv_vae_jax.model_folder import shipped_models
from pv_vae_jax.params_io import weights_hash

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


def test_the_readme_is_short():
    assert sum(len(block.strip().splitlines()) for block in BLOCKS) <= 10
    assert len(README.splitlines()) <= 130


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


def rows(heading: str) -> list[list[str]]:
    """Cells of the rows of a section's table, without its head."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]


def test_every_shipped_model_has_a_row():
    found = {row[0].strip("`"): row for row in rows("Models")}
    assert sorted(found) == shipped_models()
    for name, row in found.items():
        model = load(name)
        parts = [model.vae_params, *([model.diffusion.params] if model.diffusion else [])]
        counts = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts]
        assert row[1:3] == [model.vae.config.name, " + ".join(f"{count / 1e6:.1f} M" for count in counts)]
        assert row[-1] == f"`{weights_hash(model.vae_params)}`"


def test_what_is_measured_is_what_the_page_on_performance_says():
    aims = re.findall(r"^\| (.*) \| AMD EPYC \| .* \| (\S+) \| ", (ROOT / "docs" / "performance.md").read_text(), re.M)
    names = {
        "vae": ["VAE training step with GAN"],
        "wan22": ["Wan2.2 encode", "Wan2.2, peak memory"],
        "latte": ["DiT-S"],
    }
    table = rows("Measured")
    assert len(table) == len(names) == 3
    for _, _, cell, command in table:
        told = [value for name in names[command.split()[-1].strip("`")] for aim, value in aims if aim.startswith(name)]
        assert re.findall(r"\d+\.\d+", cell) == [f"{float(value):.2f}" for value in told], command


def test_the_verdict_is_what_its_command_prints():
    script = ROOT / "docs" / "verdict.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=280, cwd=ROOT)
    told = re.search(r"<!-- verdict: python docs/verdict.py -->\n(.*?)\n<!-- end of verdict -->", README, re.DOTALL)
    assert done.returncode == 0 and told[1] == done.stdout.strip()


# What its table and its picture are made by.


@pytest.fixture(scope="module")
def table() -> dict:
    return runpy.run_path(str(ROOT / "docs" / "model_table.py"))


@pytest.fixture(scope="module")
def moving() -> dict:
    pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install -e '.[video]'")
    return runpy.run_path(str(ROOT / "docs" / "moving_picture.py"))


@pytest.mark.parametrize("boxes, pixels", [(1, 7), (3, 7), (4, 8), (7, 7)])
def test_boxes_share_a_row_of_pixels(table, boxes, pixels):
    shares = table["overlaps"](boxes, pixels)
    np.testing.assert_allclose(shares.sum(axis=1), 1)  # each is a mean
    np.testing.assert_allclose(shares.sum(axis=0), boxes / pixels)  # every pixel counts alike
    if boxes == pixels:
        np.testing.assert_array_equal(shares, np.eye(pixels))


def test_pooling_to_all_numbers_keeps_everything_and_to_fewer_less(table):
    video = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), np.uint8)
    everything = 4 * 8 * 8 * 3
    assert (table["pooling"](video, everything, 4) == 100).all()
    means = [table["pooling"](video, everything / n, 4).mean() for n in (2, 8, 32)]
    assert means == sorted(means, reverse=True) and means[0] < 40
    still = np.full_like(video, 77)
    assert (table["pooling"](still, 3, 4) == 100).all()
    # The averages are not fewer than asked for, so the guess is not made worse than it is.
    drawn = table["pooled"](video[:, 1:], 48, 2, "nearest")
    assert len(np.unique(drawn[0].reshape(-1, 3), axis=0)) * 3 >= 48


def test_a_moving_picture_shows_what_was_seen(moving):
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (2, 5, 8, 8, 3), np.uint8) for _ in range(4)]
    names = ("truth", "reconstruction", "prediction", "sample")
    pictures = moving["picture"](dict(zip(names, clips, strict=True)), observed=3, side=16)
    top, step, gap = moving["LABEL"], 16 + 6 + moving["GAP"], moving["GAP"]
    assert len(pictures) == 5 and pictures[0].size == (4 * step - gap, top + 2 * step - gap)
    for t, picture in enumerate(pictures):
        pixels = np.asarray(picture)
        for column, clip in enumerate(clips):
            for row in range(2):
                y, x = top + row * step + 3, column * step + 3
                np.testing.assert_array_equal(pixels[y : y + 16 : 2, x : x + 16 : 2, :3], clip[row, t])
        blue, orange = (38, 110, 214), (242, 125, 12)
        assert tuple(pixels[top, 2 * step, :3]) == (blue if t < 3 else orange)
        assert pixels[:top].any() and not pixels[top:, step - gap : step, 3].any()  # labels, and gaps that are clear


def test_the_picture_of_the_readme_moves_and_is_small():
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install -e '.[video]'")
    (name,) = re.findall(r"!\[.*\]\((.*)\)", README)
    assert (ROOT / name).stat().st_size < 2e6
    with image.open(ROOT / name) as picture:
        assert picture.n_frames == 17


def test_clips_with_open_rights_are_linked(tmp_path):
    link = runpy.run_path(str(ROOT / "experiments" / "small_real.py"))["link_open_clips"]
    rows = [("a/train/x.mp4", "train", "open"), ("b/test/y.mp4", "test", "open"), ("a/train/z.mp4", "train", "unclear")]
    (tmp_path / "index.csv").write_text("file,split,rights\n" + "".join(f"{','.join(row)}\n" for row in rows))
    (tmp_path / "a" / "train").mkdir(parents=True)
    (tmp_path / "a" / "train" / "x.mp4").write_bytes(b"clip")
    assert link(tmp_path / "index.csv", tmp_path / "out") == 2
    assert (tmp_path / "out" / "train" / "x.mp4").read_bytes() == b"clip"
    assert [p.name for p in sorted((tmp_path / "out").rglob("*.mp4"))] == ["y.mp4", "x.mp4"]

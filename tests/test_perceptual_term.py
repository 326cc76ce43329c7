"""LPIPS as a term of VAE training on the command line: from files of one's own, in the step, and not to be mixed up."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.convert.lpips import read_lpips
from pv_vae_jax.models.lpips import LPIPS
from pv_vae_jax.train.run import reopen_run
from pv_vae_jax.train.stages import perceptual_term
from pv_vae_jax.train.writers import read_metrics
from tests.test_cli import fails, pv_vae, tiny_experiment  # noqa: F401
from tests.test_lpips import seeded_lpips


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Flags that name files of seeded AlexNet weights and heads, and the folder."""
    folder = tmp_path_factory.mktemp("lpips")
    seeded_lpips(folder)
    return folder


def call(experiment, workdir, folder, *more):
    flags = [f"--config.{stage}.steps=0" for stage in ("video", "decoder", "diffusion")]
    flags += ["--config.image.steps=2", "--config.image.objective.perceptual=0.5", "--config.data.size=32"]
    if folder:
        flags += ["--config.perceptual.backbone=alexnet", f"--config.perceptual.weights={folder / 'net.safetensors'}"]
        flags.append(f"--config.perceptual.heads={folder / 'heads.npz'}")
    return ["train", "--config", experiment, "--workdir", workdir, "--stage=image", *flags, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_experiment, weights):  # noqa: F811
    workdir = tmp_path_factory.mktemp("runs") / "run"
    status, _, error = pv_vae(*call(tiny_experiment, workdir, weights))
    assert status == 0, error
    return workdir


def test_the_term_is_in_the_loss_and_its_network_in_no_checkpoint(trained, weights):
    rows = read_metrics(trained / "image" / "metrics.jsonl")
    assert len(rows) == 2 and all(row["perceptual"] > 0 for row in rows)
    for row in rows:
        total = row["mse"] + row["motion"] + 0.5 * row["perceptual"] + 1e-5 * row["kl"]
        assert row["loss"] == pytest.approx(total, rel=1e-4)
    size = sum(p.stat().st_size for p in (trained / "image").rglob("*") if p.is_file())
    assert size < (weights / "net.safetensors").stat().st_size


def test_the_term_is_lpips_and_pulls_pictures_together(trained, weights):
    term = perceptual_term(reopen_run(trained))
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)
    params = read_lpips("alexnet", weights / "net.safetensors", weights / "heads.npz")
    reference = LPIPS("alexnet").apply({"params": params}, a, b)
    np.testing.assert_allclose(term(a, b), reference, rtol=1e-6)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(term(x, b))))(a)
    assert jnp.sum(term(a - 1e-2 * gradient / jnp.abs(gradient).max(), b)) < value


def test_a_run_is_not_continued_with_another_network(tiny_experiment, trained, weights):  # noqa: F811
    again = call(tiny_experiment, trained, weights)
    assert pv_vae(*again)[0] == 0  # finished before
    kept = (weights / "heads.npz").read_bytes()
    heads = {name: 2 * value for name, value in np.load(weights / "heads.npz").items()}
    np.savez(weights / "heads.npz", **heads)
    assert "started with another perceptual network" in fails(*again)
    (weights / "heads.npz").write_bytes(kept)
    assert json.loads((trained / "perceptual.json").read_text())["backbone"] == "alexnet"


def test_a_weight_without_a_network_is_refused(tiny_experiment, weights, tmp_path):  # noqa: F811
    line = fails(*call(tiny_experiment, tmp_path / "a", None))
    assert "--config.perceptual.weights" in line and "image.objective.perceptual=0" in line
    assert "needs pictures of at least 32" in fails(
        *call(tiny_experiment, tmp_path / "b", weights, "--config.data.size=16")
    )
    assert "no weights file" in fails(*call(tiny_experiment, tmp_path / "c", tmp_path / "nothing"))

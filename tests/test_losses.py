"""Loss terms against values worked out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.losses import (
    Objective,
    adaptive_gan_weight,
    discriminator_hinge,
    generator_hinge,
    kl_divergence,
    latent_terms,
    local_correlation,
    motion_error,
    pixel_terms,
    squared_error,
)
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.typing import ShapeError


def test_motion_error_ignores_a_static_background():
    moving = jnp.arange(3.0).reshape(1, 3, 1, 1, 1) * jnp.ones((1, 3, 2, 2, 3))
    assert float(motion_error(moving + 0.7, moving)) == pytest.approx(0.0, abs=1e-6)
    assert float(squared_error(moving + 0.7, moving)) == pytest.approx(0.49)
    assert float(motion_error(jnp.zeros_like(moving), moving)) == pytest.approx(1.0)
    assert float(motion_error(moving[:, :1], moving[:, :1])) == 0.0  # an image has no motion


def test_kl_of_known_gaussians():
    ones = jnp.ones((1, 2, 1, 1, 4))
    assert float(kl_divergence(Posterior(0 * ones, 0 * ones), jnp.ones((1, 2)))) == 0.0
    shifted = Posterior(2 * ones, 0 * ones)  # 0.5 * 2**2
    assert float(kl_divergence(shifted, jnp.ones((1, 2)))) == pytest.approx(2.0)
    half = Posterior(2 * ones.at[:, 1].set(100.0), 0 * ones)
    assert float(kl_divergence(half, jnp.array([[1.0, 0.0]]))) == pytest.approx(2.0)


def test_hinge_losses():
    real, fake = [jnp.array([2.0, 0.0])], [jnp.array([-2.0, 0.5])]
    assert float(discriminator_hinge(real, fake)) == pytest.approx(0.5 * (0.5 + 0.75))
    assert float(generator_hinge(fake)) == pytest.approx(0.75)


def test_adaptive_weight_balances_gradient_norms_and_is_clamped():
    assert float(adaptive_gan_weight(jnp.full(4, 3.0), jnp.full(4, 1.0))) == pytest.approx(3.0, rel=1e-3)
    assert float(adaptive_gan_weight(jnp.full(4, 3.0), jnp.zeros(4))) == 1e4


def test_the_perceptual_slot_is_used_and_never_ignored():
    output, target = jnp.ones((1, 2, 4, 4, 3)), jnp.zeros((1, 2, 4, 4, 3))
    with pytest.raises(ValueError, match="perceptual must be given"):
        pixel_terms(Objective(perceptual=1.0), output, target)
    total, terms = pixel_terms(
        Objective(perceptual=2.0, motion=0.0), output, target, lambda a, b: jnp.abs(a - b).mean(axis=(1, 2, 3))
    )
    assert float(terms["perceptual"]) == 1.0 and float(total) == pytest.approx(1.0 + 2.0)


def test_clips_that_are_compared_have_one_shape_and_sum_in_float32():
    clip = jnp.zeros((2, 5, 4, 4, 3))
    with pytest.raises(ValueError, match="clips of one shape"):
        squared_error(clip, clip[:, :1])
    half = jnp.ones((2, 5, 4, 4, 3), jnp.bfloat16)
    assert squared_error(half, half).dtype == motion_error(half, half).dtype == jnp.float32


@pytest.mark.parametrize("frames", [3, 6])
def test_the_discriminator_of_clips_sees_every_frame(frames):
    model = Discriminator(DiscriminatorConfig(kinds=("3d",), width=2, levels=2, lowering="direct"))
    video = jax.random.normal(jax.random.key(1), (1, frames, 4, 4, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    params = jax.tree.map(lambda p: 0.1 * np.random.default_rng(0).standard_normal(p.shape, np.float32), shapes)
    seen = jax.jit(jax.grad(lambda video: model.apply({"params": params}, video)[0].sum()))(video)
    assert (jnp.abs(seen).max(axis=(0, 2, 3, 4)) > 0).all()
    with pytest.raises(ShapeError, match="got 3 x 3; use fewer levels"):
        model.apply({"params": params}, jnp.zeros((1, frames, 6, 6, 3)))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number(value):
    with pytest.raises(ValueError, match="kl must be finite and at least 0"):
        Objective(kl=value)


@pytest.mark.parametrize(("kinds", "count"), [(("2d",), 1), (("2d", "3d"), 2)])
def test_discriminators_give_patch_logits_for_clips_and_images(kinds, count):
    model = Discriminator(DiscriminatorConfig(kinds=kinds, width=4, levels=2, lowering="direct"))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))["params"]
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    clip = apply(jnp.ones((2, 5, 8, 8, 3)))
    image = apply(jnp.ones((2, 1, 8, 8, 3)))
    assert len(clip) == len(image) == count
    assert clip[0].shape == (2, 5, 2, 2) and image[0].shape == (2, 1, 2, 2)
    if count == 2:
        assert clip[1].shape == (2, 2, 2, 2)  # 5 frames -> 3 -> 2
    assert all(np.isfinite(x).all() for x in clip)


def correlation(mean, observed=None):
    observed = jnp.ones(mean.shape[:2]) if observed is None else observed
    return float(jax.jit(local_correlation)(Posterior(jnp.asarray(mean), jnp.zeros(mean.shape)), observed))


NOISE = np.random.default_rng(0).standard_normal((2, 5, 4, 6, 8)).astype(np.float32)
COARSE = NOISE[:, ::2, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)[:, 1:]  # still within a window


def test_local_correlation_is_one_for_windows_of_one_value_and_none_for_noise():
    assert correlation(COARSE) == pytest.approx(1.0, abs=1e-5)
    assert abs(correlation(NOISE)) < 0.1
    assert 0.2 < correlation(COARSE + NOISE) < 0.8
    checkers = np.indices((4, 6)).sum(0)[None, :, :, None] % 2 * 2.0 - 1.0
    assert correlation(COARSE[:, :1] * checkers.astype(np.float32)) == pytest.approx(
        -1 / 3, abs=1e-2
    )  # 2 of 6 pairs alike


def test_local_correlation_is_the_mean_over_the_pairs_of_each_window():
    """Pair by pair: 2 x 2 of frame 0 and 2 x 2 x 2 after it, both halves alike."""
    v = (NOISE - NOISE.mean((0, 1, 2, 3))) / NOISE.std((0, 1, 2, 3))
    halves = []
    for frames, depth in ((v[:, :1], 1), (v[:, 1:], 2)):
        pairs = []
        for t in range(0, frames.shape[1], depth):
            for y in range(0, 4, 2):
                for x in range(0, 6, 2):
                    for clip in frames[:, t : t + depth, y : y + 2, x : x + 2]:
                        found = np.corrcoef(clip.reshape(-1, 8))
                        pairs += found[np.triu_indices(len(found), 1)].tolist()
        halves.append(np.mean(pairs))
    assert correlation(NOISE) == pytest.approx(np.mean(halves), abs=1e-5)


def test_local_correlation_does_not_see_scale_offset_order_or_mirrors():
    mean = COARSE + NOISE
    expected = correlation(mean)
    scale, offset = np.linspace(0.1, 3.0, 8, dtype=np.float32), np.linspace(-2.0, 5.0, 8, dtype=np.float32)
    for other in (mean * scale + offset, mean[::-1], mean[:, :, ::-1], mean[:, :, :, ::-1], mean[..., ::-1]):
        assert correlation(other) == pytest.approx(expected, abs=1e-5)


def test_local_correlation_counts_what_is_observed():
    """As if the rest were not there: for frames, and for positions of an odd picture."""
    for kept in (1, 2, 4):
        observed = jnp.broadcast_to(jnp.arange(5) < kept, (2, 5)).astype(jnp.float32)
        assert correlation(NOISE, observed) == pytest.approx(correlation(NOISE[:, :kept]), abs=1e-5)
    part = jnp.zeros((2, 5, 4, 6)).at[:, :, :3, :5].set(1.0)
    assert correlation(NOISE, part) == pytest.approx(correlation(NOISE[:, :, :3, :5]), abs=1e-5)


def test_the_regulariser_pulls_until_its_target_and_costs_nothing_without_weight():
    @partial(jax.jit, static_argnums=1)
    def loss(mean, objective):
        return latent_terms(objective, Posterior(mean, jnp.zeros_like(mean)), jnp.ones(mean.shape[:2]))

    mean = jnp.asarray(COARSE + NOISE)
    weighted = Objective(kl=0.0, local_correlation=2.0)
    total, terms = loss(mean, weighted)
    assert float(total) == pytest.approx(2.0 * (0.75 - float(terms["local_correlation"])))
    gradient = jax.jit(jax.grad(lambda m: loss(m, weighted)[0]))
    slope = gradient(mean)
    better = loss(mean - 10.0 * slope, weighted)[1]["local_correlation"]
    assert float(better) > float(terms["local_correlation"]) + 0.01
    assert float(loss(jnp.asarray(COARSE), weighted)[0]) == 0.0
    still = gradient(jnp.ones((1, 3, 2, 2, 4)))  # dead latents give no NaN
    assert np.isfinite(still).all()
    assert set(loss(mean, Objective())[1]) == {"kl"}

"""Loss terms against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.losses.adversarial import adaptive_weight, discriminator_hinge, generator_hinge
from pv_vae_jax.losses.kl import kl_divergence
from pv_vae_jax.losses.objective import Objective, pixel_terms
from pv_vae_jax.losses.reconstruction import motion_error, squared_error
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.vae import Posterior


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
    assert float(adaptive_weight(jnp.full(4, 3.0), jnp.full(4, 1.0))) == pytest.approx(3.0, rel=1e-3)
    assert float(adaptive_weight(jnp.full(4, 3.0), jnp.zeros(4))) == 1e4


def test_the_perceptual_slot_is_used_and_never_ignored():
    output, target = jnp.ones((1, 2, 4, 4, 3)), jnp.zeros((1, 2, 4, 4, 3))
    with pytest.raises(ValueError, match="perceptual function"):
        pixel_terms(Objective(perceptual=1.0), output, target)
    total, terms = pixel_terms(
        Objective(perceptual=2.0, motion=0.0), output, target, lambda a, b: jnp.abs(a - b).mean(axis=(1, 2, 3))
    )
    assert float(terms["perceptual"]) == 1.0 and float(total) == pytest.approx(1.0 + 2.0)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number(value):
    with pytest.raises(ValueError, match="objective.kl"):
        Objective(kl=value)


@pytest.mark.parametrize(("kinds", "count"), [(("2d",), 1), (("2d", "3d"), 2)])
def test_discriminators_give_patch_logits_for_clips_and_images(kinds, count):
    model = Discriminator(DiscriminatorConfig(kinds=kinds, width=4, levels=2))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))["params"]
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    clip = apply(jnp.ones((2, 5, 8, 8, 3)))
    image = apply(jnp.ones((2, 1, 8, 8, 3)))
    assert len(clip) == len(image) == count
    assert clip[0].shape == (2, 5, 2, 2) and image[0].shape == (2, 1, 2, 2)
    if count == 2:
        assert clip[1].shape == (2, 2, 2, 2)  # 5 frames -> 3 -> 2
    assert all(np.isfinite(x).all() for x in clip)

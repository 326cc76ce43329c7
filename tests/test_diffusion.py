"""Rectified flow, guidance, sampler and transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.flow import (
    classifier_free_guidance,
    euler,
    flow_matching_loss,
    interpolate,
    label_dropout,
    sample_timesteps,
    shift_time,
)
from pv_vae_jax.layers.embeddings import sincos_1d, sincos_2d, timestep_features
from pv_vae_jax.models.latte import Latte, LatteConfig
from tests.conftest import perturbed


def test_the_path_runs_from_data_to_noise():
    data, noise = jnp.zeros((2, 3)), jnp.ones((2, 3))
    np.testing.assert_array_equal(interpolate(data, noise, jnp.array([0.0, 1.0])), [[0, 0, 0], [1, 1, 1]])
    exact = lambda x, t: noise - data  # noqa: E731
    assert float(flow_matching_loss(exact, data, noise, jnp.array([0.3, 0.6]))) == 0.0


def test_euler_follows_a_straight_path_exactly_in_one_step():
    data, noise = jnp.full((1, 4), 2.0), jnp.full((1, 4), -1.0)
    for steps in (1, 7):
        np.testing.assert_allclose(euler(lambda x, t: noise - data, noise, steps), data, atol=1e-5)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        euler(lambda x, t: x, noise, 0)


def test_euler_keeps_the_type_of_the_noise():
    assert euler(lambda x, t: x.astype(jnp.float32), jnp.ones((1, 2), jnp.bfloat16), 2).dtype == jnp.bfloat16


def test_euler_converges_at_first_order():
    exact = float(jnp.exp(-1.0))  # dx/dt = x from t = 1 to 0
    errors = [abs(float(euler(lambda x, t: x, jnp.ones((1, 1)), n)[0, 0]) - exact) for n in (50, 100)]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_times_lie_inside_the_unit_interval(distribution):
    t = sample_timesteps(jax.random.key(0), 4096, distribution)
    assert float(t.min()) >= 0 and float(t.max()) < 1 and float(t.mean()) == pytest.approx(0.5, abs=0.02)


def test_a_shift_moves_times_towards_noise_and_keeps_the_ends():
    """A constant, `n` times in a latent, is told from noise by `sqrt(n) (1 - t) / t`: `shift = sqrt(n)` undoes that."""
    t = jnp.linspace(0.0, 1.0, 11)
    shifted = shift_time(t, 3.0)
    assert float(shifted[0]) == 0 and float(shifted[-1]) == 1 and (shifted[1:-1] > t[1:-1]).all()
    np.testing.assert_allclose(3.0 * (1 - shifted[1:-1]) / shifted[1:-1], (1 - t[1:-1]) / t[1:-1], rtol=1e-5)
    for distribution in ("uniform", "logit_normal"):
        drawn = sample_timesteps(jax.random.key(0), 64, distribution)
        np.testing.assert_array_equal(sample_timesteps(jax.random.key(0), 64, distribution, 1.0), drawn)
        np.testing.assert_array_equal(
            sample_timesteps(jax.random.key(0), 64, distribution, 3.0), shift_time(drawn, 3.0)
        )


def test_guidance_extrapolates_from_the_null_class():
    velocity = lambda x, t, label: x * 0 + label[:, None].astype(float)  # noqa: E731
    label = jnp.array([1, 2])
    x, t = jnp.zeros((2, 3)), jnp.zeros(2)
    np.testing.assert_array_equal(classifier_free_guidance(velocity, label, 4, 1.0)(x, t)[:, 0], [1, 2])
    np.testing.assert_array_equal(
        classifier_free_guidance(velocity, label, 4, 2.0)(x, t)[:, 0], [-2, 0]
    )  # 4 + 2 (c - 4)


def test_labels_are_dropped_at_the_given_rate():
    dropped = label_dropout(jax.random.key(0), jnp.zeros(10_000, int), 7, 0.1)
    assert set(np.unique(dropped)) == {0, 7} and float((dropped == 7).mean()) == pytest.approx(0.1, abs=0.02)


def test_embeddings_equal_the_reference_values():
    table = sincos_2d(8, 2, 2)
    np.testing.assert_allclose(table[1], [0.841471, 0.0099998, 0.5403023, 0.99995, 0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(table[2], [0, 0, 1, 1, 0.841471, 0.0099998, 0.5403023, 0.99995], atol=1e-6)
    np.testing.assert_allclose(sincos_1d(4, range(3))[2], [0.9092974, 0.0199987, -0.4161468, 0.9998], atol=1e-6)
    features = timestep_features(jnp.array([0, 1]), 6)
    np.testing.assert_allclose(
        features[1], [0.5403023, 0.9989229, 0.9999977, 0.841471, 0.0463992, 0.0021544], atol=1e-6
    )


@pytest.fixture(scope="module")
def latte():
    model = Latte(LatteConfig(latent_channels=4, depth=4, width=16, heads=2, classes=3))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), x, jnp.zeros(2), jnp.zeros(2, int))["params"]
    return model, params, x


def test_a_fresh_transformer_is_silent(latte):
    model, params, x = latte
    assert float(jnp.abs(model.apply({"params": params}, x, jnp.zeros(2), jnp.zeros(2, int))).max()) == 0.0


def test_every_token_time_and_label_matters(latte):
    model, params, x = latte
    params = perturbed(params)
    run = jax.jit(lambda x, t, label: model.apply({"params": params}, x, t, label))
    t, label = jnp.array([0.2, 0.8]), jnp.array([0, 1])
    base = run(x, t, label)
    assert base.shape == x.shape
    for other in (run(x.at[:, 0, 0, 0].add(1), t, label), run(x, t + 0.1, label), run(x, t, label + 1)):
        assert float(jnp.abs(base - other)[:, 2, 1, 1].max()) > 1e-6
    np.testing.assert_allclose(run(x[::-1], t[::-1], label[::-1])[::-1], base, atol=1e-5)


def test_depth_and_heads_are_checked():
    with pytest.raises(ValueError, match="depth must be even"):
        LatteConfig(depth=3)
    with pytest.raises(ValueError, match="width must be a multiple"):
        LatteConfig(width=100, heads=16)

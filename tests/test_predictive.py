"""Predictive reconstruction: truncated = filled, nothing leaks, the pad token learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.losses.kl import kl_divergence
from pv_vae_jax.predictive import (
    max_dropped,
    observed_frames,
    predict_clip,
    predict_filled,
    predict_truncated,
)


@pytest.mark.parametrize(
    ("groups", "ratio", "expected"), [(5, 0.5, 2), (5, 0.75, 3), (5, 1.0, 4), (6, 0.6, 3), (1, 1.0, 0)]
)
def test_largest_number_of_dropped_groups(groups, ratio, expected):
    assert max_dropped(groups, ratio) == expected


def test_frame_zero_is_always_kept():
    assert observed_frames(17, 4, 4) == 1
    with pytest.raises(ValueError, match="group 0 is always kept"):
        observed_frames(17, 5, 4)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        max_dropped(5, 1.5)


@pytest.mark.parametrize("dropped", [0, 1, 3])
def test_truncated_equals_filled(tiny, dropped):
    model, params, video = tiny
    key = jax.random.key(5)
    a = predict_truncated(model, params, video, dropped, key)
    b = predict_filled(model, params, video, jnp.int32(dropped), key)
    np.testing.assert_allclose(a.features, b.features, atol=2e-5)
    np.testing.assert_allclose(
        kl_divergence(a.posterior, a.observed), kl_divergence(b.posterior, b.observed), rtol=1e-5
    )


def test_k_per_example_equals_each_alone(tiny):
    model, params, video = tiny
    both = predict_filled(model, params, video, jnp.array([1, 3]), None)
    for i, k in enumerate((1, 3)):
        alone = predict_filled(model, params, video[i : i + 1], jnp.int32(k), None)
        np.testing.assert_allclose(both.features[i], alone.features[0], atol=2e-5)


@pytest.mark.parametrize("form", ["truncated", "filled"])
def test_withheld_frames_never_reach_the_output(tiny, form):
    model, params, video = tiny
    other = video.at[:, 5:].set(-video[:, 5:])  # k = 1 withholds frames 5 and 6

    def run(video):
        if form == "truncated":
            return predict_truncated(model, params, video, 1, None).features
        return predict_filled(model, params, video, jnp.int32(1), None).features

    np.testing.assert_array_equal(run(video), run(other))


def test_dropping_does_not_touch_observed_frames(tiny):
    model, params, video = tiny
    full = predict_filled(model, params, video, jnp.int32(0), None).features
    dropped = predict_filled(model, params, video, jnp.int32(2), None).features
    np.testing.assert_array_equal(full[:, :3], dropped[:, :3])
    assert float(jnp.abs(full[:, 3:] - dropped[:, 3:]).max()) > 1e-4


def test_gradient_reaches_the_pad_token_only_when_frames_are_dropped(tiny):
    model, params, video = tiny

    @jax.jit
    def gradient(dropped):
        return jax.grad(lambda p: jnp.mean(predict_filled(model, p, video, dropped, None).features ** 2))(params)

    assert float(jnp.abs(gradient(jnp.int32(0))["pad"]["token"]).max()) == 0.0
    assert float(jnp.abs(gradient(jnp.int32(2))["pad"]["token"]).min()) > 0.0


def test_gaussian_padding_needs_a_key_and_follows_it(gaussian):
    model, params, video = gaussian
    assert "pad" not in params
    one, two = (predict_truncated(model, params, video, 2, jax.random.key(i)).features for i in (1, 2))
    assert float(jnp.abs(one - two).max()) > 1e-4
    with pytest.raises(ValueError, match="random key"):
        predict_truncated(model, params, video, 2, None)


def test_kl_counts_observed_frames_only(tiny):
    model, params, video = tiny
    filled = predict_filled(model, params, video, jnp.int32(3), None)
    first = predict_truncated(model, params, video, 3, None)
    assert float(filled.observed.sum()) == 2.0  # two clips, one latent frame each
    np.testing.assert_allclose(
        kl_divergence(filled.posterior, filled.observed), kl_divergence(first.posterior, first.observed)
    )


def test_predicting_a_clip_names_the_lengths_that_can_be_observed(tiny):
    model, params, video = tiny
    output = predict_clip(model, params, video, 3)
    assert output.shape == video.shape and float(jnp.abs(output).max()) <= 1.0
    with pytest.raises(ValueError, match="use 3 or 5 frames"):
        predict_clip(model, params, video, 4)


def test_a_traced_number_of_groups_says_what_to_do(tiny):
    model, params, video = tiny
    with pytest.raises(TypeError, match="static_argnames"):
        jax.eval_shape(lambda k: predict_truncated(model, params, video, k, None), 1)

"""The video VAE: shapes, causality, errors, compression of any order, use without a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.typing import ShapeError
from tests.conftest import TINY, TWO_LEVELS


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, params, x, method="__call__"):
    return model.apply({"params": params}, x, method=method)


encode, decode = functools.partial(apply, method="encode"), functools.partial(apply, method="decode")


def test_shapes(tiny):
    model, params, video = tiny
    posterior = encode(model, params, video)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 4, 2, 2, 4)
    assert decode(model, params, posterior.mean).shape == video.shape
    assert TINY.name == "t2s8c4" and TINY.latent_frames(7) == 4 and TINY.frames(4) == 7


def test_an_image_is_a_clip_of_one_frame(tiny):
    model, params, video = tiny
    whole, first = encode(model, params, video), encode(model, params, video[:, :1])
    np.testing.assert_allclose(first.mean, whole.mean[:, :1], atol=1e-5)
    np.testing.assert_allclose(decode(model, params, first.mean), decode(model, params, whole.mean)[:, :1], atol=1e-5)


def test_the_encoder_is_causal(tiny):
    model, params, video = tiny
    before = encode(model, params, video)
    after = encode(model, params, video.at[:, 3:].set(-video[:, 3:]))  # frames 3.. belong to latent frames 2..
    np.testing.assert_array_equal(before.mean[:, :2], after.mean[:, :2])
    assert float(jnp.abs(before.mean[:, 2:] - after.mean[:, 2:]).min(axis=(0, 2, 3, 4)).max()) > 1e-6


def test_the_decoder_is_causal(tiny):
    model, params, video = tiny
    latents = encode(model, params, video).mean
    before, after = decode(model, params, latents), decode(model, params, latents.at[:, 2:].add(1.0))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert float(jnp.abs(before[:, 3:] - after[:, 3:]).max()) > 1e-4


def test_pixels_are_the_last_convolution_of_the_features(tiny):
    model, params, video = tiny
    latents = encode(model, params, video).mean
    pixels = apply(model, params, apply(model, params, latents, "decode_features"), "to_pixels")
    np.testing.assert_allclose(pixels, decode(model, params, latents), atol=1e-6)


def test_a_still_clip_is_decoded_like_its_image_at_the_start(tiny):
    """Fresh weights are a per-frame model, so video training starts from what image training learned."""
    model, _, video = tiny
    params = jax.jit(model.init)(jax.random.key(0), video)["params"]
    still = jnp.repeat(video[:, :1], 7, axis=1)
    image, clip = (decode(model, params, encode(model, params, x).mean) for x in (video[:, :1], still))
    np.testing.assert_allclose(clip, jnp.repeat(image, 7, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 6, 16, 16, 3), "use 5 or 7 frames"),
        ((1, 7, 20, 16, 3), "height 20 is not a multiple of 8: use 16 or 24"),
        ((1, 7, 16, 3, 3), "width 3 is not a multiple of 8: use 8"),
        ((7, 16, 16, 3), "expected video of shape"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused_with_the_neighbours(tiny, shape, message):
    model, params, _ = tiny
    with pytest.raises(ValueError, match=message):
        encode(model, params, jnp.zeros(shape))


def test_latents_of_another_width_are_refused(tiny):
    model, params, _ = tiny
    with pytest.raises(ShapeError, match=r"\(b, g, h, w, 4\)"):
        decode(model, params, jnp.zeros((1, 2, 2, 2, 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_factors": (2,)}, "time_factors must have 2 entries"),
        ({"space_factors": (2, 3)}, "1 or 2 at each level"),
        ({"encoder_widths": (8, 8)}, "must have 3 entries"),
        ({"encoder_widths": (8, 8, 24)}, "encoder level 2"),
        ({"pad": "zeros"}, "learnable"),
        ({"shortcut_time": "copy"}, "'interleave' or 'repeat'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TWO_LEVELS, **change)


@pytest.mark.parametrize("order", [((1, 2), (2, 2)), ((2, 2), (1, 2))])
def test_levels_come_in_any_order(order):
    time, space = order
    config = dataclasses.replace(TWO_LEVELS, time_factors=time, space_factors=space, shortcut_pad="zero")
    model = VAE(config)
    video = jnp.zeros((1, 1 + config.time_factor, config.space_factor, config.space_factor, 3))
    shapes = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), video))
    assert shapes[0][0].shape == video.shape
    assert shapes[0][1].mean.shape == (1, 2, 1, 1, 4)


def test_paper_compression_is_the_default():
    config = VAEConfig()
    assert config.name == "t4s16c64" and config.latent_frames(17) == 5


def test_bfloat16_stays_close(tiny):
    model, params, video = tiny
    low = VAE(dataclasses.replace(TINY, dtype="bfloat16"))
    a, b = (decode(net, params, encode(net, params, video).mean) for net in (model, low))
    assert b.dtype == jnp.float32
    assert float(jnp.sqrt(jnp.mean((a - b) ** 2)) / jnp.std(a)) < 0.05


def test_integer_pixels_are_refused(tiny):
    model, params, video = tiny
    with pytest.raises(TypeError, match="float video in .-1, 1., got uint8; convert it with pv_vae_jax.to_float"):
        jax.eval_shape(lambda p, x: model.apply({"params": p}, x), params, video.astype(jnp.uint8))

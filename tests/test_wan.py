"""Sizes of the VAE, and the Wan networks against what diffusers computes with the same weights."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pv_vae_jax.convert.wan import WAN21_LATENTS, WAN22_LATENTS, from_wan
from pv_vae_jax.flow import denormalize_latents, normalize_latents
from pv_vae_jax.layers.blocks import rms_norm
from pv_vae_jax.layers.conv import causal_conv3d
from pv_vae_jax.layers.embeddings import sincos_1d, sincos_2d, timestep_features
from pv_vae_jax.layers.resample import TimeDown, TimeUp, average_down, duplicate_up, patchify, unpatchify
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.models.vae_config import VAE_PRESETS
from tests import wan_fixture

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_ops.json").read_text())
COUNTS = {
    "tiny": ("t4s16c16", 720_547),
    "small": ("t4s16c64", 59_044_003),
    "base": ("t4s16c64", 233_400_259),
    "paper": ("t4s16c64", 658_362_243),
    "t4s8c16": ("t4s8c16", 231_862_755),
    "wan22": ("t4s16c48", 704_688_668),
    "wan21": ("t4s8c16", 126_892_531),
}


@functools.partial(jax.jit, static_argnums=0)
def encode(model, params, video):
    return model.apply({"params": params}, video, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def decode(model, params, latents):
    return model.apply({"params": params}, latents, method="decode")


# Sizes


def count(config: VAEConfig) -> int:
    clip = jnp.zeros((1, 1, config.space_factor, config.space_factor, 3))
    shapes = jax.eval_shape(lambda: VAE(config).init(jax.random.key(0), clip))
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", VAE_PRESETS)
def test_a_preset_has_its_compression_and_count(name):
    config = getattr(VAEConfig, name)()
    assert (config.name, count(config)) == COUNTS[name]


def test_the_paper_size_is_that_of_the_paper():
    paper = VAEConfig.paper()
    assert abs(count(paper) / 661e6 - 1) < 0.01
    assert (paper.time_factors, paper.space_factors) == ((2, 2, 1, 1), (2, 2, 2, 2))
    assert not any(width % 128 for width in paper.encoder_widths + paper.decoder_widths)


def test_a_learnable_pad_is_the_only_addition_to_a_wan_network():
    assert count(VAEConfig.wan22(pad="learnable")) == COUNTS["wan22"][1] + 48


@pytest.mark.parametrize(
    "change", [{"shortcuts": True}, {"space_factors": (2, 2, 1)}, {"decoder_widths": (96, 192, 383, 384)}]
)
def test_halving_what_cannot_be_halved_is_refused(change):
    with pytest.raises(ValueError, match="upsample_halves_channels needs"):
        VAEConfig.wan21(**change)


@pytest.mark.parametrize(("name", "published"), [("wan21", WAN21_LATENTS), ("wan22", WAN22_LATENTS)])
def test_latent_normalisation_inverts(name, published):
    z = getattr(VAEConfig, name)().latent_channels
    assert len(published.mean) == len(published.std) == z
    x = np.random.default_rng(0).normal(size=(2, 3, z)).astype(np.float32)
    normal = normalize_latents(x, *published)
    np.testing.assert_allclose(normal[0, 0, 1], (x[0, 0, 1] - published.mean[1]) / published.std[1], rtol=1e-6)
    np.testing.assert_allclose(denormalize_latents(normal, *published), x, atol=1e-6)


# Operations, against arrays that the public PyTorch ones gave


def to_ours(entry: dict, key: str, start: int = 0) -> np.ndarray:
    """An array of the golden file, `(n, c, t, h, w)`, as `(b, t, h, w, c)`."""
    shape = entry[f"{key}_shape"]
    values = np.arange(np.prod(shape)) + start if isinstance(entry[key], str) else np.asarray(entry[key])
    return np.moveaxis(values.reshape(shape).astype(np.float32), 1, -1)


def test_patchify():
    entry = GOLDEN["patchify_2"]
    x, y = to_ours(entry, "input"), to_ours(entry, "output")
    np.testing.assert_array_equal(patchify(x, 2), y)
    np.testing.assert_array_equal(unpatchify(y, 2), x)


@pytest.mark.parametrize("entry", GOLDEN["avg_down_3d"])
def test_average_down(entry):
    y = average_down(to_ours(entry, "input", 1), entry["out_channels"], entry["factor_t"], entry["factor_s"], "zero")
    np.testing.assert_allclose(y, to_ours(entry, "output"), atol=1e-6)


@pytest.mark.parametrize("entry", GOLDEN["dup_up_3d"])
def test_duplicate_up(entry):
    features, time, space, begins = (entry[k] for k in ("out_channels", "factor_t", "factor_s", "first_chunk"))
    y = duplicate_up(to_ours(entry, "input", 1), features, time, space, begins, "interleave")
    np.testing.assert_allclose(y, to_ours(entry, "output"), atol=1e-6)


def test_rms_norm():
    entry = GOLDEN["rms_norm"]
    np.testing.assert_allclose(rms_norm(jnp.float32(entry["input"]), jnp.ones(4)), entry["output"], atol=1e-6)
    np.testing.assert_array_equal(rms_norm(jnp.zeros(4), jnp.ones(4)), entry["zero_input_output"])


@pytest.mark.parametrize(
    ("name", "layer", "taps"),
    [
        ("temporal_downsample", TimeDown(), ["taps_oldest_to_newest"]),
        ("temporal_upsample", TimeUp(), ["taps_even", "taps_odd"]),
    ],
)
def test_time_convolutions(name, layer, taps):
    """The published code runs in chunks; one pass over the clip gives the same frames."""
    entry = GOLDEN[name]
    kernel = np.stack([entry[t] for t in taps], axis=-1).reshape(3, 1, 1, 1, len(taps)).astype(np.float32)
    x = np.float32(entry["frames_in"]).reshape(1, -1, 1, 1, 1)
    y = layer.apply({"params": {"kernel": kernel, "bias": np.zeros(len(taps), np.float32)}}, x)
    np.testing.assert_allclose(np.ravel(y), entry["frames_out"], atol=1e-6)


def test_embeddings_of_latte():
    entry = GOLDEN["latte_pos_embed_2d"]
    table = sincos_2d(entry["dim"], entry["grid"], entry["grid"])
    np.testing.assert_allclose(table, entry["row_major_tokens"], atol=1e-6)
    entry = GOLDEN["latte_temp_embed_1d"]
    np.testing.assert_allclose(sincos_1d(entry["dim"], np.arange(entry["length"])), entry["values"], atol=1e-6)
    entry = GOLDEN["latte_timestep_embedding"]
    # A float32 angle of 23, which t = 500 reaches, is good to 2e-6.
    features = timestep_features(jnp.float32(entry["t"]), entry["dim"])
    np.testing.assert_allclose(features[:2], entry["values"][:2], atol=1e-6)
    np.testing.assert_allclose(features[2], entry["values"][2], atol=5e-6)


# Whole networks


@pytest.fixture(scope="module", params=list(wan_fixture.CONFIGS))
def published(request):
    """`(name, model, our parameters, what diffusers computed)`; the network is tiny, its weights are random."""
    name = request.param
    stored = load_file(wan_fixture.FOLDER / f"{name}.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in stored.items() if k.startswith("weights.")}
    config = wan_fixture.CONFIGS[name]
    stored["clip"] = stored["clip"] / np.float32(127.5) - 1
    return name, VAE(config), from_wan(weights, config), stored


def test_the_encoder_is_that_of_diffusers(published):
    _, model, params, stored = published
    clip, image = encode(model, params, stored["clip"]), encode(model, params, stored["clip"][:, :1])
    for key in ("mean", "logvar"):
        np.testing.assert_allclose(getattr(clip, key), stored[key], atol=1e-5)
        np.testing.assert_allclose(getattr(image, key), stored[key][:, :1], atol=1e-5)


def test_the_decoder_is_that_of_diffusers(published):
    _, model, params, stored = published
    inside = np.abs(stored["video"]) < 1
    assert inside.mean() > 0.8  # diffusers clamps, which hides differences outside
    for frames, latents in ((9, 3), (1, 1)):
        video = decode(model, params, stored["mean"][:, :latents])
        np.testing.assert_allclose(np.clip(video, -1, 1), stored["video"][:, :frames], atol=1e-5)


@pytest.fixture(scope="session")
def diffusers():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not ours to mend
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[benchmark]'")
        yield pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[benchmark]'")


def test_diffusers_still_computes_what_is_stored(published, diffusers):
    """`python -m tests.wan_fixture` would write the same file again."""
    name, _, _, stored = published
    made = wan_fixture.make(name)
    assert made.keys() == stored.keys()
    np.testing.assert_array_equal(made.pop("clip") / np.float32(127.5) - 1, stored["clip"])
    for key, value in made.items():
        np.testing.assert_allclose(value, stored[key], atol=0 if key.startswith("weights.") else 5e-6, err_msg=key)


def test_other_weights_agree_with_diffusers(published, diffusers):
    """Fresh weights and clip, for T = 1 as its own run of diffusers."""
    name, model, _, _ = published
    tensors = wan_fixture.random_weights(model.config, seed=6)
    clip = wan_fixture.random_clip(name, seed=7)
    params, theirs = from_wan(tensors, model.config), wan_fixture.diffusers_model(name, tensors)
    for frames in (9, 1):
        mean, logvar, video = wan_fixture.run_diffusers(theirs, clip[:, :frames])
        posterior = encode(model, params, clip[:, :frames])
        np.testing.assert_allclose(posterior.mean, mean, atol=1e-5)
        np.testing.assert_allclose(posterior.logvar, logvar, atol=1e-5)
        np.testing.assert_allclose(np.clip(decode(model, params, mean), -1, 1), video, atol=1e-5)


# What every model shows. One level down and up: fewer programs to compile, the same layers.


@pytest.fixture(scope="module", params=list(wan_fixture.CONFIGS))
def short(request):
    """`(model, parameters, clip, gradient, output)`; the jit is another codebase's: no mesh, no setting of ours."""
    levels = dict(time_factors=(2,), space_factors=(2,), encoder_widths=(8, 8), decoder_widths=(4, 8))
    config = getattr(VAEConfig, request.param)(latent_channels=4, encoder_blocks=1, decoder_blocks=2, **levels)
    model, side = VAE(config), 2 * config.space_factor
    params = from_wan(wan_fixture.random_weights(config), config)
    video = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (1, 3, side, side, 3)), jnp.float32)

    def loss(params):
        output, posterior = model.apply({"params": params}, video)
        return jnp.mean(output**2) + jnp.mean(posterior.logvar**2), output

    return model, params, video, *jax.jit(jax.grad(loss, has_aux=True))(params)


def test_the_gradient_is_finite_and_reaches_every_parameter(short):
    *_, gradient, _ = short
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def test_bfloat16_stays_close(short):
    """Root mean square error below 5 % of the output's spread."""
    model, params, video, _, output = short
    low = VAE(dataclasses.replace(model.config, dtype="bfloat16"))
    rounded = jax.jit(lambda p, x: low.apply({"params": p}, x)[0])(params, video)
    assert rounded.dtype == jnp.float32
    assert float(jnp.sqrt(jnp.mean((rounded - output) ** 2)) / jnp.std(output)) < 0.05


def test_causal_padding_is_zeros():
    """An image reaches the last tap only, as in Wan; other families repeat the first frame."""
    kernel = np.float32([1, 10, 100]).reshape(3, 1, 1, 1, 1)
    assert float(causal_conv3d(jnp.ones((1, 1, 1, 1, 1)), kernel)[0, 0, 0, 0, 0]) == 100

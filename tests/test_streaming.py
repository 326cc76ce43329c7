"""Chunk by chunk = whole pass, with a cache that is an argument, and memory that does not grow with the clip."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.layers.conv import LOWERINGS, causal_conv3d
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.predictive import predict_truncated
from pv_vae_jax.streaming import (
    chunk_sizes,
    decode_chunks,
    decode_step,
    encode_chunks,
    encode_step,
    foretell_step,
)
from pv_vae_jax.typing import ShapeError
from tests.conftest import TINY, TWO_LEVELS

# What differs between the families: how the shortcuts treat frame 0, or that there are none; where time is halved.
KINDS = {
    "first": dataclasses.replace(TWO_LEVELS, decoder_widths=(8, 8, 16)),
    "zero": dataclasses.replace(
        TWO_LEVELS, decoder_widths=(8, 8, 16), shortcut_pad="zero", shortcut_time="interleave", time_factors=(2, 2)
    ),
    "none": dataclasses.replace(TWO_LEVELS, shortcuts=False, mid_attention=False, time_factors=(1, 2), remat=True),
}


def drawn(model: VAE, seed: int = 0):
    """Parameters drawn on the host: fast, and none is zero or one."""
    rng = np.random.default_rng(seed)
    video = jnp.zeros((1, 1 + model.config.time_factor, 8, 8, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    return jax.tree.map(
        lambda p: rng.standard_normal(p.shape, np.float32) / max(2, np.prod(p.shape[:-1])) ** 0.5, shapes
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """`(model, params, video, posterior, decoded)`: a clip of 17 frames through the whole pass."""
    model = VAE(KINDS[request.param])
    params = drawn(model)
    video = np.random.default_rng(1).uniform(-1, 1, (1, 17, 8, 16, 3)).astype(np.float32)
    decoded, posterior = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, video)
    return model, params, video, posterior, decoded


@pytest.fixture(scope="module")
def plain():
    """`(model, params, video)`: two clips of 7 frames; drawing its parameters compiles nothing."""
    model = VAE(TINY)
    video = np.random.default_rng(2).uniform(-1, 1, (2, 7, 16, 16, 3)).astype(np.float32)
    return model, drawn(model), jnp.asarray(video)


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_equal_the_whole_pass(kind, chunk):
    model, params, video, posterior, decoded = kind

    @jax.jit
    def run(params, video, latents):
        return encode_chunks(model, params, video, chunk), decode_chunks(model, params, latents, chunk)

    close(run(params, video, posterior.mean), (posterior, decoded))


@pytest.mark.parametrize("frames", [1, 5])
def test_short_clips_and_images(plain, frames):
    """By causality a short clip is the beginning of a long one."""
    model, params, video = plain
    decoded, posterior = jax.jit(lambda x: model.apply({"params": params}, x))(video)
    g = TINY.latent_frames(frames)
    mean = jax.jit(lambda x: encode_chunks(model, params, x, 2).mean)(video[:, :frames])
    close(mean, posterior.mean[:, :g])
    close(jax.jit(lambda z: decode_chunks(model, params, z, 2))(mean), decoded[:, :frames])


def test_steps_in_a_python_loop_equal_the_scan(plain):
    """The cache goes in and comes out: chunks of any size may follow each other, and an old cache stays as it was."""
    model, params, video = plain
    video = jnp.concatenate([video, -video[:, 1:]], axis=1)  # 13 frames, 7 latent frames
    encode = jax.jit(lambda cache, x: encode_step(model, params, cache, x))
    decode = jax.jit(lambda cache, z: decode_step(model, params, cache, z))
    encoder = decoder = None
    means, pictures, sizes = [], [], []
    for frames in (video[:, :1], video[:, 1:5], video[:, 5:9], video[:, 9:]):
        before = encoder
        encoder, posterior = encode(encoder, frames)
        decoder, decoded = decode(decoder, posterior.mode)
        means, pictures = means + [posterior.mean], pictures + [decoded]
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves((encoder, decoder))))
    assert len(set(sizes)) == 1 and sizes[0] > 0, "the cache does not grow"
    close(encode(before, video[:, 9:])[1].mean, means[-1])
    mean = jnp.concatenate(means, axis=1)
    pictures = jnp.concatenate(pictures, axis=1)
    scanned = jax.jit(lambda x, z: (encode_chunks(model, params, x, 2).mean, decode_chunks(model, params, z, 2)))
    close((mean, pictures), scanned(video, mean))


def test_what_is_foretold_step_by_step_is_what_one_pass_predicts_and_the_clip_goes_on_from_what_was_seen(plain):
    _, _, video = plain  # 7 frames, 4 latent frames
    model = VAE(dataclasses.replace(TINY, lowering="direct", mid_attention=False))
    params = drawn(model)

    @jax.jit
    def forms(video):
        whole = lambda z: model.apply({"params": params}, z, method="decode")  # noqa: E731
        posterior = model.apply({"params": params}, video, method="encode")
        seen, later = posterior.mean[:, :2], posterior.mean[:, 2:]
        cache, _ = decode_step(model, params, None, seen)
        ahead, first = foretell_step(model, params, cache, seen[:, :1].shape)
        _, second = foretell_step(model, params, ahead, seen[:, :1].shape)
        foretold = (
            jnp.concatenate([first, second], axis=1),
            whole(predict_truncated(model, params, video, 2, None).latents),
        )
        # The frames come in: the clip is taken up from the cache before, as if nothing had been foretold.
        return foretold, (decode_step(model, params, cache, later)[1], whole(posterior.mean))

    for stepped, whole in forms(video):
        close(stepped, whole[:, 3:])
    with pytest.raises(ValueError, match="expected the decoder's cache, got None: decode frame 0"):
        foretell_step(model, params, None, (2, 1, 4, 4, 4))


def test_the_parameters_are_those_of_the_whole_pass(plain):
    """`init` makes no cache, and a whole pass neither needs nor returns one."""
    model, _, video = plain
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    assert set(variables) == {"params"}
    cache, _ = jax.eval_shape(lambda v: encode_step(model, v["params"], None, video), variables)
    assert set(cache) == {"encoder"}


def test_inside_a_foreign_jit_with_vmap(plain):
    """As part of another program, mapped over an axis of its own."""
    model, params, video = plain
    clips = jnp.stack([video, video[:, ::-1]])
    mean = jax.jit(jax.vmap(lambda x: 2 * encode_chunks(model, params, x, 1).mean))(clips)
    whole = jax.jit(lambda x: model.apply({"params": params}, x, method="encode").mean)
    close(mean, 2 * jnp.stack([whole(clip) for clip in clips]))


def temporary_bytes(function, *shapes) -> int:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_memory_does_not_grow_with_the_clip(plain, part):
    """Temporary memory of the compiled program; what goes in and what comes out are left out of it."""
    model, params, _ = plain

    def streamed(x):
        return (encode_chunks if part == "encode" else decode_chunks)(model, params, x, 4)

    def shape(frames):
        return (1, frames, 32, 32, 3) if part == "encode" else (1, TINY.latent_frames(frames), 4, 4, 4)

    short, long = (temporary_bytes(streamed, shape(frames)) for frames in (17, 65))
    whole = temporary_bytes(lambda x: model.apply({"params": params}, x, method=part), shape(65))
    assert 0 < long <= 1.1 * short
    assert whole > 2 * long, "the whole pass needs more, or nothing is shown"


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1)])
def test_context_takes_the_place_of_the_zeros(lowering, kernel):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((1, 5, 4, 4, 2), kernel + (2, 3)))
    whole = causal_conv3d(x, w, lowering=lowering)
    for start in (2, 4):  # the last leaves one frame, which is not the first of the clip
        part = causal_conv3d(x[:, start:], w, context=x[:, start - 2 : start], lowering=lowering)
        np.testing.assert_allclose(part, whole[:, start:], atol=1e-5)


def test_chunk_sizes():
    assert chunk_sizes(1, 4) == (1,) and chunk_sizes(4, 4) == (4,) and chunk_sizes(5, 4) == (1, 4)
    assert chunk_sizes(16, 5) == (1, 5, 5, 5) and chunk_sizes(3, 1) == (1, 1, 1)
    with pytest.raises(ValueError, match="must be at least 1 latent frame"):
        chunk_sizes(5, 0)


def test_what_does_not_fit_is_refused(plain):
    model, params, video = plain
    with pytest.raises(ShapeError, match="use 5 or 7 frames"):
        encode_chunks(model, params, video[:, :6])
    with pytest.raises(ShapeError, match="use 1 or 3 frames"):
        encode_step(model, params, None, video[:, :2])
    with pytest.raises(ShapeError, match=r"\(b, g, h, w, 4\)"):
        decode_chunks(model, params, jnp.zeros((1, 2, 2, 2, 5)))
    cache, _ = jax.eval_shape(lambda x: encode_step(model, params, None, x), video[:, :1])
    with pytest.raises(ShapeError, match="a multiple of 2 frames, got 3"):
        encode_step(model, params, cache, video[:, :3])
    with pytest.raises(ValueError, match="expected a cache of the decoder, got one of encoder"):
        decode_step(model, params, cache, jnp.zeros((2, 1, 2, 2, 4)))

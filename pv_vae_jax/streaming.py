"""Encode and decode clips of any length chunk by chunk: the numbers of one pass, in memory that stays flat.

Every causal layer needs the last one or two frames of its input from the chunk before. They are the cache, a pytree
that the steps take and return (`layers.cache`). The first chunk holds frame 0, the later ones whole groups of `p_t`:

    cache = None
    for frames in chunks:
        cache, posterior = encode_step(model, params, cache, frames)

`encode_chunks` and `decode_chunks` run that loop over an array, inside `lax.scan`. They are for inference: on CPU the
gradient of a convolution within a scan is more than twenty times slower than outside.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pv_vae_jax.layers.cache import CACHE
from pv_vae_jax.models.vae import VAE, Posterior
from pv_vae_jax.typing import Array, Params, PRNGKey, ShapeError, check_clip_shape, check_latent_shape

Cache = Any  # nested dict of arrays (b, 1 or 2, h, w, c), one for each layer that looks back
CHUNK = 5  # latent frames: the 17 frames of a training clip of PV-VAE still go through in one piece


def chunk_sizes(latent_frames: int, chunk: int = CHUNK) -> tuple[int, ...]:
    """Latent frames of each chunk: a first of 1 to `chunk`, then as many full ones as it takes.

    A first chunk may have any size and the later ones are equal, so a clip needs two programs, whatever its length.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 latent frame, got {chunk}")
    if latent_frames < 1:
        raise ShapeError(f"a clip must have at least 1 latent frame, got {latent_frames}")
    later = (latent_frames - 1) // chunk
    return (latent_frames - later * chunk,) + (chunk,) * later


def encode_step(
    model: VAE, params: Params, cache: Cache | None, frames: Float[Array, "b t H W 3"]
) -> tuple[Cache, Posterior]:
    """Encode the next frames of a clip.

    Args:
      model: the VAE.
      params: its parameters, the same as for `encode`.
      cache: None at the start of a clip, then what the step before returned.
      frames: `(b, 1 + n p_t, H, W, 3)` in [-1, 1] at the start, then `(b, n p_t, H, W, 3)`.

    Returns:
      The cache, and the posterior of these frames: `1 + n` latent frames at the start, then `n`.

    Raises:
      ShapeError: frame count or size does not fit.
    """
    p_t = model.config.time_factor
    if cache is not None and (frames.shape[1] < 1 or frames.shape[1] % p_t):
        raise ShapeError(f"a later chunk must have a multiple of {p_t} frames, got {frames.shape[1]}")
    return _apply(model, params, cache, frames, "encoder", "encode")


def decode_step(
    model: VAE, params: Params, cache: Cache | None, latents: Float[Array, "b n h w z"]
) -> tuple[Cache, Float[Array, "b t H W 3"]]:
    """Decode the next latent frames `(b, n, h, w, z)` of a clip; `cache` as in `encode_step`.

    Returns:
      The cache, and the frames: `(b, 1 + (n - 1) p_t, H, W, 3)` at the start, then `(b, n p_t, H, W, 3)`.

    Raises:
      ShapeError: the latents do not fit the model.
    """
    return _apply(model, params, cache, latents, "decoder", "decode")


def foretell_step(
    model: VAE, params: Params, cache: Cache, shape: tuple[int, ...], key: PRNGKey | None = None
) -> tuple[Cache, Float[Array, "b t H W 3"]]:
    """Draw the next frames of a clip before they are seen: decode pads in the place of their latents (section 3.1).

    Args:
      model: the VAE, trained to predict.
      params: its parameters.
      cache: the decoder's, after the latents of what was seen. To take the clip up there once the frames have come in,
        keep it: `decode_step` their latents with it. To predict further, go on with the one that is returned.
      shape: `(b, n, h, w, z)` of the latents to leave out.
      key: draws gaussian padding; a learned token needs none.

    Returns:
      The cache, and the frames `(b, n p_t, H, W, 3)`.

    Raises:
      ValueError: there is no cache: frame 0 must be seen.
    """
    if cache is None:
        raise ValueError("expected the decoder's cache, got None: decode frame 0 from its latent first")
    return decode_step(model, params, cache, model.apply({"params": params}, shape, key, method="pad_latents"))


def encode_chunks(model: VAE, params: Params, video: Float[Array, "b t H W 3"], chunk: int = CHUNK) -> Posterior:
    """`encode` of `(b, 1 + T, H, W, 3)`, at most `chunk` latent frames at a time.

    Raises:
      ShapeError: frame count or size does not fit; the message names the nearest that do.
    """
    config = model.config
    _, frames, height, width, _ = video.shape
    check_clip_shape(frames, height, width, config.time_factor, config.space_factor)
    first, *later = chunk_sizes(config.latent_frames(frames), chunk)
    step = functools.partial(encode_step, model, params)
    return _scan(step, video, config.frames(first), len(later), takes=chunk * config.time_factor, gives=chunk)


def decode_chunks(
    model: VAE, params: Params, latents: Float[Array, "b g h w z"], chunk: int = CHUNK
) -> Float[Array, "b t H W 3"]:
    """`decode` of `(b, g, h, w, z)`, at most `chunk` latent frames at a time.

    Raises:
      ShapeError: the latents do not fit the model.
    """
    check_latent_shape(latents.shape, model.config.latent_channels)
    first, *later = chunk_sizes(latents.shape[1], chunk)
    step = functools.partial(decode_step, model, params)
    return _scan(step, latents, first, len(later), takes=chunk, gives=chunk * model.config.time_factor)


def _apply(model: VAE, params: Params, cache: Cache | None, x: Array, part: str, method: str) -> tuple[Cache, Any]:
    variables = {"params": params}
    if cache is not None:
        if part not in cache:
            raise ValueError(f"expected a cache of the {part}, got one of {', '.join(cache)}")
        variables[CACHE] = cache
    y, updated = model.apply(variables, x, method=method, mutable=[CACHE])
    return updated[CACHE], y


def _scan(
    step: Callable[[Cache | None, Array], tuple[Cache, Any]], x: Array, first: int, later: int, takes: int, gives: int
) -> Any:
    """`step` over the first frames of `x`, then over `later` chunks of `takes` frames, each of which makes `gives`.

    Input is sliced and output written in place. Given to the scan as `xs` and `ys`, both would be copied in full, and
    memory would grow with the clip.
    """
    cache, start = step(None, x[:, :first])
    if not later:
        return start
    joined = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, later * gives), (0, 0), (0, 0), (0, 0))), start)

    def body(carry, i):
        cache, joined = carry
        cache, new = step(cache, jax.lax.dynamic_slice_in_dim(x, first + i * takes, takes, axis=1))

        def write(full: Array, part: Array) -> Array:
            begin = full.shape[1] - (later - i) * gives
            return jax.lax.dynamic_update_slice_in_dim(full, part, begin, axis=1)

        return (cache, jax.tree.map(write, joined, new)), None

    (_, joined), _ = jax.lax.scan(body, (cache, joined), jnp.arange(later))
    return joined

"""Checks of what users pass to the methods of a `Model`. Shapes are checked always, values unless they are traced."""

import math
import operator
import os
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.models.latte import Latte
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.typing import Array, ShapeError, check_clip_shape


def as_array(x: Any) -> Any:
    """`x` itself if it is a JAX array, on a device or traced; anything else as a NumPy array."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def checked_video(vae: VAE, video: Any) -> Any:
    """`video` as an array, after checking its shape, its type and, unless it is traced, its values.

    Raises:
      ShapeError: the shape does not fit `vae`.
      TypeError: this is not an array of uint8 or floats.
      ValueError: a float is outside [-1, 1].
    """
    if isinstance(video, (str, os.PathLike)):
        raise TypeError(
            f"expected video (b, t, H, W, 3), got the path {video}: pass pv_vae_jax.data.read_video(path)[None]"
        )
    video, config = _numbers("video (b, t, H, W, 3)", video), vae.config
    if video.ndim != 5 or video.shape[-1] != 3:
        one_clip = video.ndim == 4 and video.shape[-1] == 3
        advice = "add a batch axis, video[None]" if one_clip else "move its axes into this order"
        raise ShapeError(f"expected video (b, t, H, W, 3), got {video.shape}: {advice}")
    _check_not_empty("video", video)
    frames, height, width = video.shape[1:4]
    check_clip_shape(frames, height, width, config.time_factor, config.space_factor)
    if video.dtype == "uint8":
        return video
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise TypeError(f"expected uint8 or float video, got {video.dtype}: convert pixels in [0, 255] to uint8")
    if not isinstance(video, jax.core.Tracer):
        with jax.ensure_compile_time_eval():  # within a jit as well, where a constant is known
            fits, low, high = np.asarray(_extent(video))
        if not fits:
            low_text, high_text = (np.format_float_positional(x, trim="-") for x in (low, high))  # 1.0001, not 1
            found = f"values from {low_text} to {high_text}" if low < -1 or high > 1 else "NaN"
            raise ValueError(
                f"expected float video in [-1, 1], got {found}: pass uint8 pixels, or pv_vae_jax.to_float of them; "
                "clamp the output of a network"
            )
    return video


def checked_latents(vae: VAE, latents: Any) -> Any:
    """`latents` as an array, after checking its shape and type.

    Raises:
      ShapeError: the shape is not that of latents of `vae`.
      TypeError: this is not an array of floats.
    """
    shape = f"(b, g, h, w, {vae.config.latent_channels})"
    latents = _numbers(f"latents {shape}", latents)
    if latents.ndim != 5 or latents.shape[-1] != vae.config.latent_channels:
        advice = "pass what encode of this model returned"
        if latents.ndim == 4:
            advice = "add a batch axis, latents[None]"
        elif latents.ndim == 5 and latents.shape[-1] == 3:
            advice = "this has the channels of a video: encode it first"
        raise ShapeError(f"expected latents {shape}, got {latents.shape}: {advice}")
    _check_not_empty("latents", latents)
    if 0 in latents.shape:
        raise ShapeError(f"expected latents of at least one frame and position, got {latents.shape}: leave them out")
    if not jnp.issubdtype(latents.dtype, jnp.floating):
        raise TypeError(f"expected float latents, got {latents.dtype}: pass what encode of this model returned")
    return latents


def checked_labels(latte: Latte | None, labels: Any, guidance: Any = 1.0) -> Any:
    """`labels` as an array, after checking them and `guidance` against the transformer of a model.

    Raises:
      ValueError: there is no transformer, or it has no classes to guide by, or a label or the guidance is out of range.
      TypeError: the guidance is not a number.
    """
    if latte is None:
        raise ValueError("this model has no diffusion transformer: load one whose stage diffusion is finished")
    classes, labels = latte.config.classes, as_array(labels)
    if labels.ndim != 1 or not len(labels):
        raise ShapeError(f"expected labels (n,), at least one, got shape {labels.shape}: pass one label per clip")
    guidance = checked_guidance(guidance)
    if not classes and (isinstance(guidance, jax.core.Tracer) or guidance != 1.0):
        raise ValueError(f"guidance {guidance} needs a class-conditional transformer; set it to 1")
    if not classes or isinstance(labels, jax.core.Tracer):
        return labels
    if not np.issubdtype(labels.dtype, np.integer) or len(wrong := np.setdiff1d(labels, np.arange(classes))):
        got = wrong.tolist() if np.issubdtype(labels.dtype, np.integer) else np.asarray(labels).tolist()
        raise ValueError(
            f"labels must be whole numbers from 0 to {classes - 1}, got {got}: a class's number is its place in "
            "model.diffusion.class_names"
        )
    return labels


def checked_key(key: Any) -> Any:
    """A key of `jax.random`, of the new or the old kind.

    Raises:
      TypeError: it is something else.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == "uint32" and key.ndim == 1):
        raise TypeError(f"expected a key of jax.random, got {key!r}: pass jax.random.key(0), for example")
    return key


def checked_guidance(guidance: Any) -> Any:
    """A scale of guidance as a float; a traced one stays as it is.

    Raises:
      TypeError: it is not a single number.
      ValueError: it is negative, infinite or NaN.
    """
    value = as_array(guidance)
    if value.ndim or not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"expected guidance to be one number, got {guidance!r}: pass a float such as 1.5")
    if isinstance(guidance, jax.core.Tracer):
        return guidance
    scale = float(value)
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"guidance must be a finite number of at least 0, got {scale}: 1 turns it off")
    return scale


def checked_index(index: Any, count: int) -> Any:
    """Numbers of `count` clips as an array; None stands for `0 .. count - 1`.

    Raises:
      ShapeError: their number is not `count`.
      TypeError: they are not integers.
    """
    index = np.arange(count) if index is None else as_array(index)
    if index.shape != (count,):
        raise ShapeError(f"expected an index for each of the {count} labels, got shape {index.shape}: pass {count}")
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"expected index to be integers, got {index.dtype}: pass the numbers of the clips")
    return index


def checked_count(name: str, value: Any) -> int:
    """A number of frames or steps as a Python int.

    Raises:
      TypeError: it is not an integer, or is traced.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        got = "a traced value" if isinstance(value, jax.core.Tracer) else repr(value)
        raise TypeError(f"expected {name} to be an integer, got {got}: pass a Python int") from error


@jax.jit
def _extent(video: Array) -> Array:
    """Whether all values are in [-1, 1] (NaN is not), the smallest and the largest."""
    return jnp.stack([(jnp.abs(video) <= 1).all(), video.min(), video.max()]).astype(jnp.float32)


def _numbers(expected: str, x: Any) -> Any:
    """`x` as an array, unless its items are no numbers at all."""
    array = as_array(x)
    if array.dtype.kind in "OSU":
        raise TypeError(f"expected {expected}, got {type(x).__name__}: pass a NumPy or JAX array")
    return array


def _check_not_empty(name: str, array: Array) -> None:
    if not len(array):
        raise ShapeError(f"expected at least one clip, got {name} of shape {array.shape}: skip empty batches")

"""Array aliases, the errors users meet, and the shape rules of causal video networks.

Shape letters used in every comment of this library: `b` batch, `t` time, `h w` space, `c` channels, `z` latent
channels, `g` latent frames (groups), `k` dropped groups, `n` tokens, `d` width.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from pv_vae_jax.messages import ConfigError

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # a nested dict of arrays, as Flax Linen makes it

VAE_STAGES = ("image", "video", "decoder")  # in order: each starts from the model of the one before


def sum_of(arrays: Iterable[Array]) -> Array:
    """The sum of at least one array; to a type checker `sum` may be the number 0."""
    return sum(arrays)  # pyright: ignore[reportReturnType]


class ShapeError(ValueError):
    """A clip whose frame count or size does not fit the network; the message names the nearest that do."""


class WeightsError(ValueError):
    """A weights file that cannot be used; the message names every fault and what to do."""


class InUseError(ConfigError):
    """Another process writes to the same place; the same call works when that process has ended."""


class NonFiniteError(FloatingPointError):
    """A term of the loss, a parameter or a sample is NaN or infinite."""


def check_clip_shape(frames: int, height: int, width: int, time_factor: int, space_factor: int) -> None:
    """Raise `ShapeError` unless `frames = 1 + n * time_factor` and both sides are multiples of `space_factor`.

    Other libraries truncate such clips silently; a clip that comes back shorter is worse than an error.
    """
    problems = []
    if frames < 1 or (frames - 1) % time_factor:
        below = 1 + max(0, (frames - 1) // time_factor) * time_factor
        problems.append(f"{frames} frames do not fit 1 + {time_factor} n: use {below} or {below + time_factor} frames")
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % space_factor:
            below = max(0, size // space_factor) * space_factor
            use = f"{below} or {below + space_factor}" if below else f"{space_factor}"
            problems.append(f"{name} {size} is not a multiple of {space_factor}: use {use}")
    if problems:
        raise ShapeError("; ".join(problems))


def check_sizes(config: Any, *names: str) -> None:
    """Raise `ValueError` unless the fields `names` of `config`, integers or tuples of them, are all at least 1."""
    for name in names:
        value = getattr(config, name)
        if any(size < 1 for size in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must be at least 1, got {value}")


DTYPES = ("float32", "bfloat16", "float16")  # that networks compute in


def check_choices(config: Any, **choices: Iterable[str]) -> None:
    """Raise `ValueError` unless each named field of `config` has one of the given values."""
    for name, values in choices.items():
        if getattr(config, name) not in values:
            raise ValueError(f"{name} must be {' or '.join(map(repr, values))}, got {getattr(config, name)!r}")


def tensor_faults(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, strict: bool = True
) -> list[str]:
    """What keeps tensors from being those that are expected, a clause each; both by name, as shapes.

    With `strict`, tensors that are not expected are faults too.
    """
    faults = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    faults += [f"left over {name} {found[name]}" for name in sorted(found.keys() - expected.keys()) if strict]
    return faults + [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]


def unstorable(value: Any, dtype: str) -> str:
    """Why `dtype` cannot hold an array: it is `not finite`, or `too large for float16`; empty if it can."""
    with np.errstate(over="ignore"):
        stored = np.asarray(value).astype(dtype, copy=False)
    if np.isfinite(stored).all():
        return ""
    return f"too large for {dtype}" if np.isfinite(value).all() else "not finite"


def check_latent_shape(shape: tuple[int, ...], channels: int) -> None:
    """Raise `ShapeError` unless `shape` is `(b, g, h, w, channels)`."""
    if len(shape) != 5 or shape[-1] != channels:
        raise ShapeError(f"expected latents of shape (b, g, h, w, {channels}), got {tuple(shape)}")

"""Rotary positions in time, height and width: attention then depends on distances only, at any size and length."""

from __future__ import annotations

import jax.numpy as jnp

from pv_vae_jax.typing import Array


def rotary_angles(groups: Array, height: int, width: int, head_width: int) -> Array:
    """Angles of the tokens of a grid: `(g * height * width, head_width / 2)` float32, row-major.

    Two thirds of the channel pairs turn with row and column, the rest with time (the split of the Wan transformers),
    each at frequencies from 1 down to about 1e-4.

    Args:
      groups: `(g,)` index of each latent frame.
      height, width: tokens of a latent frame.
      head_width: channels of a head, even and at least 6.
    """
    pairs = head_width // 2
    space = pairs // 3

    def angles(position: Array, count: int) -> Array:
        frequency = 10_000.0 ** -(jnp.arange(count, dtype=jnp.float32) / count)
        return position.astype(jnp.float32)[..., None] * frequency

    time = angles(groups, pairs - 2 * space)[:, None, None]
    row = angles(jnp.arange(height), space)[None, :, None]
    column = angles(jnp.arange(width), space)[None, None, :]
    grid = (len(groups), height, width)
    parts = [jnp.broadcast_to(a, grid + a.shape[-1:]) for a in (time, row, column)]
    return jnp.concatenate(parts, axis=-1).reshape(-1, pairs)


def rotate(x: Array, angles: Array) -> Array:
    """Turn channel pairs `(i, i + d/2)` of `x (b, n, heads, d)` by `angles (n, d/2)`; in float32, back in `x.dtype`."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)

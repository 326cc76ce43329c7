"""Positions (sine-cosine tables, rotary angles) and the embeddings of diffusion time and class."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from pv_vae_jax.typing import Array


def sincos_1d(width: int, positions: ArrayLike) -> np.ndarray:
    """`(n, width)` float32: sines, then cosines, of `positions (n,)` at `width / 2` frequencies from 1 to 1e-4."""
    if width % 2:
        raise ValueError(f"the width of a sine-cosine table must be even, got {width}")
    frequency = 10_000.0 ** -(np.arange(width // 2, dtype=np.float64) / (width // 2))
    angle = np.asarray(positions, np.float64)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def sincos_2d(width: int, height: int, breadth: int) -> np.ndarray:
    """`(height * breadth, width)` row-major: the first half encodes the column, the second the row (as in Latte)."""
    row, column = np.meshgrid(np.arange(height), np.arange(breadth), indexing="ij")
    return np.concatenate([sincos_1d(width // 2, column.ravel()), sincos_1d(width // 2, row.ravel())], axis=1)


def rotary_angles(groups: Array, height: int, width: int, head_width: int) -> Array:
    """Rotary angles of a grid of tokens: `(g * height * width, head_width / 2)` float32, row-major.

    Attention then depends on distances only, at any size and length. Two thirds of the channel pairs turn with row and
    column, the rest with time (the split of the Wan transformers), each at frequencies from 1 down to about 1e-4.

    Args:
      groups: `(g,)` index of each latent frame.
      height, width: rows and columns of tokens in a latent frame.
      head_width: channels of a head, even and at least 6.
    """
    pairs = head_width // 2
    space = pairs // 3

    def angles(position: Array, count: int) -> Array:
        frequency = 10_000.0 ** -(jnp.arange(count, dtype=jnp.float32) / count)
        return position.astype(jnp.float32)[:, None] * frequency[None]

    time = angles(groups, pairs - 2 * space)[:, None, None]
    row = angles(jnp.arange(height), space)[None, :, None]
    column = angles(jnp.arange(width), space)[None, None, :]
    grid = (len(groups), height, width)
    parts = [jnp.broadcast_to(a, grid + a.shape[-1:]) for a in (time, row, column)]
    return jnp.concatenate(parts, axis=-1).reshape(-1, pairs)  # (g height width, head_width / 2)


def rotate(x: Array, angles: Array) -> Array:
    """Turn channel pairs `(i, i + d/2)` of `x (b, n, heads, d)` by `angles (n, d/2)`; in float32, back in `x.dtype`."""
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def timestep_features(t: Array, width: int) -> Array:
    """`(b,)` -> `(b, width)`: cosines, then sines (as in Latte), float32."""
    half = width // 2
    # Float32 as in Latte, and in NumPy: at time 1000 the last bit of a frequency, which devices round apart, shows.
    frequency = np.exp(np.float32(-np.log(10_000.0)) * np.arange(half, dtype=np.float32) / np.float32(half))
    angle = t.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Diffusion time `(b,)` -> `(b, features)` through 256 sinusoids and two dense layers."""

    features: int

    @nn.compact
    def __call__(self, t: Array) -> Array:
        init = nn.initializers.normal(0.02)
        x = nn.Dense(self.features, kernel_init=init, name="dense1")(timestep_features(t, 256))
        return nn.Dense(self.features, kernel_init=init, name="dense2")(jax.nn.silu(x))


class ClassEmbedding(nn.Module):
    """Labels `(b,)` int -> `(b, features)`. Row `classes` is the null class of classifier-free guidance."""

    classes: int
    features: int

    @nn.compact
    def __call__(self, label: Array) -> Array:
        table = self.param("table", nn.initializers.normal(0.02), (self.classes + 1, self.features), jnp.float32)
        # A product: the gradient of a gather is a scatter, which XLA for TPUs summed wrongly over the parts of a batch
        # (openxla/xla#49143, seen with libtpu 0.0.48). The highest precision picks a row without rounding.
        rows = jax.nn.one_hot(label, self.classes + 1, dtype=table.dtype)  # (b, classes + 1)
        embedded = jnp.dot(rows, table, precision="highest")  # (b, features)
        known = (0 <= label) & (label <= self.classes)
        return jnp.where(known[:, None], embedded, jnp.nan)  # a wrong label must not pass for a class

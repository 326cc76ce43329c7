"""Pixel terms: squared error, and the same error on temporal differences."""

from __future__ import annotations

import jax.numpy as jnp

from pv_vae_jax.typing import Array


def squared_error(output: Array, target: Array) -> Array:
    """Mean squared error of two clips `(b, t, h, w, 3)`, float32.

    Raises:
      ValueError: clips of two shapes.
    """
    if output.shape != target.shape:
        raise ValueError(f"clips that are compared have one shape, got {output.shape} and {target.shape}")
    return jnp.mean(jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)))


def motion_error(output: Array, target: Array) -> Array:
    """`Diff` of equation 1: squared error of the differences of adjacent frames; 0 for an image.

    A static background cancels, so copying it earns nothing.
    """
    if output.shape[1] == 1:
        return jnp.zeros(())
    return squared_error(jnp.diff(output, axis=1), jnp.diff(target, axis=1))

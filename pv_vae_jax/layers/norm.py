"""Root-mean-square norm over channels: local in time and space, so causality and chunking hold."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.typing import Array


def rms_norm(x: Array, gamma: Array) -> Array:
    """`x / max(|x|_2, 1e-12) * sqrt(c) * gamma` over the last axis, in float32, returned in `x.dtype`.

    The floor is on the norm itself, not inside a root, as in the Wan video VAEs.
    """
    x32 = x.astype(jnp.float32)
    square = jnp.sum(x32 * x32, axis=-1, keepdims=True)
    # maximum() before the root: its gradient at zero input is zero instead of 0 * inf.
    scale = jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * x.shape[-1] ** 0.5
    return (x32 * scale * gamma.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned `gamma (c,)`, ones at the start."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.param("gamma", nn.initializers.ones, (x.shape[-1],)))

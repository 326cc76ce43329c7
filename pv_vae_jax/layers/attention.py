"""Attention through one entry point, and the per-frame attention block of the video VAE."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.layers.norm import RMSNorm
from pv_vae_jax.typing import Array


def dot_product_attention(q: Array, k: Array, v: Array, *, implementation: str = "xla") -> Array:
    """Softmax attention, `(b, n, heads, d)` each, scale `1 / sqrt(d)`.

    `implementation`: `xla` everywhere, `cudnn` for the fused kernel on NVIDIA GPUs (16-bit types).
    """
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


class FrameAttention(nn.Module):
    """Single-head self-attention inside every frame, residual, starting as the identity: `(b, t, h, w, c)`."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, t, h, w, c = x.shape
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="to_qkv")(RMSNorm(name="norm")(x))
        q, k, v = jnp.split(qkv.reshape(b * t, h * w, 1, 3 * c), 3, axis=-1)
        y = dot_product_attention(q, k, v).reshape(b, t, h, w, c)
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj")(y)

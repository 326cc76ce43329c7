"""Blocks of the video VAE: RMS norm, residual block, per-frame attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.layers.attention import dot_product_attention
from pv_vae_jax.layers.conv import CausalConv3D, Lowering
from pv_vae_jax.sharding.axes import VIDEO_AXES, constrain
from pv_vae_jax.typing import Array


def rms_norm(x: Array, gamma: Array) -> Array:
    """`x / max(|x|_2, 1e-12) * sqrt(c) * gamma` over the last axis, in float32, returned in `x.dtype`.

    It is local in time and space, so causality and chunking hold. The floor is on the norm itself, not inside a root,
    as in the Wan video VAEs.
    """
    x32 = x.astype(jnp.float32)
    square = jnp.sum(x32 * x32, axis=-1, keepdims=True)
    # maximum() before the root: its gradient at zero input is zero instead of 0 * inf.
    scale = jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * x.shape[-1] ** 0.5
    return (x32 * scale * jnp.broadcast_to(gamma.astype(jnp.float32), x.shape)).astype(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned `gamma (c,)`, initially ones."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.param("gamma", nn.initializers.ones, (x.shape[-1],), jnp.float32))


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1x1x1 convolution where widths differ)."""

    features: int
    dtype: str = "float32"
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # (b, t, h, w, c)
        conv: dict[str, Any] = dict(features=self.features, dtype=self.dtype, lowering=self.lowering)
        y = CausalConv3D(name="conv1", **conv)(nn.silu(RMSNorm(name="norm1")(x)))  # (b, t, h, w, features)
        y = constrain(y, (*VIDEO_AXES[:-1], "hidden"))
        # The second convolution starts at zero (our choice): the network begins as its own shortcuts.
        y = CausalConv3D(zero_init=True, name="conv2", **conv)(nn.silu(RMSNorm(name="norm2")(y)))
        if x.shape[-1] != self.features:
            x = CausalConv3D(kernel_size=(1, 1, 1), name="shortcut", **conv)(x)
        return constrain(x + y, VIDEO_AXES)


class FrameAttention(nn.Module):
    """Single-head self-attention inside every frame, residual, starting as the identity: `(b, t, h, w, c)`."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, t, h, w, c = x.shape
        # The positions of a frame attend to each other, so devices split clips instead of pictures where these suffice.
        y = constrain(RMSNorm(name="norm")(x), ("clips", "time", "whole", "whole", "channels"))
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="to_qkv")(y)
        q, k, v = jnp.split(qkv.reshape(b * t, h * w, 1, 3 * c), 3, axis=-1)  # each (b t, h w, 1, c)
        y = dot_product_attention(q, k, v).reshape(b, t, h, w, c)
        y = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj")(y)
        return constrain(x + constrain(y, VIDEO_AXES), VIDEO_AXES)

"""Residual block of the video VAE."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from pv_vae_jax.layers.conv import CausalConv3D, Lowering
from pv_vae_jax.layers.norm import RMSNorm
from pv_vae_jax.sharding.axes import VIDEO_AXES, constrain
from pv_vae_jax.typing import Array


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1x1x1 convolution where widths differ)."""

    features: int
    dtype: str = "float32"
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv: dict[str, Any] = dict(dtype=self.dtype, lowering=self.lowering)
        y = CausalConv3D(self.features, name="conv1", **conv)(nn.silu(RMSNorm(name="norm1")(x)))
        y = constrain(y, (*VIDEO_AXES[:-1], "hidden"))
        # The second convolution starts at zero (our choice): the network begins as its own shortcuts.
        y = CausalConv3D(self.features, zero_init=True, name="conv2", **conv)(nn.silu(RMSNorm(name="norm2")(y)))
        if x.shape[-1] != self.features:
            x = CausalConv3D(self.features, (1, 1, 1), name="shortcut", **conv)(x)
        return constrain(x + y, VIDEO_AXES)

"""Building blocks of the networks: causal convolution, resampling, norm, attention, embeddings."""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.layers.attention import dot_product_attention
    from pv_vae_jax.layers.blocks import FrameAttention, ResidualBlock, RMSNorm
    from pv_vae_jax.layers.conv import CausalConv3D, Conv2D, causal_conv3d, conv2d
    from pv_vae_jax.layers.embeddings import ClassEmbedding, TimestepEmbedding
    from pv_vae_jax.layers.resample import Downsample, Upsample, patchify, unpatchify

__all__ = [
    "CausalConv3D", "ClassEmbedding", "Conv2D", "Downsample", "FrameAttention", "RMSNorm", "ResidualBlock",
    "TimestepEmbedding", "Upsample", "causal_conv3d", "conv2d", "dot_product_attention", "patchify", "unpatchify",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)

"""Latent diffusion transformer: Latte with one token per latent position (paper: "its patchify removed").

Blocks alternate between the tokens of one frame and the frames of one position; depth counts both.

    model = Latte(dataclasses.replace(LATTE_SIZES["XL"], classes=101))

Sizes, initialisation and embeddings are those of the public Latte code; the output is a velocity, with no channels for
a learned variance. Three traps of that code are not taken over: guidance of the first four channels only (here
`diffusion.guidance` guides all), a null label fixed at 101 (here it is `classes`, whatever their number), and fused
attention that differs from the plain one (here the kernels of `layers.attention` are held to equal results).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from pv_vae_jax.layers.attention import IMPLEMENTATIONS, Implementation, dot_product_attention
from pv_vae_jax.layers.embeddings import ClassEmbedding, TimestepEmbedding, sincos_1d, sincos_2d
from pv_vae_jax.layers.remat import REMATS, Remat, remat
from pv_vae_jax.sharding.axes import TOKEN_AXES, constrain, split
from pv_vae_jax.typing import Array, check_dtype, check_sizes

HIDDEN_AXES = ("batch", "time", "tokens", "hidden")
HEAD_AXES = ("batch", "time", "whole", "heads", "channels")


@dataclasses.dataclass(frozen=True)
class LatteConfig:
    """Architecture of `Latte`; the published sizes are in `LATTE_SIZES`.

    Attributes:
      latent_channels: `z` of the VAE, in and out.
      depth: blocks, spatial and temporal together; even.
      width, heads: of every block.
      classes: labels; 0 makes the model unconditional.
      patch: side of the latent patch that becomes a token; 1 in the paper.
      attention: who computes it, see `layers.attention`.
      remat: what the backward pass keeps of a pair of blocks, see `layers.remat`.
      dtype: compute type; parameters and output are float32.
    """

    latent_channels: int = 64
    depth: int = 28
    width: int = 1152
    heads: int = 16
    classes: int = 0
    patch: int = 1
    attention: Implementation = "auto"
    remat: Remat = "none"
    dtype: str = "float32"

    def __post_init__(self):
        check_sizes(self, "latent_channels", "width", "heads", "patch")
        check_dtype(self.dtype)
        if self.classes < 0:
            raise ValueError(f"classes is at least 0, got {self.classes}")
        if self.depth % 2 or self.depth < 2:
            raise ValueError(f"depth counts pairs of a spatial and a temporal block, so it is even; got {self.depth}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}")
        if self.attention not in IMPLEMENTATIONS:
            raise ValueError(f"attention is one of {', '.join(IMPLEMENTATIONS)}, got {self.attention!r}")
        if self.remat not in REMATS:
            raise ValueError(f"remat is one of {', '.join(REMATS)}, got {self.remat!r}")


LATTE_SIZES: dict[str, LatteConfig] = {
    "S": LatteConfig(depth=12, width=384, heads=6),
    "B": LatteConfig(depth=12, width=768, heads=12),
    "L": LatteConfig(depth=24, width=1024, heads=16),
    "XL": LatteConfig(depth=28, width=1152, heads=16),  # the paper's
}


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Adaptive layer norm's `x (1 + scale) + shift`; `x (b, t, n, d)`, shift and scale `(b, d)`."""
    return x * (1 + scale[:, None, None]) + shift[:, None, None]


class Block(nn.Module):
    """adaLN-zero transformer block; attends over the token axis (`spatial`) or over time."""

    config: LatteConfig
    spatial: bool

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        c = self.config
        dense: dict[str, Any] = dict(dtype=c.dtype, kernel_init=nn.initializers.xavier_uniform())
        modulation = nn.Dense(6 * c.width, dtype=c.dtype, kernel_init=nn.initializers.zeros, name="modulation")
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation(nn.silu(condition)), 6, axis=-1)
        norm: dict[str, Any] = dict(use_bias=False, use_scale=False, epsilon=1e-6, dtype=c.dtype)

        y = modulate(nn.LayerNorm(**norm)(x), shift1, scale1)  # (b, t, n, d)
        y = y if self.spatial else y.swapaxes(1, 2)
        qkv = nn.Dense(3 * c.width, name="qkv", **dense)(y)
        qkv = rearrange(qkv, "b s n (three heads e) -> three b s n heads e", three=3, heads=c.heads)
        if self.spatial:  # the tokens of a frame meet, so devices split heads; over time, tokens stay where they are
            qkv = [constrain(a, HEAD_AXES) for a in qkv]
        attend = functools.partial(dot_product_attention, implementation=c.attention)
        if not self.spatial and split("tokens"):  # two split axes cannot become one without traffic
            y = jax.vmap(attend)(*qkv).reshape(y.shape)
        else:
            y = attend(*(rearrange(a, "b s n heads e -> (b s) n heads e") for a in qkv)).reshape(y.shape)
        y = nn.Dense(c.width, name="proj", **dense)(y)
        y = y if self.spatial else y.swapaxes(1, 2)
        x = constrain(x + gate1[:, None, None] * y, TOKEN_AXES)

        y = modulate(nn.LayerNorm(**norm)(x), shift2, scale2)
        y = constrain(nn.gelu(nn.Dense(4 * c.width, name="mlp1", **dense)(y), approximate=True), HIDDEN_AXES)
        y = nn.Dense(c.width, name="mlp2", **dense)(y)
        return constrain(x + gate2[:, None, None] * y, TOKEN_AXES)


class BlockPair(nn.Module):
    """A spatial and a temporal block. The temporal table enters once, before the first temporal block."""

    config: LatteConfig

    @nn.compact
    def __call__(self, x: Array, is_primary_process: Array, condition: Array, time_table: Array):
        x = Block(self.config, spatial=True, name="spatial")(x, condition)
        x = x + is_primary_process.astype(x.dtype) * time_table[None, :, None].astype(x.dtype)
        return Block(self.config, spatial=False, name="temporal")(x, condition), None


class Latte(nn.Module):
    """Noisy latents `(b, g, h, w, z)`, time `(b,)` in [0, 1], labels `(b,)` -> velocity `(b, g, h, w, z)` float32.

    The pairs of blocks run under `nn.scan`: their parameters are stacked on a leading axis, and compile time does not
    grow with depth. Label `classes` means "no class".
    """

    config: LatteConfig

    if TYPE_CHECKING:  # to Flax the result may be a pair, with what `mutable` names; to a reader it is the method's

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    @nn.compact
    def __call__(self, latents: Array, t: Array, label: Array | None = None) -> Array:
        c = self.config
        b, g, h, w, z = latents.shape
        p = c.patch
        if z != c.latent_channels:
            raise ValueError(f"the model takes {c.latent_channels} latent channels, got {z}")
        if h % p or w % p:
            raise ValueError(f"latent size {h}x{w} is not a multiple of the patch {p}")
        x = rearrange(latents, "b g (h p) (w q) z -> b g (h w) (p q z)", p=p, q=p).astype(c.dtype)
        x = nn.Dense(c.width, dtype=c.dtype, kernel_init=nn.initializers.xavier_uniform(), name="embed")(x)
        x = x + jnp.asarray(sincos_2d(c.width, h // p, w // p), c.dtype)

        condition = TimestepEmbedding(c.width, name="time")(1000.0 * t)
        if c.classes:
            label = jnp.full((b,), c.classes) if label is None else label
            condition = condition + ClassEmbedding(c.classes, c.width, name="label")(label)

        pairs = nn.scan(
            remat(BlockPair, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.depth // 2,
        )(c, name="pairs")
        is_primary_process = jnp.arange(c.depth // 2) == 0
        x, _ = pairs(constrain(x, TOKEN_AXES), is_primary_process, condition, jnp.asarray(sincos_1d(c.width, range(g))))

        final = nn.Dense(2 * c.width, kernel_init=nn.initializers.zeros, dtype=c.dtype, name="final_modulation")
        shift, scale = jnp.split(final(nn.silu(condition)), 2, axis=-1)
        x = modulate(nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-6, dtype=c.dtype)(x), shift, scale)
        x = nn.Dense(p * p * z, kernel_init=nn.initializers.zeros, name="output")(x.astype(jnp.float32))
        return rearrange(x, "b g (h w) (p q z) -> b g (h p) (w q) z", h=h // p, p=p, q=p)

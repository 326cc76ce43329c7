"""Latent diffusion transformer: Latte with one token per latent position (paper: "its patchify removed").

Blocks alternate between the tokens of one frame and the frames of one position; depth counts both.

    model = Latte(LatteConfig.xl(classes=101))

Sizes, initialisation and embeddings are those of the public Latte code; the output is a velocity, with no channels for
a learned variance. Three traps of that code are avoided: guidance of the first four channels only (here
`flow.classifier_free_guidance` guides all), a null label fixed at 101 (here it is `classes`, whatever their number),
and fused attention that differs from the plain one (tests hold the kernels of `layers.attention` to equal results).
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from pv_vae_jax.layers.attention import IMPLEMENTATIONS, Implementation, dot_product_attention
from pv_vae_jax.layers.embeddings import ClassEmbedding, TimestepEmbedding, sincos_1d, sincos_2d
from pv_vae_jax.layers.platform import on_one_cpu
from pv_vae_jax.layers.remat import REMATS, Remat, remat
from pv_vae_jax.sharding.axes import HEAD_AXES, HIDDEN_AXES, TOKEN_AXES, constrain, split
from pv_vae_jax.typing import DTYPES, Array, check_choices, check_sizes

# Pairs of blocks that one CPU device computes unrolled: stacking what each keeps for the backward pass, and taking it
# from the stack again, is a quarter of a small transformer's step there.
UNROLLED = 6


@dataclasses.dataclass(frozen=True)
class LatteConfig:
    """Architecture of `Latte`. The published sizes are class methods, which take fields to change.

    Attributes:
      latent_channels: `z` of the VAE, in and out.
      depth: number of blocks, spatial and temporal together; even.
      width, heads: channels and attention heads of every block.
      classes: number of labels; 0 makes the model unconditional.
      patch: side of the latent patch that becomes a token; 1 in the paper.
      attention: implementation of attention, see `layers.attention`.
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
        check_choices(self, attention=IMPLEMENTATIONS, remat=REMATS, dtype=DTYPES)
        if self.classes < 0:
            raise ValueError(f"classes must be at least 0, got {self.classes}")
        if self.depth % 2 or self.depth < 2:
            raise ValueError(f"depth must be even, pairs of a spatial and a temporal block, got {self.depth}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of 4 and of heads={self.heads}, got {self.width}")

    @classmethod
    def s(cls, **changes: Any) -> Self:
        """Latte-S, 33 M parameters with the paper's latents and the 101 classes of UCF101."""
        return cls(**{"depth": 12, "width": 384, "heads": 6, **changes})

    @classmethod
    def b(cls, **changes: Any) -> Self:
        """Latte-B, 130 M parameters."""
        return cls(**{"depth": 12, "width": 768, "heads": 12, **changes})

    @classmethod
    def l(cls, **changes: Any) -> Self:  # noqa: E743
        """Latte-L, 457 M parameters."""
        return cls(**{"depth": 24, "width": 1024, "heads": 16, **changes})

    @classmethod
    def xl(cls, **changes: Any) -> Self:
        """Latte-XL, 674 M parameters: the paper's."""
        return cls(**{"depth": 28, "width": 1152, "heads": 16, **changes})


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Adaptive layer norm's `x (1 + scale) + shift`; `x (b, t, n, d)`, shift and scale `(b, d)`."""
    return x * (1 + scale[:, None, None]) + shift[:, None, None]


class Block(nn.Module):
    """adaLN-zero transformer block; attends over the tokens of a frame (`spatial`) or over time."""

    config: LatteConfig
    spatial: bool

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:  # (b, g, n, d), (b, d)
        c = self.config
        dense: dict[str, Any] = dict(dtype=c.dtype, kernel_init=nn.initializers.xavier_uniform())
        modulation = nn.Dense(6 * c.width, dtype=c.dtype, kernel_init=nn.initializers.zeros, name="modulation")
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation(nn.silu(condition)), 6, axis=-1)
        norm: dict[str, Any] = dict(use_bias=False, use_scale=False, epsilon=1e-6, dtype=c.dtype)

        y = modulate(nn.LayerNorm(**norm)(x), shift1, scale1)
        y = y if self.spatial else y.swapaxes(1, 2)  # (b, n, g, d) over time
        qkv = nn.Dense(3 * c.width, name="qkv", **dense)(y)
        qkv = rearrange(qkv, "b s n (three heads e) -> three b s n heads e", three=3, heads=c.heads)
        if self.spatial:  # attention mixes the tokens of a frame, so devices split heads; over time, tokens stay put
            qkv = [constrain(a, HEAD_AXES) for a in qkv]
        attend = functools.partial(dot_product_attention, implementation=c.attention)
        if not self.spatial and split("tokens"):  # two split axes cannot become one without traffic
            y = jax.vmap(attend)(*qkv).reshape(y.shape)
        else:
            y = attend(*(rearrange(a, "b s n heads e -> (b s) n heads e") for a in qkv)).reshape(y.shape)
        y = nn.Dense(c.width, name="proj", **dense)(y)
        y = y if self.spatial else y.swapaxes(1, 2)  # (b, g, n, d)
        x = constrain(x + gate1[:, None, None] * y, TOKEN_AXES)

        y = modulate(nn.LayerNorm(**norm)(x), shift2, scale2)
        y = nn.gelu(nn.Dense(4 * c.width, name="mlp1", **dense)(y), approximate=True)
        y = constrain(y, HIDDEN_AXES)  # (b, g, n, 4 d)
        y = nn.Dense(c.width, name="mlp2", **dense)(y)
        return constrain(x + gate2[:, None, None] * y, TOKEN_AXES)


class BlockPair(nn.Module):
    """A spatial and a temporal block. The temporal table is added once, before the first temporal block."""

    config: LatteConfig

    @nn.compact
    def __call__(self, x: Array, is_first: Array, condition: Array, time_table: Array):
        x = Block(self.config, spatial=True, name="spatial")(x, condition)
        x = x + is_first.astype(x.dtype) * time_table[None, :, None].astype(x.dtype)  # (b, g, n, d)
        return Block(self.config, spatial=False, name="temporal")(x, condition), None


class Latte(nn.Module):
    """Noisy latents `(b, g, h, w, z)`, time `(b,)` in [0, 1], labels `(b,)` -> velocity `(b, g, h, w, z)` float32.

    The pairs of blocks run under `nn.scan`: their parameters are stacked on a leading axis, and compile time does not
    grow with depth; on one CPU device a few of them are unrolled, see `UNROLLED`. The label `classes` means "no class".
    """

    config: LatteConfig

    if TYPE_CHECKING:  # Flax types the result as a pair too, for `mutable`; declare what the called method returns

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    @nn.compact
    def __call__(self, latents: Array, t: Array, label: Array | None = None) -> Array:
        c = self.config
        b, g, h, w, z = latents.shape
        p = c.patch
        if z != c.latent_channels:
            raise ValueError(f"expected {c.latent_channels} latent channels, got {z}")
        if h % p or w % p:
            raise ValueError(f"height and width of latents must be multiples of the patch {p}, got {h} x {w}")
        x = rearrange(latents, "b g (h p) (w q) z -> b g (h w) (p q z)", p=p, q=p).astype(c.dtype)
        x = nn.Dense(c.width, dtype=c.dtype, kernel_init=nn.initializers.xavier_uniform(), name="embed")(x)
        x = x + jnp.asarray(sincos_2d(c.width, h // p, w // p), c.dtype)[None, None]

        condition = TimestepEmbedding(c.width, name="time")(1000.0 * t)  # (b, d)
        if c.classes:
            label = jnp.full((b,), c.classes) if label is None else label
            condition = condition + ClassEmbedding(classes=c.classes, features=c.width, name="label")(label)

        unrolled = on_one_cpu() and c.remat == "none" and c.depth // 2 <= UNROLLED
        pairs = nn.scan(
            remat(BlockPair, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.depth // 2,
            unroll=c.depth // 2 if unrolled else 1,
        )(c, name="pairs")
        is_first = jnp.arange(c.depth // 2) == 0
        time_table = jnp.asarray(sincos_1d(c.width, range(g)))  # (g, d)
        x, _ = pairs(constrain(x, TOKEN_AXES), is_first, condition, time_table)  # (b, g, n, d)

        final = nn.Dense(2 * c.width, kernel_init=nn.initializers.zeros, dtype=c.dtype, name="final_modulation")
        shift, scale = jnp.split(final(nn.silu(condition)), 2, axis=-1)
        x = modulate(nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-6, dtype=c.dtype)(x), shift, scale)
        x = nn.Dense(p * p * z, kernel_init=nn.initializers.zeros, name="output")(x.astype(jnp.float32))
        return rearrange(x, "b g (h w) (p q z) -> b g (h p) (w q) z", h=h // p, p=p, q=p)

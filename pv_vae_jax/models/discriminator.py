"""Patch discriminators: one on frames (2-D), one on clips (3-D causal), after the SSVAE lineage.

The paper names neither form nor widths. Norms are RMS over channels: a batch norm would tie devices together.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from pv_vae_jax.layers.conv import CausalConv3D, Conv2D, Lowering
from pv_vae_jax.layers.norm import RMSNorm
from pv_vae_jax.typing import Array, ShapeError, check_sizes


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Architecture of `Discriminator`.

    Attributes:
      kinds: which discriminators vote; a subset of `("2d", "3d")`.
      width: channels after the first convolution, doubled a level up to 8 times.
      levels: halvings of space (both kinds) and, for the first two, of time (3-D).
      lowering: see `layers.conv`.
    """

    kinds: tuple[str, ...] = ("2d", "3d")
    width: int = 64
    levels: int = 3
    lowering: Lowering = "auto"

    def __post_init__(self):
        check_sizes(self, "width", "levels")
        if not self.kinds or not set(self.kinds) <= {"2d", "3d"}:
            raise ValueError(f"discriminator kinds are '2d' and '3d', got {self.kinds}")


class PatchDiscriminator(nn.Module):
    """Clip `(b, t, h, w, 3)` -> float32 logits, one per patch (2-D) or space-time patch (3-D)."""

    config: DiscriminatorConfig
    kind: str

    @nn.compact
    def __call__(self, video: Array) -> Array:
        x = video
        for i in range(self.config.levels):
            width = self.config.width * min(2**i, 8)
            if self.kind == "3d":
                x = CausalConv3D(width, lowering=self.config.lowering, name=f"conv{i}")(x)
                x = _halve(x, time=i < 2)
            else:
                x = Conv2D(width, 4, stride=2, padding=((1, 1), (1, 1)), name=f"conv{i}")(x)
            x = nn.leaky_relu(RMSNorm(name=f"norm{i}")(x) if i else x, 0.2)
        if self.kind == "3d":
            return CausalConv3D(1, lowering=self.config.lowering, name="logits")(x)[..., 0]
        return Conv2D(1, name="logits")(x)[..., 0]


def _halve(x: Array, time: bool) -> Array:
    """Average 2x2 pixels and, if `time`, keep frame 0 and average later pairs: no strided 3-D convolution.

    An odd frame at the end is kept as it is, so that no frame of a clip goes unseen.
    """
    b, t, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ShapeError(f"a discriminator halves sides once a level, {h} x {w} does not halve: take fewer levels")
    x = x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean(axis=(3, 5))
    if not time or t == 1:
        return x
    n = (t - 1) // 2
    pairs = x[:, 1 : 1 + 2 * n].reshape(b, n, 2, h // 2, w // 2, c).mean(axis=2)
    return jnp.concatenate([x[:, :1], pairs, x[:, 1 + 2 * n :]], axis=1)


class Discriminator(nn.Module):
    """All discriminators of the config: clip -> list of logits, in the order of `kinds`."""

    config: DiscriminatorConfig

    if TYPE_CHECKING:  # to Flax the result may be a pair, with what `mutable` names; to a reader it is the method's

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    @nn.compact
    def __call__(self, video: Array) -> list[Array]:
        return [PatchDiscriminator(self.config, kind, name=f"patch_{kind}")(video) for kind in self.config.kinds]

"""Patch discriminators: one on frames (2-D), one on clips (3-D causal), in the lineage of SSVAE.

The paper gives neither form nor widths. Norms are RMS over channels: a batch norm would need communication.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from pv_vae_jax.layers.blocks import RMSNorm
from pv_vae_jax.layers.conv import LOWERINGS, CausalConv3D, Conv2D, Lowering
from pv_vae_jax.typing import Array, ShapeError, check_choices, check_sizes


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Architecture of `Discriminator`.

    Attributes:
      kinds: the discriminators in use, of `"2d"` and `"3d"`.
      width: channels after the first convolution, doubled at each level up to 8 times.
      levels: number of halvings of space (both kinds), the first two of which also halve time (3-D).
      lowering: how 3-D convolutions run, see `layers.conv`.
    """

    kinds: tuple[str, ...] = ("2d", "3d")
    width: int = 64
    levels: int = 3
    lowering: Lowering = "auto"

    def __post_init__(self):
        check_sizes(self, "width", "levels")
        check_choices(self, lowering=LOWERINGS)
        if not self.kinds or not set(self.kinds) <= {"2d", "3d"}:
            raise ValueError(f"kinds must be '2d', '3d' or both, got {self.kinds}")


class PatchDiscriminator(nn.Module):
    """Clip `(b, t, H, W, 3)` -> float32 logits `(b, t', h, w)`, one per patch (2-D) or space-time patch (3-D)."""

    config: DiscriminatorConfig
    kind: str

    @nn.compact
    def __call__(self, video: Array) -> Array:
        c, x = self.config, video
        for i in range(c.levels):
            width = c.width * min(2**i, 8)
            if self.kind == "3d":
                x = CausalConv3D(width, lowering=c.lowering, name=f"conv{i}")(x)
                x = _halve(x, time=i < 2)  # (b, 1 + (t - 1) / 2, h / 2, w / 2, width)
            else:
                # (b, t, h / 2, w / 2, width)
                x = Conv2D(width, kernel_size=4, stride=2, padding=((1, 1), (1, 1)), name=f"conv{i}")(x)
            x = nn.leaky_relu(RMSNorm(name=f"norm{i}")(x) if i else x, negative_slope=0.2)
        if self.kind == "3d":
            return CausalConv3D(1, lowering=c.lowering, name="logits")(x)[..., 0]
        return Conv2D(1, name="logits")(x)[..., 0]


def _halve(x: Array, time: bool) -> Array:
    """Average 2 x 2 pixels and, if `time`, keep frame 0 and average later pairs, without a strided 3-D convolution.

    An odd frame at the end is kept as it is, so that every frame of a clip is seen.
    """
    b, t, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ShapeError(f"sides must be even at each level of the discriminator, got {h} x {w}; use fewer levels")
    x = x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean(axis=(3, 5))
    if not time or t == 1:
        return x
    n = (t - 1) // 2
    pairs = x[:, 1 : 1 + 2 * n].reshape(b, n, 2, h // 2, w // 2, c).mean(axis=2)
    return jnp.concatenate([x[:, :1], pairs, x[:, 1 + 2 * n :]], axis=1)


class Discriminator(nn.Module):
    """All discriminators of the config: clip -> list of logits, in the order of `kinds`."""

    config: DiscriminatorConfig

    if TYPE_CHECKING:  # Flax types the result as a pair too, for `mutable`; declare what the called method returns

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    @nn.compact
    def __call__(self, video: Array) -> list[Array]:
        return [PatchDiscriminator(self.config, kind, name=f"patch_{kind}")(video) for kind in self.config.kinds]

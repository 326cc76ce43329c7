"""Configuration of the CNN VAE, with its presets: ours, and the published Wan networks as configs of the same class."""

import dataclasses
import math
from typing import Any, Literal, Self

from pv_vae_jax.layers.conv import LOWERINGS, Lowering
from pv_vae_jax.layers.resample import ShortcutPad, ShortcutTime
from pv_vae_jax.typing import DTYPES, check_choices, check_sizes


class Compression:
    """What the config of any VAE derives from its `time_factor`, `space_factor` and `latent_channels`."""

    @property
    def name(self: Any) -> str:
        """Compression in the field's shorthand, e.g. `t4s16c64`."""
        return f"t{self.time_factor}s{self.space_factor}c{self.latent_channels}"

    def latent_frames(self: Any, frames: int) -> int:
        """Latent frames `g` of a clip of `1 + T` frames."""
        return 1 + (frames - 1) // self.time_factor

    def frames(self: Any, latent_frames: int) -> int:
        """Pixel frames that `latent_frames` decode to."""
        return 1 + (latent_frames - 1) * self.time_factor


class VAEPresets:
    """Named sizes of `VAEConfig`. Each takes fields to change: `VAEConfig.wan22(pad="learnable")`.

    | preset | compression | parameters | |
    |---|---|---|---|
    | `tiny` | t4s16c16 | 0.7 M | tests, a first look on CPU |
    | `small` | t4s16c64 | 59 M | one small accelerator |
    | `base` | t4s16c64 | 233 M | the defaults of `VAEConfig` |
    | `paper` | t4s16c64 | 658 M | PV-VAE: 661 M in table 1; the widths are ours, the paper gives none |
    | `t4s8c16` | t4s8c16 | 232 M | the compression of most networks in table 1 |
    | `wan22` | t4s16c48 | 704,688,668 | Wan2.2 VAE |
    | `wan21` | t4s8c16 | 126,892,531 | Wan2.1 VAE |

    All but the Wan networks compress time first, as the paper does, and have a learnable pad. Wan was not trained to
    predict: its configs pad with N(0, I), which has no parameter, so their counts are the published ones. Pass
    `pad="learnable"` to train one predictively: a stage that starts from a converted folder then draws the token.
    """

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """t4s16c16, 0.7 M parameters."""
        widths = (16, 16, 32, 32, 32)
        small = dict(latent_channels=16, encoder_blocks=1, decoder_blocks=1)
        return cls(**dict(encoder_widths=widths, decoder_widths=widths, **small) | changes)

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """t4s16c64, 59 M parameters."""
        widths = (32, 64, 128, 256, 256)
        return cls(**dict(encoder_widths=widths, decoder_widths=widths) | changes)

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """t4s16c64, 233 M parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """t4s16c64, 658 M parameters: PV-VAE."""
        # Multiples of 128 at every resolution: narrower channels leave lanes of a matrix unit idle, and cost most of
        # all at full resolution.
        fields = dict(encoder_widths=(128, 128, 512, 512, 512), decoder_widths=(128, 128, 512, 1024, 1024))
        return cls(**fields | changes)

    @classmethod
    def t4s8c16(cls, **changes: Any) -> Self:
        """t4s8c16, 232 M parameters."""
        widths = (128, 256, 512, 512)
        fields = dict(latent_channels=16, time_factors=(2, 2, 1), space_factors=(2, 2, 2))
        return cls(**dict(encoder_widths=widths, decoder_widths=widths, **fields) | changes)

    @classmethod
    def wan22(cls, **changes: Any) -> Self:
        """t4s16c48, 705 M parameters: the Wan2.2 VAE."""
        fields = dict(patch=2, latent_channels=48, time_factors=(1, 2, 2), space_factors=(2, 2, 2), pad="gaussian")
        fields |= dict(encoder_widths=(160, 320, 640, 640), decoder_widths=(256, 512, 1024, 1024))
        return cls(**fields | dict(shortcut_pad="zero", shortcut_time="interleave") | changes)

    @classmethod
    def wan21(cls, **changes: Any) -> Self:
        """t4s8c16, 127 M parameters: the Wan2.1 VAE."""
        widths = (96, 192, 384, 384)
        fields = dict(latent_channels=16, time_factors=(1, 2, 2), space_factors=(2, 2, 2), pad="gaussian")
        fields |= dict(encoder_widths=widths, decoder_widths=widths, shortcuts=False, upsample_halves_channels=True)
        return cls(**fields | changes)


VAE_PRESETS = ("tiny", "small", "base", "paper", "t4s8c16", "wan22", "wan21")


@dataclasses.dataclass(frozen=True)
class VAEConfig(Compression, VAEPresets):
    """Architecture of a `VAE`. Tuples run from pixels to latents; the decoder mirrors the encoder.

    The paper fixes the compression and the order of the levels (time and space first, then space alone) and leaves the
    widths open; the defaults here are ours. Named sizes are class methods, `VAEConfig.paper()`, see `VAEPresets`.

    Attributes:
      kind: tells this kind of VAE from others in JSON.
      patch: side of the pixel patches folded into channels before the first convolution.
      latent_channels: channels of the latents, `z`.
      time_factors, space_factors: 1 or 2 for each resampling, first level first.
      encoder_widths, decoder_widths: channels of each level, one more than there are resamplings.
      encoder_blocks, decoder_blocks: number of residual blocks in a level.
      mid_attention: adds per-frame attention at latent resolution.
      shortcuts: adds parameter-free average / duplicate paths around every level.
      shortcut_pad: left padding of the average path; `first` makes an image equal a still clip, `zero` is Wan2.2's.
      shortcut_time: how the duplicate path fills the frames that it makes of one: `repeat` gives them the same
        channels, `interleave` different ones where widths narrow (Wan2.2's). What images teach carries over to clips
        exactly with `shortcut_pad="first"` and either `repeat` or equal decoder widths around every level that doubles
        time.
      upsample_halves_channels: makes the convolution after each doubling of space halve the channels (Wan2.1).
      pad: fills the dropped latent frames with one `learnable` vector (the paper's recipe) or with `gaussian` draws
        (its ablation).
      lowering: how 3-D convolutions run, see `layers.conv`.
      dtype: compute type; parameters, posterior and pixels are float32.
      remat: recomputes every level in the backward pass, from its input, to save memory.
      remat_levels: recomputes these levels only, by their names in the parameters (`encoder/level0`,
        `decoder/level_4`).
      remat_blocks: recomputes each residual block of these levels from its own input, which saves the most memory
        where pixels are many. A level may be in both lists and is then computed three times.
    """

    kind: Literal["cnn"] = "cnn"
    patch: int = 1
    latent_channels: int = 64
    time_factors: tuple[int, ...] = (2, 2, 1, 1)
    space_factors: tuple[int, ...] = (2, 2, 2, 2)
    encoder_widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    decoder_widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    mid_attention: bool = True
    shortcuts: bool = True
    shortcut_pad: ShortcutPad = "first"
    shortcut_time: ShortcutTime = "repeat"
    upsample_halves_channels: bool = False
    pad: Literal["learnable", "gaussian"] = "learnable"
    lowering: Lowering = "auto"
    dtype: str = "float32"
    remat: bool = False
    remat_levels: tuple[str, ...] = ()
    remat_blocks: tuple[str, ...] = ()

    def __post_init__(self):
        check_sizes(self, "patch", "latent_channels", "encoder_widths", "decoder_widths")
        check_sizes(self, "encoder_blocks", "decoder_blocks")
        check_choices(self, kind=("cnn",), pad=("learnable", "gaussian"), shortcut_pad=("first", "zero"))
        check_choices(self, shortcut_time=("interleave", "repeat"), lowering=LOWERINGS, dtype=DTYPES)
        levels = len(self.space_factors)
        if len(self.time_factors) != levels:
            raise ValueError(f"time_factors must have {levels} entries, as space_factors, got {self.time_factors}")
        for name in ("time_factors", "space_factors"):
            if not set(getattr(self, name)) <= {1, 2}:
                raise ValueError(f"{name} must be 1 or 2 at each level, got {getattr(self, name)}")
        for name in ("encoder_widths", "decoder_widths"):
            widths = getattr(self, name)
            if len(widths) != levels + 1:
                raise ValueError(f"{name} must have {levels + 1} entries for {levels} resamplings, got {widths}")
        known = [level_name(i, up) for up in (False, True) for i in range(levels + 1)]
        for name in ("remat_levels", "remat_blocks"):
            if unknown := set(getattr(self, name)) - set(known):
                raise ValueError(f"{name} must name levels, {', '.join(known)}; got {', '.join(sorted(unknown))}")
        odd = any(width % 2 for width in self.decoder_widths[1:])
        if self.upsample_halves_channels and (self.shortcuts or odd or set(self.space_factors) != {2}):
            raise ValueError(
                "upsample_halves_channels needs even decoder_widths, space_factors of 2 and shortcuts=False"
            )
        if self.shortcuts:
            _check_shortcuts(self)

    @property
    def time_factor(self) -> int:
        """Frames per latent frame, `p_t`."""
        return math.prod(self.time_factors)

    @property
    def space_factor(self) -> int:
        """Pixels per latent side, `p_s`."""
        return self.patch * math.prod(self.space_factors)


def level_name(index: int, up: bool) -> str:
    """Name in the parameters of a level of the decoder (`up`) or encoder, counted in the order they run."""
    return f"decoder/level_{index}" if up else f"encoder/level{index}"


def _check_shortcuts(config: VAEConfig) -> None:
    """Raise `ValueError` unless widths divide what `average_down` and `duplicate_up` have to deal out."""
    factors = list(zip(config.time_factors, config.space_factors, strict=True)) + [(1, 1)]
    for i, (t, s) in enumerate(factors):
        into, out = config.encoder_widths[max(i - 1, 0)], config.encoder_widths[i]
        if into * t * s * s % out:
            raise ValueError(
                f"encoder_widths must suit the shortcuts: width {out} of encoder level {i} must divide "
                f"{into} * {t} * {s}**2; change it or set shortcuts=False"
            )
    for i, (t, s) in enumerate(factors[:-1]):
        into, out = config.decoder_widths[min(i + 2, len(factors) - 1)], config.decoder_widths[i + 1]
        interleaved = t if config.shortcut_time == "interleave" else 1
        if out * interleaved * s * s % into:
            raise ValueError(
                f"decoder_widths must suit the shortcuts: width {into} before decoder level {i + 1} must divide "
                f"{out} * {interleaved} * {s}**2; change it or set shortcuts=False"
            )

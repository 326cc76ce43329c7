"""Causal video VAE whose levels are given by its config: PV-VAE, and the Wan and SSVAE family.

`encode` maps `(b, 1 + T, H, W, 3)` in [-1, 1] to a diagonal Gaussian over `(b, 1 + T/p_t, H/p_s, W/p_s, z)`; `decode`
maps back. Frame 0 stands alone, so an image is the case T = 0. Nothing mixes time backwards: frame `i` of either
output depends on frames `<= i` of the input only, which is what predictive training relies on.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pv_vae_jax.layers.attention import FrameAttention
from pv_vae_jax.layers.blocks import ResidualBlock
from pv_vae_jax.layers.cache import continues
from pv_vae_jax.layers.conv import CausalConv3D, Lowering
from pv_vae_jax.layers.norm import RMSNorm
from pv_vae_jax.layers.resample import (
    Downsample,
    ShortcutPad,
    ShortcutTime,
    Upsample,
    average_down,
    duplicate_up,
    patchify,
    unpatchify,
)
from pv_vae_jax.sharding.axes import VIDEO_AXES, constrain
from pv_vae_jax.typing import Array, PRNGKey, check_clip_shape, check_dtype, check_latent_shape, check_sizes


class _Compressing(Protocol):
    @property
    def time_factor(self) -> int: ...

    @property
    def space_factor(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...


class Compression:
    """What the configuration of any VAE says of its latents, by `time_factor`, `space_factor` and `latent_channels`."""

    @property
    def name(self: _Compressing) -> str:
        """Compression in the field's shorthand, e.g. `t4s16c64`."""
        return f"t{self.time_factor}s{self.space_factor}c{self.latent_channels}"

    def latent_frames(self: _Compressing, frames: int) -> int:
        """Latent frames `g` of a clip of `1 + T` frames."""
        return 1 + (frames - 1) // self.time_factor

    def frames(self: _Compressing, latent_frames: int) -> int:
        """Pixel frames that `latent_frames` decode to."""
        return 1 + (latent_frames - 1) * self.time_factor


@dataclasses.dataclass(frozen=True)
class VAEConfig(Compression):
    """Architecture of a `VAE`. Tuples run from pixels to latents; the decoder mirrors the encoder.

    The paper fixes the compression and the order of the levels (time and space first, then space alone) and leaves the
    widths open; the defaults here are ours.

    Attributes:
      patch: side of the pixel patches folded into channels before the first convolution.
      latent_channels: `z`.
      time_factors, space_factors: 1 or 2 for each resampling, first level first.
      encoder_widths, decoder_widths: channels of each level, one more than there are resamplings.
      encoder_blocks, decoder_blocks: residual blocks a level.
      mid_attention: per-frame attention at latent resolution.
      shortcuts: parameter-free average / duplicate paths around every level.
      shortcut_pad: left padding of the average path; `first` makes an image equal a still clip, `zero` is Wan2.2's.
      shortcut_time: how the duplicate path fills the frames it makes of one: `repeat` gives them the same channels,
        `interleave` different ones where widths narrow (Wan2.2's). What images teach carries over to clips exactly with
        `shortcut_pad="first"` and either `repeat` or equal decoder widths around every level that doubles time.
      upsample_halves_channels: the convolution after each doubling of space halves the channels (Wan2.1).
      pad: the dropped latent frames: one `learnable` vector (the paper's recipe) or `gaussian` draws (its ablation).
      lowering: how 3-D convolutions run, see `layers.conv`.
      dtype: compute type; parameters, posterior and pixels are float32.
      remat: recompute every level in the backward pass, from its input, to save memory.
      remat_levels: recompute these levels only, by their names in the parameters (`encoder/level0`, `decoder/level_4`).
      remat_blocks: recompute each residual block of these levels from its own input. It saves the most memory where
        pixels are many; a level may be in both lists and is then computed three times.
    """

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
        check_dtype(self.dtype)
        levels = len(self.space_factors)
        if len(self.time_factors) != levels:
            raise ValueError(f"time_factors has {len(self.time_factors)} entries, space_factors {levels}")
        for name in ("time_factors", "space_factors"):
            if not set(getattr(self, name)) <= {1, 2}:
                raise ValueError(f"{name} holds 1 or 2 a level, got {getattr(self, name)}")
        for name in ("encoder_widths", "decoder_widths"):
            if len(getattr(self, name)) != levels + 1:
                raise ValueError(f"{name} needs {levels + 1} entries for {levels} resamplings: {getattr(self, name)}")
        if self.pad not in ("learnable", "gaussian"):
            raise ValueError(f"pad is 'learnable' or 'gaussian', got {self.pad!r}")
        if self.shortcut_pad not in ("first", "zero"):
            raise ValueError(f"shortcut_pad is 'first' or 'zero', got {self.shortcut_pad!r}")
        if self.shortcut_time not in ("interleave", "repeat"):
            raise ValueError(f"shortcut_time is 'interleave' or 'repeat', got {self.shortcut_time!r}")
        known = {f"encoder/level{i}" for i in range(levels + 1)} | {f"decoder/level_{i}" for i in range(levels + 1)}
        for name in ("remat_levels", "remat_blocks"):
            if unknown := set(getattr(self, name)) - known:
                raise ValueError(f"{name} holds {sorted(unknown)}; the levels are {', '.join(sorted(known))}")
        odd = any(width % 2 for width in self.decoder_widths[1:])
        if self.upsample_halves_channels and (self.shortcuts or odd or set(self.space_factors) != {2}):
            raise ValueError(
                "upsample_halves_channels needs even decoder_widths, space_factors of 2 and shortcuts=False"
            )
        if self.shortcuts:
            self._check_shortcuts()

    def _check_shortcuts(self):
        factors = list(zip(self.time_factors, self.space_factors, strict=True)) + [(1, 1)]
        for i, (t, s) in enumerate(factors):
            into, out = self.encoder_widths[max(i - 1, 0)], self.encoder_widths[i]
            if into * t * s * s % out:
                raise ValueError(f"shortcut of encoder level {i}: width {out} must divide {into} * {t} * {s}**2")
        for i, (t, s) in enumerate(factors[:-1]):
            into, out = self.decoder_widths[min(i + 2, len(factors) - 1)], self.decoder_widths[i + 1]
            dealt = t if self.shortcut_time == "interleave" else 1
            if out * dealt * s * s % into:
                raise ValueError(
                    f"shortcut of decoder level {i + 1}: width {into} must divide {out} * {dealt} * {s}**2"
                )

    @property
    def time_factor(self) -> int:
        """Frames per latent frame, `p_t`."""
        return math.prod(self.time_factors)

    @property
    def space_factor(self) -> int:
        """Pixels per latent side, `p_s`."""
        return self.patch * math.prod(self.space_factors)


@flax.struct.dataclass
class Posterior:
    """Diagonal Gaussian over latents: `mean` and `logvar`, each `(b, g, h, w, z)` float32."""

    mean: Array
    logvar: Array

    def sample(self, key: PRNGKey) -> Array:
        """Draw `mean + std * noise`."""
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    @property
    def mode(self) -> Array:
        """The most likely latents, which is the mean."""
        return self.mean


class Level(nn.Module):
    """Residual blocks at one resolution, then the resampling to the next, with a shortcut around both."""

    features: int
    blocks: int
    time: int = 1
    space: int = 1
    up: bool = False
    resample: bool = True
    shortcut: bool = True
    shortcut_pad: ShortcutPad = "first"
    shortcut_time: ShortcutTime = "repeat"
    dtype: str = "float32"
    lowering: Lowering = "auto"
    upsample_halves_channels: bool = False
    remat_blocks: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y, begins = x, not continues(self)
        block = nn.remat(ResidualBlock) if self.remat_blocks else ResidualBlock
        for i in range(self.blocks):
            y = block(self.features, self.dtype, self.lowering, name=f"block{i}")(y)
        if self.resample and self.up:
            features = self.features // 2 if self.upsample_halves_channels else self.features
            y = Upsample(features, self.time, self.space, self.dtype, self.lowering, name="up")(y)
        elif self.resample:
            y = Downsample(self.time, self.space, self.dtype, name="down")(y)
        if self.shortcut and self.up:
            y = y + duplicate_up(x, self.features, self.time, self.space, begins, self.shortcut_time)
        elif self.shortcut:
            y = y + average_down(x, self.features, self.time, self.space, self.shortcut_pad)
        return constrain(y, VIDEO_AXES)


class Middle(nn.Module):
    """Residual block, per-frame attention, residual block at latent resolution."""

    features: int
    attention: bool
    dtype: str = "float32"
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResidualBlock(self.features, self.dtype, self.lowering, name="block0")(x)
        if self.attention:
            x = FrameAttention(self.dtype, name="attention")(x)
        return ResidualBlock(self.features, self.dtype, self.lowering, name="block1")(x)


def _low_variance_bias_init(key: PRNGKey, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Bias of the moments: log variance -6, so that early samples are not drowned in unit noise (our choice)."""
    return jnp.where(jnp.arange(shape[0]) < shape[0] // 2, 0.0, -6.0).astype(dtype)


class Encoder(nn.Module):
    """Clip `(b, 1 + T, H, W, 3)` -> moments `(b, g, h, w, 2 z)`."""

    config: VAEConfig

    @nn.compact
    def __call__(self, video: Array) -> Array:
        c = self.config
        kind: dict[str, Any] = dict(dtype=c.dtype, lowering=c.lowering)
        x = constrain(patchify(video.astype(c.dtype), c.patch), VIDEO_AXES)
        x = CausalConv3D(c.encoder_widths[0], name="stem", **kind)(x)
        for i, width in enumerate(c.encoder_widths):
            last = i == len(c.space_factors)
            time, space = (1, 1) if last else (c.time_factors[i], c.space_factors[i])
            name = f"encoder/level{i}"
            level = nn.remat(Level) if c.remat or name in c.remat_levels else Level
            x = level(
                width,
                c.encoder_blocks,
                time,
                space,
                False,
                not last,
                c.shortcuts,
                c.shortcut_pad,
                remat_blocks=name in c.remat_blocks,
                name=f"level{i}",
                **kind,
            )(x)
        x = Middle(c.encoder_widths[-1], c.mid_attention, name="middle", **kind)(x)
        x = constrain(nn.silu(RMSNorm(name="norm")(x)), VIDEO_AXES)
        x = CausalConv3D(2 * c.latent_channels, name="head", **kind)(x)
        return CausalConv3D(2 * c.latent_channels, (1, 1, 1), bias_init=_low_variance_bias_init, name="moments")(
            x.astype(jnp.float32)
        )


class Decoder(nn.Module):
    """Latents `(b, g, h, w, z)` -> features at (patchified) pixel resolution, then pixels through `head`."""

    config: VAEConfig

    def setup(self):
        c = self.config
        kind: dict[str, Any] = dict(dtype=c.dtype, lowering=c.lowering)
        top = len(c.space_factors)
        self.latents = CausalConv3D(c.latent_channels, (1, 1, 1))
        self.stem = CausalConv3D(c.decoder_widths[-1], **kind)
        self.middle = Middle(c.decoder_widths[-1], c.mid_attention, **kind)
        levels = []
        for j, width in enumerate(reversed(c.decoder_widths)):
            last = j == top
            time, space = (1, 1) if last else (c.time_factors[top - 1 - j], c.space_factors[top - 1 - j])
            # The last level keeps its resolution and, as in Wan2.2, has no shortcut.
            more: dict[str, Any] = dict(
                shortcut=c.shortcuts and not last,
                shortcut_time=c.shortcut_time,
                upsample_halves_channels=c.upsample_halves_channels,
                **kind,
            )
            name = f"decoder/level_{j}"
            level = nn.remat(Level) if c.remat or name in c.remat_levels else Level
            blocks = name in c.remat_blocks
            levels.append(level(width, c.decoder_blocks, time, space, True, not last, remat_blocks=blocks, **more))
        self.level = levels
        self.norm = RMSNorm()
        self.head = CausalConv3D(3 * c.patch**2, **kind)

    def features(self, latents: Array) -> Array:
        """Everything up to the last convolution: `(b, g, h, w, z)` -> `(b, 1 + T, H/patch, W/patch, c)`."""
        x = self.latents(latents).astype(self.config.dtype)
        x = self.middle(constrain(self.stem(x), VIDEO_AXES))
        for level in self.level:
            x = level(x)
        return constrain(nn.silu(self.norm(x)), VIDEO_AXES)

    def to_pixels(self, features: Array) -> Array:
        """The last convolution and unpatchify: features -> `(b, 1 + T, H, W, 3)` float32."""
        return unpatchify(self.head(features).astype(jnp.float32), self.config.patch)

    def __call__(self, latents: Array) -> Array:
        return self.to_pixels(self.features(latents))


class PadToken(nn.Module):
    """The latent vector `(z,)` that stands for every position of a dropped latent frame (section 3.1).

    Its shape is not published; one vector drawn from N(0, 1) is what the closest public lineage (SSVAE) uses.
    """

    channels: int

    @nn.compact
    def __call__(self) -> Array:
        return self.param("token", nn.initializers.normal(1.0), (self.channels,))


class VAE(nn.Module):
    """The predictive video VAE: parameters `encoder`, `decoder` and, with `pad="learnable"`, `pad`.

    Use it with `model.apply({"params": params}, x, method="encode")`; `model.init(key, video)` makes the parameters.
    """

    config: VAEConfig

    if TYPE_CHECKING:  # to Flax the result may be a pair, with what `mutable` names; to a reader it is the method's

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        if self.config.pad == "learnable":
            self.pad = PadToken(self.config.latent_channels)

    def encode(self, video: Array) -> Posterior:
        """`(b, 1 + T, H, W, 3)` in [-1, 1] -> `Posterior` over `(b, g, h, w, z)`.

        Raises:
          ShapeError: frame count or size does not fit; the message names the nearest that do.
          TypeError: integer pixels.
        """
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise TypeError(
                f"a clip is of floats in [-1, 1], got {video.dtype}; pv_vae_jax.to_float makes them of uint8"
            )
        if video.ndim != 5 or video.shape[-1] != 3:
            raise ValueError(f"a clip has shape (b, t, h, w, 3); got {video.shape}")
        frames = video.shape[1] + continues(self)  # a later chunk of a clip has no frame 0 of its own
        _, _, height, width, _ = video.shape
        check_clip_shape(frames, height, width, self.config.time_factor, self.config.space_factor)
        mean, logvar = jnp.split(self.encoder(video), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Array) -> Array:
        """`(b, g, h, w, z)` -> `(b, 1 + (g - 1) p_t, H, W, 3)` float32, about [-1, 1], not clamped."""
        check_latent_shape(latents.shape, self.config.latent_channels)
        return self.decoder(latents)

    def decode_features(self, latents: Array) -> Array:
        """`decode` without its last convolution, for losses that need the gradient at that layer."""
        check_latent_shape(latents.shape, self.config.latent_channels)
        return self.decoder.features(latents)

    def to_pixels(self, features: Array) -> Array:
        """The last convolution: `decode(z) == to_pixels(decode_features(z))`."""
        return self.decoder.to_pixels(features)

    def pad_latents(self, shape: tuple[int, ...], key: PRNGKey | None = None) -> Array:
        """Latents `shape = (b, k, h, w, z)` that carry nothing of the input; `gaussian` padding draws from `key`."""
        if self.config.pad == "learnable":
            return jnp.broadcast_to(self.pad(), shape)
        if key is None:
            raise ValueError("gaussian padding needs a random key")
        return jax.random.normal(key, shape)

    def __call__(self, video: Array, key: PRNGKey | None = None) -> tuple[Array, Posterior]:
        """Reconstruct a whole clip: from a posterior sample with `key`, from the mean without."""
        posterior = self.encode(video)
        latents = posterior.mode if key is None else posterior.sample(key)
        if self.is_initializing() and self.config.pad == "learnable":
            self.pad()
        return self.decode(latents), posterior

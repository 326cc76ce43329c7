"""Causal video VAE whose levels are given by its config: PV-VAE, and the Wan and SSVAE family.

`encode` maps `(b, 1 + T, H, W, 3)` in [-1, 1] to a diagonal Gaussian over `(b, 1 + T/p_t, H/p_s, W/p_s, z)`; `decode`
maps back. Frame 0 stands alone, so an image is the case T = 0. Nothing mixes time backwards: frame `i` of either
output depends on frames `<= i` of the input only, which is what predictive training relies on.
"""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pv_vae_jax.layers.blocks import FrameAttention, ResidualBlock, RMSNorm
from pv_vae_jax.layers.cache import continues
from pv_vae_jax.layers.conv import CausalConv3D
from pv_vae_jax.layers.resample import Downsample, Upsample, average_down, duplicate_up, patchify, unpatchify
from pv_vae_jax.models.vae_config import VAEConfig, level_name
from pv_vae_jax.sharding.axes import VIDEO_AXES, constrain
from pv_vae_jax.typing import Array, PRNGKey, check_clip_shape, check_latent_shape


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
    """Residual blocks at one resolution, then the resampling to the next, with a shortcut around both.

    Attributes:
      config: the config of the VAE.
      index: number of the level in the order they run: from pixels in the encoder, from latents in the decoder.
      up: true in the decoder, which resamples up.
    """

    config: VAEConfig
    index: int
    up: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:  # (b, t, h, w, c)
        c = self.config
        y, begins = x, not continues(self)
        order = -1 if self.up else 1
        features = (c.decoder_widths if self.up else c.encoder_widths)[::order][self.index]
        last = self.index == len(c.space_factors)  # keeps its resolution
        time, space = (1, 1) if last else (c.time_factors[::order][self.index], c.space_factors[::order][self.index])
        block = nn.remat(ResidualBlock) if level_name(self.index, self.up) in c.remat_blocks else ResidualBlock
        for i in range(c.decoder_blocks if self.up else c.encoder_blocks):
            y = block(features=features, dtype=c.dtype, lowering=c.lowering, name=f"block{i}")(y)
        if not last and self.up:
            out = features // 2 if c.upsample_halves_channels else features
            y = Upsample(out, time, space, dtype=c.dtype, lowering=c.lowering, name="up")(y)
        elif not last:
            y = Downsample(time, space, dtype=c.dtype, name="down")(y)
        if c.shortcuts and not self.up:
            y = y + average_down(x, features, time, space, pad=c.shortcut_pad)
        elif c.shortcuts and not last:  # as in Wan2.2, the last level of the decoder has no shortcut
            y = y + duplicate_up(x, features, time, space, begins=begins, over_time=c.shortcut_time)
        return constrain(y, VIDEO_AXES)


def _level(config: VAEConfig, index: int, up: bool, name: str | None = None) -> Level:
    """A level, which recomputes its values in the backward pass if the config asks for it."""
    recomputes = config.remat or level_name(index, up) in config.remat_levels
    return (nn.remat(Level) if recomputes else Level)(config, index, up, name=name)


class Middle(nn.Module):
    """Residual block, per-frame attention, residual block at latent resolution."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:  # (b, g, h, w, c)
        c = self.config
        block: dict[str, Any] = dict(features=self.features, dtype=c.dtype, lowering=c.lowering)
        x = ResidualBlock(name="block0", **block)(x)
        if c.mid_attention:
            x = FrameAttention(dtype=c.dtype, name="attention")(x)
        return ResidualBlock(name="block1", **block)(x)


def low_variance_bias_init(key: PRNGKey, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Bias of the moments: log variance -6, so that early samples are not drowned in unit noise (our choice)."""
    return jnp.where(jnp.arange(shape[0]) < shape[0] // 2, 0.0, -6.0).astype(dtype)


class Encoder(nn.Module):
    """Clip `(b, 1 + T, H, W, 3)` -> moments `(b, g, h, w, 2 z)`."""

    config: VAEConfig

    @nn.compact
    def __call__(self, video: Array) -> Array:
        c = self.config
        conv: dict[str, Any] = dict(dtype=c.dtype, lowering=c.lowering)
        x = constrain(patchify(video.astype(c.dtype), c.patch), VIDEO_AXES)  # (b, 1 + T, H/patch, W/patch, 3 patch**2)
        x = CausalConv3D(c.encoder_widths[0], name="stem", **conv)(x)
        for i in range(len(c.encoder_widths)):
            x = _level(c, i, up=False, name=f"level{i}")(x)
        x = Middle(config=c, features=c.encoder_widths[-1], name="middle")(x)  # (b, g, h, w, d)
        x = constrain(nn.silu(RMSNorm(name="norm")(x)), VIDEO_AXES)
        x = CausalConv3D(2 * c.latent_channels, name="head", **conv)(x).astype(jnp.float32)
        to_moments = CausalConv3D(
            2 * c.latent_channels, kernel_size=(1, 1, 1), bias_init=low_variance_bias_init, name="moments"
        )
        return to_moments(x)  # (b, g, h, w, 2 z)


class Decoder(nn.Module):
    """Latents `(b, g, h, w, z)` -> features at (patchified) pixel resolution, then pixels through `head`."""

    config: VAEConfig

    def setup(self):
        c = self.config
        conv: dict[str, Any] = dict(dtype=c.dtype, lowering=c.lowering)
        self.latents = CausalConv3D(c.latent_channels, kernel_size=(1, 1, 1))
        self.stem = CausalConv3D(c.decoder_widths[-1], **conv)
        self.middle = Middle(config=c, features=c.decoder_widths[-1])
        self.level = [_level(c, i, up=True) for i in range(len(c.decoder_widths))]
        self.norm = RMSNorm()
        self.head = CausalConv3D(3 * c.patch**2, **conv)

    def features(self, latents: Array) -> Array:
        """Everything up to the last convolution: `(b, g, h, w, z)` -> `(b, 1 + T, H/patch, W/patch, c)`."""
        x = self.latents(latents).astype(self.config.dtype)
        x = self.middle(constrain(self.stem(x), VIDEO_AXES))  # (b, g, h, w, d)
        for level in self.level:
            x = level(x)
        return constrain(nn.silu(self.norm(x)), VIDEO_AXES)  # (b, 1 + T, H/patch, W/patch, c)

    def to_pixels(self, features: Array) -> Array:
        """The last convolution and unpatchify: features -> `(b, 1 + T, H, W, 3)` float32."""
        return unpatchify(self.head(features).astype(jnp.float32), self.config.patch)

    def __call__(self, latents: Array) -> Array:
        return self.to_pixels(self.features(latents))


class PadToken(nn.Module):
    """The latent vector `(z,)` that fills every position of a dropped latent frame (section 3.1).

    The paper does not give its shape; SSVAE, the closest public lineage, uses one vector drawn from N(0, 1).
    """

    channels: int

    @nn.compact
    def __call__(self) -> Array:
        return self.param("token", nn.initializers.normal(1.0), (self.channels,), jnp.float32)


class VAE(nn.Module):
    """The predictive video VAE. Its parameters are `encoder`, `decoder` and, with `pad="learnable"`, `pad`.

    `model.init(key, video)` makes the parameters, `model.apply({"params": params}, video, method="encode")` uses them.
    """

    config: VAEConfig

    if TYPE_CHECKING:  # Flax types the result as a pair too, for `mutable`; declare what the called method returns

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        if self.config.pad == "learnable":
            self.pad = PadToken(self.config.latent_channels)

    def encode(self, video: Array) -> Posterior:
        """`(b, 1 + T, H, W, 3)` in [-1, 1] -> `Posterior` over `(b, g, h, w, z)`.

        Raises:
          ShapeError: frame count or size does not fit the compression; the message names the nearest that do.
          TypeError: the pixels are integers.
        """
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise TypeError(f"expected float video in [-1, 1], got {video.dtype}; convert it with pv_vae_jax.to_float")
        if video.ndim != 5 or video.shape[-1] != 3:
            raise ValueError(f"expected video of shape (b, t, h, w, 3), got {video.shape}")
        frames = video.shape[1] + continues(self)  # a later chunk of a clip has no frame 0 of its own
        _, _, height, width, _ = video.shape
        check_clip_shape(frames, height, width, self.config.time_factor, self.config.space_factor)
        mean, logvar = jnp.split(self.encoder(video), 2, axis=-1)  # each (b, g, h, w, z)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Array) -> Array:
        """`(b, g, h, w, z)` -> `(b, 1 + (g - 1) p_t, H, W, 3)` float32, roughly in [-1, 1] but not clamped."""
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
        """Latents `shape = (b, k, h, w, z)` that do not depend on the input; `gaussian` padding draws from `key`."""
        if self.config.pad == "learnable":
            return jnp.broadcast_to(self.pad(), shape)
        if key is None:
            raise ValueError("key must be given for gaussian padding, got None")
        return jax.random.normal(key, shape, jnp.float32)

    def __call__(self, video: Array, key: PRNGKey | None = None) -> tuple[Array, Posterior]:
        """Reconstruct a clip from a posterior sample; without `key`, from the posterior mean."""
        posterior = self.encode(video)
        latents = posterior.mode if key is None else posterior.sample(key)
        if self.is_initializing() and self.config.pad == "learnable":
            self.pad()
        return self.decode(latents), posterior

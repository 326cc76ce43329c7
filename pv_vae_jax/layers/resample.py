"""Change of resolution: patchify, strided down, repeated up, and the parameter-free shortcuts around them.

Frame 0 is always separate: `1 + 2n` frames become `1 + n` and back, so an image is the case `n = 0`.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from pv_vae_jax.layers.cache import continues, left_context
from pv_vae_jax.layers.conv import Conv2D, Lowering, causal_conv3d
from pv_vae_jax.layers.initializers import identity_tap_init
from pv_vae_jax.sharding.axes import gather_weights
from pv_vae_jax.typing import Array

ShortcutPad = Literal["zero", "first"]
ShortcutTime = Literal["interleave", "repeat"]


def patchify(x: Array, p: int) -> Array:
    """`(b, t, h*p, w*p, c)` -> `(b, t, h, w, c*p*p)`; channel order c, w offset, h offset (that of Wan2.2)."""
    return rearrange(x, "b t (h q) (w r) c -> b t h w (c r q)", q=p, r=p) if p > 1 else x


def unpatchify(x: Array, p: int) -> Array:
    """Inverse of `patchify`."""
    return rearrange(x, "b t h w (c r q) -> b t (h q) (w r) c", q=p, r=p) if p > 1 else x


def average_down(x: Array, features: int, time: int, space: int, pad: ShortcutPad = "zero") -> Array:
    """Average groups of (channel, time, h, w) sub-positions into `features` channels (AvgDown3D of Wan2.2).

    Args:
      x: `(b, t, h, w, c)`.
      features: output channels; must divide `c * time * space**2`.
      time, space: integer factors.
      pad: what fills the missing frames left of frame 0: zeros (Wan2.2), or frame 0 itself, so that the shortcut of an
        image equals that of a still clip.

    Returns:
      `(b, ceil(t / time), h / space, w / space, features)`.
    """
    missing = -x.shape[1] % time
    if missing:
        first = x[:, :1] if pad == "first" else jnp.zeros_like(x[:, :1])
        x = jnp.concatenate([first] * missing + [x], axis=1)
    x = rearrange(x, "b (t f) (h q) (w r) c -> b t h w (c f q r)", f=time, q=space, r=space)
    return x.reshape(x.shape[:-1] + (features, -1)).mean(-1)  # (b, t / time, h / space, w / space, features)


def duplicate_up(
    x: Array, features: int, time: int, space: int, begins: bool = True, over_time: ShortcutTime = "repeat"
) -> Array:
    """Repeat channels and spread them over space, and with `interleave` over time (DupUp3D of Wan2.2).

    Args:
      x: `(b, t, h, w, c)`.
      features: output channels; `c` must divide `features * space**2`, with `interleave` `features * time * space**2`.
      time, space: integer factors.
      begins: whether `x` begins a clip, whose frame 0 gives one frame only: the last of its `time`.
      over_time: `repeat` gives the `time` frames that come from one the same channels, so that a still clip stays
        still; `interleave` gives them different ones where the level narrows (Wan2.2).

    Returns:
      `(b, 1 + time * (t - 1), h * space, w * space, features)`; `time * t` frames unless it begins the clip.
    """
    interleaved = time if over_time == "interleave" else 1
    x = jnp.repeat(x, features * interleaved * space**2 // x.shape[-1], axis=-1)
    x = rearrange(x, "b t h w (c f q r) -> b (t f) (h q) (w r) c", f=interleaved, q=space, r=space)
    if interleaved < time:
        x = jnp.repeat(x, time, axis=1)  # (b, time t, space h, space w, features)
    return x[:, time - 1 :] if begins else x


class TimeDown(nn.Module):
    """`1 + 2n` frames -> `1 + n`: frame 0 unchanged, then a 3-tap convolution of stride 2 over all frames."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        kernel = gather_weights(self.param("kernel", identity_tap_init(), (3, 1, 1, c, c)).astype(self.dtype))
        bias = gather_weights(self.param("bias", nn.initializers.zeros, (c,), jnp.float32).astype(self.dtype))
        context = left_context(self, x, 1)
        if context is not None:
            x = jnp.concatenate([context, x], axis=1)
        if x.shape[1] == 1:
            return x
        n = (x.shape[1] - 1) // 2
        # Strides by slicing frames: a strided 3-D convolution has a 10-20 times slower gradient on CPU.
        later = sum(x[:, i : i + 2 * n - 1 : 2] @ kernel[i, 0, 0] for i in range(3)) + bias[None, None, None, None]
        return jnp.concatenate([x[:, :1], later], axis=1) if context is None else later


class TimeUp(nn.Module):
    """`1 + n` frames -> `1 + 2n`: frame 0 unchanged, every later frame becomes two (`c -> 2c`, interleaved)."""

    dtype: str = "float32"
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        kernel = gather_weights(
            self.param("kernel", identity_tap_init(copies=2), (3, 1, 1, c, 2 * c)).astype(self.dtype)
        )
        bias = gather_weights(self.param("bias", nn.initializers.zeros, (2 * c,), jnp.float32).astype(self.dtype))
        # The convolution does not see frame 0, as in Wan: its left context starts with zeros.
        first, later = (x[:, :0], x) if continues(self) else (x[:, :1], x[:, 1:])
        context = left_context(self, later, 2)
        if not later.shape[1]:
            return x
        later = causal_conv3d(later, kernel, bias, context=context, lowering=self.lowering)  # (b, n, h, w, 2 c)
        return jnp.concatenate([first, rearrange(later, "b t h w (f c) -> b (t f) h w c", f=2)], axis=1)


class Downsample(nn.Module):
    """Halve space (3x3 convolution, stride 2, padded right and bottom), then halve time; channels stay."""

    time: int
    space: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.space == 2:
            x = Conv2D(features=x.shape[-1], stride=2, padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv")(x)
        if self.time == 2:
            x = TimeDown(dtype=self.dtype, name="time_conv")(x)
        return x


class Upsample(nn.Module):
    """Double time, then double space (repeat and 3x3 convolution) into `features` channels."""

    features: int
    time: int
    space: int
    dtype: str = "float32"
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.time == 2:
            x = TimeUp(dtype=self.dtype, lowering=self.lowering, name="time_conv")(x)
        if self.space == 2:
            # jnp.repeat, not jax.image.resize: the same values, and a gradient six times cheaper on CPU.
            x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)  # (b, t, 2 h, 2 w, c)
            x = Conv2D(self.features, dtype=self.dtype, name="conv")(x)
        return x

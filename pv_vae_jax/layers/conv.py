"""Causal 3-D convolution: one op with several lowerings of equal result.

* `direct`: XLA's 3-D convolution.
* `sum2d`: a sum of 2-D convolutions, one for each tap in time.
* `taps_in`: one 2-D convolution of all delayed frames, stacked along the input channels.
* `taps_out`: one 2-D convolution to all taps' outputs, stacked along the output channels, then delayed and added.

On CPU the gradient of XLA's direct 3-D convolution is 2-4 times slower than eager PyTorch's, and on GPUs the direct
form is slower than 2-D ones (`python -m benchmarks lowerings` measures them all; docs/performance.md has the tables).
"""

import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.layers import conv_cpu
from pv_vae_jax.layers.cache import left_context
from pv_vae_jax.layers.initializers import last_tap_init, lecun_normal
from pv_vae_jax.layers.platform import on_one_cpu, platform
from pv_vae_jax.sharding.axes import gather_weights
from pv_vae_jax.typing import Array, sum_of

Lowering = Literal["auto", "direct", "sum2d", "taps_in", "taps_out"]
LOWERINGS = get_args(Lowering)


def causal_conv3d(
    x: Array, kernel: Array, bias: Array | None = None, *, context: Array | None = None, lowering: Lowering = "auto"
) -> Array:
    """Stride-1 convolution, zero-padded `kt - 1` frames on the left in time and symmetrically in space.

    Args:
      x: `(b, t, h, w, ci)`.
      kernel: `(kt, kh, kw, ci, co)`, spatial sizes odd. The last tap sees the current frame.
      bias: `(co,)` or None.
      context: `(b, kt - 1, h, w, ci)`, the frames before `x` if it is a later part of a clip; None pads with zeros.
      lowering: how to run it; `auto` follows `default_lowering`.

    Returns:
      `(b, t, h, w, co)`; frame `i` depends on frames `<= i` only.

    On one CPU device it has no forward-mode derivative, see `conv2d`.

    Raises:
      ValueError: the lowering is unknown, a spatial size is even, or the context has another length.
    """
    kt, kh, kw, ci, co = kernel.shape
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}, got {lowering!r}")
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"the height and width of a causal kernel must be odd, got {kh} x {kw}")
    if context is not None and context.shape[1] != kt - 1:
        raise ValueError(f"expected a context of {kt - 1} frames for a kernel of {kt}, got {context.shape[1]}")
    if kernel.shape[:3] == (1, 1, 1):
        y = x @ kernel[0, 0, 0]
    elif (kh, kw) == (1, 1):
        y = sum_of(_delay(x, kt - 1 - i, context) @ kernel[i, 0, 0] for i in range(kt))
    else:
        if x.shape[1] == 1 and context is None:  # an image: only the last tap touches data, so the others need no work
            kernel, kt = kernel[-1:], 1
        if lowering == "auto":
            lowering = default_lowering(ci, co, platform(), x.shape[2] * x.shape[3])
        y = _LOWERED["sum2d" if kt == 1 and lowering != "direct" else lowering](x, kernel, context)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def conv2d(x: Array, kernel: Array, bias: Array | None = None, *, stride: int = 1, padding: Any = "SAME") -> Array:
    """2-D convolution of every frame: `(..., h, w, ci)`, `(kh, kw, ci, co)` -> `(..., h', w', co)`.

    On one CPU device its backward pass is our own, so there it has no forward-mode derivative (`jax.jvp`,
    `jax.linearize`); forward over reverse (`jax.hessian`) works.

    Raises:
      TypeError: `x` and `kernel` differ in dtype.
    """
    if x.dtype != kernel.dtype:
        raise TypeError(f"expected a kernel of the input's dtype {x.dtype}, got {kernel.dtype}; cast one of them")
    lead, sides = x.shape[:-3], x.shape[-3:-1]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sides, kernel.shape[:2], (stride, stride), padding)
    padding = tuple(tuple(pad) for pad in padding)
    height, width = (
        (side + sum(pad) - size) // stride + 1 for side, pad, size in zip(sides, padding, kernel.shape[:2], strict=True)
    )
    run = conv_cpu.convolve
    if platform() == "cpu":
        # On several devices the batch may be split, and every chunk of our gradient would be summed across them.
        many_pixels = conv_cpu.convolve_with_own_gradient if on_one_cpu() else conv_cpu.convolve
        run = conv_cpu.convolve_by_matmul if height * width <= conv_cpu.FEW_PIXELS else many_pixels
    # Batch and frames stay apart: where the batch is sharded, a loop over frames needs no communication.
    batch, frames = lead[0] if lead else 1, math.prod(lead[1:])
    y: Any = run(x.reshape(batch, frames, *x.shape[-3:]), kernel, stride, padding)  # (b, t, h', w', co)
    y = y.reshape(lead + y.shape[2:])
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _delay(x: Array, frames: int, context: Array | None = None) -> Array:
    """Delay `x` by `frames`; zeros, or the last frames of `context`, come in on the left."""
    if frames == 0:
        return x
    if context is not None:
        return jnp.concatenate([context[:, context.shape[1] - frames :], x], axis=1)[:, : x.shape[1]]
    return jnp.pad(x, ((0, 0), (frames, 0), (0, 0), (0, 0), (0, 0)))[:, : x.shape[1]]


def default_lowering(ci: int, co: int, platform: str, pixels: int = 1 << 20) -> Lowering:
    """The lowering that `auto` means for `ci` input and `co` output channels on `cpu`, `gpu` or `tpu`.

    On CPU the direct form is oneDNN's, where it is on and a picture has more than a few pixels; without it few outputs
    favour `taps_out`, few inputs `taps_in`. On an H200, with 128 and with 512 channels in bfloat16, a sum of 2-D
    convolutions took 0.64 and 0.92 of the time of the direct form, which cuDNN runs in another layout. The
    measurements are in `benchmarks/results/lowerings_*.json`; TPUs, and few channels on GPUs, were not measured.
    """
    if platform == "gpu" and min(ci, co) >= 64:
        return "sum2d"
    if platform != "cpu":
        return "direct"
    if pixels > conv_cpu.FEW_PIXELS and conv_cpu.has_onednn():
        return "direct"
    if co <= 16:
        return "taps_out"
    return "taps_in" if ci <= 64 else "sum2d"


def _direct(x: Array, kernel: Array, context: Array | None) -> Array:
    kt, kh, kw = kernel.shape[:3]
    # Padding goes to the convolution, never through jnp.pad: on a sharded side that would add a collective.
    left = kt - 1
    if context is not None:
        x, left = jnp.concatenate([context, x], axis=1), 0
    padding = ((left, 0), (kh // 2, kh // 2), (kw // 2, kw // 2))
    own_gradient = on_one_cpu() and conv_cpu.has_onednn()
    run = conv_cpu.convolve3d_with_own_gradient if own_gradient else conv_cpu.convolve3d
    return run(x, kernel, padding)


def _sum2d(x: Array, kernel: Array, context: Array | None) -> Array:
    kt = kernel.shape[0]
    return sum_of(conv2d(_delay(x, kt - 1 - i, context), kernel[i]) for i in range(kt))


def _taps_in(x: Array, kernel: Array, context: Array | None) -> Array:
    kt, kh, kw, ci, co = kernel.shape
    stacked = jnp.concatenate([_delay(x, kt - 1 - i, context) for i in range(kt)], axis=-1)  # (b, t, h, w, kt ci)
    return conv2d(stacked, jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * ci, co))


def _taps_out(x: Array, kernel: Array, context: Array | None) -> Array:
    kt, kh, kw, ci, co = kernel.shape
    if context is not None:  # what is delayed are outputs, so those of the context are needed too
        return _taps_out(jnp.concatenate([context, x], axis=1), kernel, None)[:, kt - 1 :]
    y = conv2d(x, jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, ci, kt * co))  # (b, t, h, w, kt co)
    return sum_of(_delay(y[..., i * co : (i + 1) * co], kt - 1 - i) for i in range(kt))


_LOWERED = {"direct": _direct, "sum2d": _sum2d, "taps_in": _taps_in, "taps_out": _taps_out}


class CausalConv3D(nn.Module):
    """`causal_conv3d` with parameters `kernel (kt, kh, kw, ci, co)` and `bias (co,)`.

    Attributes:
      features: output channels.
      kernel_size: `(kt, kh, kw)`.
      zero_init: starts at zero, for the last convolution of a residual branch.
      bias_init: initialiser of the bias.
      dtype: compute type; parameters stay float32.
      lowering: how it runs, see `causal_conv3d`.
    """

    features: int
    kernel_size: tuple[int, int, int] = (3, 3, 3)
    zero_init: bool = False
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: str = "float32"
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero_init else last_tap_init(lecun_normal)
        kernel = self.param("kernel", init, (*self.kernel_size, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        context = left_context(self, x, self.kernel_size[0] - 1)
        if x.shape[1] == 1 and context is None:
            kernel = kernel[-1:]  # the only tap that an image uses, so the only one to gather
        return causal_conv3d(x, gather_weights(kernel), gather_weights(bias), context=context, lowering=self.lowering)


class Conv2D(nn.Module):
    """`conv2d` on every frame, with parameters `kernel (kh, kw, ci, co)` and `bias (co,)`."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: str | tuple = "SAME"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", lecun_normal, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        kernel, bias = gather_weights(kernel), gather_weights(bias)
        return conv2d(x, kernel, bias, stride=self.stride, padding=self.padding)

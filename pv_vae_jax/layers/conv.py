"""Causal 3-D convolution: one op with several lowerings of equal result.

On CPU the gradient of XLA's direct 3-D convolution is 2-4 times slower than eager PyTorch's, and on GPUs the direct
form is slower than 2-D ones, so there time is folded into the batch or the channels (`python -m benchmarks lowerings`
measures them all; the tables are in docs/performance.md).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.layers.cache import left_context
from pv_vae_jax.layers.initializers import last_tap_init, lecun_normal
from pv_vae_jax.sharding.axes import gather_weights
from pv_vae_jax.typing import Array, sum_of

Lowering = Literal["auto", "direct", "sum2d", "taps_in", "taps_out"]
# With as few output pixels, 2-D convolutions are matrix products on CPU: below nine XLA falls back to a plain loop.
FEW_PIXELS = 9
UNFOLDED = 2**21  # bytes of a convolution's input that its gradient on CPU lays out at a time: about a core's cache
LOWERINGS = ("auto", "direct", "sum2d", "taps_in", "taps_out")


def causal_conv3d(
    x: Array, kernel: Array, bias: Array | None = None, *, context: Array | None = None, lowering: Lowering = "auto"
) -> Array:
    """Stride-1 convolution, zero-padded `kt - 1` frames on the left in time and symmetrically in space.

    Args:
      x: `(b, t, h, w, ci)`.
      kernel: `(kt, kh, kw, ci, co)`, spatial sizes odd. The last tap sees the current frame.
      bias: `(co,)` or None.
      context: `(b, kt - 1, h, w, ci)`, the frames before `x` where it is a later part of a clip; None pads with zeros.
      lowering: how to run it; `auto` takes what `default_lowering` says.

    Returns:
      `(b, t, h, w, co)`; frame `i` depends on frames `<= i` only.

    On one CPU device it has no forward-mode derivative, see `conv2d`.

    Raises:
      ValueError: unknown lowering, an even spatial size, or a context of another length.
    """
    kt, kh, kw, ci, co = kernel.shape
    if lowering not in LOWERINGS:
        raise ValueError(f"unknown lowering {lowering!r}; choose one of {', '.join(LOWERINGS)}")
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"spatial sizes of a causal convolution are odd, got {kh} x {kw}")
    if context is not None and context.shape[1] != kt - 1:
        raise ValueError(f"a kernel of {kt} frames has a context of {kt - 1}, got {context.shape[1]}")
    if kernel.shape[:3] == (1, 1, 1):
        y = x @ kernel[0, 0, 0]
    elif (kh, kw) == (1, 1):
        y = sum_of(_delay(x, kt - 1 - i, context) @ kernel[i, 0, 0] for i in range(kt))
    else:
        if x.shape[1] == 1 and context is None:  # an image: only the last tap touches data, so the others need no work
            kernel, kt = kernel[-1:], 1
        if lowering == "auto":
            lowering = default_lowering(ci, co, jax.default_backend())
        y = _LOWERED["sum2d" if kt == 1 and lowering != "direct" else lowering](x, kernel, context)
    return y if bias is None else y + bias


def conv2d(x: Array, kernel: Array, bias: Array | None = None, *, stride: int = 1, padding: Any = "SAME") -> Array:
    """2-D convolution of every frame: `(..., h, w, ci)`, `(kh, kw, ci, co)` -> `(..., h', w', co)`.

    On one CPU device its backward pass is our own, so there it has no forward-mode derivative (`jax.jvp`,
    `jax.linearize`); forward over reverse (`jax.hessian`) works.

    Raises:
      TypeError: `x` and `kernel` are of two types.
    """
    if x.dtype != kernel.dtype:
        raise TypeError(f"a convolution of {x.dtype} takes a kernel of that type, got {kernel.dtype}")
    lead, sides = x.shape[:-3], x.shape[-3:-1]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sides, kernel.shape[:2], (stride, stride), padding)
    padding = tuple(tuple(pad) for pad in padding)
    height, width = (
        (side + sum(pad) - size) // stride + 1 for side, pad, size in zip(sides, padding, kernel.shape[:2], strict=True)
    )
    way = _convolve
    if jax.default_backend() == "cpu":
        # On several devices the batch may be split, and every chunk of our gradient would be summed across them.
        large = _convolve_on_cpu if jax.device_count() == 1 else _convolve
        way = _patches if height * width <= FEW_PIXELS else large
    # Batch and frames stay apart: where the batch is sharded, a loop over frames needs no communication.
    batch, frames = lead[0] if lead else 1, math.prod(lead[1:])
    y = cast(Array, way(x.reshape(batch, frames, *x.shape[-3:]), kernel, stride, padding))
    y = y.reshape(lead + y.shape[2:])
    return y if bias is None else y + bias


def _convolve(x: Array, kernel: Array, stride: int, padding: Any) -> Array:
    """`conv2d` of `(b, t, h, w, ci)` by XLA."""
    frames = x.reshape((-1,) + x.shape[2:])
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(frames, kernel, (stride, stride), padding, dimension_numbers=numbers)
    return y.reshape(x.shape[:2] + y.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_on_cpu(x: Array, kernel: Array, stride: int, padding: Any) -> Array:
    """`_convolve`, with a faster gradient of the kernel."""
    return _convolve(x, kernel, stride, padding)


def _convolve_forward(x: Array, kernel: Array, stride: int, padding: Any):
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(stride: int, padding: Any, saved, dy: Array):
    x, kernel = saved
    size, pixels = kernel.shape[:2], math.prod(dy.shape[:-1])
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(dy)
    if pixels * math.prod(size) * min(kernel.shape[2:]) * x.dtype.itemsize > UNFOLDED:
        return dx, _kernel_gradient(x, dy, size, stride, padding).astype(kernel.dtype)
    # XLA's way is no slower where all of it stays in the cache, and compiles sooner.
    (dkernel,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel, stride, padding), kernel)(dy)
    return dx, dkernel


_convolve_on_cpu.defvjp(_convolve_forward, _convolve_backward)


def _kernel_gradient(x: Array, dy: Array, size: tuple[int, ...], stride: int, padding: Any) -> Array:
    """Gradient of `conv2d`'s kernel from `x (b, t, h, w, ci)` and `dy (b, t, h', w', co)`: `(kh, kw, ci, co)`.

    A matrix product over pixels of `dy` and of what every tap sees, a few rows of all clips at a time: what is unfolded
    stays in the cache. XLA computes it as a convolution whose window is the whole picture, which is far slower on CPU.
    """
    (kh, kw), (ci, co) = size, (x.shape[-1], dy.shape[-1])
    turned = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(size, padding, strict=True))
    if ci > co and stride == 1 and min(min(pad) for pad in turned) >= 0:  # unfold the side of fewer channels
        return _kernel_gradient(dy, x, size, 1, turned)[::-1, ::-1].swapaxes(2, 3)
    x = _padded(x, padding)
    batch, frames, height, width = dy.shape[:4]
    most = UNFOLDED // max(x.dtype.itemsize * kh * kw * ci * batch * width, 1)  # rows of all clips
    rows = _divisor(height, most)
    several = _divisor(frames, most // height)

    def add(total: Array, i: Array):
        frame, row = i // (height // rows) * several, i % (height // rows) * rows
        sees = stride * (rows - 1) + kh, x.shape[3]
        xs = jax.lax.dynamic_slice(x, (0, frame, stride * row, 0, 0), (batch, several, *sees, ci))
        dys = jax.lax.dynamic_slice(dy, (0, frame, row, 0, 0), (batch, several, rows, width, co))
        seen = _seen(xs, size, stride, rows, width).reshape(-1, kh * kw * ci)
        return total + jnp.matmul(dys.reshape(-1, co).T, seen, preferred_element_type=total.dtype), None

    total = jnp.zeros((co, kh * kw * ci), jnp.promote_types(x.dtype, jnp.float32))
    total, _ = jax.lax.scan(add, total, jnp.arange(height // rows * (frames // several)))
    return total.T.reshape(kh, kw, ci, co)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of `n` that is at most `most`, or 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))


def _seen(x: Array, size: tuple[int, ...], stride: int, height: int, width: int) -> Array:
    """What every tap sees of a padded `(..., h, w, c)`, side by side: `(..., height, width, kh kw c)`."""
    rows, columns = (stride * (n - 1) + 1 for n in (height, width))
    taps = [(i, j) for i in range(size[0]) for j in range(size[1])]
    return jnp.concatenate([x[..., i : i + rows : stride, j : j + columns : stride, :] for i, j in taps], axis=-1)


def _patches(x: Array, kernel: Array, stride: int, padding: Any) -> Array:
    """`conv2d` of `(b, t, h, w, ci)` as one matrix product."""
    size = kernel.shape[:2]
    x = _padded(x, padding)
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[2:4], size, strict=True))
    return _seen(x, size, stride, height, width) @ kernel.reshape(-1, kernel.shape[-1])


def _padded(x: Array, padding: Any) -> Array:
    """Both sides of `(b, t, h, w, c)` padded with zeros, or cropped where a pad is below zero, as XLA does."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0)))


def _delay(x: Array, frames: int, context: Array | None = None) -> Array:
    """Delay by `frames`: zeros, or the last frames of `context`, come in on the left."""
    if frames == 0:
        return x
    if context is not None:
        return jnp.concatenate([context[:, context.shape[1] - frames :], x], axis=1)[:, : x.shape[1]]
    return jnp.pad(x, ((0, 0), (frames, 0), (0, 0), (0, 0), (0, 0)))[:, : x.shape[1]]


def default_lowering(ci: int, co: int, platform: str) -> Lowering:
    """What `auto` takes for `ci` input and `co` output channels on `cpu`, `gpu` or `tpu`.

    On CPU few outputs favour `taps_out`, few inputs `taps_in`. On an H200, with 128 and with 512 channels in bfloat16,
    a sum of 2-D convolutions took 0.64 and 0.92 of the direct form's time, which cuDNN runs in another layout. They are
    in `benchmarks/results/lowerings_*.json`; TPUs, and few channels on GPUs, were not measured.
    """
    if platform == "gpu" and min(ci, co) >= 64:
        return "sum2d"
    if platform != "cpu":
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
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def _sum2d(x: Array, kernel: Array, context: Array | None) -> Array:
    kt = kernel.shape[0]
    return sum_of(conv2d(_delay(x, kt - 1 - i, context), kernel[i]) for i in range(kt))


def _im2col(x: Array, kernel: Array, context: Array | None) -> Array:
    kt, kh, kw, ci, co = kernel.shape
    stacked = jnp.concatenate([_delay(x, kt - 1 - i, context) for i in range(kt)], axis=-1)
    return conv2d(stacked, jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * ci, co))


def _taps_out(x: Array, kernel: Array, context: Array | None) -> Array:
    kt, kh, kw, ci, co = kernel.shape
    if context is not None:  # what is delayed are outputs, so those of the context are needed too
        return _taps_out(jnp.concatenate([context, x], axis=1), kernel, None)[:, kt - 1 :]
    y = conv2d(x, jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, ci, kt * co))
    return sum_of(_delay(y[..., i * co : (i + 1) * co], kt - 1 - i) for i in range(kt))


_LOWERED = {"direct": _direct, "sum2d": _sum2d, "taps_in": _im2col, "taps_out": _taps_out}


class CausalConv3D(nn.Module):
    """`causal_conv3d` with parameters `kernel (kt, kh, kw, ci, co)` and `bias (co,)`.

    Attributes:
      features: output channels.
      kernel_size: `(kt, kh, kw)`.
      zero_init: start at zero (last convolution of a residual branch).
      bias_init: initialiser of the bias.
      dtype: compute type; parameters stay float32.
      lowering: see `causal_conv3d`.
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
        kernel = self.param("kernel", init, self.kernel_size + (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        context = left_context(self, x, self.kernel_size[0] - 1)
        if x.shape[1] == 1 and context is None:
            kernel = kernel[-1:]  # all that an image meets, and all that is to be gathered
        return causal_conv3d(x, gather_weights(kernel), gather_weights(bias), context=context, lowering=self.lowering)


class Conv2D(nn.Module):
    """`conv2d` on every frame, with parameters `kernel (kh, kw, ci, co)` and `bias (co,)`."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: str | tuple = "SAME"
    zero_init: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero_init else lecun_normal
        kernel = self.param("kernel", init, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        kernel, bias = gather_weights(kernel), gather_weights(bias)
        return conv2d(x, kernel, bias, stride=self.stride, padding=self.padding)

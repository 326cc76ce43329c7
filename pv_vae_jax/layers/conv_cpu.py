"""Convolutions on CPU: by oneDNN where XLA has it, a matrix product for few pixels, and our gradient of the kernel.

XLA computes the kernel's gradient as a convolution whose window is the picture, which is far slower on CPU than a
matrix product (`python -m benchmarks lowerings`; docs/performance.md has the table).
"""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from pv_vae_jax.layers.platform import platform
from pv_vae_jax.typing import Array

# With as few output pixels, 2-D convolutions are matrix products on CPU: below nine XLA falls back to a plain loop.
FEW_PIXELS = 9
UNFOLDED = 2**21  # bytes of a convolution's input that its gradient on CPU lays out at a time: about a core's cache
# Up to as many pixels of a picture, oneDNN's gradient of the kernel is faster than ours.
SMALL_PICTURE = 64


def has_onednn() -> bool:
    """Whether the program is for a CPU on which XLA runs 3-D convolutions by oneDNN (`cli.main.configure_cpu`)."""
    return platform() == jax.default_backend() == "cpu" and _has_onednn()


@cache
def _has_onednn() -> bool:
    """Asked once, of a small convolution."""
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 3, 16, 16, 16), (3, 3, 3, 16, 16)))
    run = jax.jit(partial(convolve3d, padding=((0, 0),) * 3))
    # Its whole name: the text names the functions that a program comes from as well.
    return 'custom_call_target="__onednn$convolution"' in str(run.lower(x, kernel).compile().as_text())


def convolve3d(x: Array, kernel: Array, padding: Any) -> Array:
    """Convolution of `(b, t, h, w, ci)` with `(kt, kh, kw, ci, co)` by XLA, padded by `padding`, three pairs."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve3d_with_own_gradient(x: Array, kernel: Array, padding: Any) -> Array:
    """`convolve3d`, with a faster gradient of the kernel."""
    return convolve3d(x, kernel, padding)


def _forward3d(x: Array, kernel: Array, padding: Any):
    return convolve3d(x, kernel, padding), (x, kernel)


def _backward3d(padding: Any, saved, dy: Array):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: convolve3d(x, kernel, padding), x)(dy)
    frames, height, width = dy.shape[1:4]
    if height * width <= SMALL_PICTURE:
        (dkernel,) = jax.linear_transpose(lambda kernel: convolve3d(x, kernel, padding), kernel)(dy)
        return dx, dkernel
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)))
    size = kernel.shape[1:3]
    taps = [_kernel_gradient(x[:, i : i + frames], dy, size, 1, padding[1:]) for i in range(kernel.shape[0])]
    return dx, jnp.stack(taps).astype(kernel.dtype)


convolve3d_with_own_gradient.defvjp(_forward3d, _backward3d)


def convolve(x: Array, kernel: Array, stride: int, padding: Any) -> Array:
    """`conv.conv2d` of `(b, t, h, w, ci)` by XLA."""
    if stride == 1 and has_onednn():  # which takes 3-D convolutions, and is slow at the gradient of strided ones
        return convolve3d(x, kernel[None], ((0, 0), *padding))
    frames = x.reshape((-1,) + x.shape[2:])  # (b t, h, w, ci)
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(frames, kernel, (stride, stride), padding, dimension_numbers=numbers)
    return y.reshape(x.shape[:2] + y.shape[1:])  # (b, t, h', w', co)


def convolve_by_matmul(x: Array, kernel: Array, stride: int, padding: Any) -> Array:
    """`convolve` as one matrix product."""
    size = kernel.shape[:2]
    x = _pad(x, padding)
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[2:4], size, strict=True))
    return _im2col(x, size, stride, height, width) @ kernel.reshape(-1, kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_with_own_gradient(x: Array, kernel: Array, stride: int, padding: Any) -> Array:
    """`convolve`, with a faster gradient of the kernel."""
    return convolve(x, kernel, stride, padding)


def _forward(x: Array, kernel: Array, stride: int, padding: Any):
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Any, saved, dy: Array):
    x, kernel = saved
    size, pixels = kernel.shape[:2], math.prod(dy.shape[:-1])
    (dx,) = jax.linear_transpose(lambda x: convolve(x, kernel, stride, padding), x)(dy)
    if pixels * math.prod(size) * min(kernel.shape[2:]) * x.dtype.itemsize > UNFOLDED:
        return dx, _kernel_gradient(x, dy, size, stride, padding).astype(kernel.dtype)
    # XLA's form is no slower where all of it stays in the cache, and compiles sooner.
    (dkernel,) = jax.linear_transpose(lambda kernel: convolve(x, kernel, stride, padding), kernel)(dy)
    return dx, dkernel


convolve_with_own_gradient.defvjp(_forward, _backward)


def _kernel_gradient(x: Array, dy: Array, size: tuple[int, ...], stride: int, padding: Any) -> Array:
    """Gradient of the kernel from `x (b, t, h, w, ci)` and `dy (b, t, h', w', co)`: `(kh, kw, ci, co)`.

    A matrix product over pixels of `dy` and of what every tap sees, a few rows of all clips at a time, so that what is
    unfolded stays in the cache.
    """
    (kh, kw), (ci, co) = size, (x.shape[-1], dy.shape[-1])
    flipped = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(size, padding, strict=True))
    if ci > co and stride == 1 and min(min(pad) for pad in flipped) >= 0:  # unfold the side of fewer channels
        return _kernel_gradient(dy, x, size, 1, flipped)[::-1, ::-1].swapaxes(2, 3)
    x = _pad(x, padding)
    batch, frames, height, width = dy.shape[:4]
    most = UNFOLDED // max(x.dtype.itemsize * kh * kw * ci * batch * width, 1)  # rows of all clips that fit
    rows = _divisor(height, most)  # rows of a frame at a time; where all fit, several frames at a time
    several = _divisor(frames, most // height)

    def add(total: Array, i: Array):
        frame, row = i // (height // rows) * several, i % (height // rows) * rows
        seen = stride * (rows - 1) + kh, x.shape[3]
        xs = jax.lax.dynamic_slice(x, (0, frame, stride * row, 0, 0), (batch, several, *seen, ci))
        dys = jax.lax.dynamic_slice(dy, (0, frame, row, 0, 0), (batch, several, rows, width, co))
        columns = _im2col(xs, size, stride, rows, width).reshape(-1, kh * kw * ci)  # (pixels, kh kw ci)
        return total + jnp.matmul(dys.reshape(-1, co).T, columns, preferred_element_type=total.dtype), None

    total = jnp.zeros((co, kh * kw * ci), jnp.promote_types(x.dtype, jnp.float32))
    total, _ = jax.lax.scan(add, total, jnp.arange(height // rows * (frames // several)))
    return total.T.reshape(kh, kw, ci, co)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of `n` that is at most `most`, or 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))


def _im2col(x: Array, size: tuple[int, ...], stride: int, height: int, width: int) -> Array:
    """What every tap sees of a padded `(..., h, w, c)`, side by side: `(..., height, width, kh kw c)`."""
    rows, columns = (stride * (n - 1) + 1 for n in (height, width))
    taps = [(i, j) for i in range(size[0]) for j in range(size[1])]
    return jnp.concatenate([x[..., i : i + rows : stride, j : j + columns : stride, :] for i, j in taps], axis=-1)


def _pad(x: Array, padding: Any) -> Array:
    """Pad height and width of `(b, t, h, w, c)` with zeros, or crop them where a pad is below zero, as XLA does."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0)))

"""Attention through one entry point: plain XLA, or the fused kernels of cuDNN and of TPUs."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.core
import jax.extend.backend
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.layers.platform import platform
from pv_vae_jax.sharding.axes import per_example
from pv_vae_jax.typing import Array

Implementation = Literal["auto", "xla", "cudnn", "splash"]
IMPLEMENTATIONS = get_args(Implementation)
# (query index (n, 1), key index (1, m)) -> bool (n, m). Written with operators only, so that it takes JAX arrays (XLA
# computes the mask where it is used) and NumPy ones (splash plans its blocks by the mask, and reads it when compiling).
MaskFunction = Callable[[Any, Any], Array]

LANES = 128  # of a TPU's vector unit: head width and block side of the splash kernel
FUSED_LENGTH = 128  # shorter sequences stay with XLA: their logits are small, and a fused kernel pads them


def dot_product_attention(
    q: Array, k: Array, v: Array, *, mask: Array | MaskFunction | None = None, implementation: Implementation = "auto"
) -> Array:
    """Softmax attention of queries `(b, n, heads, d)` over keys and values `(b, m, heads, d)`, scale `1 / sqrt(d)`.

    Args:
      q, k, v: arrays of one dtype.
      mask: keys that each query may attend to, the same for all examples and heads: bool `(n, m)`, or a function of
        the indices (see `MaskFunction`). Every query must see a key. None hides nothing.
      implementation: one of
        `xla`: plain operations, everywhere, for any dtype and shape. On a CPU, float32 with more keys than `d` has a
          backward pass of our own, and so no forward-mode derivative (`jax.jvp`, `jax.linearize`); forward over reverse
          (`jax.hessian`) works.
        `cudnn`: the fused kernel on NVIDIA GPUs; float16 or bfloat16, `d` a multiple of 8 up to 128, `n` above 1, and
          with a mask even `n` and `m` where `m % 128` is not 64.
        `splash`: the Pallas kernel for TPU; the mask must be known when compiling.
        `auto`: `cudnn` where it can run and the sequence is not short, else `xla`. It never chooses `splash`.

    Returns:
      `(b, n, heads, d)`.

    Raises:
      ValueError: the implementation is unknown, or cannot run this call on this device; the message names one that
        can.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    if implementation == "auto":
        long = max(q.shape[1], k.shape[1]) >= FUSED_LENGTH
        implementation = "cudnn" if long and not _missing_for_cudnn(q, k, mask is not None) else "xla"
    if implementation == "splash":
        if platform() != "tpu":
            raise ValueError(f"splash attention needs a TPU, got {platform()}; use 'auto' or 'xla'")
        return _splash(q, k, v, mask)
    if implementation == "cudnn" and (missing := _missing_for_cudnn(q, k, mask is not None)):
        raise ValueError(f"cuDNN attention needs {missing}; provide it, or use 'auto' or 'xla'")
    if mask is not None:
        n, m = q.shape[1], k.shape[1]
        mask = mask(jnp.arange(n)[:, None], jnp.arange(m)[None]) if callable(mask) else jnp.asarray(mask)
        mask = jnp.broadcast_to(mask, (1, 1, n, m))
    many = k.shape[1] > q.shape[-1]  # more keys than channels of a head, so that the logits are what is large
    if implementation == "xla" and many and platform() == "cpu" and q.dtype == jnp.float32:
        return _with_own_gradient(q, k, v, mask)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)


@jax.custom_vjp
def _with_own_gradient(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Attention on a CPU, where passes over the `n x m` logits cost more than the products.

    Scale and sum of the softmax are applied to arrays of width `d` in both directions, which halves the passes. With
    256 and with 1280 keys of width 64 it takes 0.6 of the time of `jax.nn.dot_product_attention`; with fewer keys than
    channels, 1.2 of it (`python -m benchmarks attention`).
    """
    return _forward(q, k, v, mask)[0]


def _forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, tuple]:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (b, heads, n, d)
    q = q * q.shape[-1] ** -0.5
    logits = q @ k.swapaxes(2, 3)  # (b, heads, n, m)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)  # (b, heads, n, 1)
    y = weights @ v / total
    return y.swapaxes(1, 2), (q, k, v, weights, total, y)


def _backward(saved: tuple, dy: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, weights, total, y = saved
    dy = dy.swapaxes(1, 2) / total
    dlogits = weights * (dy @ v.swapaxes(2, 3) - (dy * y).sum(-1, keepdims=True))
    dq, dk = dlogits @ k * q.shape[-1] ** -0.5, dlogits.swapaxes(2, 3) @ q
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), (weights.swapaxes(2, 3) @ dy).swapaxes(1, 2), None


_with_own_gradient.defvjp(_forward, _backward)


def _missing_for_cudnn(q: Array, k: Array, masked: bool) -> str:
    """What cuDNN's kernel needs and this call lacks, or "" if it can run.

    The rules are those that jax.nn enforces, and those that keep clear of known faults.
    """
    if platform() != "gpu" or "cuda" not in jax.extend.backend.get_backend().platform_version.lower():
        return "an NVIDIA GPU"
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"float16 or bfloat16, not {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"a head width that is a multiple of 8 up to 128, not {q.shape[-1]}"
    if masked and (q.shape[1] % 2 or k.shape[1] % 2):
        return f"even sequence lengths under a mask, not {q.shape[1]} and {k.shape[1]}"
    # Two faults of cuDNN's backward pass, seen up to 9.26: gradients of such calls can be NaN (pytorch/pytorch#196678,
    # NVIDIA/cudnn-frontend#1072).
    if masked and k.shape[1] % 128 == 64:
        return f"under a mask, a number of keys that does not leave 64 after multiples of 128, not {k.shape[1]}"
    if q.shape[1] == 1:
        return "more than one query"
    return ""


def _splash(q: Array, k: Array, v: Array, mask: Array | MaskFunction | None, interpret: bool = False) -> Array:
    """The TPU kernel, with its default blocks; `interpret` runs it anywhere, slowly.

    Lengths and head width are padded to multiples of 128, which is how a TPU stores them anyway.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    (n, heads, d), m = q.shape[1:], k.shape[1]
    rows, columns = -(-n // LANES) * LANES, -(-m // LANES) * LANES
    allowed = np.zeros((rows, columns), bool)
    allowed[:n, :m] = _static(mask, n, m)
    allowed[n:, 0] = True  # a row that sees nothing would divide by zero; its output is cut off below
    with jax.ensure_compile_time_eval():
        head_mask = splash_attention.NumpyMask(allowed)
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([head_mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret
        )

    def attend(q: Array, k: Array, v: Array) -> Array:
        def fill(x: Array, length: int) -> Array:
            x = x.swapaxes(1, 2)  # (b, heads, n, d)
            return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, -d % LANES)))

        y: Any = jax.vmap(kernel)(fill(q * d**-0.5, rows), fill(k, columns), fill(v, columns))
        return y[:, :, :n, :d].swapaxes(1, 2).astype(q.dtype)

    return per_example(attend)(q, k, v)


def _static(mask: Array | MaskFunction | None, n: int, m: int) -> np.ndarray:
    if mask is None:
        return np.ones((n, m), bool)
    value = mask(np.arange(n)[:, None], np.arange(m)[None]) if callable(mask) else mask
    if isinstance(value, jax.core.Tracer):
        raise ValueError("splash attention needs a mask that is known when compiling, got a traced one; use 'xla'")
    return np.asarray(value)

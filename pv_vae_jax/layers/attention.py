"""Attention through one entry point, and the per-frame attention block of the video VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.core
import jax.extend.backend
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.layers.norm import RMSNorm
from pv_vae_jax.sharding.axes import VIDEO_AXES, constrain, per_example
from pv_vae_jax.typing import Array

Implementation = Literal["auto", "xla", "cudnn", "splash"]
IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
# (query index (n, 1), key index (1, m)) -> bool (n, m). Written with operators only, so that it takes JAX arrays (XLA
# computes the mask where it is used) and NumPy ones (splash plans its blocks by the mask, and reads it when compiling).
MaskFunction = Callable[[Any, Any], Array]

LANES = 128  # of a TPU's vector unit: head width and block side of the splash kernel
FUSED_LENGTH = 128  # shorter sequences stay with XLA: their logits are small, and a fused kernel pads them


def dot_product_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | MaskFunction | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Softmax attention of queries `(b, n, heads, d)` over keys and values `(b, m, heads, d)`, scale `1 / sqrt(d)`.

    Args:
      q, k, v: of one type.
      mask: what each query may look at, the same for all examples and heads: bool `(n, m)`, or a function of the
        indices (see `MaskFunction`). Every query must see a key. None hides nothing.
      implementation: who computes it.
        `xla`: plain operations, everywhere, for any type and shape.
        `cudnn`: the fused kernel on NVIDIA GPUs; float16 or bfloat16, `d` a multiple of 8 up to 128, and with a mask
          even `n` and `m`.
        `splash`: the Pallas kernel for TPU; the mask must be known when compiling.
        `auto`: `cudnn` where it can run and the sequence is not short, else `xla`. Splash is never chosen unasked.

    Returns:
      `(b, n, heads, d)`.

    Raises:
      ValueError: the implementation is unknown, or cannot run this call on this device; the message says what can.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "auto":
        long = max(q.shape[1], k.shape[1]) >= FUSED_LENGTH
        implementation = "cudnn" if long and not _cudnn_lacks(q, k, mask is not None) else "xla"
    if implementation == "splash":
        if jax.default_backend() != "tpu":
            raise ValueError("splash attention runs on TPU only: use 'auto' or 'xla'")
        return _splash(q, k, v, mask)
    if implementation == "cudnn" and (lack := _cudnn_lacks(q, k, mask is not None)):
        raise ValueError(f"cuDNN attention needs {lack}: change that, or use 'auto' or 'xla'")
    if mask is not None:
        n, m = q.shape[1], k.shape[1]
        mask = mask(jnp.arange(n)[:, None], jnp.arange(m)[None]) if callable(mask) else jnp.asarray(mask)
        mask = jnp.broadcast_to(mask, (1, 1, n, m))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)


def _cudnn_lacks(q: Array, k: Array, masked: bool) -> str:
    """What keeps cuDNN's kernel from this call, or "" if nothing does. The rules are those that jax.nn enforces."""
    if "cuda" not in jax.extend.backend.get_backend().platform_version.lower():
        return "an NVIDIA GPU"
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"float16 or bfloat16, not {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"a head width that is a multiple of 8 up to 128, not {q.shape[-1]}"
    if masked and (q.shape[1] % 2 or k.shape[1] % 2):
        return f"even sequence lengths under a mask, not {q.shape[1]} and {k.shape[1]}"
    return ""


def _splash(q: Array, k: Array, v: Array, mask: Array | MaskFunction | None, interpret: bool = False) -> Array:
    """The TPU kernel, with its default blocks; `interpret` runs it anywhere, slowly.

    Lengths and head width are filled up to multiples of 128, which is how a TPU stores them anyway.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    (n, heads, d), m = q.shape[1:], k.shape[1]
    rows, columns = -(-n // LANES) * LANES, -(-m // LANES) * LANES
    allowed = np.zeros((rows, columns), bool)
    allowed[:n, :m] = _static(mask, n, m)
    allowed[n:, 0] = True  # a row that sees nothing would divide by zero; what it yields is cut off below
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
        raise ValueError("splash attention plans its blocks when compiling, but this mask is computed: use 'xla'")
    return np.asarray(value)


class FrameAttention(nn.Module):
    """Single-head self-attention inside every frame, residual, starting as the identity: `(b, t, h, w, c)`."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, t, h, w, c = x.shape
        # The positions of a frame meet: devices that share a picture take whole clips each, where these suffice.
        y = constrain(RMSNorm(name="norm")(x), ("clips", "time", "whole", "whole", "channels"))
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="to_qkv")(y)
        q, k, v = jnp.split(qkv.reshape(b * t, h * w, 1, 3 * c), 3, axis=-1)
        y = dot_product_attention(q, k, v).reshape(b, t, h, w, c)
        y = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj")(y)
        return constrain(x + constrain(y, VIDEO_AXES), VIDEO_AXES)

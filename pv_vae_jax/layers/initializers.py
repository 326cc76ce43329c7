"""Initialisers of convolution kernels."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.typing import Array, PRNGKey


def lecun_normal(key: PRNGKey, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """The numbers of `jax.nn.initializers.lecun_normal()`, drawn flat and reshaped.

    XLA takes about 2 s on CPU to compile a draw of a new 5-D shape and 0.25 s for a flat array (jax 0.10.2), and a
    network has dozens of shapes.
    """
    fan_in = math.prod(shape[:-1])
    # The standard deviation of a normal cut off at 2 is 0.8796; this makes the variance 1 / fan_in.
    scale = math.sqrt(1.0 / fan_in) / 0.87962566103423978
    return scale * jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype).reshape(shape)


def last_tap_init(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """Draw the last temporal tap from `init`, the earlier ones zero: the network starts as a per-frame model.

    An image sees the last tap only; random earlier taps would be noise when video training begins.
    """

    def init_kernel(key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[-1].set(init(key, shape[1:], dtype))

    return init_kernel


def identity_tap_init(copies: int = 1) -> nn.initializers.Initializer:
    """Kernel `(kt, 1, 1, c, copies * c)` that repeats the current frame `copies` times: the last tap is an identity."""

    def init_kernel(key, shape, dtype=jnp.float32):
        eye = jnp.tile(jnp.eye(shape[3], dtype=dtype), (1, copies))
        return jnp.zeros(shape, dtype).at[-1, 0, 0].set(eye)

    return init_kernel

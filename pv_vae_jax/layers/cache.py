"""The state that causal layers carry from one chunk of a clip to the next, in the Flax collection `cache`.

A pass over a full clip neither reads nor writes it. Applied with `mutable=["cache"]`, a layer stores the last frames of
its input; applied again with that collection among its variables, it continues where the previous chunk ended. The
cache is an explicit pytree, which `pv_vae_jax.streaming` carries through a `lax.scan`.
"""

import flax.linen as nn
import jax.numpy as jnp

from pv_vae_jax.typing import Array

CACHE = "cache"


def continues(module: nn.Module) -> bool:
    """Whether earlier chunks of the clip left `module` a cache. Call it before the layers of the module run."""
    return bool(module.variables.get(CACHE))


def left_context(module: nn.Module, x: Array, frames: int) -> Array | None:
    """The `frames` input frames of `module` before `x (b, t, h, w, c)`; None if `x` begins the clip.

    While streaming, it also stores the last `frames` seen so far for the next chunk; a clip starts with zeros.
    """
    if not frames:
        return None
    context = module.get_variable(CACHE, "frames")
    if module.is_mutable_collection(CACHE) and not module.is_initializing():
        before = jnp.zeros((x.shape[0], frames) + x.shape[2:], x.dtype) if context is None else context
        module.put_variable(CACHE, "frames", jnp.concatenate([before, x], axis=1)[:, -frames:])
    return context

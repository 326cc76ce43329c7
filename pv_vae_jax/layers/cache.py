"""What causal layers remember from one chunk of a clip to the next, in the Flax collection `cache`.

A whole pass neither reads nor writes it. Applied with `mutable=["cache"]`, a layer stores the last frames of its input;
applied again with that collection among its variables, it goes on where the chunk before ended. Nothing is hidden: the
cache is a pytree that goes in and comes out, `pv_vae_jax.streaming` carries it through a `lax.scan`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from pv_vae_jax.typing import Array

CACHE = "cache"


def continues(module: nn.Module) -> bool:
    """Whether `module` goes on with a clip, whose earlier chunks left it a cache. Ask before its layers run."""
    return bool(module.variables.get(CACHE))


def left_context(module: nn.Module, x: Array, frames: int) -> Array | None:
    """The `frames` input frames of `module` before `x (b, t, h, w, c)`; None if `x` begins the clip.

    While streaming, the last `frames` of what was seen so far are kept for the next chunk. A clip has zeros before its
    first frame.
    """
    if not frames:
        return None
    context = module.get_variable(CACHE, "frames")
    if module.is_mutable_collection(CACHE) and not module.is_initializing():
        before = jnp.zeros((x.shape[0], frames) + x.shape[2:], x.dtype) if context is None else context
        module.put_variable(CACHE, "frames", jnp.concatenate([before, x], axis=1)[:, -frames:])
    return context

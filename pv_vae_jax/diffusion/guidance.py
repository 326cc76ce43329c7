"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pv_vae_jax.diffusion.rectified_flow import Velocity
from pv_vae_jax.typing import Array, PRNGKey


def drop_labels(key: PRNGKey, label: Array, null: int, probability: float) -> Array:
    """Replace each label by the null class with `probability`, so that one model learns both velocities."""
    return jnp.where(jax.random.bernoulli(key, probability, label.shape), null, label)


def guided(velocity: Callable[[Array, Array, Array], Array], label: Array, null: int, scale: float) -> Velocity:
    """`u + scale (c - u)` for the velocities with and without class; scale 1 is the plain conditional model.

    Args:
      velocity: `(x, t, label) -> dx/dt`.
      label: `(b,)` classes to draw.
      null: the null class.
      scale: guidance strength.
    """
    if scale == 1.0:
        return lambda x, t: velocity(x, t, label)
    labels = jnp.concatenate([label, jnp.full_like(label, null)])

    def combined(x: Array, t: Array) -> Array:
        both = velocity(jnp.concatenate([x, x]), jnp.concatenate([t, t]), labels)
        conditional, free = jnp.split(both, 2)
        return free + scale * (conditional - free)

    return combined

"""Samplers: integrate the velocity from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pv_vae_jax.diffusion.rectified_flow import Velocity
from pv_vae_jax.typing import Array


def euler(velocity: Velocity, noise: Array, steps: int) -> Array:
    """Explicit Euler in `steps` equal steps (the paper takes 100), under `lax.scan`."""
    if steps < 1:
        raise ValueError(f"the sampler takes at least one step, got {steps}")
    times = jnp.linspace(1.0, 0.0, steps + 1)

    def step(x, pair):
        now, then = pair
        change = (then - now) * velocity(x, jnp.full((x.shape[0],), now))
        return (x + change).astype(x.dtype), None  # the carry keeps its type, whatever the network's

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]

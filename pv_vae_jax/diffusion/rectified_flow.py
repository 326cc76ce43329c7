"""Rectified flow: straight paths from data (t = 0) to noise (t = 1), and the regression of their velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from pv_vae_jax.typing import Array, PRNGKey

Velocity = Callable[[Array, Array], Array]  # (x (b, ...), t (b,)) -> dx/dt (b, ...)
TimeDistribution = Literal["uniform", "logit_normal"]


def draw_time(key: PRNGKey, batch: int, distribution: TimeDistribution = "uniform") -> Array:
    """`(b,)` times in (0, 1). The paper does not name its distribution; `logit_normal` favours the middle."""
    if distribution == "uniform":
        # Stratified over the batch: as uniform as before, with less variance in the loss.
        offsets = jax.random.uniform(key, (batch,))
        return jax.random.permutation(jax.random.fold_in(key, 1), (jnp.arange(batch) + offsets) / batch)
    if distribution == "logit_normal":
        return jax.nn.sigmoid(jax.random.normal(key, (batch,)))
    raise ValueError(f"time distribution is 'uniform' or 'logit_normal', got {distribution!r}")


def interpolate(data: Array, noise: Array, t: Array) -> Array:
    """The point `(1 - t) data + t noise` of the path; `t (b,)`."""
    t = t.reshape((-1,) + (1,) * (data.ndim - 1))
    return (1 - t) * data + t * noise


def flow_matching_loss(velocity: Velocity, data: Array, noise: Array, t: Array) -> Array:
    """Mean squared error of `velocity` at the path's point against `noise - data`."""
    return jnp.mean(jnp.square(velocity(interpolate(data, noise, t), t) - (noise - data)))

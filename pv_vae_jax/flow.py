"""Rectified flow: straight paths from data (t = 0) to noise (t = 1), regression of their velocity, guidance, Euler.

Plain functions over a `velocity(x, t)` callable. Diffusion runs on normalised latents; a decoder takes them as its
encoder made them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pv_vae_jax.typing import Array, PRNGKey

Velocity = Callable[[Array, Array], Array]  # (x (b, ...), t (b,)) -> dx/dt (b, ...)

TimeDistribution = Literal["uniform", "logit_normal"]


def sample_timesteps(key: PRNGKey, batch: int, distribution: TimeDistribution = "uniform") -> Array:
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


def drop_labels(key: PRNGKey, label: Array, null: int, probability: float) -> Array:
    """Replace each label by the null class with `probability`, so that one model learns both velocities."""
    return jnp.where(jax.random.bernoulli(key, probability, label.shape), null, label)


def classifier_free_guidance(
    velocity: Callable[[Array, Array, Array], Array], label: Array, null: int, scale: float
) -> Velocity:
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


def normalize_latents(latents: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Array:
    """`(latents - mean) / std` per channel, the space in which diffusion runs; `mean, std (z,)`.

    For a published VAE: `normalize_latents(posterior.mode, *WAN22_LATENTS)`.
    """
    return (jnp.asarray(latents) - jnp.asarray(mean)) / jnp.asarray(std)


def denormalize_latents(latents: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Array:
    """Inverse of `normalize_latents`: back to what the decoder takes."""
    return jnp.asarray(latents) * jnp.asarray(std) + jnp.asarray(mean)

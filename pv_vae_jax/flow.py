"""Rectified flow: straight paths from data (t = 0) to noise (t = 1), regression of their velocity, guidance, Euler.

Plain functions of a `velocity(x, t)` callable. Diffusion runs on normalised latents; a decoder takes latents in the
scale in which its encoder made them.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from pv_vae_jax.typing import Array, PRNGKey

Velocity = Callable[[Array, Array], Array]  # (x (b, ...), t (b,)) -> dx/dt (b, ...)

TimeDistribution = Literal["uniform", "logit_normal"]


def sample_timesteps(
    key: PRNGKey, batch: int, distribution: TimeDistribution = "uniform", shift: float = 1.0
) -> Float[Array, " b"]:
    """Draw times in (0, 1) for training, moved by `shift_time`.

    The paper does not name its distribution; `logit_normal` favours the middle.

    Raises:
      ValueError: the distribution is unknown.
    """
    if distribution == "uniform":
        # Stratified over the batch: still uniform, with less variance in the loss.
        places = jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key, (batch,), jnp.float32)
        return shift_time(jax.random.permutation(jax.random.fold_in(key, 1), places / batch), shift)
    if distribution == "logit_normal":
        return shift_time(jax.nn.sigmoid(jax.random.normal(key, (batch,), jnp.float32)), shift)
    raise ValueError(f"distribution must be {' or '.join(map(repr, get_args(TimeDistribution)))}, got {distribution!r}")


def shift_time(t: Float[Array, "*b"], shift: float) -> Float[Array, "*b"]:
    """`s t / (1 + (s - 1) t)`: with `s > 1` closer to noise (Stable Diffusion 3, arXiv 2403.03206, equation 23).

    The more values a latent has, the more noise it takes to hide it: `s = sqrt(n / n_0)` keeps how well a constant is
    told from noise when `n_0` values become `n` (of more pixels there; of more channels too in arXiv 2510.11690).
    """
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)


def interpolate(
    data: Float[Array, "b *grid z"], noise: Float[Array, "b *grid z"], t: Float[Array, " b"]
) -> Float[Array, "b *grid z"]:
    """The point `(1 - t) data + t noise` of the path."""
    t = t.reshape((-1,) + (1,) * (data.ndim - 1))
    return (1 - t) * data + t * noise


def flow_matching_loss(
    velocity: Velocity, data: Float[Array, "b *grid z"], noise: Float[Array, "b *grid z"], t: Float[Array, " b"]
) -> Float[Array, ""]:
    """Mean squared error between `velocity` at a point of the path and `noise - data`, the path's true velocity."""
    return jnp.mean(jnp.square(velocity(interpolate(data, noise, t), t) - (noise - data)))


def label_dropout(key: PRNGKey, label: Int[Array, " b"], null: int, probability: float) -> Int[Array, " b"]:
    """Replace each label by the null class with `probability`, so that one model learns both velocities."""
    return jnp.where(jax.random.bernoulli(key, probability, label.shape), null, label)


def classifier_free_guidance(
    velocity: Callable[[Array, Array, Array], Array], label: Int[Array, " b"], null: int, scale: ArrayLike
) -> Velocity:
    """`u + scale (c - u)` of the velocities `c` with and `u` without a class; scale 1 is the conditional model alone.

    Args:
      velocity: `(x, t, label) -> dx/dt`.
      label: classes to sample.
      null: the null class.
      scale: guidance strength; it may be traced.
    """
    if not isinstance(scale, jax.core.Tracer) and scale == 1.0:
        return lambda x, t: velocity(x, t, label)
    labels = jnp.concatenate([label, jnp.full_like(label, null)])  # (2 b,)

    def guided(x: Array, t: Array) -> Array:
        both = velocity(jnp.concatenate([x, x]), jnp.concatenate([t, t]), labels)  # (2 b, ...)
        conditional, unconditional = jnp.split(both, 2)
        return unconditional + scale * (conditional - unconditional)

    return guided


def euler(velocity: Velocity, noise: Float[Array, "b *grid z"], steps: int) -> Float[Array, "b *grid z"]:
    """Integrate from `noise` to data by Euler's method in `steps` equal steps (the paper uses 100), in a `lax.scan`.

    Raises:
      ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    times = jnp.linspace(1.0, 0.0, steps + 1, dtype=jnp.float32)

    def step(x: Array, interval: tuple[Array, Array]):
        t, t_next = interval
        change = (t_next - t) * velocity(x, jnp.full((x.shape[0],), t))
        return (x + change).astype(x.dtype), None  # scan needs one dtype, whatever the network returns

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def normalize_latents(latents: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Float[Array, "*grid z"]:
    """`(latents - mean) / std` per channel, the space in which diffusion runs; `mean` and `std` are `(z,)`.

    For a published VAE: `normalize_latents(posterior.mode, *WAN22_LATENTS)`.
    """
    return (jnp.asarray(latents) - _for_all(mean, latents)) / _for_all(std, latents)


def denormalize_latents(latents: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Float[Array, "*grid z"]:
    """Inverse of `normalize_latents`: latents in the decoder's scale."""
    return jnp.asarray(latents) * _for_all(std, latents) + _for_all(mean, latents)


def _for_all(statistic: ArrayLike, latents: ArrayLike) -> Array:
    """A number for each channel `(z,)` in the shape of latents, float32 at least."""
    dtype = jnp.promote_types(jnp.asarray(latents).dtype, jnp.float32)
    return jnp.broadcast_to(jnp.asarray(statistic, dtype), jnp.shape(latents))

"""Loss of rectified flow on latents that the transformer did not train on, by the flow's time.

The mean over times hides what they do: near data (t = 0) the noise must be told from detail, near noise (t = 1) the
loss is that of guessing the mean. Every call draws the same noise, so that two losses differ by their weights alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.flow import interpolate, normalize_latents
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.typing import Array, Params

BATCH = 32
BINS = 10  # of the flow's time
TIMES = (np.arange(BINS) + 0.5) / BINS  # the middle of each


def velocity_loss(latte: Latte, params: Params, data: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(BINS,)` mean squared error of the velocity at `TIMES`.

    Args:
      latte: the transformer.
      params: its parameters.
      data: normalised latents `(n, g, h, w, z)`, see `sample_posterior`.
      labels: `(n,)` int32.
    """
    batches = zip(padded_batches(data, BATCH), padded_batches(labels, BATCH), strict=True)
    parts = [_losses(latte, params, x, label, number, n) for number, ((x, n), (label, _)) in enumerate(batches)]
    return np.asarray(functools.reduce(metrics.Average.merge, parts).compute())


@functools.partial(jax.jit, static_argnums=0)
def _losses(latte: Latte, params: Params, data: Array, label: Array, number: int, count: int) -> metrics.Average:
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), data.shape)
    real = jnp.arange(len(data)) < count

    def at(time: Array) -> metrics.Average:
        t = jnp.full((len(data),), time)
        velocity = latte.apply({"params": params}, interpolate(data, noise, t), t, label)
        losses = jnp.square(velocity - (noise - data)).mean(axis=(1, 2, 3, 4))  # (b,)
        return metrics.Average.from_model_output(losses, real)

    return jax.lax.map(at, jnp.asarray(TIMES, jnp.float32))


def sample_posterior(mean: np.ndarray, logvar: np.ndarray, channel_mean: Any, channel_std: Any) -> np.ndarray:
    """A sample of posteriors `(n, g, h, w, z)`, always the same one, normalised by channel statistics `(z,)`."""
    noise = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    return np.asarray(normalize_latents(mean + np.exp(0.5 * logvar) * noise, channel_mean, channel_std))

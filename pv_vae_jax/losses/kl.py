"""KL divergence of the posterior from N(0, I)."""

from __future__ import annotations

import jax.numpy as jnp

from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.typing import Array


def kl_divergence(posterior: Posterior, observed: Array) -> Array:
    """Mean KL per latent value, over observed latent frames only.

    Args:
      posterior: over `(b, g, h, w, z)`.
      observed: `(b, g)`, 1 where the frame was seen. A dropped frame has no posterior: it holds the pad.
    """
    kl = 0.5 * (jnp.square(posterior.mean) + jnp.exp(posterior.logvar) - 1.0 - posterior.logvar)
    frames = kl.mean(axis=(2, 3, 4))
    return jnp.sum(frames * observed) / jnp.sum(observed)

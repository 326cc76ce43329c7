"""KL divergence of the posterior from N(0, I)."""

from __future__ import annotations

import jax.numpy as jnp

from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.typing import Array


def kl_divergence(posterior: Posterior, observed: Array) -> Array:
    """Mean KL per latent value, over observed latents only.

    Args:
      posterior: over `(b, g, h, w, z)`.
      observed: `(b, g)`, 1 where the frame was seen, or `(b, g, h, w)`. What is dropped has no posterior: it holds the
        pad.
    """
    kl = 0.5 * (jnp.square(posterior.mean) + jnp.exp(posterior.logvar) - 1.0 - posterior.logvar)
    seen = kl.mean(axis=tuple(range(observed.ndim, kl.ndim)))
    return jnp.sum(seen * observed) / jnp.sum(observed)

"""Hinge GAN losses, and the weight that balances them against reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pv_vae_jax.typing import Array, Params, sum_of


def generator_hinge(fake: Sequence[Array]) -> Array:
    """`-mean D(output)`, averaged over discriminators. `fake` holds one array of logits each."""
    return -sum_of(logits.mean() for logits in fake) / len(fake)


def discriminator_hinge(real: Sequence[Array], fake: Sequence[Array]) -> Array:
    """`0.5 (mean relu(1 - D(x)) + mean relu(1 + D(output)))`, averaged over discriminators."""
    losses = [0.5 * (jax.nn.relu(1 - r).mean() + jax.nn.relu(1 + f).mean()) for r, f in zip(real, fake, strict=True)]
    return sum_of(losses) / len(losses)


def adaptive_weight(reconstruction_grad: Params, gan_grad: Params, limit: float = 1e4) -> Array:
    """Ratio of the gradient norms at the decoder's last kernel, clamped to `[0, limit]` (VQGAN lineage; our choice)."""
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(tree)))  # noqa: E731
    return jnp.clip(norm(reconstruction_grad) / (norm(gan_grad) + 1e-4), 0.0, limit)

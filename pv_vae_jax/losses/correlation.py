"""Local correlation regularisation, from SSVAE (arXiv 2512.05394): neighbouring latents should be alike.

SSVAE finds that latents with most energy at low frequencies, in space and time, are easier to diffuse, and obtains them
by asking neighbours for correlation. (Its other regulariser, latent masked reconstruction, is a pattern of dropping:
`drop_pattern="random"` with `drop_from="latents"`.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import reduce

from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.typing import Array

WINDOW = 2  # latent positions along time, height and width, as SSVAE's


def local_correlation(posterior: Posterior, observed: Array) -> Array:
    """Mean Pearson correlation of latents that lie in the same small window, in [-1, 1].

    The means, standardised channel by channel over all that is observed (statistics without gradient), make one vector
    `v` of `z` channels a position, centred and of length 1. In windows of 2 x 2 positions of frame 0, and of 2 x 2 x 2
    of the frames after it,

        correlation = mean over windows and pairs i < j of  v_i . v_j

    and the result is the average of the two. A pair counts where both are observed. Scale and offset of a channel do
    not matter.

    Args:
      posterior: over `(b, g, h, w, z)`; more than one position of a frame, and more than one channel.
      observed: `(b, g)` or `(b, g, h, w)`, 1 where the latent was seen.
    """
    mean = posterior.mean
    seen = observed.reshape(observed.shape + (1,) * (mean.ndim - observed.ndim))
    seen = jnp.broadcast_to(seen, (*mean.shape[:-1], 1)).astype(mean.dtype)
    average = lambda x: jax.lax.stop_gradient((x * seen).sum((0, 1, 2, 3)) / seen.sum())  # noqa: E731
    centre = average(mean)
    spread = jnp.sqrt(average(jnp.square(mean - centre)))
    v = (mean - centre) / (spread + 1e-6)
    v = v - v.mean(-1, keepdims=True)
    v = v * jax.lax.rsqrt(jnp.square(v).sum(-1, keepdims=True) + 1e-8) * seen
    parts = [_pairs(v[:, :1], seen[:, :1]), _pairs(v[:, 1:], seen[:, 1:])]
    there = sum((count > 0).astype(mean.dtype) for _, count in parts)
    return sum(total / jnp.maximum(count, 1) for total, count in parts) / jnp.maximum(there, 1)


def _pairs(v: Array, seen: Array) -> tuple[Array, Array]:
    """Sum of `v_i . v_j` over the pairs of all windows, and their number; what is not seen is zero in both."""
    # Windows that stick out, and those of frame 0 in time, are filled with what was not seen.
    missing = [(0, 0), *((0, -size % WINDOW) for size in v.shape[1:4]), (0, 0)]
    window = "b (t p) (h q) (w r) z -> b t h w z"
    add = lambda x: reduce(jnp.pad(x, missing), window, "sum", p=WINDOW, q=WINDOW, r=WINDOW)  # noqa: E731
    total = jnp.square(add(v)).sum() - jnp.square(v).sum()
    count = jnp.square(add(seen)).sum() - seen.sum()
    return total / 2, count / 2

"""The objective of equation 1, and our terms beyond it.

`L = reconstruction (MSE + motion Diff) + perceptual LPIPS + gan GAN + kl KL`. Every term is a mean, a scalar.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from einops import reduce

from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.typing import Array, Params, sum_of


def squared_error(output: Array, target: Array) -> Array:
    """Mean squared error of two clips `(b, t, h, w, 3)`, float32.

    Raises:
      ValueError: clips of two shapes.
    """
    if output.shape != target.shape:
        raise ValueError(f"clips that are compared have one shape, got {output.shape} and {target.shape}")
    return jnp.mean(jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)))


def motion_error(output: Array, target: Array) -> Array:
    """`Diff` of equation 1: squared error of the differences of adjacent frames; 0 for an image.

    A static background cancels, so copying it earns nothing.
    """
    if output.shape[1] == 1:
        return jnp.zeros(())
    return squared_error(jnp.diff(output, axis=1), jnp.diff(target, axis=1))


class Perceptual(Protocol):
    """LPIPS or anything like it. Frames are `(n, h, w, 3)` in [-1, 1]; the result is `(n,)`."""

    def __call__(self, output: Array, target: Array) -> Array: ...


def perceptual_error(distance: Perceptual, output: Array, target: Array) -> Array:
    """Mean of `distance` over all frames of two clips `(b, t, h, w, 3)`."""
    frames = (-1,) + output.shape[2:]
    return distance(output.reshape(frames), target.reshape(frames)).mean()


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


def generator_hinge(fake: Sequence[Array]) -> Array:
    """`-mean D(output)`, averaged over discriminators. `fake` holds one array of logits each."""
    return -sum_of(logits.mean() for logits in fake) / len(fake)


def discriminator_hinge(real: Sequence[Array], fake: Sequence[Array]) -> Array:
    """`0.5 (mean relu(1 - D(x)) + mean relu(1 + D(output)))`, averaged over discriminators."""
    losses = [0.5 * (jax.nn.relu(1 - r).mean() + jax.nn.relu(1 + f).mean()) for r, f in zip(real, fake, strict=True)]
    return sum_of(losses) / len(losses)


def adaptive_gan_weight(reconstruction_grad: Params, gan_grad: Params, limit: float = 1e4) -> Array:
    """Ratio of the gradient norms at the decoder's last kernel, clamped to `[0, limit]` (VQGAN lineage; our choice)."""
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(tree)))  # noqa: E731
    return jnp.clip(norm(reconstruction_grad) / (norm(gan_grad) + 1e-4), 0.0, limit)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of `L = reconstruction (MSE + motion Diff) + perceptual P + gan GAN + kl KL`.

    The paper publishes none of its lambdas; defaults follow its lineage, on means (SSVAE: KL about 1e-5 a value).

    Attributes:
      reconstruction: weight of the pixel terms, `l_rec`.
      motion: 1 with the motion-aware term, 0 without (a row of table 4).
      perceptual: weight of the perceptual slot, which must then be given.
      kl: weight of the mean KL per observed latent value.
      gan: weight of the generator's hinge term; 0 trains no discriminator.
      gan_adaptive: scale the GAN term by the gradient-norm ratio at the decoder's last kernel.
      gan_start: first step (of the stage) with the GAN; the paper starts at 5 000.
      local_correlation: weight of SSVAE's local correlation regularisation, `relu(target - correlation)`; beyond the
        paper, and 0 computes nothing. SSVAE scales it by a gradient-norm ratio instead, so its 0.002 is no guide.
      local_correlation_target: correlation of neighbouring latents from which on it rests (SSVAE: 0.75).
    """

    reconstruction: float = 1.0
    motion: float = 1.0
    perceptual: float = 0.0
    kl: float = 1e-5
    gan: float = 0.0
    gan_adaptive: bool = True
    gan_start: int = 5_000
    local_correlation: float = 0.0
    local_correlation_target: float = 0.75

    def __post_init__(self):
        for field in ("reconstruction", "motion", "perceptual", "kl", "gan", "local_correlation"):
            value = getattr(self, field)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"objective.{field} is a weight >= 0, got {value}")
        if not 0 < self.local_correlation_target <= 1:
            raise ValueError(f"objective.local_correlation_target lies in (0, 1], got {self.local_correlation_target}")
        if self.gan_start < 0:
            raise ValueError(f"objective.gan_start is a step, 0 or later; got {self.gan_start}")


def pixel_terms(
    objective: Objective, output: Array, target: Array, perceptual: Perceptual | None = None
) -> tuple[Array, dict[str, Array]]:
    """Everything that depends on pixels alone, without the GAN: total and its terms, unweighted.

    Raises:
      ValueError: `objective.perceptual` is positive and no `perceptual` function is given.
    """
    terms = {"mse": squared_error(output, target), "motion": motion_error(output, target)}
    total = objective.reconstruction * (terms["mse"] + objective.motion * terms["motion"])
    if objective.perceptual:
        if perceptual is None:
            raise ValueError("objective.perceptual > 0 needs a perceptual function; pass one to the training step")
        terms["perceptual"] = perceptual_error(perceptual, output, target)
        total = total + objective.perceptual * terms["perceptual"]
    return total, terms


def latent_terms(objective: Objective, posterior: Posterior, observed: Array) -> tuple[Array, dict[str, Array]]:
    """Everything that depends on the posterior alone: weighted total, and its terms.

    `observed` as for `kl_divergence`. The term `local_correlation` is the correlation itself, not what it misses.
    """
    terms = {"kl": kl_divergence(posterior, observed)}
    total = objective.kl * terms["kl"]
    if objective.local_correlation:
        terms["local_correlation"] = local_correlation(posterior, observed)
        missing = jax.nn.relu(objective.local_correlation_target - terms["local_correlation"])
        total = total + objective.local_correlation * missing
    return total, terms

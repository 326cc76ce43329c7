"""Equation 1 put together, and our terms beyond it: weights and terms in, total and log out."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from pv_vae_jax.losses.correlation import local_correlation
from pv_vae_jax.losses.kl import kl_divergence
from pv_vae_jax.losses.perceptual import Perceptual, perceptual_error
from pv_vae_jax.losses.reconstruction import motion_error, squared_error
from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.typing import Array


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


def psnr_from_mse(mse: Array) -> Array:
    """PSNR in dB of a mean squared error on the [-1, 1] range, for logs."""
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))

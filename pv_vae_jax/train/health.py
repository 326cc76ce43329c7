"""Signs, early in a VAE stage, that it will not learn; each is told once, with the recipe that mends it.

The limits lie far outside of healthy runs: the demo's latents carry 2 to 35 nats a value, its KL term is half a percent
of the loss, and its discriminator's loss stays above 0.97 (docs/recipes.md).
"""

import math
from collections.abc import Mapping

from pv_vae_jax.losses import Objective

BEGUN = 50  # steps after which latents that carry nothing are no beginning
LITTLE, FEW = 0.1, 2.0  # nats a latent value
DEAR = 0.3  # share of the loss that the KL term takes where it, not the picture, shapes the latents
RUNAWAY = 300.0  # nats a latent value
SURE = 0.1  # hinge loss of a discriminator that is hardly ever wrong; 1 tells nothing apart
LASTING = 20  # steps for which it stays so


class HealthMonitor:
    """Looks at the means of one logged window after the other.

    Args:
      stage: name of the stage.
      objective: its weights.
      frozen: parts of the VAE that are not trained; nothing is said of a frozen encoder's latents.
    """

    def __init__(self, stage: str, objective: Objective, frozen: tuple[str, ...] = ()):
        self._stage, self._weight, self._encodes = stage, objective.kl, "encoder" not in frozen
        self._first: float | None = None  # KL
        self._sure_since, self._told = math.inf, set[str]()

    def check(self, step: int, means: Mapping[str, float]) -> list[str]:
        """What is wrong at `step` and was not told before."""
        stage, kl, doubt = self._stage, means.get("kl", 1.0), means.get("discriminator", 1.0)
        self._first = kl if self._first is None else self._first
        share = self._weight * kl / max(means["loss"], 1e-9)
        dead = (kl < LITTLE and kl <= self._first) or (kl < FEW and share > DEAR)
        self._sure_since = min(self._sure_since, step) if doubt < SURE else math.inf
        told = []
        if self._encodes and kl > RUNAWAY:
            told.append(
                f"the latents run away, kl is {kl:.3g} nats a value: divide {stage}.optimizer.learning_rate by three, "
                "see 'The learning rate is too high' in docs/recipes.md"
            )
        elif self._encodes and dead and step >= BEGUN:
            told.append(
                f"the latents carry next to nothing, {kl:.2g} nats a value, and the KL term is {share:.0%} of the "
                f"loss: lower {stage}.objective.kl, see 'The latents collapse' in docs/recipes.md"
            )
        if step >= self._sure_since + LASTING:
            told.append(
                f"the discriminator wins, its loss is {doubt:.2g} where 1 is a draw: lower "
                f"{stage}.discriminator_optimizer.learning_rate, see 'The GAN is too strong' in docs/recipes.md"
            )
        new = [text for text in told if text.partition(",")[0] not in self._told]
        self._told |= {text.partition(",")[0] for text in told}
        return [f"{stage}, step {step}: {text}" for text in new]

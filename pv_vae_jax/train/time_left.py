"""How long the stage that is training still takes, and the run."""

import math

from pv_vae_jax.train.configs import STAGES, VAE_STAGES, Experiment
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.sizes import sized_batches


def time_left(run: Run, stage: str, steps: int, seconds: float) -> str:
    """`9 min left, 25 min with decoder, then latents and diffusion` with `steps` of `seconds` each to go in `stage`.

    VAE stages still to come are taken to cost as much for each pixel; of any other stage nothing is known before it
    begins, so it is named alone.
    """
    left = steps * seconds
    text = f"{duration(left)} left"
    later = [name for name in STAGES[STAGES.index(stage) + 1 :] if run.steps(name) and not run.finished(name)]
    alike = [name for name in later if {name, stage} <= set(VAE_STAGES)]
    for name in alike:
        left += run.steps(name) * seconds * _pixels(run.experiment, name) / _pixels(run.experiment, stage)
    text += f", {duration(left)} with {' and '.join(alike)}" if alike else ""
    others = " and ".join(name for name in later if name not in alike)
    return f"{text}, then {others}" if others else text


def duration(seconds: float) -> str:
    """`50 s`, `12 min` or `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _pixels(experiment: Experiment, stage: str) -> float:
    """Pixels of a step of a VAE stage, the mean over its sizes."""
    sizes = sized_batches(experiment, stage)
    return sum(size.weight * math.prod(size.shape) for size in sizes) / sum(size.weight for size in sizes)

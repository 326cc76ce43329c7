"""The stages of a run, one after the other: what `pv-vae train` does, for programs and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pv_vae_jax.config import STAGES, VAE_STAGES, ConfigError, Experiment
from pv_vae_jax.sharding.processes import is_first, wait_for_all
from pv_vae_jax.train.run import Run, open_run


def train(experiment: Experiment, workdir: str | Path, stages: Sequence[str] = STAGES) -> Run:
    """Train `stages` of an experiment that have steps; what is finished is left alone, what was begun goes on.

    Args:
      experiment: the configuration, checked here.
      workdir: folder of the run. `pv_vae_jax.load(workdir)` gives the model of its last stage.
      stages: names, in the order of `config.STAGES`.

    Returns:
      The run: `run.folder(stage) / "metrics.jsonl"` holds the curves of a stage.

    Raises:
      ConfigError: the configuration cannot work, the folder belongs to another, or a stage lacks what it starts from.
      NonFiniteError: a loss became NaN or infinite.
      Interrupted: the run was stopped; the state is saved.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ConfigError(f"no stage {', '.join(map(repr, unknown))}; there are {', '.join(STAGES)}")
    run = open_run(experiment.validate(), workdir)
    check_trainable(run)
    for stage in stages:
        if run.steps(stage) and not run.finished(stage):
            with run.lock(stage):
                train_stage(run, stage)
    return run


def check_trainable(run: Run) -> None:
    """Refuse stages that want a perceptual function, which no configuration can hold.

    Raises:
      ConfigError: what to do instead.
    """
    for stage in VAE_STAGES:
        if run.steps(stage) and getattr(run.experiment, stage).objective.perceptual:
            raise ConfigError(
                f"{stage}.objective.perceptual needs a perceptual function, and no weights come with the command line: "
                f"pass one to pv_vae_jax.train.vae_stage.train_vae_stage, or set {stage}.objective.perceptual=0"
            )


def train_stage(run: Run, stage: str) -> None:
    """Train one stage on top of those before it."""
    from pv_vae_jax.train.dit_stage import renew_vae, train_diffusion_stage
    from pv_vae_jax.train.latents_stage import encode_latents
    from pv_vae_jax.train.vae_stage import train_vae_stage

    if stage in VAE_STAGES:
        before = [s for s in VAE_STAGES[: VAE_STAGES.index(stage)] if run.steps(s)]
        if before and not run.finished(before[-1]) and not getattr(run.experiment, stage).init_from:
            raise ConfigError(f"stage {stage} starts from stage {before[-1]}, which is not finished: train it first")
        train_vae_stage(run, stage, before[-1] if before else None)
        if run.finished("diffusion"):  # which trained meanwhile
            renew_vae(run)
    elif stage == "latents":
        vae_stage = run.last_vae_stage()
        if is_first():
            encode_latents(run, vae_stage)
        wait_for_all("latents")
    else:
        train_diffusion_stage(run)

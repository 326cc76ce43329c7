"""The stages of a run, one after the other: what `pv-vae train` does, for programs and notebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from pv_vae_jax.convert.lpips import read_lpips
from pv_vae_jax.losses import Perceptual
from pv_vae_jax.models.lpips import LEAST_SIDE, LPIPS
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.sharding.processes import is_primary_process
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.configs import STAGES, VAE_STAGES, Experiment
from pv_vae_jax.train.run import Run, open_run
from pv_vae_jax.typing import ConfigError


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
    perceptual = perceptual_term(run)
    for stage in stages:
        if run.steps(stage) and not run.finished(stage):
            with run.lock(stage):
                train_stage(run, stage, perceptual)
    return run


def perceptual_term(run: Run) -> Perceptual | None:
    """The network of `objective.perceptual`, from the files that the configuration names; None if no stage weighs it.

    The work directory keeps the hash of the network, so that a run is never continued with another.

    Raises:
      ConfigError: a stage weighs the term and no files are named, pictures are too small, or the files have changed.
    """
    wanted = [s for s in VAE_STAGES if run.steps(s) and getattr(run.experiment, s).objective.perceptual]
    if not wanted:
        return None
    named, stage = run.experiment.perceptual, wanted[0]
    if not (named.weights and named.heads):
        raise ConfigError(
            f"{stage}.objective.perceptual needs a network, and no weights come with this library: name the files with "
            "--config.perceptual.weights and --config.perceptual.heads, pass a function of your own to "
            f"pv_vae_jax.train.vae_stage.train_vae_stage, or set {stage}.objective.perceptual=0"
        )
    sides = [entry[1] for s in wanted for entry in getattr(run.experiment, s).sizes]
    if (side := min(sides, default=run.experiment.data.size)) < LEAST_SIDE:
        raise ConfigError(f"LPIPS needs pictures of {LEAST_SIDE} x {LEAST_SIDE}, there are some of {side}")
    params = read_lpips(named.backbone, named.weights, named.heads)
    found, path = {"backbone": named.backbone, "hash": weights_hash(params)}, run.workdir / "perceptual.json"
    if path.exists() and (before := json.loads(path.read_text())) != found:
        raise ConfigError(f"{run.workdir} was begun with another perceptual network, {before}; the files hold {found}")
    if is_primary_process():
        write_json(path, found)
    model = LPIPS(named.backbone)
    # Arrays of NumPy are constants of the step, on whatever mesh: no gradient reaches them, no checkpoint holds them.
    return lambda output, target: jnp.asarray(model.apply({"params": params}, output, target))


def train_stage(run: Run, stage: str, perceptual: Perceptual | None = None) -> None:
    """Train one stage on top of those before it."""
    from pv_vae_jax.train.dit_stage import renew_vae, train_diffusion_stage
    from pv_vae_jax.train.latents_stage import encode_latents
    from pv_vae_jax.train.vae_stage import train_vae_stage

    if stage in VAE_STAGES:
        before = [s for s in VAE_STAGES[: VAE_STAGES.index(stage)] if run.steps(s)]
        if before and not run.finished(before[-1]) and not getattr(run.experiment, stage).init_from:
            raise ConfigError(f"stage {stage} starts from stage {before[-1]}, which is not finished: train it first")
        train_vae_stage(run, stage, before[-1] if before else None, perceptual)
        if run.finished("diffusion"):  # which trained meanwhile
            renew_vae(run)
    elif stage == "latents":
        encode_latents(run, run.last_vae_stage())
    else:
        train_diffusion_stage(run)

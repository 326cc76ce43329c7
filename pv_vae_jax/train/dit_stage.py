"""Diffusion training: from an experiment and a latent cache to a finished transformer."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from pv_vae_jax import pretrained
from pv_vae_jax.config import Experiment
from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.pretrained import Diffusion, init_latte, weights_hash
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.latents_stage import open_latents
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.vae_stage import _check_devices, stage_seed
from pv_vae_jax.train.vae_step import stage_key


def conditioned(experiment: Experiment, classes: int) -> LatteConfig:
    """The transformer's configuration for data of so many classes; a single class is no condition."""
    use = experiment.diffusion.conditional and classes > 1
    return dataclasses.replace(experiment.latte, classes=classes if use else 0)


def train_diffusion_stage(run: Run, vae_stage: str) -> None:
    """Train the transformer on the cached latents of `vae_stage` and write the model, VAE included."""
    experiment, config = run.experiment, run.experiment.diffusion
    _check_devices(run, "diffusion", config.batch_size)
    latents = open_latents(run, vae_stage)
    model = Latte(conditioned(experiment, len(latents.class_names)))
    mean, std = latents.statistics
    shape = latents.record(0)["mean"].shape
    step = DiTStep(
        model=model,
        optimizer=optimizer(config.optimizer, config.steps),
        mean=np.asarray(mean, np.float32),
        std=np.asarray(std, np.float32),
        label_dropout=config.label_dropout,
        time_distribution=config.time_distribution,
        ema_decay=config.ema_decay,
        seed=experiment.seed,
    )
    jitted = jax.jit(step, donate_argnums=0)

    def program(number: int, batch: dict):
        batch.pop("dropped", None)
        return jitted

    state = run_stage(
        name="diffusion",
        folder=run.folder("diffusion"),
        mesh=run.mesh,
        create=lambda: step.create(init_latte(model, shape, stage_key(experiment.seed, "latte"))),
        program=program,
        batches=lambda at: train_batches(
            latents,
            batch_size=config.batch_size,
            seed=stage_seed(experiment.seed, "diffusion"),
            start_step=at,
            threads=experiment.data.threads,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        ),
        steps=config.steps,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint_every,
        checkpoints_kept=experiment.checkpoints_kept,
        unit="clips",
        units_per_step=config.batch_size,
    )
    vae = pretrained.load(run.folder(vae_stage) / "model")
    ema = jax.device_get(state.ema)
    diffusion = Diffusion(model, ema, np.asarray(mean), np.asarray(std), tuple(shape), tuple(latents.class_names))
    meta = vae.meta | {"diffusion_steps": config.steps, "diffusion_weights": weights_hash(ema)}
    pretrained.save(run.folder("diffusion") / "model", dataclasses.replace(vae, diffusion=diffusion, meta=meta))

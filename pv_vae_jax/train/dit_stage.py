"""Diffusion training: from an experiment and a latent cache to a finished transformer."""

from __future__ import annotations

import dataclasses

import numpy as np

from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.model import Diffusion, init_latte, load, save
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.sharding.processes import barrier, gather_to_host, is_primary_process
from pv_vae_jax.sharding.rules import host_share
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.latents_stage import OnlineLatents, encoder_hash, open_latents
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.mfu import plain
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import Run, check_mesh
from pv_vae_jax.train.vae_stage import stage_seed
from pv_vae_jax.train.vae_step import stage_key


def conditioned(experiment: Experiment, classes: int) -> LatteConfig:
    """The transformer's configuration for data of so many classes; a single class is no condition."""
    use = experiment.diffusion.conditional and classes > 1
    return dataclasses.replace(experiment.latte, classes=classes if use else 0)


def train_diffusion_stage(run: Run) -> None:
    """Train the transformer on latents, cached or encoded on the way, and write the model.

    Its VAE is that of the last stage finished then: a decoder may have been tuned meanwhile.
    """
    experiment, config = run.experiment, run.experiment.diffusion
    check_mesh(run.mesh, experiment, "diffusion")
    latents = open_latents(run, run.last_vae_stage())
    model = Latte(conditioned(experiment, len(latents.class_names)))
    mean, std = latents.statistics
    shape = latents.shape
    step = DiTStep(
        model=model,
        optimizer=optimizer(config.optimizer, config.steps),
        mean=np.asarray(mean, np.float32),
        std=np.asarray(std, np.float32),
        label_dropout=config.label_dropout,
        time_distribution=config.time_distribution,
        ema_decay=config.ema_decay,
        seed=experiment.seed,
        grad_accum_steps=config.grad_accum_steps,
    )

    def options(number: int, batch: dict) -> dict:
        batch.pop("dropped", None)
        return {}

    host_index, host_count = host_share(run.mesh)

    state = run_stage(
        name="diffusion",
        folder=run.folder("diffusion"),
        mesh=run.mesh,
        create=lambda given: step.create(init_latte(model, shape, stage_key(experiment.seed, "latte"))),
        given=dict,
        step=step,
        options=options,
        batches=lambda at: train_batches(
            latents,
            batch_size=config.batch_size,
            seed=stage_seed(experiment.seed, "diffusion"),
            start_step=at,
            threads=experiment.data.threads,
            host_index=host_index,
            host_count=host_count,
        ),
        steps=config.steps,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint_every,
        checkpoints_kept=experiment.checkpoints_kept,
        prepare=latents.encode if isinstance(latents, OnlineLatents) else None,
        unit="clips",
        units=lambda batch: config.batch_size,
        counted_step=dataclasses.replace(step, model=Latte(plain(model.config))),
    )
    ema = gather_to_host(state.ema)
    if is_primary_process():
        vae = load(run.folder(run.last_vae_stage()) / "model")
        g, h, w, z = shape
        diffusion = Diffusion(model, ema, np.asarray(mean), np.asarray(std), (g, h, w, z), tuple(latents.class_names))
        meta = vae.meta | {"diffusion_steps": config.steps, "diffusion_weights": weights_hash(ema)}
        save(run.folder("diffusion") / "model", dataclasses.replace(vae, diffusion=diffusion, meta=meta))
    barrier("model of diffusion")


def renew_vae(run: Run) -> None:
    """Give the finished model of the diffusion stage the VAE of the last stage, if that has the same encoder.

    For a decoder that was fine-tuned while the transformer trained: latents, and so the transformer, stay as they are.
    """
    folder = run.folder("diffusion") / "model"
    newest = run.folder(run.last_vae_stage()) / "model"
    if is_primary_process() and encoder_hash(folder) == encoder_hash(newest):
        old, vae = load(folder), load(newest)
        meta = vae.meta | {name: old.meta[name] for name in ("diffusion_steps", "diffusion_weights")}
        save(folder, dataclasses.replace(vae, diffusion=old.diffusion, meta=meta))
    barrier("VAE of diffusion")

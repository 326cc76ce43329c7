"""The three VAE stages: from an experiment to data, step, loop and a finished model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pv_vae_jax import pretrained
from pv_vae_jax.config import ConfigError, VAEStageConfig
from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.data.sources import ImageFrames
from pv_vae_jax.losses.perceptual import Perceptual
from pv_vae_jax.models.discriminator import Discriminator
from pv_vae_jax.models.inflate import inflate_image_params
from pv_vae_jax.models.kinds import build_vae
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.predictive import max_dropped
from pv_vae_jax.pretrained import Pretrained, weights_hash
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.vae_step import VAEStep, stage_key
from pv_vae_jax.typing import Params, WeightsError


def train_vae_stage(run: Run, name: str, before: str | None, perceptual: Perceptual | None = None) -> None:
    """Train stage `name` (`image`, `video` or `decoder`) to its end and write its model.

    It starts from the moving average of stage `before`, from `init_from`, or from scratch if both are missing; a
    checkpoint of its own comes first. Where the model it starts from ends a stage on images and this one is on clips,
    what images leave untrained is set first (`inflate_image_params`); a model of clips is taken as it is.
    """
    experiment = run.experiment
    stage: VAEStageConfig = getattr(experiment, name)
    _check_devices(run, name, stage.batch_size)
    frames = 1 if stage.images else experiment.data.frames
    source = run.source("train", random=True)
    if stage.images:
        source = ImageFrames(source)

    model = build_vae(experiment.vae)
    discriminator = Discriminator(experiment.discriminator) if stage.objective.gan else None
    step = VAEStep(
        model=model,
        objective=stage.objective,
        optimizer=optimizer(stage.optimizer, stage.steps),
        discriminator=discriminator,
        discriminator_optimizer=optimizer(stage.discriminator_optimizer, stage.steps),
        # A gaussian pad has no parameter, so there is nothing to hold.
        frozen=tuple(part for part in stage.frozen if part != "pad" or experiment.vae.pad == "learnable"),
        ema_decay=stage.ema_decay,
        seed=experiment.seed,
        perceptual=perceptual,
    )
    clip = (1, frames, experiment.data.size, experiment.data.size, 3)

    def create():
        params = _first_parameters(run, name, before, model, clip)
        return step.create(params, _discriminator_parameters(run, before, discriminator, clip))

    jitted = jax.jit(step, static_argnames=("dropped", "gan"), donate_argnums=0)

    most = max_dropped(experiment.vae.latent_frames(frames), stage.drop_ratio)
    filled = stage.drop_form == "filled" and most > 0

    def program(number: int, batch: dict):
        gan = discriminator is not None and number >= stage.objective.gan_start
        return functools.partial(jitted, dropped=None if filled else int(batch.pop("dropped")), gan=gan)

    state = run_stage(
        name=name,
        folder=run.folder(name),
        mesh=run.mesh,
        create=create,
        program=program,
        batches=lambda at: train_batches(
            source,
            batch_size=stage.batch_size,
            seed=stage_seed(experiment.seed, name),
            start_step=at,
            flip=stage.flip,
            reverse=stage.reverse,
            max_dropped=most,
            dropped="per_example" if filled and stage.drop_per_example else "shared",
            threads=experiment.data.threads,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        ),
        steps=stage.steps,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint_every,
        checkpoints_kept=experiment.checkpoints_kept,
        units_per_step=stage.batch_size * frames,
    )
    if state.discriminator is not None:
        _save_discriminator(run, name, state.discriminator.params)
    ema = jax.device_get(state.ema)
    meta = {"experiment": experiment.name, "stage": name, "images": stage.images, "steps": stage.steps}
    meta["weights"] = weights_hash(ema)
    pretrained.save(run.folder(name) / "model", Pretrained(model, ema, meta=meta))


def stage_seed(seed: int, name: str) -> int:
    """Seed of a stage's data order, so that two stages do not walk the clips alike."""
    return seed * 1_000 + sum(name.encode()) % 1_000


def _check_devices(run: Run, name: str, batch_size: int) -> None:
    if batch_size % run.mesh.size:
        raise ConfigError(
            f"{name}.batch_size {batch_size} is not a multiple of the {run.mesh.size} devices: change it, or use fewer "
            f"devices with --config.mesh.data=1"
        )


def _first_parameters(run: Run, name: str, before: str | None, model: VAE, clip: tuple[int, ...]) -> Params:
    stage: VAEStageConfig = getattr(run.experiment, name)
    if stage.init_from:
        loaded = pretrained.load(stage.init_from)
    elif before is not None:
        loaded = pretrained.load(run.folder(before) / "model")
    else:
        return jax.jit(model.init)(stage_key(run.experiment.seed, "vae"), jnp.zeros(clip))["params"]
    if loaded.vae.config != model.config:
        raise ConfigError(f"stage {name} starts from a VAE of another architecture: {loaded.vae.config}")
    if not stage.images and _ends_on_images(loaded):
        return inflate_image_params(loaded.vae_params)
    return loaded.vae_params


def _ends_on_images(model: Pretrained) -> bool:
    """Whether the stage that made `model` trained on images; before `images` was noted, its name told."""
    return model.meta.get("images", model.meta.get("stage") == "image")


def _discriminator_parameters(run: Run, before: str | None, model: Discriminator | None, clip) -> Params | None:
    if model is None:
        return None
    fresh = jax.jit(model.init)(stage_key(run.experiment.seed, "discriminator"), jnp.zeros(clip))["params"]
    path = run.folder(before) / "discriminator.safetensors" if before else None
    if path is None or not path.exists():
        return fresh
    leaves, tree = jax.tree.flatten(fresh)
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}): delete it, and the discriminator starts afresh") from error
    return jax.tree.unflatten(tree, [jnp.asarray(saved[str(i)]) for i in range(len(leaves))])


def _save_discriminator(run: Run, name: str, params: Params) -> None:
    path = run.folder(name) / "discriminator.safetensors"
    temporary = path.with_suffix(".tmp")
    save_file({str(i): leaf for i, leaf in enumerate(jax.tree.leaves(jax.device_get(params)))}, temporary)
    temporary.replace(path)

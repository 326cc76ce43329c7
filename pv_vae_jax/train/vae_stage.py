"""The three VAE stages: from an experiment to data, step, loop and a finished model."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pv_vae_jax import pretrained
from pv_vae_jax.config import ConfigError, VAEStageConfig
from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.data.sources import ImageFrames
from pv_vae_jax.losses.perceptual import Perceptual
from pv_vae_jax.masking import scheduled_ratio
from pv_vae_jax.models.discriminator import Discriminator
from pv_vae_jax.models.inflate import inflate_image_params
from pv_vae_jax.models.kinds import build_vae
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.predictive import max_dropped
from pv_vae_jax.pretrained import Pretrained, weights_hash
from pv_vae_jax.sharding.processes import is_first, to_host, wait_for_all
from pv_vae_jax.sharding.rules import host_share
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import Run, check_mesh
from pv_vae_jax.train.state import TrainState
from pv_vae_jax.train.vae_step import VAEStep, stage_key
from pv_vae_jax.typing import Params, WeightsError

COMPUTED = ("remat", "remat_levels", "remat_blocks", "lowering", "attention", "dtype")


def train_vae_stage(run: Run, name: str, before: str | None, perceptual: Perceptual | None = None) -> None:
    """Train stage `name` (`image`, `video` or `decoder`) to its end and write its model.

    It starts from the moving average of stage `before`, from `init_from`, or from scratch if both are missing; a
    checkpoint of its own comes first. Where the model it starts from ends a stage on images and this one is on clips,
    what images leave untrained is set first (`inflate_image_params`); a model of clips is taken as it is.
    """
    experiment = run.experiment
    stage: VAEStageConfig = getattr(experiment, name)
    check_mesh(run.mesh, experiment, name)
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
        micro_batches=stage.micro_batches,
        drop_pattern=stage.drop_pattern,
        drop_from=stage.drop_from,
    )
    clip = (1, frames, experiment.data.size, experiment.data.size, 3)

    def draw(network: VAE | Discriminator, key: str) -> Params:
        return network.init(stage_key(experiment.seed, key), jnp.zeros(clip))["params"]

    def create(given: dict) -> TrainState:
        params = given["params"] if "params" in given else draw(model, "vae")
        if discriminator is None:
            return step.create(params)
        return step.create(params, given.get("discriminator") or draw(discriminator, "discriminator"))

    def given() -> dict:
        parts = {"params": _first_parameters(run, name, before, model)}
        if discriminator is not None:
            parts["discriminator"] = _read_discriminator(run, before, discriminator, clip)
        return {part: tree for part, tree in parts.items() if tree is not None}

    groups = experiment.vae.latent_frames(frames)
    most = max_dropped(groups, stage.drop_ratio_max, stage.drop_pattern)
    filled = stage.drop_form == "filled" and most > 0

    def options(number: int, batch: dict) -> dict:
        gan = discriminator is not None and number >= stage.objective.gan_start
        if stage.drop_schedule != "constant":
            batch["dropped"] = scheduled_drops(
                experiment.seed, name, stage, groups, number, batch["dropped"], host_index
            )
        return {"dropped": None if filled else int(batch.pop("dropped")), "gan": gan}

    host_index, host_count = host_share(run.mesh)

    state = run_stage(
        name=name,
        folder=run.folder(name),
        mesh=run.mesh,
        create=create,
        given=given,
        step=step,
        options=options,
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
            host_index=host_index,
            host_count=host_count,
        ),
        steps=stage.steps,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint_every,
        checkpoints_kept=experiment.checkpoints_kept,
        units_per_step=stage.batch_size * frames,
    )
    ema = to_host(state.ema)
    networks = None if state.discriminator is None else to_host(state.discriminator.params)
    if is_first():
        if networks is not None:
            _save_discriminator(run, name, networks)
        meta = {"experiment": experiment.name, "stage": name, "images": stage.images, "steps": stage.steps}
        meta["weights"] = weights_hash(ema)
        pretrained.save(run.folder(name) / "model", Pretrained(model, ema, meta=meta))
    wait_for_all(f"model of {name}")


def stage_seed(seed: int, name: str) -> int:
    """Seed of a stage's data order, so that two stages do not walk the clips alike."""
    return seed * 1_000 + sum(name.encode()) % 1_000


def scheduled_drops(
    seed: int, name: str, stage: VAEStageConfig, groups: int, number: int, like: np.ndarray, host: int = 0
) -> np.ndarray:
    """`k` of step `number`, uniform over `0 .. max_dropped` at the ratio that the stage's schedule has reached.

    Of (seed, step) alone, as batches are, and drawn on the host, where the truncated form chooses its program.

    Args:
      seed, name: of the experiment and the stage.
      stage: with a schedule.
      groups: of a clip.
      number: of the step, 0 for the first.
      like: what a constant ratio drew: one `k` for the batch, or this host's share of one an example.
      host: which share that is; all hosts have equal ones.
    """
    ramp = stage.drop_ramp * stage.steps
    ratio = scheduled_ratio(stage.drop_schedule, number, ramp, stage.drop_ratio_start, stage.drop_ratio)
    most = max_dropped(groups, ratio, stage.drop_pattern)
    rng = np.random.default_rng([stage_seed(seed, name), 4, number])
    first = host * like.size if like.ndim else 0
    return rng.integers(0, most + 1, size=first + like.size, dtype=np.int32)[first:].reshape(like.shape)


def _first_parameters(run: Run, name: str, before: str | None, model: VAE) -> Params | None:
    """What the stage starts from, or None for scratch."""
    stage: VAEStageConfig = getattr(run.experiment, name)
    if stage.init_from:
        loaded = pretrained.load(stage.init_from)
    elif before is not None:
        loaded = pretrained.load(run.folder(before) / "model")
    else:
        return None
    # What only decides how a network is computed may differ.
    free = {f: getattr(model.config, f) for f in COMPUTED if hasattr(model.config, f)}
    if type(loaded.vae.config) is not type(model.config) or replace(loaded.vae.config, **free) != model.config:
        raise ConfigError(f"stage {name} starts from a VAE of another architecture: {loaded.vae.config}")
    if not stage.images and _ends_on_images(loaded):
        return inflate_image_params(loaded.vae_params)
    return loaded.vae_params


def _ends_on_images(model: Pretrained) -> bool:
    """Whether the stage that made `model` trained on images; before `images` was noted, its name told."""
    return model.meta.get("images", model.meta.get("stage") == "image")


def _read_discriminator(run: Run, before: str | None, model: Discriminator, clip: tuple[int, ...]) -> Params | None:
    """The discriminator that stage `before` ended with, or None if it had none."""
    path = run.folder(before) / "discriminator.safetensors" if before else None
    if path is None or not path.exists():
        return None
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(clip))["params"]))
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}): delete it, and the discriminator starts afresh") from error
    return jax.tree.unflatten(tree, [saved[str(i)] for i in range(len(leaves))])


def _save_discriminator(run: Run, name: str, params: Params) -> None:
    path = run.folder(name) / "discriminator.safetensors"
    temporary = path.with_suffix(".tmp")
    save_file({str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}, temporary)
    temporary.replace(path)

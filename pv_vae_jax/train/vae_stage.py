"""The three VAE stages: from an experiment to data, step, loop and a finished model."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from pv_vae_jax.data.mixture import MixtureComponent, mixed_batches
from pv_vae_jax.losses import Perceptual
from pv_vae_jax.masking import max_dropped, scheduled_ratio
from pv_vae_jax.model import Model, save
from pv_vae_jax.models.discriminator import Discriminator
from pv_vae_jax.models.registry import build_vae
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.params_io import read_params, weights_hash, write_params
from pv_vae_jax.sharding.processes import barrier, gather_to_host, is_primary_process
from pv_vae_jax.sharding.rules import host_share
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.configs import VAEStageConfig
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.mfu import plain
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import Run, check_mesh
from pv_vae_jax.train.sizes import size_name, sized_batches
from pv_vae_jax.train.state import TrainState
from pv_vae_jax.train.vae_step import Logs, Step, VAEStep, stage_key
from pv_vae_jax.train.warm_start import first_parameters
from pv_vae_jax.typing import Params, WeightsError

DISCRIMINATOR = "discriminator.safetensors"


def train_vae_stage(run: Run, name: str, before: str | None, perceptual: Perceptual | None = None) -> None:
    """Train stage `name` (`image`, `video` or `decoder`) to its end and write its model.

    A checkpoint of its own comes first; else it starts as `hand_over` says: from `init_from`, from the moving average
    of stage `before`, or from scratch.
    """
    experiment = run.experiment
    stage: VAEStageConfig = getattr(experiment, name)
    check_mesh(run.mesh, experiment, name)
    kinds = sized_batches(experiment, name)

    model = build_vae(experiment.vae)
    discriminator = Discriminator(experiment.discriminator) if stage.objective.gan else None
    step = VAEStep(
        model=model,
        objective=stage.objective,
        optimizer=optimizer(stage.optimizer, stage.steps),
        discriminator=discriminator,
        # It counts its own updates, which begin with the GAN.
        discriminator_optimizer=optimizer(stage.discriminator_optimizer, stage.steps - stage.objective.gan_start),
        # A gaussian pad has no parameter, so there is nothing to hold.
        frozen=tuple(part for part in stage.frozen if part != "pad" or experiment.vae.pad == "learnable"),
        ema_decay=stage.ema_decay,
        seed=experiment.seed,
        perceptual=perceptual,
        grad_accum_steps=stage.grad_accum_steps,
        drop_pattern=stage.drop_pattern,
        drop_from=stage.drop_from,
    )
    clip = (1, *max(kinds, key=lambda kind: kind.frames).shape[1:])  # of the parameters it decides nothing

    def draw(network: VAE | Discriminator, key: str) -> Params:
        return network.init(stage_key(experiment.seed, key), jnp.zeros(clip))["params"]

    shapes = jax.eval_shape(lambda: draw(model, "vae"))

    def create(given: dict) -> TrainState:
        params = given.get("params", {})
        if params.keys() != shapes.keys():
            params = draw(model, "vae") | params
        if discriminator is None:
            return step.create(params)
        return step.create(params, given.get("discriminator") or draw(discriminator, "discriminator"))

    def given() -> dict:
        parts = {"params": first_parameters(run, name, before, model, shapes)}
        if discriminator is not None:
            parts["discriminator"] = _read_discriminator(run, before, discriminator, clip)
        return {part: tree for part, tree in parts.items() if tree is not None}

    def most(frames: int) -> int:
        return max_dropped(experiment.vae.latent_frames(frames), stage.drop_ratio_max, stage.drop_pattern)

    filled = stage.drop_form == "filled" and any(most(kind.frames) for kind in kinds)
    parts = [
        MixtureComponent(
            run.source("train", random=True, kind=kind, sources=len(kinds)),
            kind.batch_size,
            kind.share,
            most(kind.frames),
        )
        for kind in kinds
    ]

    def options(number: int, batch: dict) -> dict:
        gan = discriminator is not None and number >= stage.objective.gan_start
        if stage.drop_schedule != "constant":
            groups = experiment.vae.latent_frames(batch["video"].shape[1])
            drawn = scheduled_drops(experiment.seed, name, stage, groups, number, batch["dropped"], host_index)
            batch["dropped"] = drawn
        if filled and most(batch["video"].shape[1]):
            return {"dropped": None, "gan": gan}
        # Among clips with a k each, that of images is a row of zeros.
        return {"dropped": int(np.max(batch.pop("dropped"))), "gan": gan}

    host_index, host_count = host_share(run.mesh)

    def batches(start: int) -> Iterator[dict]:
        stream = mixed_batches(
            parts,
            seed=stage_seed(experiment.seed, name),
            start_step=start,
            flip=stage.flip,
            reverse=stage.reverse,
            dropped="per_example" if filled and stage.drop_per_example else "shared",
            threads=experiment.data.threads,
            host_index=host_index,
            host_count=host_count,
        )
        with contextlib.closing(stream):
            for _, batch in stream:
                yield batch

    state = run_stage(
        name=name,
        folder=run.folder(name),
        mesh=run.mesh,
        create=create,
        given=given,
        step=step if len(kinds) == 1 else with_size(step),
        options=options,
        batches=batches,
        steps=stage.steps,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint_every,
        checkpoints_kept=experiment.checkpoints_kept,
        units=lambda batch: math.prod(batch["video"].shape[:2]),
        counted_step=replace(step, model=build_vae(plain(experiment.vae))),
    )
    ema = gather_to_host(state.ema)
    networks = None if state.discriminator is None else gather_to_host(state.discriminator.params)
    if is_primary_process():
        if networks is not None:
            _save_discriminator(run, name, networks)
        meta = {"experiment": experiment.name, "stage": name, "images": stage.images, "steps": stage.steps}
        meta["weights"] = weights_hash(ema)
        save(run.folder(name) / "model", Model(model, ema, meta=meta))
    barrier(f"model of {name}")


def with_size(step: Step) -> Step:
    """`step`, which logs every term a second time under the size of its batch: `loss/17x256`."""

    def sized(state: TrainState, batch: dict, **options) -> tuple[TrainState, Logs]:
        state, logs = step(state, batch, **options)
        size = size_name(batch["video"].shape)
        return state, logs | {f"{term}/{size}": value for term, value in logs.items()}

    return sized


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


def _read_discriminator(run: Run, before: str | None, model: Discriminator, clip: tuple[int, ...]) -> Params | None:
    """The discriminator that stage `before` ended with, or None if it had none."""
    path = run.folder(before) / DISCRIMINATOR if before else None
    if path is None or not path.exists():
        return None
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(clip))["params"]))
    record = path.with_suffix(".json")  # absent beside those of older versions
    try:
        hashes = json.loads(record.read_text())["sha256"] if record.exists() else {}
        expected = {str(i): leaf for i, leaf in enumerate(leaves)}
        saved = read_params(path, expected, hashes=hashes, record=record.name)
    except (SafetensorError, WeightsError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"the discriminator of stage {before} cannot be taken over ({error}): delete {path}, and it starts afresh"
        ) from error
    return jax.tree.unflatten(tree, [saved[str(i)] for i in range(len(leaves))])


def _save_discriminator(run: Run, name: str, params: Params) -> None:
    """Leaves by number, and beside them the file's SHA-256."""
    path = run.folder(name) / DISCRIMINATOR
    record = path.with_suffix(".json")
    record.unlink(missing_ok=True)  # a record is of the file beside it, also between the two writes
    digest = write_params(path, {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))})
    write_json(record, {"sha256": {path.name: digest}})

"""The three VAE stages: `image`, `video` and `decoder`."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.data.mixture import MixtureComponent, mixed_batches
from pv_vae_jax.data.transforms import DropFutureFrames, clip_transforms
from pv_vae_jax.dropping import max_dropped
from pv_vae_jax.losses import Perceptual
from pv_vae_jax.model import Model, save
from pv_vae_jax.models.discriminator import Discriminator
from pv_vae_jax.models.registry import build_vae
from pv_vae_jax.params_io import read_params, weights_hash, write_params
from pv_vae_jax.sharding.processes import barrier, gather_to_host, is_primary_process
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.alignment import Alignment, Features
from pv_vae_jax.train.configs import VAE_STAGES, Experiment, VAEStageConfig
from pv_vae_jax.train.mfu import without_remat
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.sizes import SizedBatch, size_name, sized_batches
from pv_vae_jax.train.stage import Batch, Stage
from pv_vae_jax.train.state import TrainState, stage_key
from pv_vae_jax.train.vae_step import Logs, Step, VAEStep
from pv_vae_jax.train.warm_start import first_parameters
from pv_vae_jax.typing import ConfigError, Params, WeightsError

DISCRIMINATOR = "discriminator.safetensors"
# Fields of the configuration that the training step has too.
SETTINGS = ("objective", "ema_decay", "grad_accum_steps", "drop_pattern", "drop_from")


class VAEStage(Stage):
    """Stage `image`, `video` or `decoder` of an experiment.

    It starts from `init_from`, from the moving average of the stage before it, or from scratch.

    Attributes:
      model: the VAE.
      discriminator: the discriminator of the GAN, or None if the objective has no GAN.
      sizes: the sizes of batches it trains on.
      dropping: how it draws `k`.
      alignment: what it aligns latents to, if anything.
      before: the VAE stage that runs before it, or None.
    """

    unit = "frames"

    def __init__(
        self, experiment: Experiment, name: str, perceptual: Perceptual | None = None, features: Features | None = None
    ):
        super().__init__(experiment, name)
        self.alignment = Alignment(experiment, name, features)
        self.sizes = sized_batches(experiment, name)
        self.dropping = dropping_of(self.config, experiment.vae.time_factor)
        earlier = VAE_STAGES[: VAE_STAGES.index(name)]
        self.before = next((stage for stage in reversed(earlier) if getattr(experiment, stage).steps), None)
        self._step = build_step(experiment, name, perceptual, features)
        self.step = self._step if len(self.sizes) == 1 else with_size(self._step)
        self.model, self.discriminator, self.frozen = self._step.model, self._step.discriminator, self._step.frozen

    @property
    def flops_step(self) -> Step:
        return dataclasses.replace(self._step, model=build_vae(without_remat(self.experiment.vae)))

    def init_state(self, restored: dict, size: SizedBatch | None = None) -> TrainState:
        params = restored.get("params", {})
        if params.keys() != self.shapes.keys():
            params = self._init("vae", size) | params
        discriminator = None
        if self.discriminator is not None:
            discriminator = restored.get("discriminator") or self._init("discriminator", size)
        return self._step.create(params, discriminator, self.alignment.head(self.sizes))

    def _init(self, network: str, size: SizedBatch | None = None) -> Params:
        """Fresh parameters of `vae` or `discriminator`; the size of the clip does not change their shapes."""
        size = size or max(self.sizes, key=lambda size: size.frames)
        model: Any = self.model if network == "vae" else self.discriminator
        return model.init(stage_key(self.experiment.seed, network), jnp.zeros((1, *size.shape[1:])))["params"]

    def check(self) -> None:
        for size in self.sizes:
            jax.eval_shape(lambda size=size: self.init_state({}, size))

    @functools.cached_property
    def shapes(self) -> Params:
        """The shapes of the VAE's parameters."""
        return jax.eval_shape(lambda: self._init("vae"))

    def restored(self, run: Run) -> dict:
        """The parameters that the stage starts from, and the discriminator of the stage before it.

        Raises:
          ConfigError: the stage before it is not finished, or `init_from` does not hold a VAE of this architecture.
          WeightsError: a file to start from is damaged, or its tensors do not fit.
        """
        if self.before and not run.finished(self.before) and not self.config.init_from:
            raise ConfigError(f"stage {self.name} starts from stage {self.before}: finish training that stage first")
        parts = {"params": first_parameters(self, run)}
        if self.discriminator is not None:
            shapes = jax.eval_shape(lambda: self._init("discriminator"))
            parts["discriminator"] = read_discriminator(run, self.before, shapes)
        return {part: tree for part, tree in parts.items() if tree is not None}

    def batches(self, run: Run, start: int) -> Iterator[Batch]:
        data, config, parts = self.experiment.data, self.config, []
        for size in self.sizes:
            source = run.source("train", random=True, kind=size, sources=len(self.sizes), features=self.alignment.width)
            transforms = clip_transforms(
                size.size, size.frames, stride=data.stride, crop=data.crop, flip=config.flip, reverse=config.reverse
            )
            parts.append(MixtureComponent(source, transforms, size.batch_size, size.weight))
        return mixed_batches(parts, self.dropping, **self.stream_settings(run, start))

    def example_batches(self) -> list[dict]:
        dropped = lambda size: (size.batch_size,) if self.config.drop_per_example else ()  # noqa: E731
        return [
            {"video": jax.ShapeDtypeStruct(size.shape, np.uint8), "dropped": np.zeros(dropped(size), np.int32)}
            | (self.alignment.example(size) if self.alignment.width else {})
            for size in self.sizes
        ]

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Turn the features of frames into those of latent frames, if there are any."""
        return self.alignment.prepare(batch)

    def static_args(self, step: int, batch: Batch) -> dict[str, Any]:
        """`dropped`: `k` of the truncated form, or None for the filled form; `gan`: whether the GAN is on."""
        config = self.config
        groups = self.experiment.vae.latent_frames(batch["video"].shape[1])
        filled = config.drop_form == "filled" and max_dropped(groups, config.drop_ratio_max, config.drop_pattern) > 0
        return {
            "dropped": None if filled else int(np.max(batch["dropped"])),
            "gan": self.discriminator is not None and step >= config.objective.gan_start,
        }

    def units(self, batch: dict[str, jax.Array]) -> int:
        return math.prod(batch["video"].shape[:2])

    def save_model(self, run: Run, state: TrainState) -> None:
        ema = gather_to_host(state.ema)
        discriminator = None if state.discriminator is None else gather_to_host(state.discriminator.params)
        if is_primary_process():
            if discriminator is not None:
                save_discriminator(run, self.name, discriminator)
            meta = {"experiment": self.experiment.name, "stage": self.name, "images": self.config.images}
            meta |= {"steps": self.steps, "weights": weights_hash(ema), "encoder": weights_hash(ema["encoder"])}
            save(run.folder(self.name) / "model", Model(self.model, ema, meta=meta))
        barrier(f"model of {self.name}")


def build_step(
    experiment: Experiment, name: str, perceptual: Perceptual | None = None, features: Features | None = None
) -> VAEStep:
    """The training step of VAE stage `name`."""
    config: VAEStageConfig = getattr(experiment, name)
    return VAEStep(
        model=build_vae(experiment.vae),
        optimizer=optimizer(config.optimizer, config.steps),
        discriminator=Discriminator(experiment.discriminator) if config.objective.gan else None,
        # Its schedule counts its own updates, which begin when the GAN does.
        discriminator_optimizer=optimizer(config.discriminator_optimizer, config.steps - config.objective.gan_start),
        # Gaussian padding has no parameters to freeze.
        frozen=tuple(part for part in config.frozen if part != "pad" or experiment.vae.pad == "learnable"),
        seed=experiment.seed,
        perceptual=perceptual,
        features=features,
        **{field: getattr(config, field) for field in SETTINGS},
    )


def dropping_of(config: VAEStageConfig, time_factor: int) -> DropFutureFrames:
    """How a stage with this configuration draws `k`."""
    return DropFutureFrames(
        time_factor=time_factor,
        ratio=config.drop_ratio,
        pattern=config.drop_pattern,
        per_example=config.drop_per_example,
        schedule=config.drop_schedule,
        ratio_start=config.drop_ratio_start,
        ramp_steps=config.drop_ramp * config.steps,
    )


def with_size(step: Step) -> Step:
    """`step`, but logging every term a second time under the size of its batch: `loss/17x256`."""

    def sized(state: TrainState, batch: dict, **static_args: Any) -> tuple[TrainState, Logs]:
        state, logs = step(state, batch, **static_args)
        size = size_name(batch["video"].shape)
        return state, logs | {f"{term}/{size}": value for term, value in logs.items()}

    return sized


def read_discriminator(run: Run, stage: str | None, shapes: Params) -> Params | None:
    """The discriminator that `stage` ended with, or None if it had none.

    Raises:
      WeightsError: the file is damaged, or the discriminator is of another architecture.
    """
    path = run.folder(stage) / DISCRIMINATOR if stage else None
    if path is None or not path.exists():
        return None
    leaves, tree = jax.tree.flatten(shapes)
    record = path.with_suffix(".json")  # older versions did not write it
    try:
        hashes = json.loads(record.read_text())["sha256"] if record.exists() else {}
        expected = {str(i): leaf for i, leaf in enumerate(leaves)}
        saved = read_params(path, expected, hashes=hashes, record=record.name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"cannot start from the discriminator of stage {stage} ({error}): delete {path} to start with a fresh one"
        ) from error
    return jax.tree.unflatten(tree, [saved[str(i)] for i in range(len(leaves))])


def save_discriminator(run: Run, stage: str, params: Params) -> None:
    """Write the leaves under their index, and the file's SHA-256 into a JSON file beside it."""
    path = run.folder(stage) / DISCRIMINATOR
    record = path.with_suffix(".json")
    record.unlink(missing_ok=True)  # so that a record never describes another file, not even between the two writes
    digest = write_params(path, {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))})
    write_json(record, {"sha256": {path.name: digest}})

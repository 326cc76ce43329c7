"""Checks of an experiment's configs: combinations of fields within a stage, and parts that must fit each other."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from pv_vae_jax.data.sources import program_name
from pv_vae_jax.dropping import SPATIAL, max_dropped, num_droppable
from pv_vae_jax.train.writers import check_writers
from pv_vae_jax.typing import VAE_STAGES, ConfigError, ShapeError, check_clip_shape

if TYPE_CHECKING:  # configs imports this module
    from pv_vae_jax.train.configs import Experiment, VAEStageConfig

PARTS = ("encoder", "decoder", "pad")  # of a VAE


def is_size(size: Any) -> bool:
    """Whether `size` is a side or a `(height, width)` in pixels."""
    sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
    return all(type(side) is int and side > 0 for side in sides)


def check_stage(stage: VAEStageConfig) -> None:
    """Raise `ConfigError` if fields of a VAE stage contradict each other."""
    for field in ("frozen", "init_parts"):
        if unknown := sorted(set(getattr(stage, field)) - set(PARTS)):
            raise ConfigError(f"{field} must name parts of the VAE ({', '.join(PARTS)}), got {', '.join(unknown)}")
    if stage.init_parts and not stage.init_from:
        raise ConfigError("init_parts needs init_from: set it to what these parts are loaded from")
    if stage.objective.gan and stage.objective.gan_start >= stage.steps > 0:
        raise ConfigError(
            f"objective.gan_start must be below steps={stage.steps}, got {stage.objective.gan_start}: lower it, or set "
            "objective.gan=0 to train without a GAN"
        )
    if stage.objective.gan and "decoder" in stage.frozen:
        raise ConfigError("objective.gan trains the decoder, which frozen excludes: change one of them")
    if stage.objective.alignment and "encoder" in stage.frozen:
        raise ConfigError("objective.alignment trains the encoder, which frozen excludes: change one of them")
    _check_dropping(stage)
    _check_sizes(stage)


def _check_dropping(stage: VAEStageConfig) -> None:
    if stage.drop_per_example and stage.drop_form != "filled":
        raise ConfigError("drop_per_example needs drop_form=filled")
    if stage.images and stage.drop_ratio_max:
        raise ConfigError("drop_ratio must be 0 with images=True: a single frame has nothing to drop")
    if stage.drop_pattern != "future" and stage.drop_form != "filled":
        raise ConfigError(f"drop_pattern={stage.drop_pattern} needs drop_form=filled: truncating drops the end only")
    if stage.drop_pattern == "future" and stage.drop_from != "pixels":
        raise ConfigError(
            "drop_from=latents needs another drop_pattern than future, whose observed latents never see what is "
            "dropped: set drop_pattern, or leave drop_from at pixels"
        )
    default = {field.name: field.default for field in dataclasses.fields(stage)}
    for field in ("drop_ratio_start", "drop_ramp"):
        if stage.drop_schedule == "constant" and getattr(stage, field) != default[field]:
            raise ConfigError(f"{field} needs a schedule: set drop_schedule to linear or cosine, or leave {field}")


def _check_sizes(stage: VAEStageConfig) -> None:
    seen = set()
    for entry in stage.sizes:
        numbers = (entry[0], *entry[2:]) if isinstance(entry, tuple) and len(entry) in (2, 3) else (0,)
        if not (all(type(n) is int and n > 0 for n in numbers) and is_size(entry[1])):
            example = "(frames, size) or (frames, size, weight), such as ((1, 128), (17, (128, 224)), (17, 64, 2))"
            raise ConfigError(f"sizes must hold {example}; got {entry!r}")
        frames, size, *_ = entry
        if stage.images and frames > 1:
            raise ConfigError(f"sizes must hold single frames with images=True, got {entry}: write (1, {size})")
        if (frames, size) in seen:
            raise ConfigError(f"sizes holds {(frames, size)} twice: give it a weight, ({frames}, {size}, 2)")
        seen.add((frames, size))
    if stage.sizes and stage.drop_ratio_max and all(frames == 1 for frames, *_ in stage.sizes):
        raise ConfigError("drop_ratio must be 0 where sizes holds images only, which have nothing to drop")
    if stage.batch_multiple > 1 and not stage.sizes:
        raise ConfigError("batch_multiple needs sizes: set them, or leave batch_multiple at 1")
    if stage.batch_size % stage.batch_multiple:
        below = stage.batch_size // stage.batch_multiple * stage.batch_multiple
        near = " or ".join(str(n) for n in (below, below + stage.batch_multiple) if n)
        raise ConfigError(
            f"batch_size must be a multiple of batch_multiple={stage.batch_multiple}, got {stage.batch_size}: "
            f"use {near}"
        )


def check_experiment(experiment: Experiment) -> None:
    """Raise `ConfigError` or `ShapeError` if parts of an experiment do not fit each other."""
    data, vae, latte = experiment.data, experiment.vae, experiment.latte
    check_writers(experiment.writers)
    height, width = data.frame_size.height, data.frame_size.width
    check_clip_shape(data.frames, height, width, vae.time_factor, vae.space_factor)
    if latte.latent_channels != vae.latent_channels:
        raise ConfigError(
            f"config.latte.latent_channels must equal config.vae.latent_channels, got {latte.latent_channels} and "
            f"{vae.latent_channels}: set one of them"
        )
    rows, columns = height // vae.space_factor, width // vae.space_factor
    if rows % latte.patch or columns % latte.patch:
        raise ConfigError(
            f"config.latte.patch must divide the {rows} x {columns} latents, got {latte.patch}: change it"
        )
    if latte.classes:
        raise ConfigError("config.latte.classes comes from the data: leave it 0, and use config.diffusion.conditional")
    aligned = [name for name in VAE_STAGES if getattr(experiment, name).objective.alignment]
    if data.features and not aligned:
        raise ConfigError(
            "config.data.features is for objective.alignment: give it a weight in a stage, or set it to 0"
        )
    for name in aligned:
        _check_features(experiment, name)
    for name in VAE_STAGES:
        _check_clips(experiment, name)
        if getattr(experiment, name).steps:
            _check_frozen(experiment, name)


def _check_frozen(experiment: Experiment, name: str) -> None:
    """A stage must train some part of the VAE, and the parts that it does not train must come from a model."""
    stage = getattr(experiment, name)
    parts = PARTS if experiment.vae.pad == "learnable" else PARTS[:2]  # gaussian padding has no parameters
    brings_in = stage.init_from and stage.steps == 1  # how a run takes the VAE of another as it is
    if set(parts) <= set(stage.frozen) and not brings_in:
        raise ConfigError(
            f"config.{name}.frozen must leave a part to train, got all of {', '.join(parts)}: take one out, or set "
            f"config.{name}.steps=0 to skip the stage; to use another run's VAE as it is, set init_from and steps=1"
        )
    before = any(getattr(experiment, other).steps for other in VAE_STAGES[: VAE_STAGES.index(name)])
    loaded = (stage.init_parts or PARTS) if stage.init_from else PARTS if before else ()
    if untrained := [part for part in PARTS[:2] if part in stage.frozen and part not in loaded]:
        raise ConfigError(
            f"config.{name}.frozen holds the {' and '.join(untrained)} at random values, since no stage before it "
            f"trains and config.{name}.init_from does not load them: set init_from, give an earlier stage steps, or "
            f"set config.{name}.frozen=()"
        )


def _check_features(experiment: Experiment, name: str) -> None:
    """Features of frames must stay true of what is done with the frames."""
    data, stage = experiment.data, getattr(experiment, name)
    if data.features and stage.flip:
        raise ConfigError(f"config.data.features are not mirrored with their frames: set config.{name}.flip=0")
    if data.features and stage.reverse and not program_name(data.source):
        raise ConfigError(f"config.data.features hold velocities, which do not turn: set config.{name}.reverse=0")


def _check_clips(experiment: Experiment, name: str) -> None:
    """The clips of a stage must fit its VAE and discriminator, and have groups, positions and channels to compare."""
    stage, vae, levels = getattr(experiment, name), experiment.vae, experiment.discriminator.levels
    sizes = [entry[:2] for entry in stage.sizes] or [(experiment.data.frames, experiment.data.size)]
    sides = [(experiment.data.sized(size).height, experiment.data.sized(size).width) for _, size in sizes]
    for (frames, size), (height, width) in zip(sizes, sides, strict=True):
        try:
            check_clip_shape(frames, height, width, vae.time_factor, vae.space_factor)
        except ShapeError as error:
            raise ShapeError(f"config.{name}.sizes, {(frames, size)}: {error}") from error
        uneven = "3d" in experiment.discriminator.kinds and (height % 2**levels or width % 2**levels)
        if stage.objective.gan and (min(height, width) < 2**levels or uneven):
            raise ConfigError(
                f"config.discriminator.levels={levels} needs sizes that are multiples of {2**levels}, but {name} has "
                f"{experiment.data.sized(size)} pixels: lower the levels, or change the size"
            )
    frames, side = max(frames for frames, _ in sizes), min(map(min, sides)) // vae.space_factor
    groups, ratio, pattern = vae.latent_frames(frames), stage.drop_ratio_max, stage.drop_pattern
    if ratio and pattern in SPATIAL and side < 2:
        raise ConfigError(
            f"config.{name}.drop_pattern={pattern} drops parts of a frame, which here has one latent position: set "
            f"config.data.size to {2 * vae.space_factor} or more"
        )
    if ratio and pattern == "infill" and groups < 3:
        raise ConfigError(
            f"config.{name}.drop_pattern=infill keeps the first and the last group, and {frames} frames have none in "
            f"between: set config.data.frames to {vae.frames(3)} or more"
        )
    if stage.objective.scale_equivariance and any(n // vae.space_factor % 2 for side in sides for n in side):
        raise ConfigError(
            f"config.{name}.objective.scale_equivariance needs sizes that are multiples of {2 * vae.space_factor}: set "
            "config.data.size"
        )
    if stage.objective.time_equivariance and (groups < 3 or stage.images):
        raise ConfigError(
            f"config.{name}.objective.time_equivariance skips every second latent frame, and there are "
            f"{1 if stage.images else groups}: train on clips of {vae.frames(3)} frames or more, or set it to 0"
        )
    most = num_droppable(groups, pattern)
    if ratio and not most and stage.steps:
        raise ConfigError(
            f"config.{name}.drop_ratio={ratio:g} drops nothing, since clips of {frames} frames have no later group: "
            f"set config.data.frames to {vae.frames(2)} or more, or config.{name}.drop_ratio to 0"
        )
    if ratio and most and not max_dropped(groups, ratio, pattern):
        least = math.ceil(1e4 / most) / 1e4  # rounded up, so that it does drop one
        raise ConfigError(
            f"config.{name}.drop_ratio={ratio:g} drops no group: {frames} frames have {most} that "
            f"drop_pattern={pattern} can drop. Set it to {least:g} or more, or to 0"
        )
    if stage.objective.local_correlation and (side < 2 or vae.latent_channels < 2):
        raise ConfigError(
            f"config.{name}.objective.local_correlation compares the channels of neighbouring latents: set "
            f"config.data.size to {2 * vae.space_factor} and config.vae.latent_channels to 2, or more"
        )

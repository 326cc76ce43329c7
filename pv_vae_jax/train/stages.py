"""The stages of a run in their order: what `pv-vae train` does, for programs and notebooks."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pv_vae_jax.convert.lpips import read_lpips
from pv_vae_jax.data.pipeline import Elements
from pv_vae_jax.data.sources import NoVideosError, describe, program_name
from pv_vae_jax.losses import Perceptual
from pv_vae_jax.model_folder import find_model, local_or_bucket
from pv_vae_jax.models.lpips import LEAST_SIDE, LPIPS
from pv_vae_jax.params_io import find_checkpoint, weights_hash
from pv_vae_jax.sharding.processes import is_primary_process
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.alignment import Features
from pv_vae_jax.train.configs import STAGES, VAE_STAGES, Experiment
from pv_vae_jax.train.dit_stage import DiffusionStage, renew_vae
from pv_vae_jax.train.latents_stage import Latents, encode_latents, open_latents
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.run import Run, open_run
from pv_vae_jax.train.sizes import SizedBatch, check_mesh, sized_batches
from pv_vae_jax.train.stage import Stage
from pv_vae_jax.train.vae_stage import VAEStage
from pv_vae_jax.train.writers import missing_board
from pv_vae_jax.typing import ConfigError


def train(
    experiment: Experiment,
    workdir: str | Path,
    stages: Sequence[str] = STAGES,
    *,
    clips: Elements | None = None,
    test_clips: Elements | None = None,
    features: Features | None = None,
    writers: Sequence[Any] = (),
) -> Run:
    """Train every stage that has steps. Finished stages are skipped; interrupted ones resume.

    Args:
      experiment: the configuration; it is validated.
      workdir: folder of the run, or gs://BUCKET/FOLDER. `pv_vae_jax.load(workdir)` gives the model of its last stage.
      stages: names of the stages to train, in the order of `configs.STAGES`.
      clips: clips of your own, for a configuration with `data.source="program:NAME"` and `data.class_names`: a
        `grain.MapDataset` or a sequence of `{"video": (t, H, W, 3) uint8 or LazyClip, "label": int}`, neither shuffled
        nor repeated. The same clips must be passed to go on with an interrupted run.
      test_clips: held-out clips for `report.write_report`, if there are any.
      features: what `objective.alignment` aligns latents to: a function of clips `(b, t, H, W, 3)` in [-1, 1] that
        gives `(b, g, f)` or `(b, g, h, w, f)`. The same function must be passed to go on with an interrupted run.
      writers: objects with the methods of `train.writers.MetricWriter` (clu's), which get curves and pictures as well,
        in a thread of their own, under names such as `video/loss`. They are flushed, not closed.

    Returns:
      The run: `run.folder(stage) / "metrics.jsonl"` holds the curves of a stage.

    Raises:
      ConfigError: the configuration cannot work, the folder belongs to another one, or a starting point is missing.
      NonFiniteError: a loss became NaN or infinite.
      Preempted: the run was stopped; the state is saved.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ConfigError(f"stages must be among {', '.join(STAGES)}, got {', '.join(map(repr, unknown))}")
    if features and not any(getattr(experiment, name).objective.alignment for name in VAE_STAGES):
        raise ConfigError("features are for objective.alignment: give it a weight in a stage, or leave features out")
    given = {"train": clips, "test": test_clips}
    run = open_run(experiment.validate(), workdir, {split: part for split, part in given.items() if part is not None})
    run = dataclasses.replace(run, writers=tuple(writers))
    if (missing := missing_board(experiment.writers)) and is_primary_process():
        print(missing, file=sys.stderr)
    perceptual = perceptual_term(run)
    if program_name(experiment.data.source):
        run.source("train", random=True)  # refuses clips that were not passed, before a stage begins
    for stage in stages:
        if run.steps(stage) and not run.finished(stage):
            with run.lock(stage):
                train_stage(run, stage, perceptual, features)
    return run


def load_perceptual(experiment: Experiment) -> tuple[Perceptual, dict] | None:
    """The network of `objective.perceptual`, from the files that the configuration names, and a record to identify it.

    Returns None if no stage with steps gives the term a weight.

    Raises:
      ConfigError: a stage uses the term, but no files are named or its frames are too small.
    """
    trained = [name for name in VAE_STAGES if getattr(experiment, name).steps]
    wanted = [name for name in trained if getattr(experiment, name).objective.perceptual]
    if not wanted:
        return None
    named, first = experiment.perceptual, wanted[0]
    if not (named.weights and named.heads):
        raise ConfigError(
            f"{first}.objective.perceptual needs a network, and this library ships no weights for one: name the files "
            "with --config.perceptual.weights and --config.perceptual.heads, pass a function of your own to "
            f"pv_vae_jax.train.stages.train_stage, or set {first}.objective.perceptual=0"
        )
    sizes = [batch.size for name in wanted for batch in sized_batches(experiment, name)]
    if (side := min(min(size.height, size.width) for size in sizes)) < LEAST_SIDE:
        raise ConfigError(f"LPIPS needs pictures of at least {LEAST_SIDE} x {LEAST_SIDE}, got sides of {side} pixels")
    params, model = read_lpips(named.backbone, named.weights, named.heads), LPIPS(named.backbone)
    # NumPy arrays become constants of the step, on any mesh: no gradient reaches them, and no checkpoint holds them.
    term = lambda output, target: jnp.asarray(model.apply({"params": params}, output, target))  # noqa: E731
    return term, {"backbone": named.backbone, "hash": weights_hash(params)}


def perceptual_term(run: Run) -> Perceptual | None:
    """`load_perceptual` for a run, whose work directory keeps the record so that it never resumes with another network.

    Raises:
      ConfigError: as `load_perceptual`, or the run began with another network.
    """
    loaded = load_perceptual(run.experiment)
    if loaded is None:
        return None
    (term, found), path = loaded, run.workdir / "perceptual.json"
    if path.exists() and (before := json.loads(path.read_text())) != found:
        raise ConfigError(
            f"{run.workdir} started with another perceptual network: expected {before}, got {found}; name its files "
            "again, or use another --workdir"
        )
    if is_primary_process():
        write_json(path, found)
    return term


def build_stage(
    experiment: Experiment, name: str, perceptual: Perceptual | None = None, latents: Latents | None = None
) -> Stage:
    """The stage called `name`, any but `latents`. Without `latents`, a diffusion stage can be inspected but not run."""
    return VAEStage(experiment, name, perceptual) if name in VAE_STAGES else DiffusionStage(experiment, latents)


def train_stage(run: Run, name: str, perceptual: Perceptual | None = None, features: Features | None = None) -> None:
    """Train one stage to its end and write its result: a model, or for `latents` the cache.

    Args:
      run: the run, whose work directory holds the stages before this one.
      name: one of `STAGES`.
      perceptual: network of the perceptual term of VAE stages, see `losses.Perceptual`.
      features: see `train`.

    Raises:
      ConfigError: the stage lacks what it starts from, or does not fit the mesh.
      NonFiniteError: a loss became NaN or infinite.
      Preempted: the run was stopped; the state is saved.
    """
    if name == "latents":
        encode_latents(run, run.last_vae_stage())
        return
    check_mesh(run.mesh, run.experiment, name)
    if name in VAE_STAGES:
        stage = VAEStage(run.experiment, name, perceptual, features)
    else:
        stage = DiffusionStage(run.experiment, open_latents(run, run.last_vae_stage()))
    stage.save_model(run, run_stage(stage, run))
    if name in VAE_STAGES and run.finished("diffusion"):  # it trained before or beside this stage
        renew_vae(run)


def check_stages(run: Run, stages: Sequence[str]) -> None:
    """Check the networks, batches and starting points of `stages`, and print what was found in the data.

    Raises:
      ConfigError: a network, a frozen part or a batch does not work on these devices.
      FileNotFoundError: a stage starts from a model that does not exist.
      NoVideosError: the training split has no clips of this length.
    """
    for name in [stage for stage in stages if stage != "latents"]:
        check_mesh(run.mesh, run.experiment, name)
        start = getattr(getattr(run.experiment, name), "init_from", "")
        place = local_or_bucket(start, f"{name}.init_from") if start else run.workdir
        if not place.resolve().is_relative_to(run.workdir.resolve()):  # not a stage still to come
            _ = find_checkpoint(place) or find_model(start)
        try:
            with jax.set_mesh(run.mesh):
                build_stage(run.experiment, name).check()
        except (ConfigError, NoVideosError):
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"stage {name} cannot run: {error}") from error
    if stages and is_primary_process():
        data, held_out = run.experiment.data, None
        kind = SizedBatch(1, data.frames, data.frame_size, images=True)  # a folder of images is looked at as well
        with contextlib.suppress(NoVideosError):
            held_out = run.source("test", random=True, kind=kind)
        found = describe(run.source("train", random=True, kind=kind), data.source, held_out)
        print(f"data: {found}", file=sys.stderr)

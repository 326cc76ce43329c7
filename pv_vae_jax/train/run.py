"""A work directory: which experiment it belongs to, where its stages live, and what is shared between them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from pv_vae_jax.data.clips import SkipLog
from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.sources import VideoSource, open_source
from pv_vae_jax.sharding.axes import CONTEXT, DATA, FSDP, SPACE, TENSOR
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.processes import barrier, is_primary_process
from pv_vae_jax.storage import locked, partials
from pv_vae_jax.train.config_files import differences, from_dict, save_config, to_dict
from pv_vae_jax.train.configs import STAGES, VAE_STAGES, Experiment, check_local
from pv_vae_jax.train.sizes import SizedBatch, sized_batches
from pv_vae_jax.typing import ConfigError, InUseError

# What may change between two starts of one run without changing its numbers.
FREE_KEYS = ("log_every", "checkpoint_every", "checkpoints_kept", "mesh.", "data.threads", "data.cache_bytes")
FREE_KEYS += ("sampling.",)


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment in its folder.

    Attributes:
      experiment: resolved configuration.
      workdir: its folder.
      mesh: the devices it uses.
      skips: names a broken file once, however many stages and sizes meet it.
    """

    experiment: Experiment
    workdir: Path
    mesh: Mesh
    skips: SkipLog = dataclasses.field(default_factory=SkipLog, compare=False, repr=False)

    def folder(self, stage: str) -> Path:
        """Folder of a stage: checkpoints, curves and, once finished, `model`."""
        return self.workdir / stage

    def result(self, stage: str) -> Path:
        """The file that a stage writes last."""
        return self.folder(stage) / ("manifest.json" if stage == "latents" else "model/config.json")

    def finished(self, stage: str) -> bool:
        """Whether the stage's result is there, whole."""
        return self.result(stage).exists()

    def steps(self, stage: str) -> int:
        """Length of a stage; for the latent cache its clips, if diffusion follows."""
        if stage == "latents":
            return self.experiment.latents.clips if self.experiment.diffusion.steps else 0
        return getattr(self.experiment, stage).steps

    def last_vae_stage(self) -> str:
        """The last VAE stage that is finished: what encoding and sampling use.

        Raises:
          ConfigError: none is.
        """
        finished = [stage for stage in VAE_STAGES if self.finished(stage)]
        if not finished:
            raise ConfigError(f"no VAE stage of {self.workdir} is finished: train one first")
        return finished[-1]

    @contextlib.contextmanager
    def lock(self, stage: str) -> Iterator[None]:
        """Refuse a second process that would write this stage; a killed one leaves no lock behind.

        Other stages stay free: the decoder may be fine-tuned while the transformer trains, as the paper suggests.

        Raises:
          ConfigError: another process has since begun a stage with other settings.
          InUseError: another process holds the lock.
        """
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:  # the processes of one run share the work directory
                refuse_changes(self.experiment, self.workdir)
                try:
                    stack.enter_context(locked(self.workdir / f".{stage}.lock"))
                except BlockingIOError as error:
                    said = f"{self.folder(stage)} is in use by another process: wait for it, or stop it"
                    raise InUseError(said) from error
                save_config(self.experiment, self.workdir / "config.json")  # with what may change between two starts
            yield

    def source(self, split: str, *, random: bool, kind: SizedBatch | None = None, sources: int = 1) -> VideoSource:
        """Clips of a split; `random` draws windows, otherwise every clip starts at frame 0.

        Args:
          split: `train` or `test`.
          random: for training.
          kind: size of the clips, if it is not that of the configuration. An image is a frame of a clip as long as the
            configuration's, so that images come from what clips come from.
          sources: that share the memory for decoded videos.

        Raises:
          NoVideosError: there is none; where all videos are too short, a `data.frames` for which they are not.
        """
        data = self.experiment.data
        frames, size = (data.frames, data.size) if kind is None else (kind.frames, kind.side)
        images = kind is not None and kind.images
        try:
            return open_source(
                data.source,
                frames=data.frames if images else frames,
                size=size,
                split=split,
                seed=self.experiment.seed,
                clips=data.clips if split == "train" else data.test_clips,
                stride=data.stride,
                random=random,
                images=images,
                cache_bytes=data.cache_bytes // sources,
                crop=data.crop,
                fold=data.fold,
                log=self.skips,
            )
        except NoVideosError as error:
            groups = ((error.longest - 1) // data.stride) // self.experiment.vae.time_factor
            if groups < 1:
                raise
            fitting = 1 + groups * self.experiment.vae.time_factor
            raise NoVideosError(f"{error}: --config.data.frames={fitting} would do") from error


def open_run(experiment: Experiment, workdir: str | Path) -> Run:
    """Open or make a work directory.

    Raises:
      ConfigError: the folder belongs to another configuration (the differences are listed), to something else, or
        cannot be written; or the devices do not make the mesh.
    """
    check_local("the work directory", workdir)
    workdir = Path(workdir)
    path = workdir / "config.json"
    try:
        mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from error
    if path.exists():
        refuse_changes(experiment, workdir)
    elif workdir.is_dir() and set(workdir.iterdir()) - set(partials(path)):  # which a kill may leave
        raise ConfigError(f"{workdir} is not empty and holds no run of pv_vae_jax; use another --workdir")
    barrier("work directory looked at")
    try:
        if is_primary_process():
            workdir.mkdir(parents=True, exist_ok=True)
            if not begun_stages(workdir):
                for left in partials(path):
                    left.unlink(missing_ok=True)
                save_config(experiment, path)
    except OSError as error:
        raise ConfigError(f"cannot use {workdir} as work directory: {error.strerror}") from error
    barrier("work directory made")
    if not path.exists():
        raise ConfigError(f"process {jax.process_index()} sees no {path}: all processes share one work directory")
    return Run(experiment, workdir, mesh)


def begun_stages(workdir: Path) -> list[str]:
    """Stages of which something was made, or is being made."""
    return [stage for stage in STAGES if any((workdir / name).exists() for name in (stage, f".{stage}.lock"))]


def refuse_changes(experiment: Experiment, workdir: Path) -> None:
    """Refuse settings other than those that the stages which have begun were given.

    Settings of a stage after them may still change; all may, if none has begun, as after a try that found no clips.

    Raises:
      ConfigError: there are such settings; the differences are listed.
    """
    changed = differences(to_dict(read_config(workdir / "config.json")), to_dict(experiment))
    begun = begun_stages(workdir)
    if not begun:
        return
    later = STAGES[STAGES.index(begun[-1]) + 1 :]
    free = FREE_KEYS + tuple(f"{stage}." for stage in later)
    if changed := [line for line in changed if not line.startswith(free)]:
        raise ConfigError(
            f"{workdir} belongs to another configuration; use another --workdir, or undo: " + "; ".join(changed)
        )


def check_mesh(mesh: Mesh, experiment: Experiment, stage: str) -> None:
    """Refuse a mesh on which a stage's batch, picture or heads cannot be split evenly.

    Raises:
      ConfigError: the first thing that does not divide, and what to set.
    """
    size, data, parts = mesh.shape, experiment.data, getattr(experiment, stage).grad_accum_steps
    examples = size[DATA] * size[FSDP]
    single = SizedBatch(getattr(experiment, stage).batch_size, data.frames, data.size)
    for kind in sized_batches(experiment, stage) if stage in VAE_STAGES else (single,):
        if kind.batch_size % (examples * parts):
            times = f", {parts} times over (grad_accum_steps)" if parts > 1 else ""
            if kind.batch_size != single.batch_size:
                raise ConfigError(
                    f"{stage}.sizes gives batches of {kind.batch_size} at {kind.frames} x {kind.side} x {kind.side}, "
                    f"which is not a multiple of the {examples} devices that split it{times}: set "
                    f"{stage}.batch_multiple={examples * parts} for a new run, or use fewer devices"
                )
            raise ConfigError(
                f"{stage}.batch_size {kind.batch_size} is not a multiple of the {examples} devices that split it"
                f"{times}: change it, or use fewer devices with --config.mesh.data=1"
            )
        side = kind.side // experiment.vae.space_factor  # the coarsest picture, and the latents
        for axis, what in ((SPACE, "width"), (CONTEXT, "height")):
            if side % size[axis]:
                raise ConfigError(
                    f"mesh.{axis} {size[axis]} does not divide the {what} of the latents, {side}: change it"
                )
    if stage == "diffusion" and experiment.latte.heads % size[TENSOR]:
        raise ConfigError(f"mesh.{TENSOR} {size[TENSOR]} does not divide the {experiment.latte.heads} heads: change it")


def reopen_run(workdir: str | Path) -> Run:
    """Open the run that `workdir` holds, with the configuration it was made with."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        train = f"pv-vae train --config experiments/demo.py --workdir {workdir}"
        raise ConfigError(f"{workdir} holds no run: train one with {train}")
    return open_run(read_config(path).validate(), workdir)


def read_config(path: Path) -> Experiment:
    """The configuration in `path`. Settings that are younger than the file stand at their defaults."""
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text at all
        raise ConfigError(f"{path} is damaged ({error}): use another --workdir, or write it back") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: use another --workdir")
    try:
        return from_dict(Experiment, tree)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{path} is of another version of pv_vae_jax ({error}): use another --workdir") from error

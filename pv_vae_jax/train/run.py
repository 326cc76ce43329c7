"""A work directory: the experiment it belongs to, and the folders and data of its stages."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pv_vae_jax.data.given import GivenClips, GivenWindows
from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import VideoSource, open_source, program_name
from pv_vae_jax.data.transforms import RandomWindow
from pv_vae_jax.locks import locked
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.processes import barrier, is_primary_process
from pv_vae_jax.storage import as_path, partials
from pv_vae_jax.train.config_files import DRAWS, FORMAT, LAST_WITH, differences, from_dict, save_config, to_dict
from pv_vae_jax.train.configs import STAGES, VAE_STAGES, Experiment
from pv_vae_jax.train.profiling import Window
from pv_vae_jax.train.sizes import SizedBatch
from pv_vae_jax.typing import ConfigError, InUseError

# What may change between two starts of one run without changing its numbers.
FREE_KEYS = ("log_every", "checkpoint_every", "checkpoints_kept", "mesh.", "sampling.")
FREE_KEYS += ("evaluation.", "writers", "data.threads", "data.workers", "data.cache_bytes", "data.max_damaged")


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment in its work directory.

    Attributes:
      experiment: the resolved configuration.
      workdir: the work directory.
      mesh: the devices of the run.
      clips: `train` and `test` clips of a program, for `data.source=program:NAME`.
      writers: writers of a program, see `train.writers`.
      profile: the steps of every stage to trace, or None.
      skips: log that names a broken file once, however many stages and sizes meet it.
    """

    experiment: Experiment
    workdir: Path
    mesh: Mesh
    clips: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    writers: Sequence[Any] = dataclasses.field(default=(), compare=False, repr=False)
    profile: Window | None = None
    skips: SkipLog = dataclasses.field(default_factory=SkipLog, compare=False, repr=False)

    def folder(self, stage: str) -> Path:
        """Folder of a stage: checkpoints, curves and, once finished, `model`."""
        return self.workdir / stage

    def result(self, stage: str) -> Path:
        """The file that a stage writes last; it exists if the stage is finished."""
        return self.folder(stage) / ("manifest.json" if stage == "latents" else "model/config.json")

    def finished(self, stage: str) -> bool:
        """Whether the stage is finished."""
        return self.result(stage).exists()

    def steps(self, stage: str) -> int:
        """Number of steps of a stage; for `latents`, the number of clips, or 0 if no diffusion follows."""
        if stage == "latents":
            return self.experiment.latents.clips if self.experiment.diffusion.steps else 0
        return getattr(self.experiment, stage).steps

    def last_vae_stage(self) -> str:
        """The last finished VAE stage, whose model encoding and sampling use.

        Raises:
          ConfigError: no VAE stage is finished.
        """
        finished = [stage for stage in VAE_STAGES if self.finished(stage)]
        if not finished:
            raise ConfigError(f"no VAE stage of {self.workdir} is finished: train one first")
        return finished[-1]

    @contextlib.contextmanager
    def lock(self, stage: str) -> Iterator[None]:
        """Lock a stage against a second process that would write it; a killed process leaves no lock behind.

        Other stages stay free: the decoder may be fine-tuned while the transformer trains, as the paper suggests.

        Raises:
          ConfigError: another process has meanwhile begun a stage with other settings, or the run began with the draws
            of another version.
          InUseError: another process holds the lock.
        """
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:  # the processes of one run share the work directory
                refuse_changes(self.experiment, self.workdir)
                refuse_old_draws(self.workdir)
                try:
                    stack.enter_context(locked(self.workdir / f".{stage}.lock"))
                except BlockingIOError as error:
                    holder = "" if error.errno else f" ({error})"  # locks in buckets say whose they are
                    message = f"{self.folder(stage)} is in use by another process{holder}: wait for it, or stop it"
                    raise InUseError(message) from error
                save_config(self.experiment, self.workdir / "config.json")  # `FREE_KEYS` may have changed
            yield

    def source(
        self, split: str, *, random: bool, kind: SizedBatch | None = None, sources: int = 1, features: int = 0
    ) -> VideoSource:
        """The clips of a split.

        Args:
          split: `train` or `test`.
          random: whether windows start anywhere, for training; otherwise they follow one another from frame 0.
          kind: size of the clips, by default that of the configuration. An image is a frame of a clip as long as the
            configuration's, so that images come from the same videos as clips.
          sources: number of sources that share the memory for decoded videos.
          features: numbers of a frame in the `features` of elements; 0 leaves them out.

        Raises:
          NoVideosError: the split has no clips; if all videos are too short, the message suggests `data.frames`.
          ConfigError: the clips are those of a program, which did not pass them.
        """
        data = self.experiment.data
        kind = kind or SizedBatch(1, data.frames, data.frame_size)
        if program_name(data.source):
            return _given_clips(self, split, random, kind, features)
        try:
            return open_source(
                data.source,
                frames=data.frames if kind.images else kind.frames,
                size=kind.size,
                split=split,
                seed=self.experiment.seed,
                clips=data.clips if split == "train" else data.test_clips,
                stride=data.stride,
                random=random,
                images=kind.images,
                cache_bytes=data.cache_bytes // sources,
                crop=data.crop,
                fold=data.fold,
                log=self.skips,
                features=features > 0,
            )
        except NoVideosError as error:
            groups = ((error.longest - 1) // data.stride) // self.experiment.vae.time_factor
            if groups < 1:
                raise
            fitting = 1 + groups * self.experiment.vae.time_factor
            raise NoVideosError(f"{error}: --config.data.frames={fitting} would do") from error


def _given_clips(run: Run, split: str, random: bool, kind: SizedBatch, features: int) -> VideoSource:
    """The clips of a split that a program passed."""
    data = run.experiment.data
    if not run.clips:
        raise ConfigError(
            f"data.source {data.source} stands for clips that a program passes: call "
            "pv_vae_jax.train.train(experiment, workdir, clips=...) there, or name a folder"
        )
    if split not in run.clips:
        raise NoVideosError(f"{data.source} has no test clips: pass test_clips to train")
    names = data.class_names or (program_name(data.source),)
    if random:
        return GivenClips(run.clips[split], names, features)
    window = RandomWindow(kind.frames, data.stride)
    return GivenWindows(run.clips[split], names, window=window, size=kind.size, limit=data.test_clips)


def open_run(
    experiment: Experiment,
    workdir: str | Path,
    clips: Mapping[str, Any] | None = None,
    *,
    profile: Window | None = None,
    mesh: Mesh | None = None,
) -> Run:
    """Open or create a work directory.

    Args:
      experiment: the configuration.
      workdir: folder of the run, or gs://BUCKET/FOLDER.
      clips: `train` and `test` clips of a program, see `stages.train`.
      profile: steps of every stage that are traced, see `profiling.parse_window`.
      mesh: the devices; by default those of `experiment.mesh`.

    Raises:
      ConfigError: the folder belongs to another configuration (the differences are listed) or to another version, holds
        something else, or cannot be written; or the mesh does not fit the devices.
    """
    if clips and not program_name(experiment.data.source):
        raise ConfigError(
            f"clips need data.source='program:NAME', with a name for reports, got {experiment.data.source!r}: set it"
        )
    path = as_path(workdir, "--workdir") / "config.json"
    workdir = path.parent
    mesh = mesh or make_mesh(**dataclasses.asdict(experiment.mesh))
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
        raise ConfigError(f"cannot use {workdir} as work directory: {error.strerror or error}") from error
    barrier("work directory made")
    if not path.exists():
        raise ConfigError(
            f"process {jax.process_index()} cannot see {path}: all processes must share one work directory"
        )
    data = experiment.data
    skips = SkipLog(data.max_damaged_files, data.max_damaged_records)
    return Run(experiment, workdir, mesh, clips or {}, skips=skips, profile=profile)


def begun_stages(workdir: Path) -> list[str]:
    """Stages that have begun: they have a folder or a lock."""
    return [stage for stage in STAGES if any((workdir / name).exists() for name in (stage, f".{stage}.lock"))]


def refuse_changes(experiment: Experiment, workdir: Path) -> None:
    """Refuse a configuration other than the one with which the stages of a work directory began.

    Settings of later stages may still change. Before any stage has begun, all may, as when no clips were found.

    Raises:
      ConfigError: other settings have changed; the differences are listed.
    """
    lines = differences(to_dict(read_config(workdir / "config.json")), to_dict(experiment))
    begun = begun_stages(workdir)
    if not begun:
        return
    later = STAGES[STAGES.index(begun[-1]) + 1 :]
    free = FREE_KEYS + tuple(f"{stage}." for stage in later)
    if changed := [line for line in lines if not line.startswith(free)]:
        raise ConfigError(
            f"{workdir} belongs to another configuration; use another --workdir, or undo: " + "; ".join(changed)
        )


def refuse_old_draws(workdir: Path) -> None:
    """Refuse to train on in a run whose batches were drawn otherwise: its steps would be those of no seed.

    Raises:
      ConfigError: a stage began with other draws; the message names the version that goes on with them.
    """
    found = json.loads((workdir / "config.json").read_text()).get("draws", 1)
    if found != DRAWS and begun_stages(workdir):
        version = f"pv_vae_jax {LAST_WITH[found]}" if found in LAST_WITH else "a newer version of pv_vae_jax"
        raise ConfigError(
            f"{workdir} began with the draws of version {found}, and this version draws other clips from the same "
            f"seed (version {DRAWS}): go on with {version}, or use another --workdir and start from its model with "
            f"--config.video.init_from={workdir}. Its models can be used and evaluated as they are"
        )


def reopen_run(workdir: str | Path) -> Run:
    """Open the run that `workdir` holds, with the configuration it was made with, to use what it has learnt.

    The devices may be others than those it trained on: where its mesh does not fit them, the mesh is all of them.
    """
    path = as_path(workdir, "--workdir") / "config.json"
    if not path.exists():
        train = f"pv-vae train --config experiments/demo.py --workdir {workdir}"
        raise ConfigError(f"{workdir} holds no run: train one with {train}")
    experiment = read_config(path).validate()
    try:
        mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
    except ConfigError:
        mesh = make_mesh()
    return open_run(experiment, workdir, mesh=mesh)


def read_config(path: Path) -> Experiment:
    """The configuration in the `config.json` of a work directory. Fields added since take their defaults.

    Raises:
      ConfigError: the file is damaged, or another version of pv_vae_jax wrote it.
    """
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text at all
        raise ConfigError(f"{path} is damaged ({error}): use another --workdir, or write it back") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} does not hold a configuration: use another --workdir")
    if (found := tree.pop("format", None)) != FORMAT:
        writer = "pv_vae_jax 0.1.0" if found is None else f"another version of pv_vae_jax (format {found})"
        raise ConfigError(
            f"expected {path} in format {FORMAT}, but {writer} wrote it: continue with that version, or use another "
            f"--workdir. Its models still load: --config.video.init_from={path.parent}/image/model starts from one"
        )
    try:
        return from_dict(Experiment, tree)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(
            f"{path} was written by another version of pv_vae_jax ({error}): use another --workdir"
        ) from error

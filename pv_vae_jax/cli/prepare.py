"""Cut videos into ArrayRecord shards of short clips that training reads at random: writes `OUT/train` and `OUT/test`.

  pv-vae prepare ~/UCF101 --out data/ucf101 --short_side 128
  pv-vae train --config experiments/demo.py --workdir runs/ucf --config.data.source data/ucf101

SOURCE is a folder of videos or of folders of frames, or a data set in its official layout. After an interruption the
same command continues. Sound is left out. Skipped files and the reasons are listed in each split's `manifest.json`.
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from pv_vae_jax.data.listing import SplitIndex, summarize
from pv_vae_jax.data.prepare import ClipSettings, prepare_dataset, prepare_split
from pv_vae_jax.data.sources import DATASETS
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.storage import as_path, on_disk
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae prepare`."""
    defaults = ClipSettings()
    flags.DEFINE_string("out", None, "folder for the shards", flag_values=values)
    flags.mark_flag_as_required("out", flag_values=values)
    flags.DEFINE_enum("dataset", None, list(DATASETS), "layout of the source; detected by default", flag_values=values)
    flags.DEFINE_integer("fold", 1, "official split of UCF101, 1 to 3", flag_values=values)
    flags.DEFINE_multi_enum("split", ["train", "test"], ["train", "test"], "splits to prepare", flag_values=values)
    side = "length of the shorter side in pixels; smaller videos keep their size"
    flags.DEFINE_integer("short_side", defaults.short_side, side, flag_values=values)
    flags.DEFINE_float("fps", defaults.fps, "frames per second; 0 keeps every frame", flag_values=values)
    flags.DEFINE_integer("frames", defaults.frames, "maximum length of a clip; 0 does not cut", flag_values=values)
    flags.DEFINE_integer("min_frames", defaults.min_frames, "minimum length of a clip", flag_values=values)
    flags.DEFINE_integer("gop", defaults.gop, "frames from one key frame to the next", flag_values=values)
    flags.DEFINE_integer("crf", defaults.crf, "quality of H.264, from 0 (lossless) to 51", flag_values=values)
    flags.DEFINE_integer("shard_files", 64, "source files per shard", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("workers", 0, "processes; 0 is one per core", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("beam", False, "run as an Apache Beam pipeline (extra beam)", flag_values=values)
    flags.DEFINE_multi_string("beam_option", [], "option for Beam, like --runner=DataflowRunner", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Prepare a data set, or continue."""
    if len(positional) != 1:
        raise ConfigError("pv-vae prepare takes one folder: pv-vae prepare SOURCE --out DIR")
    if values.beam_option and not values.beam:
        raise ConfigError("--beam_option needs --beam")
    if values["workers"].present and values.beam:
        raise ConfigError("--workers applies to this machine; set the workers of Beam's runner by --beam_option")
    source, out = on_disk(positional[0], "SOURCE"), as_path(values.out, "--out")
    if values.beam:  # its workers run in folders of their own
        source, out = source.absolute(), out.absolute()
    try:
        given: Any = {field.name: values[field.name].value for field in dataclasses.fields(ClipSettings)}
        settings = ClipSettings(**given)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def prepare(listing: SplitIndex, folder: Path) -> dict:
        if values.beam:
            from pv_vae_jax.data.prepare.beam import prepare_with_beam

            options = values.beam_option
            manifest = prepare_with_beam(listing, folder, settings, files=values.shard_files, options=options)
        else:
            manifest = _prepare_here(listing, folder, settings, values.shard_files, values.workers)
        lost = manifest["skipped"]
        skipped = f", {len(lost)} files skipped ({summarize(lost, 3)})" if lost else ""
        size = f"{manifest['clips']} clips, {manifest['frames']} frames, {manifest['bytes'] / 1e6:.1f} MB"
        print(f"{folder}: {size}{skipped}")
        return manifest

    with _stop_signals():
        prepare_dataset(source, out, prepare, dataset=values.dataset or "", fold=values.fold, splits=values.split)


def _prepare_here(listing: SplitIndex, folder: Path, settings: ClipSettings, files: int, workers: int) -> dict:
    with progress_bar(desc=folder.name, unit="shard") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        workers = workers or os.cpu_count() or 1
        return prepare_split(listing, folder, settings, files=files, workers=workers, progress=progress)


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C leave at once, through everything that cleans up.

    Raises:
      Preempted: one of them came.
    """
    from pv_vae_jax.train.preemption import Preempted

    number = signal.SIGINT

    def terminate(*_) -> None:
        nonlocal number
        number = signal.SIGTERM
        raise KeyboardInterrupt

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # not the main thread: keep the default
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, terminate))
        try:
            yield
        except KeyboardInterrupt as error:
            raise Preempted(number, "clips") from error

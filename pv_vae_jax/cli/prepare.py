"""Cut videos into ArrayRecord shards of short clips that training reads at random: writes `OUT/train` and `OUT/test`.

  pv-vae prepare ~/UCF101 --out data/ucf101 --short_side 128
  pv-vae train --config experiments/demo.py --workdir runs/ucf --config.data.source data/ucf101

SOURCE is a folder of videos, or a data set in its official layout. Interrupted, the same command goes on. What could
not be used, and why, is listed in each split's `manifest.json`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from pv_vae_jax.data.datasets import DATASETS, detect_format, list_dataset
from pv_vae_jax.data.listing import NoVideosError, check_folder, summarize
from pv_vae_jax.data.prepare import ClipSettings, prepare_split
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae prepare`."""
    defaults = ClipSettings()
    flags.DEFINE_string("out", None, "folder for the shards", flag_values=values)
    flags.mark_flag_as_required("out", flag_values=values)
    names = list(DATASETS)
    flags.DEFINE_enum("dataset", None, names, "layout of the source; recognised unless given", flag_values=values)
    flags.DEFINE_integer("fold", 1, "official split of UCF101, 1 to 3", flag_values=values)
    flags.DEFINE_multi_enum("split", ["train", "test"], ["train", "test"], "splits to prepare", flag_values=values)
    flags.DEFINE_integer(
        "short_side", defaults.short_side, "pixels; smaller videos keep their size", flag_values=values
    )
    flags.DEFINE_float("fps", defaults.fps, "pictures a second; 0 keeps every frame", flag_values=values)
    flags.DEFINE_integer("frames", defaults.frames, "of a clip at most; 0 cuts nothing", flag_values=values)
    flags.DEFINE_integer("min_frames", defaults.min_frames, "shorter clips are dropped", flag_values=values)
    flags.DEFINE_integer("gop", defaults.gop, "frames from key frame to key frame", flag_values=values)
    flags.DEFINE_integer("crf", defaults.crf, "quality of H.264, 0 lossless to 51", flag_values=values)
    flags.DEFINE_integer("shard_files", 64, "source files a shard", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("workers", 0, "processes; 0 is one for each core", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("beam", False, "run as an Apache Beam pipeline (extra beam)", flag_values=values)
    flags.DEFINE_multi_string("beam_option", [], "passed on to Beam, like --runner=DataflowRunner", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Prepare, or go on preparing."""
    if len(positional) != 1 or overrides:
        raise ConfigError("pv-vae prepare takes one folder: pv-vae prepare SOURCE --out DIR")
    if values.beam_option and not values.beam:
        raise ConfigError("--beam_option goes with --beam")
    if values["workers"].present and values.beam:
        raise ConfigError("--workers is of this machine; how many Beam has, its runner says, through --beam_option")
    source, out = Path(positional[0]), Path(values.out)
    if values.beam:  # whose workers run in folders of their own
        source, out = source.absolute(), out.absolute()
    try:
        fields = ("short_side", "fps", "frames", "min_frames", "gop", "crf")
        settings = ClipSettings(**{name: values[name].value for name in fields})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    check_folder(source)
    dataset = values.dataset or detect_format(source)
    if dataset not in DATASETS:
        raise ConfigError(
            f"{source} is a folder of {dataset}, which training reads as it is: config.data.source={source}"
        )
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise ConfigError(f"{out} lies in the source: its folders would be taken for classes")
    own = {"fold": values.fold} if dataset == "ucf101" else {}
    if values.fold != 1 and not own:
        raise ConfigError(f"--fold is of ucf101, and {source} is {dataset}")
    with _stop_signals():
        _prepare(source, out, dataset, own, settings, values)


def _prepare(
    source: Path, out: Path, dataset: str, own: dict, settings: ClipSettings, values: flags.FlagValues
) -> None:
    # All listings first: what is missing shows before hours of work.
    listings = {split: list_dataset(source, split, dataset, **own) for split in dict.fromkeys(values.split)}
    for split, listing in listings.items():
        if not listing.items and split == "train":
            raise NoVideosError(f"{source} holds no videos for training")
        if listing.absent:
            count = len(listing.absent)
            print(f"{split}: {count} files are not there: {summarize(listing.absent, 2)}", file=sys.stderr)
    for split, listing in listings.items():
        if not listing.items:
            print(f"{split}: no files, left out", file=sys.stderr)
            continue
        if values.beam:
            from pv_vae_jax.data.beam import prepare_with_beam

            manifest = prepare_with_beam(
                listing, out / split, settings, files=values.shard_files, options=values.beam_option
            )
        else:
            manifest = _locally(listing, out / split, settings, values, split)
        skipped = f", {len(manifest['skipped'])} files skipped" if manifest["skipped"] else ""
        seconds = f"{manifest['clips']} clips, {manifest['frames']} frames, {manifest['bytes'] / 1e6:.1f} MB"
        print(f"{out / split}: {seconds}{skipped}")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, on the way that Ctrl-C takes."""


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Context that SIGTERM and Ctrl-C leave at once, through everything that cleans up.

    Raises:
      Interrupted: one of them came.
    """
    from pv_vae_jax.train.preemption import Preempted

    def terminate(*_) -> None:
        raise _Terminated

    old = None
    with contextlib.suppress(ValueError):  # not the main thread: keep the default
        old = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as error:
        name, number = ("SIGTERM", signal.SIGTERM) if isinstance(error, _Terminated) else ("Ctrl-C", signal.SIGINT)
        raise Preempted(f"{name}; the same command goes on from there", 128 + number) from error
    finally:
        if old is not None:
            signal.signal(signal.SIGTERM, old)


def _locally(listing, folder: Path, settings: ClipSettings, values: flags.FlagValues, split: str) -> dict:
    import os

    workers = values.workers or os.cpu_count() or 1
    with tqdm(desc=split, unit="shard", mininterval=1 if sys.stderr.isatty() else 20) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return prepare_split(listing, folder, settings, files=values.shard_files, workers=workers, progress=progress)

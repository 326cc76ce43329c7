"""Sources of clips by name: the synthetic world, and every kind of folder that is recognised.

A source is anything with `len`, `class_names` and elements by index, `{"video": ..., "label": int}`; see `transforms`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pv_vae_jax.data import datasets
from pv_vae_jax.data.clips import ClipSource, Reader, WindowSource
from pv_vae_jax.data.frame_cache import FrameCache
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import (
    NoVideosError,
    SplitIndex,
    all_clips_below,
    check_folder,
    check_uncut,
    content_key,
    frame_folder,
    is_frames,
    tell_passed_over,
    video_folder,
)
from pv_vae_jax.data.readers import records, tfds
from pv_vae_jax.data.readers.frame_folders import FrameFolders
from pv_vae_jax.data.readers.image_files import ImageFiles
from pv_vae_jax.data.readers.video_files import VideoFiles
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.synthetic import SyntheticVideos, families_of, sprites_of
from pv_vae_jax.data.video_container import READING
from pv_vae_jax.storage import as_path, is_remote, mounted

__all__ = ["DATASETS", "NoVideosError", "VideoSource"]
__all__ += ["class_names", "describe", "detect_format", "fingerprint", "list_clips", "list_dataset", "open_source"]
__all__ += ["program_name"]

PROGRAM = "program:"


class VideoSource(Protocol):
    """Clips by index."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"video": (t, H, W, 3) uint8 or a `LazyClip`, "label": int32}`, which depend on `index` alone."""
        ...


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of folder.

    Attributes:
      name: name of the format, as in `pv-vae prepare --dataset`.
      detect: `(folder, names of its sub-folders)` -> whether a folder is of this kind.
      index: `(folder, split)` -> the files of a split; None if `pv-vae prepare` does not read this format.
      reader: class of the reader of a split.
      summary: folder -> class names and a hash of the training clips, for formats that store them; such a folder is
        read without `index`.
      folds: whether `index` takes `fold`, the number of an official split.
    """

    name: str
    detect: Callable[[Path, set[str]], bool]
    index: Callable[..., SplitIndex] | None
    reader: Callable[..., Reader] = VideoFiles
    summary: Callable[[Path], tuple[tuple[str, ...], str]] | None = None
    folds: bool = False

    def list(self, folder: Path, split: str, fold: int) -> SplitIndex:
        """The files of a split. Raises NoVideosError if they are incomplete, or `fold` does not apply."""
        self.check_fold(folder, fold)
        assert self.index is not None, "of a format that stores its clips"
        return self.index(folder, split, **({"fold": fold} if self.folds else {}))

    def check_fold(self, folder: Path, fold: int) -> None:
        """Raise NoVideosError if `fold` does not apply."""
        if fold != 1 and not self.folds:
            raise NoVideosError(
                f"fold {fold} applies to UCF101 in its official layout, and {folder} is of the format {self.name}: set "
                "data.fold=1 (pv-vae prepare --fold prepares the clips of a fold)"
            )


def _summary_of_records(folder: Path) -> tuple[tuple[str, ...], str]:
    manifest = records.read_manifest(folder / "train")
    return tuple(manifest["class_names"]), manifest["hash"]


def _summary_of_tfds(folder: Path) -> tuple[tuple[str, ...], str]:
    return tfds.classes(folder), hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest()[:16]


# In the order in which they are tried.
FORMATS = (
    Format("records", records.is_prepared, None, records.RecordReader, _summary_of_records),
    Format("tfds", tfds.is_dataset, tfds.tensorflow_dataset, tfds.TFDSReader, _summary_of_tfds),
    Format("ucf101", datasets.is_ucf101, datasets.ucf101, folds=True),
    Format("kinetics400", datasets.is_kinetics400, datasets.kinetics400),
    Format("realestate10k", datasets.is_realestate10k, datasets.realestate10k),
    Format("davis", datasets.is_davis, datasets.davis, FrameFolders),
    Format("sky_timelapse", datasets.is_sky_timelapse, datasets.sky_timelapse, FrameFolders),
    Format("frames", is_frames, frame_folder, FrameFolders),
    Format("imagenet", datasets.is_imagenet, datasets.imagenet, ImageFiles),
    Format("kinetics400", datasets.is_part_of_kinetics400, datasets.kinetics400),
    Format("folder", lambda folder, below: True, video_folder),
)
DATASETS = {form.name: form for form in FORMATS if form.index}  # what `pv-vae prepare` reads


def _format_of(folder: Path) -> Format:
    if is_remote(folder):
        if not records.is_prepared(folder, {"train", "test"}):
            raise NoVideosError(
                f"{folder} holds no shards of pv-vae prepare, and other clips are not read from a bucket: "
                f"{mounted(folder)}, or write shards there with pv-vae prepare MOUNTED --out {folder}"
            )
        return FORMATS[0]
    check_folder(folder)
    below = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return next(form for form in FORMATS if form.detect(folder, below))


def detect_format(folder: Path) -> str:
    """The name of a folder's format, recognised by marks that only this format has.

    Raises:
      NoVideosError: the folder does not exist.
    """
    return _format_of(folder).name


def list_dataset(folder: str | Path, split: str, dataset: str = "", fold: int = 1) -> SplitIndex:
    """The files of a split of the data set in `folder`, which is recognised unless `dataset` names its format.

    Raises:
      NoVideosError: the folder is missing, or incomplete as that data set.
      ValueError: there is no such data set.
    """
    folder = Path(folder)
    check_folder(folder)
    name = dataset or detect_format(folder)
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name].list(folder, split, fold)


def program_name(source: str) -> str:
    """The name in `program:NAME`, the source of clips that a program passes to `train`; "" for any other source."""
    return source.removeprefix(PROGRAM) if source.startswith(PROGRAM) else ""


def list_clips(folder: str | Path) -> SplitIndex:
    """All clips of a folder, of both splits, in the order of their paths: what `pv-vae evaluate` compares.

    They are those that training and `pv-vae prepare` take from the same folder; a sub-folder of it may be named too.

    Raises:
      NoVideosError: the folder is missing, incomplete as the data set that it was recognised as, of a format that holds
        no files of clips, or its clips are parts of files.
    """
    folder = as_path(folder)
    form = _format_of(folder)
    if form.name in ("folder", "frames"):
        return all_clips_below(folder)
    if not issubclass(form.reader, VideoFiles):  # pyright: ignore[reportArgumentType]  # folders of frames too
        raise NoVideosError(f"expected video files or folders of frames in {folder}, got the format {form.name}")
    train, test = (form.list(folder, split, 1) for split in ("train", "test"))
    check_uncut(folder, train)
    items = tuple(sorted(train.items + test.items, key=lambda entry: entry.path))
    return dataclasses.replace(train, items=items, absent=train.absent | test.absent)


def class_names(source: str, fold: int = 1) -> tuple[str, ...]:
    """Class names of `source` in label order, without opening a video. Arguments and errors as for `open_source`."""
    name = program_name(source)
    return families_of(source) or ((name,) if name else _summarize(as_path(source, "data.source"), fold)[0])


def fingerprint(source: str, fold: int = 1) -> str:
    """A hash that changes with a folder's training clips, by names and sizes of files, and which `READING` shows them;
    "" for a synthetic world and the clips of a program.

    Arguments and errors as for `open_source`.
    """
    return "" if families_of(source) or program_name(source) else _summarize(as_path(source, "data.source"), fold)[1]


def _summarize(folder: Path, fold: int) -> tuple[tuple[str, ...], str]:
    """Class names and fingerprint of a folder."""
    form = _format_of(folder)
    if form.summary:
        form.check_fold(folder, fold)
        return form.summary(folder)
    index = form.list(folder, "train", fold)
    lines = [f"{entry.name}\t{entry.label}\t{content_key(entry.path)}" for entry in index.items]
    digest = hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]
    return index.class_names, f"{digest}, reading {READING}"


def open_source(
    source: str | Path,
    *,
    frames: int,
    size: int | tuple[int, int] | FrameSize,
    split: str = "train",
    seed: int = 0,
    clips: int | None = 8_192,
    stride: int = 1,
    random: bool = True,
    images: bool = False,
    cache_bytes: int = 2 << 30,
    crop: str = "centre",
    fold: int = 1,
    log: SkipLog | None = None,
    features: bool = False,
) -> ClipSource | SyntheticVideos:
    """The source of clips that `source` names.

    Args:
      source: `synthetic`, `plain`, `synthetic:FAMILY,...` (see `synthetic.families_of`) or a folder of video files, of
        shards by `pv-vae prepare`, or of a data set in its official layout.
      frames, stride: frames of a clip, and the step in source frames between them; shorter videos are left out.
      size: frames are resized to it, see `FrameSize.of`.
      split: `train` or `test`.
      seed: seed of the synthetic world.
      clips: number of clips of the synthetic world; maximum number of a folder's clips, if the source is not `random`.
      random: elements are whole videos, read by `RandomWindow` (training); otherwise they are windows, one after the
        other, whose frames are of `size` (evaluation).
      images: single frames will do, so that a folder of images is a source as well.
      cache_bytes: memory for decoded videos or rendered clips.
      crop: `centre`, or `random` if transforms will crop at random: then the cache keeps what is around the centre.
      fold: official split of UCF101, 1 to 3; 1 for anything else.
      log: where skipped files are logged, and how many may be damaged; sources that share it log each file only once.
      features: elements hold the state of the synthetic world as `features`; for no other source.

    Raises:
      NoVideosError: the folder is missing, empty or incomplete, nothing in it can be read, it holds images and clips
        are needed, or `fold` does not apply.
      DamagedDataError: too many files are damaged, here or when an element is read.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    size = FrameSize.of(size)
    if families := families_of(str(source)):
        seed, sprites = 2 * seed + (split == "test"), sprites_of(str(source))
        # Of a clip for images one frame is taken.
        kept: Any = dict(cache_bytes=cache_bytes, lazy=images, textured=sprites > 1, features=features, clips=clips)
        return SyntheticVideos(frames=frames, size=size, seed=seed, sprites=sprites, families=families, **kept)
    if features:
        raise ValueError(f"features are those of the synthetic world, got source {str(source)!r}: leave them out")
    folder = as_path(source, "data.source")
    form, span = _format_of(folder), (frames - 1) * stride + 1
    form.check_fold(folder, fold)
    index = None if form.summary else form.list(folder, split, fold)
    reader = form.reader(folder, split, index, size=size, span=span, log=log)
    if reader.images and span > 1 and not images:
        raise NoVideosError(
            f"{reader.folder} holds images, and this stage trains on clips: use videos, or set its images=True"
        )
    cache = FrameCache(cache_bytes, size, cut=not random or crop == "centre") if reader.cached else None
    if random:
        return ClipSource(reader, frames=frames, stride=stride, cache=cache)
    return WindowSource(reader, frames=frames, stride=stride, cache=cache, clips=clips)


def describe(source: VideoSource, name: str, held_out: VideoSource | None = None) -> str:
    """One line about the data called `name`; `held_out` is its test split, or None if that has no clips."""
    names = source.class_names
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    classes = f"{len(names)} classes ({shown})" if len(names) > 1 else f"one class ({shown})"
    if not isinstance(source, ClipSource):
        return f"{name}: {len(source):,} clips of {classes}"
    reader = source.reader
    lost = f", {len(reader.skipped)} skipped" if reader.skipped else ""
    lost += f", {len(reader.absent)} of its listed files missing" if reader.absent else ""
    lost += f", {told}" if (told := tell_passed_over(reader.passed_over)) else ""
    if reader.lengths is None:
        return f"{name}: {len(source):,} clips of {classes}{lost}"
    both = (source, held_out)
    train, test = (len({v for _, v in each.windows}) if isinstance(each, ClipSource) else 0 for each in both)
    windows = f"{len(source):,} windows of {source.frames} frames"
    return f"{name}: {train + test:,} videos of {classes}: {train:,} for training ({windows}), {test:,} held out{lost}"

"""Random-access sources of clips: the synthetic world, video files, and whatever `open_source` recognises.

A source is anything with `len`, `class_names`, `clip(index, rng)` and `image(index, rng)`: the result depends on the
two arguments alone.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pv_vae_jax.data.clips import crop
from pv_vae_jax.data.datasets import detect_format, list_dataset
from pv_vae_jax.data.images import ImageFiles
from pv_vae_jax.data.listing import NoVideosError, SplitIndex, check_folder, summarize, video_folder
from pv_vae_jax.data.records import RecordVideos, read_manifest
from pv_vae_jax.data.skips import SkipLog
from pv_vae_jax.data.synthetic import SyntheticVideos, families_of
from pv_vae_jax.data.tfds_videos import TFDSVideos, classes
from pv_vae_jax.data.video_files import SUFFIXES, BrokenVideoError, probe, read_video
from pv_vae_jax.data.windows import Windowed

__all__ = ["FolderVideos", "ImageFrames", "NoVideosError", "VideoSource"]
__all__ += ["class_names", "describe", "fingerprint", "open_source"]


class VideoSource(Protocol):
    """Clips by index."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """`{"video": (t, h, w, 3) uint8, "label": int32}`; `rng` draws whatever is random about it."""
        ...

    def image(self, index: int, rng: np.random.Generator) -> dict:
        """One frame of the clip: `{"video": (1, h, w, 3) uint8, "label": int32}`."""
        ...


class ImageFrames:
    """A source's single frames as clips of one frame, for image training."""

    def __init__(self, source: VideoSource):
        self.source, self.class_names = source, source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        return self.source.image(index, rng)

    def image(self, index: int, rng: np.random.Generator) -> dict:
        return self.source.image(index, rng)


class FolderVideos(Windowed):
    """Clips from video files, resized by area to the short side and cropped to a square.

    Args:
      folder: for messages, and for the files unless `listing` names them (`listing.video_folder`).
      frames, size, stride: of a clip.
      split: `train` or `test`.
      random: windows start anywhere (training) instead of one after the other (evaluation).
      clips: at most, for a source that is not `random`.
      cache_bytes: memory for decoded videos.
      crop: `centre`, or `random` for a place drawn with each clip; a source that is not `random` takes the centre.
      listing: the files of the split.
      log: names what is skipped; shared, each file once.

    Attributes:
      class_names: in label order; of a folder its sub-folders, sorted, or its own name if there are none.
      files: of this split.
      skipped: file -> why it, or a window of it, could not be used. Reading goes on with another file.
      absent: name -> where it was looked for, of files that an official list names and the disk lacks.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        frames: int,
        size: int,
        split: str = "train",
        stride: int = 1,
        random: bool = True,
        clips: int | None = None,
        cache_bytes: int = 2 << 30,
        crop: str = "centre",
        listing: SplitIndex | None = None,
        log: SkipLog | None = None,
    ):
        self.folder, self.frames, self.size, self.stride, self.random = Path(folder), frames, size, stride, random
        self.crop = crop if random else "centre"
        self.skipped: dict[Path, str] = {}
        self.replaced = set()
        self._log, self._damaged = log or SkipLog(), set[Path]()
        self._lock, self._cache, self._cache_bytes, self._cached = threading.Lock(), OrderedDict(), cache_bytes, 0
        listing = video_folder(folder, split) if listing is None else listing
        self.class_names, self.absent = listing.class_names, listing.absent
        self.files: list[Path] = []
        labels, lengths, small, longest = [], [], 0, 0
        for item in listing.items:
            try:
                info = probe(item.path)
                longest = max(longest, info.frames)
                if info.frames < self.span:
                    raise BrokenVideoError(f"{item.path}: {info.frames} frames, a clip spans {self.span}")
            except (BrokenVideoError, OSError) as error:
                self._skip(item.path, error)
                continue
            self.files.append(item.path)
            labels.append(item.label)
            lengths.append(info.frames)
            small += min(info.height, info.width) < size
        if not self.files:
            raise NoVideosError(self._nothing(split, len(listing.items)), longest)
        self._labels = np.asarray(labels, np.int32)
        self._lengths = np.asarray(lengths)
        self._windows = self._order(self._lengths, clips)
        if self.skipped:
            found = len(self.skipped) + len(self.files)
            self._log.say(f"{self.folder}: {len(self.skipped)} of {found} files skipped")
        if small:
            self._log.say(f"{self.folder}: {small} of {len(self.files)} files are enlarged to data.size {size}")

    def _read(self, file: int, start: Callable[[int], int], count: int, rng: np.random.Generator) -> tuple[dict, int]:
        corner = rng.random(2) if self.crop == "random" else None
        for step in range(len(self.files)):
            i = (file + step) % len(self.files)  # a file that fails is replaced by the next that does not
            path, frames = self.files[i], int(self._lengths[i])
            try:
                # A shorter file that stands in has no such window: then its last.
                first = min(start(frames), frames - 1 - (count - 1) * self.stride)
                video = self._window(path, first, frames, count)
            except (BrokenVideoError, OSError) as error:
                self._skip(path, error)
                continue
            video = np.array(crop(video, self.size, corner))  # a copy: the cache keeps its own
            return {"video": video, "label": self._labels[i]}, i
        raise NoVideosError(
            f"none of the {len(self.files)} files of {self.folder} can be read: {summarize(self.skipped)}"
        )

    def _window(self, path: Path, first: int, frames: int, count: int) -> np.ndarray:
        """A window of a video of `frames` frames.

        A file may fail at one window and not at another, and that alone decides: were it also what was tried before, or
        how much memory there is, a run that is resumed would see other clips than one that ran through.
        """
        if frames * self.size**2 * 3 <= self._cache_bytes // 8 and path not in self._damaged:
            try:
                video = self._whole(path)
            except BrokenVideoError:
                self._damaged.add(path)  # somewhere; the window may be whole
            else:
                if len(video) <= first + (count - 1) * self.stride:  # the header promised more than there is
                    raise BrokenVideoError(f"{path}: {len(video)} of {frames} frames decode")
                return video[first : first + (count - 1) * self.stride + 1 : self.stride]
        return read_video(path, short_side=self.size, start=first, count=count, stride=self.stride)

    def _whole(self, path: Path) -> np.ndarray:
        """The whole file, resized, from memory if it was read before."""
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        video = read_video(path, short_side=self.size)
        video = video if self.crop == "random" else np.ascontiguousarray(crop(video, self.size))
        with self._lock:
            if path not in self._cache:
                self._cache[path] = video
                self._cached += video.nbytes
            while self._cached > self._cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return video

    def _skip(self, path: Path, error: Exception) -> None:
        with self._lock:
            if path not in self.skipped:
                self.skipped[path] = str(error).removeprefix(f"{path}: ")
                self._log.skip(path, self.skipped[path])

    def _nothing(self, split: str, found: int) -> str:
        if self.skipped:
            return f"none of the {found} files of {self.folder} ({split}) can be used: {summarize(self.skipped)}"
        if split == "test":
            return f"{self.folder} holds no clip for testing: give at least two videos, or sub-folders train and test"
        return f"{self.folder} holds no video files ({', '.join(SUFFIXES)}), neither directly nor in sub-folders"


def describe(source: VideoSource, name: str, held_out: VideoSource | None = None) -> str:
    """What was found in the data called `name`, in one line; `held_out` is its test split, where that has a clip."""
    names, skipped, absent = source.class_names, getattr(source, "skipped", {}), getattr(source, "absent", {})
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    classes = f"{len(names)} classes ({shown})" if len(names) > 1 else f"one class ({shown})"
    lost = f", {len(skipped)} skipped" if skipped else ""
    lost += f", {len(absent)} that its lists name are not there" if absent else ""
    if not isinstance(source, Windowed):
        return f"{name}: {len(source):,} clips of {classes}{lost}"
    train, test = source.videos, held_out.videos if isinstance(held_out, Windowed) else 0
    windows = f"{len(source):,} windows of {source.frames} frames"
    return f"{name}: {train + test:,} videos of {classes}: {train:,} for training ({windows}), {test:,} held out{lost}"


def fingerprint(source: str, fold: int = 1) -> str:
    """Changes when a folder's training clips do, as far as names and sizes of files tell; "" for a synthetic world.

    `fold` as for `open_source`.

    Raises:
      NoVideosError: no such folder, or it is incomplete.
    """
    if families_of(source):
        return ""
    folder = Path(source)
    check_folder(folder)
    kind = detect_format(folder)
    if kind == "records":
        return read_manifest(folder / "train")["hash"]
    if kind == "tfds":
        return hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest()[:16]
    items = list_dataset(folder, "train", kind, **_settings(folder, kind, fold)).items
    lines = [f"{item.name}\t{item.label}\t{item.path.stat().st_size}" for item in items]
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]


def class_names(source: str, fold: int = 1) -> tuple[str, ...]:
    """Classes of what `source` names, in label order, without opening a video.

    `fold` as for `open_source`.

    Raises:
      NoVideosError: no such folder, it is incomplete, or not what `fold` belongs to.
    """
    if families := families_of(source):
        return families
    folder = Path(source)
    check_folder(folder)
    kind = detect_format(folder)
    own = _settings(folder, kind, fold)
    if kind == "records":
        return tuple(read_manifest(folder / "train")["class_names"])
    if kind == "tfds":
        return classes(folder)
    return list_dataset(folder, "train", kind, **own).class_names


def open_source(
    source: str,
    *,
    frames: int,
    size: int,
    split: str,
    seed: int = 0,
    clips: int = 8_192,
    stride: int = 1,
    random: bool = True,
    cache_bytes: int = 2 << 30,
    crop: str = "centre",
    fold: int = 1,
    log: SkipLog | None = None,
) -> VideoSource:
    """The source that `source` names: `synthetic`, or a folder of a kind that `datasets.recognise` knows.

    Args:
      source: `synthetic`, `synthetic:FAMILY,...` (`synthetic.families_of`) or a folder: of video files, of `pv-vae
        prepare`, of a data set in its official layout.
      frames, size, stride: of a clip.
      split: `train` or `test`.
      seed: of the synthetic world.
      clips: of the synthetic world; of a folder, at most, for a source that is not `random`.
      random: windows start anywhere (training) instead of one after the other (evaluation).
      cache_bytes: memory for decoded videos or rendered clips.
      crop: `centre`, or `random` for a place drawn with each clip of a `random` source.
      fold: official split of UCF101, 1 to 3; 1 for anything else.
      log: names what is skipped; sources that share one name a file once.

    Raises:
      NoVideosError: the folder is missing, empty, incomplete, not what `fold` belongs to, or nothing in it can be read.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', got {split!r}")
    if families := families_of(source):
        seed = 2 * seed + (split == "test")
        return SyntheticVideos(clips, frames, size, seed, families=families, cache_bytes=cache_bytes)
    folder = Path(source)
    check_folder(folder)
    kind = detect_format(folder)
    own = _settings(folder, kind, fold)
    settings: dict[str, Any] = dict(
        frames=frames, size=size, stride=stride, random=random, clips=clips, crop=crop, log=log
    )
    if kind == "records":
        return RecordVideos(folder, split=split, **settings)
    if kind == "tfds":
        return TFDSVideos(folder, split=split, **settings)
    listing = list_dataset(folder, split, kind, **own)
    if kind == "imagenet":
        return ImageFiles(folder, listing, size=size, random=random, clips=clips, crop=crop, log=log)
    if any(item.start or item.stop != float("inf") for item in listing.items):
        raise NoVideosError(f"{folder}: clips of {kind} are parts of longer videos; cut them first with pv-vae prepare")
    return FolderVideos(folder, split=split, cache_bytes=cache_bytes, listing=listing, **settings)


def _settings(folder: Path, kind: str, fold: int) -> dict:
    """What `list_dataset` takes for this kind alone."""
    if kind == "ucf101":
        return {"fold": fold}
    if fold != 1:
        said = "prepared, with a --fold of its own" if kind == "records" else kind
        raise NoVideosError(f"data.fold is of UCF101 as it was published, and {folder} is {said}: set data.fold=1")
    return {}

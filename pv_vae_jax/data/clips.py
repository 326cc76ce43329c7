"""Clips of the videos of a split: elements for the transforms, and the replacement of videos that cannot be read.

A `Reader` (package `readers`) gives access to the videos, however they are stored. What an element shows depends on its
index alone, and what a window of it shows on the index and the draw of its start.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.data.frame_cache import FrameCache
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError, summarize
from pv_vae_jax.data.shards import BrokenRecordError
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.video_container import BrokenVideoError

UNREADABLE = (BrokenVideoError, BrokenRecordError, OSError)


class TooShortError(BrokenVideoError):
    """A video that is whole, and has fewer frames than a clip."""


class DamagedDataError(ValueError):
    """So much of a data set is damaged that a run on the rest would not be the one that was asked for."""


@dataclasses.dataclass(frozen=True)
class LazyClip:
    """A video whose frames are decoded when they are read: the `video` of an element.

    Attributes:
      length: number of frames.
      rate: frames a second; None if that is not known.
      read: `read(start=, count=, stride=)` -> `(count, h, w, 3)` uint8; a count of None reads to the end. It raises one
        of `UNREADABLE` if the video is damaged there.
      instead: error -> the element that takes the place of this one, which could not be read; None if nothing does.
      replaces: number of videos that could not be read in its place.
    """

    length: int
    rate: float | None
    read: Callable[..., np.ndarray]
    instead: Callable[[Exception], dict[str, Any]] | None = None
    replaces: int = 0


def read_window(
    element: Mapping[str, Any], frames: int, stride: int, start: Callable[[int], int]
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """`frames` frames of a lazy element from frame `start(length)` on, or of the first in its place that can be read.

    A video that replaces another may be shorter: then its last window is taken.

    Returns:
      `(frames, h, w, 3)` uint8, and the element that they come from.

    Raises:
      One of `UNREADABLE` if nothing takes the element's place, or what `LazyClip.instead` raises.
    """
    span = (frames - 1) * stride + 1
    while True:
        clip: LazyClip = element["video"]
        try:
            last = clip.length - span  # start of the last window
            if last < 0:
                raise TooShortError(f"{clip.length} frames, but a clip spans {span}")
            return clip.read(start=min(start(clip.length), last), count=frames, stride=stride), element
        except UNREADABLE as error:
            if clip.instead is None:
                raise
            element = clip.instead(error)


class Reader:
    """The videos of one split by index. Subclasses define `__len__`, `open` and `name`.

    Attributes:
      folder: folder of the videos, used in messages.
      class_names: class names in label order.
      size: frames are resized to `size.scaled(...)`, and cut by whoever reads them.
      lengths: `(n,)` frames of each video; None if a video must be opened to tell, and then each has one window.
      skipped: file or record -> why it, or a window of it, could not be used.
      damaged: those of `skipped` that are not just too short -> number of videos that each holds.
      listed: number of videos with those that could not be opened; 0 if they are not opened beforehand.
      absent: name -> expected path, for files that an official list names but that are missing.
      passed_over: suffix -> number of files that were not looked at, as in `SplitIndex`.
      images: whether the videos are single images, from which no clip can be cut.
      cached: whether decoded videos are worth caching: windows of the same video are read repeatedly, at some cost.
      allowed: name of the setting for the largest share of damaged videos.
      remedy: what to do when it is exceeded.
    """

    unit = "videos"
    allowed, remedy, listed = "max_damaged_files", "mend or remove them", 0
    lengths: Any = None
    images, cached = False, False

    def __init__(self, folder: Path, class_names: tuple[str, ...], size: FrameSize, log: SkipLog | None = None):
        self.folder, self.class_names, self.size = folder, tuple(class_names), size
        self.skipped: dict[Path | str, str] = {}
        self.damaged: dict[Path | str, int] = {}
        self.absent: dict[str, str] = {}
        self.passed_over: dict[str, int] = {}
        self.log = log or SkipLog()

    def __len__(self) -> int:
        raise NotImplementedError

    def open(self, index: int) -> tuple[LazyClip, int]:
        """Video `index` and its label. Opening or reading it raises one of `UNREADABLE` if it is damaged."""
        raise NotImplementedError

    def name(self, index: int) -> Path | str:
        """Path of video `index`, or its name within `folder`."""
        raise NotImplementedError

    def skip(self, name: Path | str, reason: object, videos: int = 1) -> None:
        """Note and log that `name`, which holds `videos`, could not be used; only the first reason counts.

        Raises:
          ExhaustedError: the machine lacks threads, memory or open files, and the video may be intact.
        """
        if isinstance(reason, Exception):
            raise_if_exhausted(reason, name)
        if name not in self.skipped:
            shown = name if isinstance(name, Path) else f"{self.folder} {name}"
            self.skipped[name] = str(reason).removeprefix(f"{shown}: ")
            self.log.skip(shown, self.skipped[name])
            if not isinstance(reason, TooShortError):
                self.damaged[name] = videos

    def check_damage(self) -> None:
        """Raise DamagedDataError if more videos are damaged than the log allows."""
        share, lost, total = getattr(self.log, self.allowed), sum(self.damaged.values()), self.listed or len(self)
        if lost > share * total:
            reasons = summarize({name: self.skipped[name] for name in self.damaged})
            raise DamagedDataError(
                f"{lost} of the {total} {self.unit} of {self.folder} are damaged, more than the share that "
                f"data.{self.allowed}={share:g} allows ({reasons}): {self.remedy}, or set "
                f"--config.data.{self.allowed}={math.ceil(100 * lost / total) / 100:g}"
            )


class ClipSource:
    """The videos of a reader as elements `{"video": LazyClip, "label": int32}`, for training.

    A video of `n` windows of `frames` frames, one after the other, comes `n` times in every epoch, and `RandomWindow`
    starts anywhere in it. One that cannot be read is logged, and the next readable one takes its place. The same index
    and draws therefore always give the same clip, whatever was read before and however much is cached.

    Args:
      reader: access to the videos.
      frames, stride: frames of a clip, and the step in source frames between them.
      cache: decoded videos in memory, `FrameCache`; None reads every window anew.

    Attributes:
      class_names, skipped: as of the reader.
      windows: `(window, video)` of every element.

    Raises:
      NoVideosError: all videos are shorter than a clip.
    """

    def __init__(self, reader: Reader, *, frames: int, stride: int = 1, cache: FrameCache | None = None):
        self.reader, self.class_names, self.skipped = reader, reader.class_names, reader.skipped
        self.frames, self.stride, self.cache = frames, stride, cache
        self.windows = _windows(reader, self.span)

    @property
    def span(self) -> int:
        """Number of source frames that a clip spans."""
        return (self.frames - 1) * self.stride + 1

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The video of element `index`, not read yet, and its label.

        Raises:
          NoVideosError: no video can be read.
          DamagedDataError: too many are damaged, see `SkipLog`.
        """
        return self._element(self.windows[index][1], 0)

    def _element(self, video: int, tried: int) -> dict[str, Any]:
        """`video` after `tried` others have failed in its place: the next one that opens."""
        reader, total = self.reader, len(self.reader)
        for step in range(tried, total):
            i = (video + step) % total
            if reader.lengths is not None and reader.lengths[i] < self.span:
                continue
            try:
                clip, label = reader.open(i)
            except UNREADABLE as error:
                self._skip(i, error)
                continue
            read = clip.read if self.cache is None else functools.partial(self.cache.read, i, clip)
            instead = functools.partial(self._instead, video, step)
            clip = dataclasses.replace(clip, read=read, instead=instead, replaces=step)
            return {"video": clip, "label": np.int32(label)}
        raise NoVideosError(
            f"none of the {total} {reader.unit} of {reader.folder} can be read: {summarize(reader.skipped)}"
        )

    def _instead(self, video: int, step: int, error: Exception) -> dict[str, Any]:
        """What takes the place of `video` after the one `step` behind it could not be read."""
        self._skip((video + step) % len(self.reader), error)
        return self._element(video, step + 1)

    def _skip(self, video: int, error: Exception) -> None:
        self.reader.skip(self.reader.name(video), error)
        self.reader.check_damage()


class WindowSource(ClipSource):
    """The windows of all videos, one after the other, as elements `{"video": (t, H, W, 3) uint8, "label": int32}`.

    For evaluation: nothing is drawn, and frames are cut at the centre.

    Args:
      clips: maximum number of windows.
      reader, frames, stride, cache: as for `ClipSource`.

    Attributes:
      replaced: indices of windows whose own video could not be read.
    """

    def __init__(self, reader: Reader, *, clips: int | None = None, **settings: Any):
        super().__init__(reader, **settings)
        self.windows, self.replaced = self.windows[:clips], set[int]()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Window `index`. Raises NoVideosError if no video can be read."""
        window, video = self.windows[index]
        element = self._element(video, 0)
        frames, element = read_window(element, self.frames, self.stride, lambda length: window * self.span)
        if element["video"].replaces:
            self.replaced.add(index)
        return {**element, "video": np.array(self.reader.size.cut(frames))}  # copied: the cache keeps its own


def _windows(reader: Reader, span: int) -> list[tuple[int, int]]:
    """`(window, video)` of every clip of `span` source frames. Raises NoVideosError if there is no such clip."""
    lengths = np.full(len(reader), span) if reader.lengths is None else reader.lengths
    # Window 0 of every video, then window 1, ...: a short evaluation sees as many videos as it can.
    windows = sorted((w, v) for v, n in enumerate(lengths // span) for w in range(n))
    if not windows:
        longest, reasons = int(lengths.max(initial=0)), summarize(reader.skipped)
        raise NoVideosError(
            f"no clip of {reader.folder} has the required {span} frames, the longest has {longest}"
            + (f" ({reasons})" if reasons else ""),
            longest,
        )
    return windows

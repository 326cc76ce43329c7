"""Clips from videos: windows, crops, and the replacement of videos that cannot be read.

A `Reader` (package `readers`) gives access to the videos of one split, however they are stored; a `ClipSource` cuts
clips from it. What a clip shows depends on its index and the random generator alone.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from pv_vae_jax.data.listing import NoVideosError, summarize
from pv_vae_jax.data.shards import BrokenRecordError
from pv_vae_jax.data.video_reading import BrokenVideoError

T = TypeVar("T")

UNREADABLE = (BrokenVideoError, BrokenRecordError, OSError)


def crop(video: np.ndarray, size: int, corner: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """A `size x size` square of a video.

    Args:
      video: `(t, h, w, 3)`.
      size: side of the square in pixels.
      corner: vertical and horizontal position of the square, each a fraction in [0, 1) of its range; None centres it.

    Raises:
      ValueError: the video is smaller than the square.
    """
    height, width = video.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot crop {size}x{size} from frames of {height}x{width}: resize them first")
    if corner is None:
        top, left = (height - size) // 2, (width - size) // 2
    else:
        top, left = int(corner[0] * (height - size + 1)), int(corner[1] * (width - size + 1))
    return video[:, top : top + size, left : left + size]  # (t, size, size, 3)


def centre_crop(video: np.ndarray, size: int) -> np.ndarray:
    """The central `size x size` square. Raises as `crop`."""
    return crop(video, size)


def augment(video: np.ndarray, rng: np.random.Generator, *, flip: float = 0.0, reverse: float = 0.0) -> np.ndarray:
    """Mirror with probability `flip`; play backwards with probability `reverse` (paper, figure 2: "RandomReverse").

    Both are drawn for every clip, so that turning one on does not change the other's draws.
    """
    mirrored, backwards = rng.random(2) < (flip, reverse)
    video = video[:, :, ::-1] if mirrored else video
    return video[::-1] if backwards else video


@dataclasses.dataclass(frozen=True)
class LazyClip:
    """A video whose frames are decoded when they are read.

    Attributes:
      length: number of frames.
      label: index of its class.
      read: `read(start=, count=, stride=)` -> `(count, h, w, 3)` uint8, resized to the reader's short side; a count of
        None reads to the end.
    """

    length: int
    label: int
    read: Callable[..., np.ndarray]


class Reader:
    """The videos of one split by index. Subclasses define `__len__`, `open` and `name`.

    Attributes:
      folder: folder of the videos, used in messages.
      class_names: class names in label order.
      size: short side in pixels to which frames are resized.
      lengths: `(n,)` frames of each video; None if a video must be opened to tell, and then each has one window.
      skipped: file or record -> why it, or a window of it, could not be used.
      absent: name -> expected path, for files that an official list names but that are missing.
      images: whether the videos are single images, from which no clip can be cut.
      cached: whether decoded videos are worth caching: windows of the same video are read repeatedly, at some cost.
      draws_start, draws_corner: whether `ClipSource` draws a start for a single image and a corner for a centre crop,
        which need neither. Later draws depend on it, so it must not change: existing runs resume with the same bits.
    """

    unit = "videos"
    lengths: np.ndarray | None = None
    images, cached = False, False
    draws_start, draws_corner = True, False

    def __init__(self, folder: Path, class_names: Sequence[str], size: int, log: SkipLog | None = None):
        self.folder, self.class_names, self.size = folder, tuple(class_names), size
        self.skipped: dict[Path | str, str] = {}
        self.absent: dict[str, str] = {}
        self.log = log or SkipLog()

    def __len__(self) -> int:
        raise NotImplementedError

    def open(self, index: int) -> LazyClip:
        """Video `index`. Opening or reading it raises one of `UNREADABLE` if it is damaged."""
        raise NotImplementedError

    def name(self, index: int) -> Path | str:
        """Path of video `index`, or its name within `folder`."""
        raise NotImplementedError

    def skip(self, name: Path | str, reason: object) -> None:
        """Note and log that `name` could not be used; only the first reason counts."""
        if name not in self.skipped:
            shown = name if isinstance(name, Path) else f"{self.folder} {name}"
            self.skipped[name] = str(reason).removeprefix(f"{shown}: ")
            self.log.skip(shown, self.skipped[name])


def first_readable(
    indices: Iterable[int], read: Callable[[int], T], skip: Callable[[int, Exception], None]
) -> tuple[T, int] | None:
    """What `read` gives for the first of `indices` that can be read, and that index; those before go to `skip`."""
    for i in indices:
        try:
            return read(i), i
        except UNREADABLE as error:
            skip(i, error)
    return None


class ClipSource:
    """Clips, or single frames, of the videos of a reader.

    A video that cannot be read is logged, and the next readable one takes its place. The same index and draws therefore
    always give the same clip, whatever was read before and however much is cached.

    Args:
      reader: access to the videos.
      frames, stride: frames of a clip, and the step in source frames between them.
      random: windows start anywhere (training) instead of one after the other (evaluation).
      images: `clip` gives single frames, for training on images.
      clips: maximum number of clips, for a source that is not `random`.
      crop: `centre`, or `random` for a square drawn with each clip; a source that is not `random` takes the centre.
      cache_bytes: memory for decoded videos, if the reader's are worth caching.

    Attributes:
      class_names, skipped: as of the reader.
      replaced: indices of clips whose own video could not be read, for a source that is not `random`.

    Raises:
      NoVideosError: all videos are shorter than a clip.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        frames: int,
        stride: int = 1,
        random: bool = True,
        images: bool = False,
        clips: int | None = None,
        crop: str = "centre",
        cache_bytes: int = 0,
    ):
        self.reader, self.class_names, self.skipped = reader, reader.class_names, reader.skipped
        self.frames, self.stride, self.random, self.images = frames, stride, random, images
        self.crop = crop if random else "centre"
        self.replaced: set[int] = set()
        self.cache = FrameCache(cache_bytes if reader.cached else 0, reader.size, square=self.crop == "centre")
        self.windows = _windows(reader, self.span)
        if not random and clips is not None:
            self.windows = self.windows[:clips]

    @property
    def span(self) -> int:
        """Number of source frames that a clip spans."""
        return (self.frames - 1) * self.stride + 1

    def __len__(self) -> int:
        return len(self.windows)

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """`{"video": (t, size, size, 3) uint8, "label": int32}`: a window at a random start, or window `index` itself.

        Raises:
          NoVideosError: no video can be read, or the videos are single images.
        """
        if self.images:
            return self.image(index, rng)
        if self.reader.images and self.frames > 1:
            raise NoVideosError(
                f"{self.reader.folder} holds images, and this stage trains on clips: use videos, or set its images=True"
            )
        window, video = self.windows[index]
        place = rng.random()
        start = lambda n: int(place * (n - self.span + 1)) if self.random else window * self.span  # noqa: E731
        item, used = self._read(video, start, self.frames, rng)
        if used != video and not self.random:
            self.replaced.add(index)
        return item

    def image(self, index: int, rng: np.random.Generator) -> dict:
        """`{"video": (1, size, size, 3) uint8, "label": int32}`: a random frame of one video. Raises as `clip`."""
        place = rng.random() if self.reader.draws_start else 0.0
        return self._read(self.windows[index][1], lambda n: int(place * n), 1, rng)[0]

    def _read(self, video: int, start: Callable[[int], int], count: int, rng: np.random.Generator) -> tuple[dict, int]:
        """`count` frames from `start(length)` on, of `video` or of the next that can be read, and which one it was."""
        reader, total = self.reader, len(self.reader)
        # Drawn before reading, so that the draws do not depend on which video replaces a broken one.
        drawn = rng.random(2) if self.crop == "random" or reader.draws_corner else None
        corner = drawn if self.crop == "random" else None
        indices = ((video + step) % total for step in range(total))
        if reader.lengths is not None:
            indices = (i for i in indices if reader.lengths[i] >= self.span)

        def read(i: int) -> dict:
            clip = reader.open(i)
            last = clip.length - 1 - (count - 1) * self.stride  # start of the last window
            if last < 0:
                raise BrokenVideoError(f"{clip.length} frames, but a clip spans {clip.length - last}")
            # A video that replaces another may be too short for the window: then its last window is taken.
            frames = self.cache.read(i, clip, min(start(clip.length), last), count, self.stride)  # (count, h, w, 3)
            frames = np.array(crop(frames, reader.size, corner))  # copied, so that the cache keeps its own
            return {"video": frames, "label": np.int32(clip.label)}

        if found := first_readable(indices, read, lambda i, error: reader.skip(reader.name(i), error)):
            return found
        raise NoVideosError(
            f"none of the {total} {reader.unit} of {reader.folder} can be read: {summarize(reader.skipped)}"
        )


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


class FrameCache:
    """Decoded videos of at most `limit` bytes in all; the least recently used are dropped. Thread-safe.

    Small videos are decoded and kept whole; others are read window by window. A damaged video may fail at one window
    and not at another, and only the window may decide: if what was read before, or the cache size, mattered too, a
    resumed run would see other clips than an uninterrupted one.

    Args:
      limit: memory in bytes.
      size: short side of the frames in pixels.
      square: whether only the central square is kept.
    """

    def __init__(self, limit: int, size: int, square: bool):
        self.limit, self.used, self._size, self._square = limit, 0, size, square
        self._videos, self._damaged = OrderedDict[int, np.ndarray](), set[int]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._videos)

    def read(self, index: int, clip: LazyClip, start: int, count: int, stride: int) -> np.ndarray:
        """`clip.read(start, count, stride)` of video `index`, or the central square of it."""
        if clip.length * self._size**2 * 3 <= self.limit // 8 and index not in self._damaged:
            try:
                video = self._decoded(index, clip)
            except BrokenVideoError:
                self._damaged.add(index)  # somewhere; the window may be intact
            else:
                if len(video) <= start + (count - 1) * stride:  # the header promised more frames
                    raise BrokenVideoError(f"{len(video)} of {clip.length} frames decode")
                return video[start : start + (count - 1) * stride + 1 : stride]
        return clip.read(start=start, count=count, stride=stride)

    def _decoded(self, index: int, clip: LazyClip) -> np.ndarray:
        with self._lock:
            if index in self._videos:
                self._videos.move_to_end(index)
                return self._videos[index]
        video = clip.read(start=0, count=None, stride=1)  # (t, h, w, 3)
        video = np.ascontiguousarray(crop(video, self._size)) if self._square else video
        with self._lock:
            if index not in self._videos:
                self._videos[index] = video
                self.used += video.nbytes
            while self.used > self.limit:
                self.used -= self._videos.popitem(last=False)[1].nbytes
        return video

    def __reduce__(self) -> tuple:
        return FrameCache, (self.limit, self._size, self._square)  # a worker process has a cache of its own


class SkipLog:
    """Logs to standard error what was left out, each name once, for all sources that share the log.

    A run opens its data several times, for every stage and size, and all of them meet the same broken file.
    """

    def __init__(self):
        self._names: set[str] = set()
        self._lines: set[str] = set()
        self._lock = threading.Lock()

    def skip(self, name: object, reason: object) -> None:
        """Log that `name` was left out, with the first reason."""
        with self._lock:
            if str(name) not in self._names:
                self._names.add(str(name))
                print(f"skipped {name}: {reason} ({len(self._names)} so far)", file=sys.stderr)

    def say(self, line: str) -> None:
        """Log another line, once."""
        with self._lock:
            if line not in self._lines:
                self._lines.add(line)
                print(line, file=sys.stderr)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

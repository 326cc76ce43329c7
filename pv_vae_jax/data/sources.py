"""Random-access sources of clips: the synthetic world, a folder of video files.

A source is anything with `len`, `class_names`, `clip(index, rng)` and `image(index, rng)`: the result depends on the
two arguments alone.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from pv_vae_jax.data.clips import centre_crop
from pv_vae_jax.data.synthetic import SyntheticVideos
from pv_vae_jax.data.video_files import SUFFIXES, BrokenVideoError, probe, read_video


class NoVideosError(ValueError):
    """A folder from which no clip can be read; the message says what was found and what is expected."""


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


class FolderVideos:
    """Clips from a folder of video files; sub-folders are classes.

    A folder whose only sub-folders are `train` and `test` is split as it stands. Otherwise about a tenth of each class,
    chosen by the hash of the file's name, is held out for testing: adding files moves no others across, unless the
    class was so small that none of its files fell into that tenth.
    Clips are resized by area to the short side and centre-cropped.

    Attributes:
      class_names: names of the sub-folders, sorted; the folder's own name if there are none.
      files: of this split.
      skipped: file -> why it, or a window of it, could not be used. Reading goes on with another file.
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
    ):
        self.folder, self.frames, self.size, self.stride, self.random = Path(folder), frames, size, stride, random
        self.skipped: dict[Path, str] = {}
        self._lock, self._cache, self._cache_bytes, self._cached = threading.Lock(), OrderedDict(), cache_bytes, 0
        by_class = _split(self.folder, split)
        self.class_names = tuple(by_class)
        self.files: list[Path] = []
        labels, lengths = [], []
        for label, paths in enumerate(by_class.values()):
            for path in paths:
                try:
                    info = probe(path)
                    if info.frames < self.span:
                        raise BrokenVideoError(f"{path}: {info.frames} frames, a clip spans {self.span}")
                except (BrokenVideoError, OSError) as error:
                    self._skip(path, error)
                    continue
                self.files.append(path)
                labels.append(label)
                lengths.append(info.frames)
        if not self.files:
            raise NoVideosError(self._nothing(split, by_class))
        self._labels = np.asarray(labels, np.int32)
        self._lengths = np.asarray(lengths)
        windows = self._lengths // self.span
        # Window 0 of every file, then window 1, ...: a short evaluation sees as many files as it can.
        order = sorted((w, f) for f, n in enumerate(windows) for w in range(n))
        self._windows = order if random or clips is None else order[:clips]
        if self.skipped:
            found = len(self.skipped) + len(self.files)
            print(f"{self.folder}: {len(self.skipped)} of {found} files skipped", file=sys.stderr)

    @property
    def span(self) -> int:
        """Source frames from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1

    def __len__(self) -> int:
        return len(self._windows)

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """A window of one file: a random start, or the window's own where the source is not random.

        Raises:
          NoVideosError: no file can be read any more.
        """
        window, file = self._windows[index]
        place = rng.random()
        start = lambda n: int(place * (n - self.span + 1)) if self.random else window * self.span  # noqa: E731
        return self._read(file, start, self.frames)

    def image(self, index: int, rng: np.random.Generator) -> dict:
        """A random frame of one file."""
        place = rng.random()
        return self._read(self._windows[index][1], lambda n: int(place * n), 1)

    def _read(self, file: int, start: Callable[[int], int], count: int) -> dict:
        """`count` frames of a file, `start` giving the first from the number of frames there are."""
        for step in range(len(self.files)):
            i = (file + step) % len(self.files)  # a file that fails is replaced by the next that does not
            path, frames = self.files[i], int(self._lengths[i])
            # A long file may fail at one window and not at another. What was tried before must not matter, or a resumed
            # run would see other clips than a straight one.
            long = frames * self.size**2 * 3 > self._cache_bytes // 8
            if path in self.skipped and not long:
                continue
            try:
                video = (self._part if long else self._slice)(path, start, frames, count)
            except (BrokenVideoError, OSError) as error:
                self._skip(path, error)
                continue
            return {"video": np.array(video), "label": self._labels[i]}  # a copy: the cache keeps its own
        raise NoVideosError(
            f"none of the {len(self.files)} files of {self.folder} can be read: {_reasons(self.skipped)}"
        )

    def _part(self, path: Path, start: Callable[[int], int], frames: int, count: int) -> np.ndarray:
        """A window of a long video, read alone."""
        video = read_video(path, short_side=self.size, start=start(frames), count=count, stride=self.stride)
        return centre_crop(video, self.size)

    def _slice(self, path: Path, start: Callable[[int], int], frames: int, count: int) -> np.ndarray:
        """A window of a video that is kept in memory."""
        video = self._whole(path)
        if len(video) < self.span:  # the header promised more than there is
            raise BrokenVideoError(f"{path}: {len(video)} frames decode, a clip spans {self.span}")
        first = min(start(len(video)), len(video) - 1 - (count - 1) * self.stride)
        return video[first : first + (count - 1) * self.stride + 1 : self.stride]

    def _whole(self, path: Path) -> np.ndarray:
        """The whole file, resized and cropped, from memory if it was read before."""
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        video = np.ascontiguousarray(centre_crop(read_video(path, short_side=self.size), self.size))
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
                print(f"skipped {path}: {self.skipped[path]} ({len(self.skipped)} so far)", file=sys.stderr)

    def _nothing(self, split: str, by_class: dict[str, list[Path]]) -> str:
        found = sum(map(len, by_class.values()))
        if self.skipped:
            return f"none of the {found} files of {self.folder} ({split}) can be used: {_reasons(self.skipped)}"
        if split == "test":
            return f"{self.folder} holds no clip for testing: give at least two videos, or sub-folders train and test"
        return f"{self.folder} holds no video files ({', '.join(SUFFIXES)}), neither directly nor in sub-folders"


def _reasons(skipped: dict[Path, str], shown: int = 5) -> str:
    lines = [f"{path.name}: {why}" for path, why in list(skipped.items())[:shown]]
    return "; ".join(lines) + (f"; and {len(skipped) - shown} more" if len(skipped) > shown else "")


def _split(folder: Path, split: str) -> dict[str, list[Path]]:
    """Class name -> video files of a split.

    Raises:
      NoVideosError: no such folder.
    """
    if folder.is_file():
        raise NoVideosError(f"{folder} is a file; data.source is 'synthetic' or a folder of video files")
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, [p.name for p in folder.parent.glob("*")], 1)
        hint = f"; did you mean {folder.parent / near[0]}?" if near else ""
        raise NoVideosError(f"no folder {folder}{hint} (data.source is 'synthetic' or a folder of video files)")
    below = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    fixed = below == ["test", "train"]
    base = folder / split if fixed else folder
    # Classes are those of the training split, so that both splits number them alike.
    roots = sorted(p for p in (folder / "train" if fixed else folder).iterdir() if p.is_dir())
    classes = [p.name for p in roots if not p.name.startswith(".") and (fixed or _videos(p))]
    if not classes:
        classes, at = [folder.name], lambda name: base
    else:
        at = lambda name: base / name  # noqa: E731
    chosen = {}
    for name in classes:
        paths = _videos(at(name)) if at(name).is_dir() else []
        chosen[name] = paths if fixed else _hold_out(paths, folder, split)
    return chosen


def _videos(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _hold_out(paths: list[Path], folder: Path, split: str) -> list[Path]:
    """The test share of a class, or the rest of it. A class of one file has it for training."""
    rank = {p: hashlib.sha256(p.relative_to(folder).as_posix().encode()).digest() for p in paths}
    test = {p for p in paths if rank[p][0] < 26}  # 26 of 256: about a tenth
    if len(paths) > 1 and not test:
        test = {min(paths, key=rank.get)}
    if len(test) == len(paths):
        test -= {max(paths, key=rank.get)} if paths else set()
    return [p for p in paths if (p in test) == (split == "test")]


def class_names(source: str) -> tuple[str, ...]:
    """Classes of what `source` names, in label order, without opening a file.

    Raises:
      NoVideosError: no such folder.
    """
    return SyntheticVideos.class_names if source == "synthetic" else tuple(_split(Path(source), "train"))


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
) -> VideoSource:
    """The source that `source` names: `synthetic`, or a folder of video files.

    Args:
      source: `synthetic` or a folder.
      frames, size, stride: of a clip.
      split: `train` or `test`.
      seed: of the synthetic world.
      clips: of the synthetic world; of a folder, at most, for a source that is not `random`.
      random: windows start anywhere (training) instead of one after the other (evaluation).
      cache_bytes: memory for decoded videos.

    Raises:
      NoVideosError: the folder is missing, empty, or nothing in it can be read.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', got {split!r}")
    if source == "synthetic":
        return SyntheticVideos(clips, frames, size, seed=2 * seed + (split == "test"))
    shape = dict(frames=frames, size=size, stride=stride)
    return FolderVideos(source, **shape, split=split, random=random, clips=clips, cache_bytes=cache_bytes)

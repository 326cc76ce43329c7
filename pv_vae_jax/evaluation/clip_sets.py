"""Sets of clips to compare: a folder of video files or of folders of frames, or an array in `.npy` or `.npz`.

A set yields clips `(t, h, w, 3)` uint8 by index. All clips of a set must have one size: resizing some of them and not
others would show in every distance.
"""

from __future__ import annotations

import copy
import dataclasses
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError, list_frames
from pv_vae_jax.data.readers.frame_folders import read_frames
from pv_vae_jax.data.sources import list_clips
from pv_vae_jax.data.video_container import SUFFIXES
from pv_vae_jax.data.video_reading import count_frames, read_video
from pv_vae_jax.evaluation.features import FeatureError
from pv_vae_jax.evaluation.image_metrics import SLACK
from pv_vae_jax.storage import on_disk


@dataclasses.dataclass(frozen=True)
class Window:
    """Which frames of a longer clip are scored.

    Attributes:
      frames: number of frames.
      stride: source frames from one scored frame to the next.
      start: `first`, or `random`: uniform, drawn from the seed and the clip's index in the set.
      seed: seed of random starts.
    """

    frames: int
    stride: int = 1
    start: str = "first"
    seed: int = 0

    @property
    def span(self) -> int:
        """Source frames from the first to the last."""
        return (self.frames - 1) * self.stride + 1

    def first(self, index: int, length: int) -> int:
        """First source frame for clip `index` of `length` frames."""
        room = length - self.span
        return int(np.random.default_rng([self.seed, index]).integers(room + 1)) if self.start == "random" else 0


class ClipSet:
    """Clips by index, and how their pixels were made. Subclasses define `__len__` and `clip`.

    Attributes:
      path: the file or folder.
      window: the frames that are scored.
      size: height and width of the first clip.
      pixels, resized: how pixels were made and resized, in words.
      short: number of videos that are shorter than the window and left out.
    """

    path: Path
    window: Window
    size: tuple[int, ...]
    pixels: str
    resized = "no"
    short = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def clip(self, index: int) -> np.ndarray:
        """`(t, h, w, 3)` uint8."""
        raise NotImplementedError

    def name(self, index: int) -> Path | str:
        """What messages call clip `index`."""
        return f"clip {index}"

    def describe(self) -> dict:
        """What a protocol card says about the set."""
        about = {"set": str(self.path), "available": len(self), "pixels": self.pixels}
        return about | {"resized": self.resized, "too short": self.short}


class ArrayClips(ClipSet):
    """Clips of one array `(n, t, h, w, 3)`.

    Args:
      path: `.npy` (memory-mapped, so it may be larger than memory) or `.npz` (the array `video`, or its only array).
      window: the frames that are scored.
      value_range: range of float arrays, `(0, 1)` or `(-1, 1)`; they are rounded to uint8. uint8 arrays need none.

    Raises:
      FeatureError: another shape or type, too few frames, floats without their range.
    """

    def __init__(self, path: str | Path, window: Window, value_range: tuple[float, float] | None = None):
        self.path, self.window, self.value_range = Path(path), window, value_range
        self.video = _load_array(self.path)
        if self.video.ndim != 5 or self.video.shape[-1] != 3:
            hint = ": channels come last, transpose it" if self.video.ndim == 5 and 3 in self.video.shape[1:3] else ""
            raise FeatureError(f"expected clips (n, t, h, w, 3) in {path}, got shape {self.video.shape}{hint}")
        if self.video.shape[1] < window.span:
            raise FeatureError(f"expected clips of at least {window.span} frames in {path}, got {self.video.shape[1]}")
        self.size, self.pixels = self.video.shape[2:4], "uint8 array"
        if self.video.dtype != np.uint8:
            if not np.issubdtype(self.video.dtype, np.floating):
                raise FeatureError(f"expected uint8, or floats with a value range, in {path}; got {self.video.dtype}")
            if value_range is None:
                raise FeatureError(
                    f"{path} holds floats: name their range (--value_range=0,1 or --value_range=-1,1 of pv-vae "
                    "evaluate), or save them as uint8"
                )
            self.pixels = "floats on [{:g}, {:g}] rounded to uint8".format(*value_range)

    def __len__(self) -> int:
        return len(self.video)

    def clip(self, index: int) -> np.ndarray:
        w = self.window
        start = w.first(index, self.video.shape[1])
        clip = np.asarray(self.video[index, start : start + w.span : w.stride])
        return clip if clip.dtype == np.uint8 else self._rounded(clip, index)

    def _rounded(self, clip: np.ndarray, index: int) -> np.ndarray:
        assert self.value_range is not None, "of floats"
        low, high = self.value_range
        # Written so that NaN fails as well.
        if not (clip.min() >= low - SLACK and clip.max() <= high + SLACK):
            raise FeatureError(
                f"expected values in [{low:g}, {high:g}], got {clip.min():.4g} to {clip.max():.4g} in clip {index} of "
                f"{self.path}: name another --value_range"
            )
        return np.clip(np.rint((clip.astype(np.float64) - low) / (high - low) * 255), 0, 255).astype(np.uint8)


class FolderClips(ClipSet):
    """One clip of every video file, or folder of frames, below a folder, in the order of their names.

    Args:
      folder: searched as for training, see `list_clips`.
      window: the frames that are scored; shorter videos are left out and counted.
      size: size to which frames are brought by area, an int for a square; None keeps them as they are.

    Raises:
      FeatureError: the folder has no clips, some cannot be listed, or none is long enough.
      BrokenVideoError: a clip does not decode.
    """

    def __init__(self, folder: str | Path, window: Window, size: int | FrameSize | None = None):
        self.path, self.window, self._size = Path(folder), window, FrameSize.of(size) if size else None
        if self.path.is_file():
            raise FileNotFoundError(f"{folder} is a file: name the folder that contains it")
        if not self.path.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        try:
            listing = list_clips(self.path)
        except NoVideosError as error:
            raise FeatureError(f"{error} (or name the folder of the clips alone)") from error
        found, frames = [entry.path for entry in listing.items], listing.kind == "frames"
        if not found:
            raise FeatureError(f"found no video files ({', '.join(SUFFIXES)}) and no folders of frames in {folder}")
        lengths = [len(list_frames(path)) if frames else count_frames(path) for path in found]
        self._read = read_frames if frames else read_video
        kept = [(p, n) for p, n in zip(found, lengths, strict=True) if n >= window.span]
        self.short = len(found) - len(kept)
        if not kept:
            raise FeatureError(
                f"expected videos of at least {window.span} frames in {folder}, but all {len(found)} are shorter"
            )
        self.files, self.lengths = zip(*kept, strict=True)
        self.size = self.clip(0).shape[1:3]
        self.pixels = f"decoded {'frames' if frames else 'video files'}: their compression is part of the score"
        self.resized = self._size.description if self._size else "no"

    def __len__(self) -> int:
        return len(self.files)

    def clip(self, index: int) -> np.ndarray:
        w = self.window
        start = w.first(index, self.lengths[index])
        video = self._read(self.files[index], resize=self._size, start=start, count=w.frames, stride=w.stride)
        return self._size.cut(video) if self._size else video

    def name(self, index: int) -> Path:
        return self.files[index]

    def pair_name(self, index: int) -> Path:
        """Path of clip `index` below the folder, without the suffix of a video."""
        path = self.files[index].relative_to(self.path)
        return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path

    def in_order(self, order: Sequence[int]) -> FolderClips:
        """The same clips, of which number `order[i]` comes at place `i`."""
        new = copy.copy(self)
        new.files, new.lengths = ([values[i] for i in order] for values in (self.files, self.lengths))
        return new


def open_clips(
    path: str | Path,
    window: Window,
    *,
    size: int | FrameSize | None = None,
    value_range: tuple[float, float] | None = None,
) -> ArrayClips | FolderClips:
    """The set at `path`: an array by its suffix, a folder otherwise.

    Raises:
      FeatureError, FileNotFoundError, BrokenVideoError: as `ArrayClips` and `FolderClips`; an array of another `size`.
    """
    if on_disk(path, "a set of clips").suffix in (".npy", ".npz"):
        clips = ArrayClips(path, window, value_range)
        wanted = FrameSize.of(size) if size else None
        if wanted and tuple(clips.size) != (wanted.height, wanted.width):
            found = " x ".join(map(str, clips.size))
            raise FeatureError(
                f"--size resizes videos only, and the clips of {path} are {found}: resize them to {wanted} yourself"
            )
        return clips
    return FolderClips(path, window, size)


def read_clips(clips: ClipSet, index: np.ndarray):
    """Yield the clips of `index`.

    Raises:
      FeatureError: a clip differs in size from the first clip of the set.
    """
    for i in index:
        clip = clips.clip(int(i))
        if clip.shape[1:3] != tuple(clips.size):
            first, this = (" x ".join(map(str, s)) for s in (clips.size, clip.shape[1:3]))
            raise FeatureError(
                f"the set mixes sizes: its first clip is {first}, {clips.name(i)} is {this}; --size=N brings all to one"
            )
        yield clip


def _load_array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            if "video" not in names and len(names) != 1:
                raise FeatureError(f"{path} contains the arrays {', '.join(names) or '(none)'}: name the clips `video`")
            return archive["video" if "video" in names else names[0]]
    except FeatureError:
        raise
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FeatureError(f"expected an array file, but {path} cannot be read as one: {error}") from error

"""Transforms of a clip as grain classes: alone in any `grain.MapDataset`, or together as training applies them.

An element is `{"video": (t, H, W, 3) uint8, "label": int}`; the video may be a `LazyClip`, of which `RandomWindow`
decodes the window and nothing else. An element may hold `features`, `(t, f)` numbers of its frames, which are cut and
reversed with them. Other entries pass through. `DropFutureFrames` comes after `batch`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from grain.transforms import MapWithIndex, RandomMap

from pv_vae_jax.data.clips import LazyClip, read_window
from pv_vae_jax.data.frame_size import Fit, FrameSize
from pv_vae_jax.dropping import Dropping


class TransformError(ValueError):
    """An element that a transform cannot take; the message names the transform and what it expected."""


@dataclasses.dataclass(frozen=True)
class RandomWindow(RandomMap):
    """`frames` frames, `stride` source frames apart, from a random start; every start is equally likely.

    `video`, `(length, H, W, 3)` or a `LazyClip`, becomes `(frames, H, W, 3)`. A lazy clip that cannot be read, or is
    too short, is replaced by the one that its source names.

    Raises:
      TransformError: a clip in memory has too few frames, or is no uint8 video.
    """

    frames: int
    stride: int = 1

    def __post_init__(self):
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"RandomWindow: frames and stride must be at least 1, got {self.frames} and {self.stride}")

    @property
    def span(self) -> int:
        """Number of source frames from the first frame of the window to the last."""
        return (self.frames - 1) * self.stride + 1

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A window at a random place."""
        return self.window(element, rng.random())  # drawn before anything is read: replacing a clip changes no draw

    def window(self, element: Mapping[str, Any], place: float) -> dict[str, Any]:
        """The window at `place`, in [0, 1) of the possible starts."""
        if isinstance(_entry(element, self), LazyClip):
            start = lambda length: int(place * (length - self.span + 1))  # noqa: E731
            video, element = read_window(element, self.frames, self.stride, start)
            length = element["video"].length  # a clip in the place of another may be shorter
            return {**element, "video": video} | self._features(element, min(start(length), length - self.span), length)
        video = _video(element, self)
        if len(video) < self.span:
            raise TransformError(
                f"RandomWindow: expected at least {self.span} frames, got {len(video)}: drop this clip"
            )
        start = int(place * (len(video) - self.span + 1))
        window = {"video": video[start : start + self.span : self.stride]}
        return {**element} | window | self._features(element, start, len(video))

    def _features(self, element: Mapping[str, Any], start: int, length: int) -> dict[str, np.ndarray]:
        """The features of the window's frames, if there are any."""
        if "features" not in element:
            return {}
        if (n := len(element["features"])) != length:
            raise TransformError(
                f"RandomWindow: expected features of {length} frames, got {n}: give every frame its own"
            )
        return {"features": element["features"][start : start + self.span : self.stride]}


@dataclasses.dataclass(frozen=True)
class ResizeCrop(RandomMap):
    """Frames of one size: `(t, h, w, 3)` -> `(t, height, width, 3)`.

    They are resized by area (needs PyAV, of the extra `video`, where the size is another) and then cropped, padded, or
    neither, as `FrameSize` says. Clips of our readers come resized already.

    Attributes:
      height, width, fit: see `FrameSize`.
      random: crop at a place drawn with each clip, instead of the centre.

    Raises:
      TransformError: the clip has not been read yet (it belongs after `RandomWindow`), or is no uint8 video.
    """

    height: int
    width: int
    fit: Fit = "crop"
    random: bool = False

    def __post_init__(self):
        if self.random and self.fit != "crop":
            raise ValueError(f"ResizeCrop: random=True needs fit='crop', got {self.fit!r}")
        FrameSize(self.height, self.width, self.fit)

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """An element whose frames are of this size."""
        video, size = _video(element, self), FrameSize(self.height, self.width, self.fit)
        corner = rng.random(2) if self.random else None
        if self.random and "features" in element:
            raise TransformError("ResizeCrop: features do not follow a crop: set random=False (data.crop=centre)")
        if size.scaled(*video.shape[1:3]) != video.shape[1:3]:
            from pv_vae_jax.data.video_pixels import resize

            video = np.stack([resize(frame, size) for frame in video])  # (t, h, w, 3)
        return {**element, "video": size.cut(video, corner)}


@dataclasses.dataclass(frozen=True)
class RandomFlip(RandomMap):
    """Mirror left and right with a probability. Raises `TransformError` as `ResizeCrop` does."""

    probability: float = 0.5

    def __post_init__(self):
        _check_probability(self)

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """An element whose frames are mirrored, all or none."""
        video = _video(element, self)
        if self.probability and "features" in element:
            raise TransformError("RandomFlip: features are not mirrored: set the probability (flip of a stage) to 0")
        return {**element, "video": video[:, :, ::-1] if rng.random() < self.probability else video}


@dataclasses.dataclass(frozen=True)
class RandomReverse(RandomMap):
    """Play backwards with a probability (paper, figure 2). Raises `TransformError` as `ResizeCrop` does."""

    probability: float = 0.5

    def __post_init__(self):
        _check_probability(self)

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """An element whose frames are in either order."""
        entries = {"video": _video(element, self)}
        entries |= {"features": element["features"]} if "features" in element else {}
        step = -1 if rng.random() < self.probability else 1
        return {**element} | {name: frames[::step] for name, frames in entries.items()}


@dataclasses.dataclass(frozen=True)
class DropFutureFrames(Dropping, MapWithIndex):
    """Draw `k`, the number of latent frames that the encoder will not see: `batch` gains `dropped` (section 3.1).

    `k ~ U{0, ..., floor((g - 1) r)}` for clips of `g = 1 + (t - 1) / time_factor` latent frames, by `Dropping.draw`.
    The video keeps all of its frames, since the decoder must draw them all; the training step withholds. For
    `map_with_index` after `batch`: the index of a batch is its step, from which, with the seed, `k` follows alone.

    `{"video": (b, t, H, W, 3)}` gains `dropped`, int32: `()`, or `(b,)` with `per_example`.

    Attributes:
      ratio: `r`; see `Dropping` for it and for the other settings of the draw.
      time_factor: frames of a latent frame.
      seed: seed of the draws.
      host_index, host_count: with `per_example`, the parts of the global batch that a batch holds, see `parts_of`.

    Raises:
      TransformError: elements are not batched yet, or frames are not `1 + n time_factor`.
      ValueError: the ratio is outside [0, 1].
    """

    ratio: float = 1.0
    time_factor: int = 4
    seed: int = 0
    host_index: int | Sequence[int] = 0
    host_count: int = 1

    def map_with_index(self, index: int, element: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with `dropped`, for step `index`."""
        shape = np.shape(_entry(element, self))
        if len(shape) != 5 or (shape[1] - 1) % self.time_factor:
            raise TransformError(
                f"DropFutureFrames: expected a batch (b, 1 + n * {self.time_factor}, H, W, 3), got {shape}: put it "
                "after batch, and let RandomWindow give that many frames"
            )
        groups, total = 1 + (shape[1] - 1) // self.time_factor, shape[0] * self.host_count // np.size(self.host_index)
        k = self.draw(groups, total, self.seed, index)
        return {**element, "dropped": parts_of(k, self.host_index, self.host_count) if k.ndim else k}


def parts_of(batch: np.ndarray, index: int | Sequence[int], count: int) -> np.ndarray:
    """Of `count` equal, contiguous parts of an array `(b, ...)`, part `index`, or several joined in their order.

    Raises:
      ValueError: `b` is not a multiple of `count`.
    """
    if len(batch) % count:
        raise ValueError(f"batch_size must be a multiple of the {count} parts that hosts read, got {len(batch)}")
    return batch.reshape(count, -1, *batch.shape[1:])[np.atleast_1d(index)].reshape(-1, *batch.shape[1:])


def clip_transforms(
    size: FrameSize, frames: int, *, stride: int = 1, crop: str = "centre", flip: float = 0.0, reverse: float = 0.0
) -> tuple[RandomMap, ...]:
    """What training applies to a clip, in order: window, size, mirror, direction.

    Those with a probability of 0 are in the list as well; see `pipeline.examples` on the draws.
    """
    fitted = ResizeCrop(size.height, size.width, size.fit, random=crop == "random")
    return RandomWindow(frames, stride), fitted, RandomFlip(flip), RandomReverse(reverse)


def _entry(element: Any, transform: object) -> Any:
    """The video of an element."""
    if not isinstance(element, Mapping) or "video" not in element:
        found = f"the entries {', '.join(element)}" if isinstance(element, Mapping) else type(element).__name__
        raise TransformError(f"{type(transform).__name__}: expected an element with the entry 'video', got {found}")
    return element["video"]


def _video(element: Any, transform: object) -> np.ndarray:
    """The video of an element, which must have been read."""
    video, name = _entry(element, transform), type(transform).__name__
    if isinstance(video, LazyClip):
        raise TransformError(f"{name}: expected a video that has been read, got a LazyClip: put RandomWindow before it")
    if not isinstance(video, np.ndarray) or video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        found = f"{np.shape(video)} {getattr(video, 'dtype', type(video).__name__)}"
        hint = ": put it before batch" if np.ndim(video) == 5 else ""
        raise TransformError(f"{name}: expected a video (t, H, W, 3) uint8, got {found}{hint}")
    return video


def _check_probability(transform: Any) -> None:
    if not 0 <= transform.probability <= 1:
        raise ValueError(f"{type(transform).__name__}: the probability must be in [0, 1], got {transform.probability}")

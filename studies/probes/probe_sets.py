"""Published data as clips for probes: Sintel's flow in windows, TAP-Vid-DAVIS's points from their query frames.

Clips are stretched to the size that the model was trained on; scores are taken where the data sets take theirs: flow at
full resolution, points on a raster of 256 x 256.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pv_vae_jax.data.sources import NoVideosError
from studies.probes.datasets import Sintel, Tracks
from studies.probes.probe_metrics import endpoint_error

HELD_OUT = 0.2  # of Sintel's scenes: 5 of 23


@dataclasses.dataclass(frozen=True)
class SintelWindow:
    """Some frames in a row of one scene.

    Attributes:
      scene, start: where they are.
      fresh: first pair of frames that no earlier window holds.
    """

    scene: str
    start: int
    fresh: int = 0


def sintel_windows(data: Sintel, frames: int, seed: int = 0) -> tuple[list[SintelWindow], list[SintelWindow]]:
    """Windows to train on and to test on, of different scenes, that hold every pair of frames.

    Windows overlap by one frame; the last ends with its scene, and its pairs that an earlier window holds are not
    scored twice.

    Raises:
      NoVideosError: fewer than two scenes have that many frames.
    """
    scenes = [scene for scene in data.scenes if data.length(scene) >= frames]
    if len(scenes) < 2:
        raise NoVideosError(f"{data.folder} has {len(scenes)} scenes of {frames} frames: probes train and test on two")
    order = np.random.default_rng(seed).permutation(len(scenes))
    held = {scenes[i] for i in order[: max(round(HELD_OUT * len(scenes)), 1)]}
    windows = ([], [])
    for scene in scenes:
        last, start, seen = data.length(scene) - frames, 0, 0
        while True:
            windows[scene in held].append(SintelWindow(scene, start, seen - start))
            seen = start + frames - 1
            if start == last:
                break
            start = min(start + frames - 1, last)
    return windows


def read_windows(
    data: Sintel, windows: Sequence[SintelWindow], frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Clips `(n, frames, *size, 3)` uint8, and their flow at full size `(frames - 1, H, W, 2)`, NaN if unknown."""
    video, flow, scene = [], [], None
    for window in windows:
        if window.scene != scene:
            scene, pictures, motion = window.scene, data.frames(window.scene), data.flow(window.scene)
        part = pictures[window.start : window.start + frames]
        video.append(np.rint(area(part.astype(np.float32), size)).astype(np.uint8))
        flow.append(motion[window.start : window.start + frames - 1])
    return np.stack(video), flow


def small_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Flow `(t, H, W, 2)` of the stretched picture, in its pixels; unknown vectors count as none."""
    height, width = flow.shape[1:3]
    scale = np.array([size[1] / width, size[0] / height], np.float32)
    return area(np.nan_to_num(flow), size).astype(np.float32) * scale


def full_flow_error(drawn: Sequence[np.ndarray], truth: Sequence[np.ndarray], windows: Sequence[SintelWindow]) -> float:
    """End-point error at full resolution, over all known pixels of all pairs, each pair once.

    Args:
      drawn: `(t, h, w, 2)` of each window, in pixels of the stretched picture.
      truth: `(t, H, W, 2)`.
      windows: which pairs count.
    """
    total, count = 0.0, 0
    for small, full, window in zip(drawn, truth, windows, strict=True):
        for now, known in zip(small[window.fresh :], full[window.fresh :], strict=True):
            height, width = known.shape[:2]
            scale = np.array([width / now.shape[1], height / now.shape[0]])
            valid = np.isfinite(known).all(axis=-1)
            if valid.any():
                wide = bilinear(now, (height, width)) * scale
                total += endpoint_error(wide, known, valid) * valid.sum()
                count += int(valid.sum())
    if not count:
        raise NoVideosError("no pixel of the test scenes has a known flow")
    return total / count


@dataclasses.dataclass(frozen=True)
class PointClip:
    """Points that are asked for in the first frame of a clip.

    Attributes:
      name: of the video.
      video: `(t, h, w, 3)` uint8.
      path: `(m, t, 2)` (x, y) in pixels of the clip's own size.
      occluded: `(m, t)`.
    """

    name: str
    video: np.ndarray
    path: np.ndarray
    occluded: np.ndarray


def davis_clips(videos: dict[str, Tracks], frames: int, size: tuple[int, int]) -> tuple[list[PointClip], int]:
    """A clip from the frame in which points are first seen ("query first"), for all that have enough frames after it.

    Returns:
      The clips, and how many points had to be left out because the video ends too soon.

    Raises:
      NoVideosError: no point is left.
    """
    clips, left_out = [], 0
    for name, tracked in sorted(videos.items()):
        seen = ~tracked.occluded
        first = np.where(seen.any(axis=1), seen.argmax(axis=1), -1)  # never seen: not asked for
        for start in np.unique(first[first >= 0]):
            asked = first == start
            if start + frames > len(tracked.video):
                left_out += int(asked.sum())
                continue
            part = slice(start, start + frames)
            video = np.rint(area(tracked.video[part].astype(np.float32), size)).astype(np.uint8)
            path = tracked.points[asked][:, part] * np.array([size[1], size[0]])
            clips.append(PointClip(name, video, path, tracked.occluded[asked][:, part]))
    if not clips:
        raise NoVideosError(f"no video has {frames} frames from the first sight of a point on")
    return clips, left_out


def area(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area means of `(..., H, W, c)` on a grid of `size`; squares of one pixel where that is finer."""
    x = np.moveaxis(np.asarray(pictures, np.float32), -1, -3)
    rows, columns = (_area_weights(old, new) for old, new in zip(pictures.shape[-3:-1], size, strict=True))
    return np.moveaxis(rows @ x @ columns.T, -3, -1)


def _area_weights(old: int, new: int) -> np.ndarray:
    """`(new, old)`: which share of cell i each pixel covers."""
    edges, pixels = np.linspace(0, old, new + 1), np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(covered, 0, None) * new / old).astype(np.float32)


def bilinear(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(h, w, c)` drawn at `size`, centres of pixels on centres."""
    for axis, new in enumerate(size):
        old = picture.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(place.astype(int), max(old - 2, 0))
        high = np.minimum(low + 1, old - 1)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(picture.ndim)])
        picture = picture.take(low, axis) * (1 - share) + picture.take(high, axis) * share
    return picture

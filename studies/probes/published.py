"""Published data with truth about motion: MPI-Sintel's flow in windows, TAP-Vid-DAVIS's points from their query frames.

Clips are stretched to the size that the model was trained on; scores are taken where the data sets take theirs: flow at
full resolution, points on a raster of 256 x 256.
"""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.readers.image_files import read_image
from studies.probes.metrics import endpoint_error
from studies.probes.pickled_arrays import read_pickle

FLOW_TAG = 202021.25  # of the Middlebury and Sintel formats: reads "PIEH" in a little-endian file
UNKNOWN_FLOW = 1e9  # components larger than this are unknown
TEST_SHARE = 0.2  # of Sintel's scenes: 5 of 23


class Sintel:
    """MPI-Sintel (Butler et al. 2012), as `MPI-Sintel-complete.zip` and the depth archive unpack.

    `training/{clean,final,albedo}/SCENE/frame_0001.png`, `training/flow/SCENE/frame_0001.flo`,
    `training/{occlusions,invalid}/SCENE/frame_0001.png`, `training/{depth,camdata_left}/SCENE/frame_0001.{dpt,cam}`.

    Args:
      folder: that holds `training` and `test`.
      split: `training`, with truth, or `test`, without.
      render: `clean`, `final` or `albedo`.

    Attributes:
      scenes: names, sorted.

    Raises:
      NoVideosError: the pass is missing; or a scene has no frames, or frames are missing within.
    """

    def __init__(self, folder: str | Path, *, split: str = "training", render: str = "final"):
        if not Path(folder).is_dir():
            raise NoVideosError(f"no folder {folder}: MPI-Sintel is the folder that holds training and test")
        self.folder, self.render = Path(folder) / split, render
        base = self.folder / render
        if not base.is_dir():
            raise NoVideosError(f"{base} is missing: MPI-Sintel has pictures in {split}/{render}/SCENE/frame_0001.png")
        self.scenes = tuple(sorted(p.name for p in base.iterdir() if p.is_dir()))
        self._length = {}
        for scene in self.scenes:
            names = sorted(p.name for p in (base / scene).glob("frame_*.png"))
            wanted = [f"frame_{i:04d}.png" for i in range(1, len(names) + 1)]
            if not names or names != wanted:
                gap = next((name for name in wanted if name not in names), "frame_0001.png")
                raise NoVideosError(f"{base / scene / gap} is missing")
            self._length[scene] = len(names)
        if not self.scenes:
            raise NoVideosError(f"{base} holds no scenes")

    def length(self, scene: str) -> int:
        """Frames of a scene."""
        return self._length[scene]

    def frames(self, scene: str) -> np.ndarray:
        """`(t, 436, 1024, 3)` uint8."""
        return np.stack([read_image(path) for path in self._paths(self.render, scene, "png", self._length[scene])])

    def flow(self, scene: str) -> np.ndarray:
        """`(t - 1, h, w, 2)` float32: motion from each frame to the next, in pixels to the right and down."""
        return np.stack([read_flow(path) for path in self._paths("flow", scene, "flo", self._length[scene] - 1)])

    def occluded(self, scene: str) -> np.ndarray:
        """`(t - 1, h, w)` bool: the point is not seen in the next frame."""
        return self._masks("occlusions", scene, self._length[scene] - 1)

    def invalid(self, scene: str) -> np.ndarray:
        """`(t, h, w)` bool: the flow was not computed reliably there."""
        return self._masks("invalid", scene, self._length[scene])

    def depth(self, scene: str) -> np.ndarray:
        """`(t, h, w)` float32, metres in front of the camera."""
        return np.stack([read_depth(path) for path in self._paths("depth", scene, "dpt", self._length[scene])])

    def _masks(self, kind: str, scene: str, count: int) -> np.ndarray:
        return np.stack([read_image(path)[..., 0] > 127 for path in self._paths(kind, scene, "png", count)])

    def _paths(self, kind: str, scene: str, suffix: str, count: int) -> list[Path]:
        paths = [self.folder / kind / scene / f"frame_{i:04d}.{suffix}" for i in range(1, count + 1)]
        for path in paths:
            if not path.is_file():
                hint = " (the depth archive is a download of its own)" if kind == "depth" else ""
                raise NoVideosError(f"{path} is missing{hint}")
        return paths


def read_flow(path: str | Path) -> np.ndarray:
    """A `.flo` file: `(h, w, 2)` float32, unknown vectors as NaN. Raises NoVideosError if it is damaged."""
    flow = _read_tagged(Path(path), 2)
    return np.where((np.abs(flow) > UNKNOWN_FLOW).any(-1, keepdims=True), np.float32(np.nan), flow)


def read_depth(path: str | Path) -> np.ndarray:
    """A `.dpt` file of Sintel: `(h, w)` float32. Raises NoVideosError if it is damaged."""
    return _read_tagged(Path(path), 1)[..., 0]


def _read_tagged(path: Path, channels: int) -> np.ndarray:
    data = path.read_bytes()
    tag, width, height = struct.unpack("<fii", data[:12]) if len(data) >= 12 else (0.0, 0, 0)
    if tag != FLOW_TAG or min(width, height) < 1 or len(data) != 12 + 4 * channels * width * height:
        raise NoVideosError(f"{path} is damaged: tag {tag}, {width} x {height}, {len(data)} bytes")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width, channels).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Points followed through a video.

    Attributes:
      video: `(t, h, w, 3)` uint8.
      points: `(n, t, 2)` float32, x and y as shares of width and height: 0 is the left or upper edge, 1 the other.
      occluded: `(n, t)` bool: the point is not seen, and its place a guess.
    """

    video: np.ndarray
    points: np.ndarray
    occluded: np.ndarray


def read_tapvid_davis(path: str | Path) -> dict[str, Tracks]:
    """TAP-Vid-DAVIS (Doersch et al. 2022): `tapvid_davis.pkl`, or the folder that holds it.

    The pickle is read without running it (see `pickled_arrays`).

    Returns:
      Name of the video -> its tracks.

    Raises:
      NoVideosError: the file is missing, or does not hold what it should.
      UnsafePickleError: it holds more than values, or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = [p for p in (path / "tapvid_davis.pkl", path / "tapvid_davis" / "tapvid_davis.pkl") if p.is_file()]
        if not found:
            raise NoVideosError(f"{path / 'tapvid_davis.pkl'} is missing: it is what tapvid_davis.zip unpacks to")
        path = found[0]
    elif not path.is_file():
        raise NoVideosError(f"{path} is missing: it is what tapvid_davis.zip unpacks to")
    tree = read_pickle(path)
    if not isinstance(tree, dict) or not tree:
        raise NoVideosError(f"{path} holds {type(tree).__name__}, not a dictionary of videos")
    return {name: _tracks(f"{path}, {name}", value) for name, value in tree.items()}


def _tracks(where: str, value: dict) -> Tracks:
    if not isinstance(value, dict) or {"video", "points", "occluded"} - value.keys():
        raise NoVideosError(f"{where}: expected video, points and occluded")
    video, points, occluded = (np.asarray(value[name]) for name in ("video", "points", "occluded"))
    n, t = occluded.shape if occluded.ndim == 2 else (-1, -1)
    fits = video.ndim == 4 and video.shape[-1] == 3 and video.dtype == np.uint8 and len(video) == t
    if not fits or points.shape != (n, t, 2):
        shapes = f"video {video.shape} {video.dtype}, points {points.shape}, occluded {occluded.shape}"
        raise NoVideosError(f"{where}: {shapes} do not fit together")
    return Tracks(video, points.astype(np.float32), occluded.astype(bool))


# As clips


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
    held = {scenes[i] for i in order[: max(round(TEST_SHARE * len(scenes)), 1)]}
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

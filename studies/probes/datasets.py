"""Data with dense or sparse truth about motion, for probes of what latents hold: MPI-Sintel and TAP-Vid-DAVIS."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np

from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.readers.image_files import read_image
from studies.probes.pickled_arrays import read_pickle

FLOW_TAG = 202021.25  # of the Middlebury and Sintel formats: reads "PIEH" in a little-endian file
UNKNOWN_FLOW = 1e9  # components larger than this are unknown


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

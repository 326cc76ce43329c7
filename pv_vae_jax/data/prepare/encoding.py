"""How a video becomes encoded clips."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import VideoEntry
from pv_vae_jax.data.readers import frame_folders, image_files, tfds
from pv_vae_jax.data.video_container import BrokenVideoError, probe
from pv_vae_jax.data.video_pixels import resize
from pv_vae_jax.data.video_reading import iterate_at_rate
from pv_vae_jax.data.video_writing import encode_video


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How videos become clips.

    Attributes:
      short_side: length of the shorter side in pixels, an even number; smaller videos keep their size.
      fps: frames per second; 0 keeps every frame of the source.
      frames: maximum length of a clip; longer videos are cut into several clips. 0 does not cut.
      min_frames: minimum length of a clip; a shorter rest at the end of a video is dropped.
      gop: frames from one key frame to the next, at most so many are decoded to reach a frame.
      crf: quality of H.264, from 0 (lossless) to 51.
    """

    short_side: int = 256
    fps: float = 0.0
    frames: int = 128
    min_frames: int = 17
    gop: int = 8
    crf: int = 18

    def __post_init__(self):
        if self.short_side < 2 or self.short_side % 2:
            raise ValueError(f"short_side must be an even number of pixels, got {self.short_side}")
        if not 0 <= self.fps < math.inf:  # also refuses nan
            raise ValueError(f"fps must be a finite number of at least 0 (which keeps every frame), got {self.fps}")
        if self.min_frames < 1 or self.gop < 1 or not 0 <= self.crf <= 51:
            raise ValueError(f"min_frames and gop must be at least 1, crf between 0 and 51, got {self}")
        if self.frames and self.frames < self.min_frames:
            raise ValueError(f"frames must be 0 or at least min_frames, {self.min_frames}, got {self.frames}")


def encode_clips(entry: VideoEntry, settings: ClipSettings, kind: str = "video") -> list[tuple[bytes, int, int]]:
    """The clips of a video, each as its encoded bytes, its frames and its label.

    Args:
      entry: the video.
      settings: how it becomes clips.
      kind: kind of the entry, as in `SplitIndex`.

    Raises:
      BrokenVideoError: the file is damaged although the disk reads all of it, or it is too short for a clip.
      OSError: the disk fails.
    """
    try:
        return list(_clips(entry, settings, kind))
    except BrokenVideoError:
        # Decoders take a failing disk for a damaged file. Reading the file to its end raises the error of the disk; if
        # that is over by now, the second try finds the video intact. A folder is of a TensorFlow dataset, or of frames,
        # whose reader tells disk from damage.
        if not entry.path.is_dir():
            with entry.path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        return list(_clips(entry, settings, kind))


def _clips(entry: VideoEntry, settings: ClipSettings, kind: str) -> Iterator[tuple[bytes, int, int]]:
    """Those of `encode_clips`, one at a time."""
    label, min_frames, side = entry.label, settings.min_frames, settings.short_side
    if kind == "image":
        image = image_files.read_image(entry.path)
        if min(image.shape[:2]) > side:
            image = image_files.read_image(entry.path, short_side=side)
        fps, frames, min_frames = 1.0, [image], 1
    elif kind == "tfds":
        video, label = tfds.read_entry(entry)
        fps = 25.0  # a file needs a rate, but nothing reads this one
        min_frames = 1 if len(video) == 1 else min_frames
        smaller = min(video.shape[1:3]) > side
        frames = (resize(frame, side) if smaller else frame for frame in video)
    elif kind == "frames":
        info = frame_folders.probe_frames(entry.path)
        fps, smaller = info.fps, min(info.height, info.width) > side
        frames = frame_folders.iterate_frames(entry.path, resize=FrameSize.of(side) if smaller else None)
    else:
        fps = settings.fps or probe(entry.path).fps
        frames = iterate_at_rate(
            entry.path, fps=settings.fps or None, short_side=side, start=entry.start, stop=entry.stop
        )
    number, clip = 0, list[np.ndarray]()
    for frame in frames:
        clip.append(frame)
        if len(clip) == settings.frames:
            yield _encode(clip, fps, settings), len(clip), label
            number, clip = number + 1, []
    if len(clip) >= min_frames:
        yield _encode(clip, fps, settings), len(clip), label
        number += 1
    if not number:
        raise BrokenVideoError(f"{entry.path}: {len(clip)} frames, at least {min_frames} make a clip")


def _encode(clip: list[np.ndarray], fps: float, settings: ClipSettings) -> bytes:
    height, width = clip[0].shape[:2]
    if min(height, width) < 2:
        raise BrokenVideoError(f"frames of {height} x {width} pixels")
    even = (frame[: height // 2 * 2, : width // 2 * 2] for frame in clip)
    return encode_video(even, fps=fps, gop=settings.gop, crf=settings.crf)

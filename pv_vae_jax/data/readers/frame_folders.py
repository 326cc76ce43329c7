"""Folders of numbered images, one folder a clip (extra `video`: Pillow)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import list_frames
from pv_vae_jax.data.readers.image_files import image_size, read_image
from pv_vae_jax.data.readers.video_files import VideoFiles
from pv_vae_jax.data.video_container import BrokenVideoError, VideoInfo

FPS = 25.0  # images have no times; players show the clips made of them at this rate


def probe_frames(folder: str | Path) -> VideoInfo:
    """Number of frames in a folder, and the size of the first, of which only the header is read.

    Raises:
      BrokenVideoError: the folder does not hold the frames of one clip, or the first is not an image.
      OSError: the system cannot read it.
    """
    names = list_frames(folder)
    with _naming_frame(folder):
        height, width = image_size(Path(folder, names[0]))
    return VideoInfo(len(names), FPS, height, width)


def iterate_frames(
    folder: str | Path, *, resize: FrameSize | None = None, start: int = 0, count: int | None = None, stride: int = 1
) -> Iterator[np.ndarray]:
    """Decode frames `start, start + stride, ...` of a folder, and no others.

    Args:
      folder: folder of the frames, which `list_frames` sorts.
      resize: size to whose `scaled` they are resized, as by `read_image`.
      start: first frame.
      count: number of frames; None reads to the end.
      stride: frames from one returned frame to the next.

    Yields:
      `(h, w, 3)` uint8 RGB, all of one shape.

    Raises:
      BrokenVideoError: a frame is damaged or of another shape than the first, or there are fewer than `count`; the
        message names folder and frame.
      OSError: the system cannot read a frame.
    """
    names = list_frames(folder)
    wanted = names[start::stride][:count]
    if not wanted or (count is not None and len(wanted) < count):
        raise BrokenVideoError(f"{folder}: {len(wanted)} of {count or 1} frames from frame {start} on exist")
    shape = None
    for name in wanted:
        with _naming_frame(folder):
            frame = read_image(Path(folder, name), resize=resize)  # (h, w, 3)
        shape = shape or frame.shape
        if frame.shape != shape:
            sizes = (f"{height} x {width}" for height, width, _ in (shape, frame.shape))
            raise BrokenVideoError("{}: expected frames of {}, got {} in {}".format(folder, *sizes, name))
        yield frame


def read_frames(folder: str | Path, **window: Any) -> np.ndarray:
    """The frames of `iterate_frames` as `(t, h, w, 3)` uint8. Arguments and errors as there."""
    return np.stack(list(iterate_frames(folder, **window)))


class FrameFolders(VideoFiles):
    """The folders of frames of a split; everything else is as for video files."""

    unit = "folders of frames"
    probe, read = staticmethod(probe_frames), staticmethod(read_frames)


@contextlib.contextmanager
def _naming_frame(folder: str | Path) -> Iterator[None]:
    """Put the folder before the frame in messages, as the folder is what is skipped."""
    try:
        yield
    except BrokenVideoError as error:
        raise BrokenVideoError(f"{folder}: frame {str(error).removeprefix(f'{folder}{os.sep}')}") from error

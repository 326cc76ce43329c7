"""Writing video files with PyAV (extra `video`)."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.data.video_reading import BrokenVideoError, import_av
from pv_vae_jax.storage import atomic


def write_video(
    path: str | Path, video: Iterable[np.ndarray], *, fps: float = 8, scale: int = 1, crf: int = 16
) -> None:
    """Write frames as H.264 MP4, atomically.

    Args:
      path: file to write, ending in `.mp4`.
      video: `(t, h, w, 3)` uint8, or an iterable of frames, consumed one at a time. Odd sides are extended by one
        pixel, as the format needs even ones.
      fps: frames per second.
      scale: side of the square to which each pixel is enlarged, for small clips.
      crf: quality, from 0 (lossless) to 51; at 16 no loss is visible.

    Raises:
      ValueError: there are no frames.
    """

    def enlarge(picture: np.ndarray) -> np.ndarray:
        picture = np.repeat(np.repeat(np.asarray(picture, np.uint8), scale, 0), scale, 1)
        return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")

    nothing = f"no frames to write to {path}"
    with atomic(Path(path)) as temporary:
        _encode(os.path.abspath(temporary), map(enlarge, video), fps, {"crf": str(crf)}, nothing)


def encode_video(video: Iterable[np.ndarray], *, fps: float, gop: int, crf: int) -> bytes:
    """Encode frames as H.264 MP4 in memory, for reading from any frame on: frequent key frames, no B frames.

    Args:
      video: frames `(h, w, 3)` uint8 with even sides.
      fps: frames per second.
      gop: frames from one key frame to the next: at most this many are decoded to reach a frame.
      crf: quality, from 0 (lossless) to 51.

    Returns:
      The bytes of a file; equal frames give equal bytes.

    Raises:
      ValueError: there are no frames.
      BrokenVideoError: the encoder refuses the frames, usually because of their size.
    """
    file = io.BytesIO()
    # One thread: the bytes of x264 depend on their number, and clips are encoded in parallel anyway. With its
    # macroblock tree the same frames gave other bytes once in 150 times; over short groups it gains little.
    options = {"crf": str(crf), "g": str(gop), "bf": "0", "sc_threshold": "0", "preset": "veryfast"}
    options |= {"threads": "1", "mbtree": "0"}
    # The same frames in 5 to 15 % more bytes, of which a window decodes up to 2.4 times as fast.
    options |= {"x264-params": "cabac=0"}
    try:
        _encode(file, iter(video), fps, options, "no frames to encode")
    except import_av().error.FFmpegError as error:
        raise_if_exhausted(error, "frames to encode")
        raise BrokenVideoError(f"cannot be encoded ({error})") from error
    return file.getvalue()


def _encode(file, frames: Iterator[np.ndarray], fps: float, options: dict[str, str], nothing: str) -> None:
    av = import_av()
    first = next(frames, None)
    if first is None:
        raise ValueError(nothing)
    # The index comes first, so that a file can be played while it is downloaded.
    layout = {"movflags": "+faststart"} if isinstance(file, str) else {}
    with av.open(file, "w", format="mp4", options=layout) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in itertools.chain([first], frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

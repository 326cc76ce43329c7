"""Writing video files with PyAV (extra `video`)."""

import contextlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.data.video_container import BrokenVideoError, import_av
from pv_vae_jax.storage import as_path, atomic

ENCODER = "libx264"
TICKS = 90_000  # a second, for times of frames

# swscale makes YUV of limited range by the matrix of BT.601 (SMPTE 170M, 6), whatever the size; players that are not
# told take BT.709 (1) for large pictures. Primaries and curve are those of RGB for screens, BT.709.
COLOURS = {"colorspace": 6, "color_range": 1, "color_primaries": 1, "color_trc": 1}


class NoEncoderError(RuntimeError):
    """This PyAV has no encoder for H.264. The message says what to install."""


def write_video(
    path: str | Path,
    video: Iterable[np.ndarray],
    *,
    fps: float = 8,
    times: np.ndarray | None = None,
    scale: int = 1,
    crf: int = 16,
) -> None:
    """Write frames as H.264 MP4 without sound, atomically.

    Args:
      path: file to write, ending in `.mp4`.
      video: `(t, h, w, 3)` uint8, or an iterable of frames, consumed one at a time. Odd sides are extended by one
        pixel, as the format needs even ones.
      fps: frames per second.
      times: `(t,)` seconds from the first frame at which each is shown, where they do not follow one another evenly,
        as of `frame_times`.
      scale: side of the square to which each pixel is enlarged, for small clips.
      crf: quality, from 0 (lossless) to 51; at 16 no loss is visible.

    Raises:
      ValueError: there are no frames.
      NoEncoderError: this PyAV has no encoder for H.264.
      BrokenVideoError: the encoder refuses the frames or its options.
    """

    def enlarge(picture: np.ndarray) -> np.ndarray:
        picture = np.repeat(np.repeat(np.asarray(picture, np.uint8), scale, 0), scale, 1)
        return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")

    nothing = f"no frames to write to {path}"
    with atomic(as_path(path)) as temporary:
        with _refused(f"{path} "):
            _encode(os.path.abspath(temporary), map(enlarge, video), fps, {"crf": str(crf)}, nothing, times)


def check_encoder() -> None:
    """Encode a frame: what is missing shows before the work whose result would be written. Raises as `encode_video`."""
    encode_video(np.zeros((1, 16, 16, 3), np.uint8), fps=8, gop=1, crf=18)


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
      NoEncoderError: this PyAV has no encoder for H.264.
    """
    file = io.BytesIO()
    # One thread: the bytes of x264 depend on their number, and clips are encoded in parallel anyway. With its
    # macroblock tree the same frames gave other bytes once in 150 times; over short groups it gains little.
    options = {"crf": str(crf), "g": str(gop), "bf": "0", "sc_threshold": "0", "preset": "veryfast"}
    options |= {"threads": "1", "mbtree": "0"}
    # The same frames in 5 to 15 % more bytes, of which a window decodes up to 2.4 times as fast.
    options |= {"x264-params": "cabac=0"}
    with _refused():
        _encode(file, iter(video), fps, options, "no frames to encode")
    return file.getvalue()


@contextlib.contextmanager
def _refused(name: str = "") -> Iterator[None]:
    try:
        yield
    except import_av().error.FFmpegError as error:
        raise_if_exhausted(error, "frames to encode")
        if isinstance(error, OSError) and name:  # of the disk
            raise
        raise BrokenVideoError(f"{name}cannot be encoded ({error})") from error


def _encode(file, frames: Iterator[np.ndarray], fps: float, options: dict[str, str], nothing: str, times=None) -> None:
    av = import_av()
    first = next(frames, None)
    if first is None:
        raise ValueError(nothing)
    # Times within a millisecond of an even rate are those of a container that rounds to it.
    even = times is None or np.abs(times - np.arange(len(times)) / fps).max(initial=0) < 1e-3
    if times is not None and not even:  # by at least a tick from one to the next
        ticks = np.maximum.accumulate(np.rint(times * TICKS).astype(int) - np.arange(len(times)))
    # The index comes first, so that a file can be played while it is downloaded.
    layout = {"movflags": "+faststart"} if isinstance(file, str) else {}
    with av.open(file, "w", format="mp4", options=layout) as container:
        try:
            stream = container.add_stream(ENCODER, rate=Fraction(fps).limit_denominator(1001), options=options)
        except av.codec.codec.UnknownCodecError as error:
            raise NoEncoderError(
                f"this PyAV has no encoder for H.264 ({ENCODER}), as its FFmpeg lacks GPL parts: install the wheel, "
                "pip install --force-reinstall av"
            ) from error
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for name, value in COLOURS.items():
            setattr(stream.codec_context, name, value)
        if not even:
            stream.codec_context.time_base = Fraction(1, TICKS)
        for number, frame in enumerate(itertools.chain([first], frames)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if not even:
                frame.pts, frame.time_base = int(ticks[number]) + number, Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

"""Reading video files with PyAV (extra `video`): headers, windows of frames, frames at a given rate."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.data.frame_size import FrameSize

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")

# FFmpeg's names of the demuxers that may be used. Others, of playlists, read a text and then the files it names.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,m4v,h264,gif"
CONTAINERS += ",jpeg_pipe,png_pipe,webp_pipe,bmp_pipe"  # images, as videos of one frame

TIMED = ("mov,", "matroska,", "gif")  # PyAV's names of containers that store when each frame is shown

MAX_PAUSE = 2.0  # seconds between two frames; a longer pause is damage or a still, and is left out
MAX_PIXELS = 1 << 26  # of a frame, 8192 x 8192: a damaged header may ask for more memory than the machine has


class BrokenVideoError(ValueError):
    """A file that is not a video, or that stops decoding too early. The message names it and gives the reason."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """The header of a file: number of frames (an estimate until the file is decoded), frames per second, size."""

    frames: int
    fps: float
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class EncodedVideo:
    """A video file in memory.

    Attributes:
      name: name used in messages.
      data: content of the file.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def import_av():
    """PyAV. Raises ImportError, which names the extra, if it is missing."""
    try:
        import av
    except ImportError as error:
        raise ImportError("video files need PyAV: pip install av (the extra [video] holds it)") from error
    av.logging.set_level(av.logging.PANIC)  # we report broken files, once
    return av


def decoder_versions() -> dict[str, str]:
    """Versions of PyAV and of the FFmpeg in it, on which decoded pixels may depend; empty without PyAV."""
    try:
        av = import_av()
    except ImportError:
        return {}
    return {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info}


def _bytes(path: str | Path | EncodedVideo) -> int:
    if isinstance(path, EncodedVideo):
        return len(path.data)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video file {path}")
    return os.path.getsize(path)


def _open(path: str | Path | EncodedVideo):
    """`(container, video stream)`. Raises BrokenVideoError, or OSError if the system failed and not the file."""
    av = import_av()
    if not _bytes(path):
        raise BrokenVideoError(f"{path}: the file is empty")
    try:
        # Absolute: FFmpeg would take the part before a colon for a protocol.
        file = io.BytesIO(path.data) if isinstance(path, EncodedVideo) else os.path.abspath(path)
        container = av.open(file, options={"format_whitelist": CONTAINERS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise_if_exhausted(error, path)
        if isinstance(error, OSError) and error.errno != errno.EIO:  # EIO also means a truncated file
            raise
        reason = "neither a video container nor an image" if "not on whitelist" in str(error) else error
        raise BrokenVideoError(f"{path}: not readable as video ({reason})") from error
    stream = container.streams.video[0] if container.streams.video else None
    context = stream and stream.codec_context
    if stream is None:
        fault = "the file has no video stream"
    elif context is None:
        fault = "no decoder for this kind of video"
    elif context.height * context.width > MAX_PIXELS:
        fault = f"frames of {context.height} x {context.width}, more than {MAX_PIXELS} pixels"
    else:
        context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change later on
        # Clips are decoded in parallel anyway. More threads would take memory for each open file, and not report
        # damage: what is skipped would depend on the number of cores.
        context.thread_count = 1
        return container, stream
    container.close()
    raise BrokenVideoError(f"{path}: {fault}")


def probe(path: str | Path) -> VideoInfo:
    """Read the header of a video file.

    Raises:
      FileNotFoundError: there is no such file.
      BrokenVideoError: the file has no readable video stream.
    """
    _bytes(path)
    stat = os.stat(path)
    return _probe(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1 << 18)  # a data set is opened for every stage, and for every size of a stage
def _probe(path: str | Path, modified: int, size: int) -> VideoInfo:
    av = import_av()
    container, stream = _open(path)
    with container:
        fps = float(stream.average_rate or stream.base_rate or 0) or 25.0
        frames = stream.frames
        if not frames:
            if stream.duration:
                frames = round(float(stream.duration * stream.time_base) * fps)
            elif container.duration:
                frames = round(container.duration / 1e6 * fps)
        # A recording that was never finished gives no number, a damaged header one too large for the file.
        if not 0 < frames <= _bytes(path) // 8:
            try:
                frames = sum(packet.size > 0 for packet in container.demux(stream))
            except (av.error.FFmpegError, ValueError, OSError) as error:
                raise_if_exhausted(error, path)
                raise BrokenVideoError(f"{path}: not readable as video ({error})") from error
        context = stream.codec_context
        if not context.height or not context.width:
            raise BrokenVideoError(f"{path}: the header gives no frame size")
        return VideoInfo(int(frames), fps, context.height, context.width)


def read_video(
    path: str | Path | EncodedVideo,
    *,
    short_side: int | None = None,
    resize: FrameSize | None = None,
    start: int = 0,
    count: int | None = None,
    stride: int = 1,
) -> np.ndarray:
    """Decode frames `start, start + stride, ...` of a file, rotated as its metadata say.

    Args:
      path: video file, or one in memory.
      short_side: length in pixels to which the shorter side is resized (area averaging, same aspect ratio).
      resize: instead of `short_side`, a size: frames are resized to its `scaled`, and `cut` is left to the caller.
      start: first frame.
      count: number of frames; None reads to the end.
      stride: source frames from one returned frame to the next.

    Returns:
      `(t, h, w, 3)` uint8 RGB.

    Raises:
      FileNotFoundError: there is no such file.
      ExhaustedError: the machine lacks threads, memory or open files.
      BrokenVideoError: no frame decodes, or fewer than `count`.
    """
    target = _target(short_side, resize)
    frames = _decode(path, target, start, count, stride, seek=start > 0)
    if frames is None:
        frames = _decode(path, target, start, count, stride, seek=False)
    if not frames:
        raise BrokenVideoError(f"{path}: no frame decodes" + (f" from frame {start} on" if start else ""))
    if count is not None and len(frames) < count:
        raise BrokenVideoError(f"{path}: {len(frames)} of {count} frames from frame {start} on decode")
    if len({frame.shape for frame in frames}) > 1:
        raise BrokenVideoError(f"{path}: the frame size changes within the video")
    return np.stack(frames)  # (t, h, w, 3)


def iterate_video(
    path: str | Path, *, short_side: int | None = None, resize: FrameSize | None = None, count: int | None = None
) -> Iterator[np.ndarray]:
    """The frames that `read_video` returns from the start of a file, `(h, w, 3)` uint8, one at a time.

    Raises:
      FileNotFoundError, BrokenVideoError: as `read_video`, but only when the bad frame is reached.
    """
    number, convert = 0, _Converter(_target(short_side, resize), path, one_size=True)
    for frame in _frames(path, count):
        number += 1
        yield convert(frame)
    if not number:
        raise BrokenVideoError(f"{path}: no frame decodes")
    if count is not None and number < count:
        raise BrokenVideoError(f"{path}: {number} of {count} frames from frame 0 on decode")


def iterate_at_rate(
    path: str | Path,
    *,
    fps: float | None = None,
    short_side: int | None = None,
    resize: FrameSize | None = None,
    start: float = 0.0,
    stop: float = float("inf"),
) -> Iterator[np.ndarray]:
    """Frames `(h, w, 3)` uint8 shown at the times `start`, `start + 1 / fps`, ..., before `stop`.

    The frames' own times count, so that a varying rate (phones) plays at its true speed; a file without times plays at
    the rate of its header. Frames that are further apart are repeated, closer ones are left out.

    Args:
      path: video file.
      fps: frames per second; None takes every frame.
      short_side: length in pixels to which the shorter side of larger frames is resized.
      resize: instead of `short_side`, a size to which all frames are resized, as by `read_video`.
      start, stop: seconds from the first frame.

    Raises:
      FileNotFoundError, BrokenVideoError: as `read_video`, but only when the bad frame is reached.
    """
    info = probe(path)
    if short_side and short_side >= min(info.height, info.width):
        short_side = None
    gap = min(1 / info.fps, MAX_PAUSE)  # a damaged header may claim any rate
    last, origin, shown, yielded = None, None, 0.0, 0
    convert = _Converter(_target(short_side, resize), path, one_size=True)
    for number, frame in enumerate(_frames(path, None)):
        time = number * gap if frame.time is None else frame.time
        origin = time if origin is None else origin
        previous, shown = shown, time - origin
        # Damaged times run backwards or jump: then frames follow each other at the header's rate.
        if number and not 0 < shown - previous < MAX_PAUSE:
            origin, shown = time - previous - gap, previous + gap
        if fps is None:
            if shown >= stop:
                return
            if shown >= start:
                yielded += 1
                yield convert(frame)
            continue
        while last is not None and start + yielded / fps < min(shown - 1e-6, stop):
            yielded += 1
            yield convert(last)
        last = frame
        if shown >= stop:
            break
    else:
        while last is not None and fps and start + yielded / fps < min(shown + gap - 1e-6, stop):
            yielded += 1
            yield convert(last)
    if not yielded:
        raise BrokenVideoError(f"{path}: no frame decodes" + (f" from {start} s on" if start else ""))


def count_frames(path: str | Path) -> int:
    """Number of frames that decode, found by decoding, as headers are estimates. Raises as `read_video`."""
    return sum(1 for _ in _frames(path, None))


def _frames(path: str | Path, count: int | None) -> Iterator:
    """Decoded frames of PyAV from the start of a file, at most `count`."""
    av = import_av()
    container, stream = _open(path)
    decoded = 0
    with container:
        try:
            for frame, intact in itertools.islice(_decoded(container, stream), count):
                if not intact:
                    raise BrokenVideoError(f"{path}: frame {decoded} is damaged")
                yield frame
                decoded += 1
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise_if_exhausted(error, path)
            raise BrokenVideoError(f"{path}: decoding stops at frame {decoded} ({error})") from error


def _decoded(container, stream) -> Iterator[tuple]:
    """The frames of `container.decode(stream)`, and whether each is intact.

    Decoders fill damaged parts from their surroundings, and later frames refer to them, up to the next key frame.

    PyAV's own generator leaks 150 bytes each time it is left before its end, as every window does, because it does not
    close its generator of packets.
    """
    intact = True
    with contextlib.closing(container.demux(stream)) as packets:
        for packet in packets:
            for frame in packet.decode():
                intact = not frame.is_corrupt and (intact or frame.key_frame)
                yield frame, intact


def _decode(
    path: str | Path | EncodedVideo,
    target: FrameSize | None,
    start: int,
    count: int | None,
    stride: int,
    seek: bool,
) -> list[np.ndarray] | None:
    """Frames of `read_video`, as many as decode; None if it could not `seek` by the frames' times."""
    av = import_av()
    container, stream = _open(path)
    wanted = range(start, sys.maxsize if count is None else start + count * stride, stride)
    times, frames, position, trusted = None, [], -1, not seek
    convert = _Converter(target, path)
    with container:
        try:
            if seek:
                # A file is read again and again, so its times are cached; a record in memory is read once.
                once = isinstance(path, EncodedVideo)
                modified = 0 if once else os.stat(path).st_mtime_ns
                times = _packet_times(container, stream) if once else _frame_times(str(path), modified)
                if times is None:
                    return None
                if start >= len(times):
                    return []
                container.seek(int(times[start]), stream=stream)  # to the key frame at or before it
            for frame, intact in _decoded(container, stream):
                if times is None:
                    position += 1
                else:
                    expected = max(position + 1, start)
                    position = len(times) if frame.pts is None else int(np.searchsorted(times, frame.pts))
                    # Frames before the first key frame after a seek may refer to frames that were not decoded.
                    trusted = trusted or frame.key_frame
                    known = position < len(times) and times[position] == frame.pts
                    if not known or position > expected or (position >= start and not trusted):
                        return None
                if position in wanted:
                    if not intact:
                        raise BrokenVideoError(f"{path}: frame {position} is damaged")
                    frames.append(convert(frame))
                if count is not None and len(frames) == count:
                    break
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise_if_exhausted(error, path)
            raise BrokenVideoError(f"{path}: decoding stops at frame {position + 1} ({error})") from error
    return frames


@functools.lru_cache(maxsize=256)
def _frame_times(path: str, modified: int) -> np.ndarray | None:
    """`_packet_times` of a file."""
    container, stream = _open(path)
    with container:
        return _packet_times(container, stream)


def _packet_times(container, stream) -> np.ndarray | None:
    """Presentation times of all frames in order, from the packets without decoding; None if they cannot be trusted.

    The header's rate does not locate frames if the rate varies (phones); AVI and MPEG files have decoding times only.
    """
    if not container.format.name.startswith(TIMED):
        return None
    try:
        times = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
    except (import_av().error.FFmpegError, ValueError, OSError) as error:
        raise_if_exhausted(error, container.name)
        return None
    if None in times or len(set(times)) < len(times):
        return None
    return np.sort(np.asarray(times, np.int64))


def resize(frame: np.ndarray, size: int | FrameSize) -> np.ndarray:
    """Resize `(h, w, 3)` uint8 by area averaging, as `read_video` does with that `short_side` or `resize`."""
    picture = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return _Converter(FrameSize.of(size), "a frame")(picture)


def _target(short_side: int | None, resize: FrameSize | None) -> FrameSize | None:
    return resize or (FrameSize(short_side, short_side) if short_side else None)


class _Converter:
    """Converts decoded frames to `(h, w, 3)` uint8. One for each file, as its tables are computed once a size.

    Args:
      target: frames are resized to its `scaled`, for which they count as the rotated picture; None keeps the size.
      name: file that the frames are from, used in messages.
      one_size: refuse a frame of another size than the first.
    """

    def __init__(self, target: FrameSize | None, name: object, *, one_size: bool = False):
        self._target, self._name, self._one_size, self._shape = target, name, one_size, None
        self._scaler = import_av().video.reformatter.VideoReformatter()

    def __call__(self, frame) -> np.ndarray:
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        height, width = frame.height, frame.width
        if self._target and turns % 2:
            width, height = self._target.scaled(width, height)
        elif self._target:
            height, width = self._target.scaled(height, width)
        try:
            # One thread, as for the decoder: since PyAV 17 the default starts one for each core, in every open file.
            rgb = self._scaler.reformat(
                frame, width=width, height=height, format="rgb24", interpolation="AREA", threads=1
            )
        except import_av().error.FFmpegError as error:
            raise_if_exhausted(error, self._name)
            raise
        picture = np.rot90(rgb.to_ndarray(), turns) if turns else rgb.to_ndarray()
        self._shape = self._shape or picture.shape
        if self._one_size and picture.shape != self._shape:
            raise BrokenVideoError(f"{self._name}: the frame size changes within the video")
        return picture

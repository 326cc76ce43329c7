"""Video files in and out, through PyAV (extra `video`)."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")

# Demuxers of these, by FFmpeg's names. It knows others that read text, and then the files which that names: playlists.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,m4v,h264,gif"
CONTAINERS += ",jpeg_pipe,png_pipe,webp_pipe,bmp_pipe"  # pictures, as clips of one frame

TIMED = ("mov,", "matroska,", "gif")  # PyAV's names of containers that store when each frame is shown


MAX_PAUSE = 2.0  # seconds from one frame to the next; a longer one is damage or a still, and is left out
MAX_PIXELS = 1 << 26  # of a picture, 8192 x 8192: a damaged header may ask for more memory than there is


class BrokenVideoError(ValueError):
    """A file that is no video, or stops decoding before the frames asked for; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a file's header says. `frames` is an estimate until the file is decoded; `fps` is frames per second."""

    frames: int
    fps: float
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class EncodedVideo:
    """A video file in memory.

    Attributes:
      name: for messages.
      data: what the file would hold.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def _av():
    try:
        import av
    except ImportError as error:
        raise ImportError("video files need PyAV: pip install av (the extra [video] holds it)") from error
    av.logging.set_level(av.logging.PANIC)  # broken files are reported by us, once
    return av


def _bytes(path: str | Path | EncodedVideo) -> int:
    if isinstance(path, EncodedVideo):
        return len(path.data)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video file {path}")
    return os.path.getsize(path)


def _open(path: str | Path | EncodedVideo):
    """`(container, video stream)`; raises BrokenVideoError, or OSError if the system is to blame, not the file."""
    av = _av()
    if not _bytes(path):
        raise BrokenVideoError(f"{path}: the file is empty")
    try:
        # Absolute: FFmpeg would take what stands before a colon for a protocol.
        file = io.BytesIO(path.data) if isinstance(path, EncodedVideo) else os.path.abspath(path)
        container = av.open(file, options={"format_whitelist": CONTAINERS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EIO:  # which FFmpeg says of cut files as well
            raise
        reason = "neither a container of video nor a picture" if "not on whitelist" in str(error) else error
        raise BrokenVideoError(f"{path}: not readable as video ({reason})") from error
    if not container.streams.video:
        container.close()
        raise BrokenVideoError(f"{path}: the file has no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        container.close()
        raise BrokenVideoError(f"{path}: no decoder for this kind of video")
    if context.height * context.width > MAX_PIXELS:
        container.close()
        raise BrokenVideoError(f"{path}: pictures of {context.height} x {context.width}, more than {MAX_PIXELS} pixels")
    context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change later on
    # Clips are decoded in parallel anyway. More threads would hold memory for each open file, and with them damage goes
    # unsaid: what is skipped would depend on the number of cores.
    context.thread_count = 1
    return container, stream


def probe(path: str | Path) -> VideoInfo:
    """Read the header of a video file.

    Raises:
      FileNotFoundError: no such file.
      BrokenVideoError: no readable video stream.
    """
    _bytes(path)
    stat = os.stat(path)
    return _probe(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1 << 18)  # a data set is opened for every stage, and for every size of a stage
def _probe(path: str | Path, modified: int, size: int) -> VideoInfo:
    av = _av()
    container, stream = _open(path)
    with container:
        fps = float(stream.average_rate or stream.base_rate or 0) or 25.0
        frames = stream.frames
        if not frames:
            if stream.duration:
                frames = round(float(stream.duration * stream.time_base) * fps)
            elif container.duration:
                frames = round(container.duration / 1e6 * fps)
        # A recording that was never finished gives no number; a damaged header one that the file has no room for.
        if not 0 < frames <= _bytes(path) // 8:
            try:
                frames = sum(packet.size > 0 for packet in container.demux(stream))
            except (av.error.FFmpegError, ValueError, OSError) as error:
                raise BrokenVideoError(f"{path}: not readable as video ({error})") from error
        context = stream.codec_context
        if not context.height or not context.width:
            raise BrokenVideoError(f"{path}: the header gives no picture size")
        return VideoInfo(int(frames), fps, context.height, context.width)


def read_video(
    path: str | Path | EncodedVideo,
    *,
    short_side: int | None = None,
    start: int = 0,
    count: int | None = None,
    stride: int = 1,
) -> np.ndarray:
    """Decode frames `start, start + stride, ...` of a file, turned as its metadata say.

    Args:
      path: a video file, or one in memory.
      short_side: resize so that the shorter side has this many pixels (area averaging, aspect kept).
      start: first frame.
      count: frames returned; None reads to the end.
      stride: source frames from one returned frame to the next.

    Returns:
      `(t, h, w, 3)` uint8 RGB.

    Raises:
      FileNotFoundError: no such file.
      BrokenVideoError: nothing decodes, or fewer than `count` frames do.
    """
    frames = _decode(path, short_side, start, count, stride, seek=start > 0)
    if frames is None:
        frames = _decode(path, short_side, start, count, stride, seek=False)
    if not frames:
        raise BrokenVideoError(f"{path}: no frame decodes" + (f" from frame {start} on" if start else ""))
    if count is not None and len(frames) < count:
        raise BrokenVideoError(f"{path}: {len(frames)} of the {count} frames wanted from frame {start} on decode")
    if len({frame.shape for frame in frames}) > 1:
        raise BrokenVideoError(f"{path}: the picture size changes within the video")
    return np.stack(frames)


def iterate_video(path: str | Path, *, short_side: int | None = None, count: int | None = None) -> Iterator[np.ndarray]:
    """The frames that `read_video` returns from the start of a file, `(h, w, 3)` uint8, one at a time.

    Raises:
      FileNotFoundError, BrokenVideoError: as `read_video`, when the frame at fault is reached.
    """
    shape, number, convert = None, 0, _Pictures(short_side)
    for frame in _frames(path, count):
        picture = convert(frame)
        if picture.shape != (shape := shape or picture.shape):
            raise BrokenVideoError(f"{path}: the picture size changes within the video")
        number += 1
        yield picture
    if not number:
        raise BrokenVideoError(f"{path}: no frame decodes")
    if count is not None and number < count:
        raise BrokenVideoError(f"{path}: {number} of the {count} frames wanted from frame 0 on decode")


def iterate_at_rate(
    path: str | Path,
    *,
    fps: float | None = None,
    short_side: int | None = None,
    start: float = 0.0,
    stop: float = float("inf"),
) -> Iterator[np.ndarray]:
    """Pictures `(h, w, 3)` uint8 as they stand on the screen at `start`, `start + 1 / fps`, ..., before `stop`.

    Times are those of the frames, so that a rate that varies (phones) plays at its true speed; a file without times
    plays at its header's rate. Pictures are repeated where frames are further apart, left out where they are closer.

    Args:
      path: a video file.
      fps: pictures per second; None takes every frame.
      short_side: of larger pictures; smaller ones stay as they are.
      start, stop: seconds from the first frame.

    Raises:
      FileNotFoundError, BrokenVideoError: as `read_video`, when the frame at fault is reached.
    """
    info = probe(path)
    if short_side and short_side >= min(info.height, info.width):
        short_side = None
    gap = min(1 / info.fps, MAX_PAUSE)  # a damaged header may claim any rate
    held, origin, shown, wanted, shape = None, None, 0.0, 0, None
    convert = _Pictures(short_side)

    def take(frame) -> np.ndarray:
        nonlocal shape
        picture = convert(frame)
        if picture.shape != (shape := shape or picture.shape):
            raise BrokenVideoError(f"{path}: the picture size changes within the video")
        return picture

    for number, frame in enumerate(_frames(path, None)):
        time = number * gap if frame.time is None else frame.time
        origin = time if origin is None else origin
        previous, shown = shown, time - origin
        # Damaged times run backwards or leap; then frames follow each other at the header's rate.
        if number and not 0 < shown - previous < MAX_PAUSE:
            origin, shown = time - previous - gap, previous + gap
        if fps is None:
            if shown >= stop:
                return
            if shown >= start:
                wanted += 1
                yield take(frame)
            continue
        while held is not None and start + wanted / fps < min(shown - 1e-6, stop):
            wanted += 1
            yield take(held)
        held = frame
        if shown >= stop:
            break
    else:
        while held is not None and fps and start + wanted / fps < min(shown + gap - 1e-6, stop):
            wanted += 1
            yield take(held)
    if not wanted:
        raise BrokenVideoError(f"{path}: no frame decodes" + (f" from {start} s on" if start else ""))


def count_frames(path: str | Path) -> int:
    """Frames that decode, by decoding them: headers are estimates. Raises as `read_video`."""
    return sum(1 for _ in _frames(path, None))


def _frames(path: str | Path, count: int | None) -> Iterator:
    """Decoded frames of PyAV from the start of a file, at most `count`."""
    av = _av()
    container, stream = _open(path)
    decoded = 0
    with container:
        try:
            for frame, whole in itertools.islice(_decoded(container, stream), count):
                if not whole:
                    raise BrokenVideoError(f"{path}: frame {decoded} is damaged")
                yield frame
                decoded += 1
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise BrokenVideoError(f"{path}: decoding stops at frame {decoded} ({error})") from error


def _decoded(container, stream) -> Iterator[tuple]:
    """The frames of `container.decode(stream)`, and whether each is whole.

    Damaged parts are drawn from their surroundings, and what follows refers to them, up to the next key frame.

    PyAV's own generator loses 150 bytes each time it is left before its end, as every window does: the generator of
    packets in it is dropped unclosed.
    """
    whole = True
    with contextlib.closing(container.demux(stream)) as packets:
        for packet in packets:
            for frame in packet.decode():
                whole = not frame.is_corrupt and (whole or frame.key_frame)
                yield frame, whole


def _decode(
    path: str | Path | EncodedVideo,
    short_side: int | None,
    start: int,
    count: int | None,
    stride: int,
    seek: bool,
) -> list[np.ndarray] | None:
    """Frames of `read_video`, as many as decode. None says that it could not `seek` by the frames' times."""
    av = _av()
    container, stream = _open(path)
    wanted = range(start, sys.maxsize if count is None else start + count * stride, stride)
    times, frames, position, trusted = None, [], -1, not seek
    convert = _Pictures(short_side)
    with container:
        try:
            if seek:
                # A file is read again and again, a record once: its own container then serves for both.
                own = isinstance(path, EncodedVideo)
                times = _packet_times(container, stream) if own else _frame_times(str(path), _modified(path))
                if times is None:
                    return None
                if start >= len(times):
                    return []
                container.seek(int(times[start]), stream=stream)  # to the key frame at or before it
            for frame, whole in _decoded(container, stream):
                if times is None:
                    position += 1
                else:
                    expected = max(position + 1, start)
                    position = len(times) if frame.pts is None else int(np.searchsorted(times, frame.pts))
                    # What decodes before the first key frame after a seek may lack what it refers to.
                    trusted = trusted or frame.key_frame
                    known = position < len(times) and times[position] == frame.pts
                    if not known or position > expected or (position >= start and not trusted):
                        return None
                if position in wanted:
                    if not whole:
                        raise BrokenVideoError(f"{path}: frame {position} is damaged")
                    frames.append(convert(frame))
                if count is not None and len(frames) == count:
                    break
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise BrokenVideoError(f"{path}: decoding stops at frame {position + 1} ({error})") from error
    return frames


@functools.lru_cache(maxsize=256)
def _frame_times(path: str, modified: int) -> np.ndarray | None:
    """`_packet_times` of a file."""
    container, stream = _open(path)
    with container:
        return _packet_times(container, stream)


def _modified(path: str | Path) -> int:
    return os.stat(path).st_mtime_ns


def _packet_times(container, stream) -> np.ndarray | None:
    """Presentation time of every frame in order, from the packets without decoding; None if they cannot be trusted.

    The header's rate finds no frame where the rate varies (phones); AVI and MPEG files have times of decoding only.
    """
    if not container.format.name.startswith(TIMED):
        return None
    try:
        times = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
    except (_av().error.FFmpegError, ValueError, OSError):
        return None
    if None in times or len(set(times)) < len(times):
        return None
    return np.sort(np.asarray(times, np.int64))


def resize(picture: np.ndarray, short_side: int) -> np.ndarray:
    """`(h, w, 3)` uint8 with its shorter side brought to `short_side` pixels, by area averaging as for files."""
    return _Pictures(short_side)(_av().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))


class _Pictures:
    """Turns decoded frames into pictures `(h, w, 3)` uint8; one for a file, as its tables are made once a size."""

    def __init__(self, short_side: int | None):
        self._short_side, self._scaler = short_side, _av().video.reformatter.VideoReformatter()

    def __call__(self, frame) -> np.ndarray:
        height, width, short = frame.height, frame.width, self._short_side
        if short:
            scale = short / min(height, width)
            height, width = max(short, round(height * scale)), max(short, round(width * scale))
        rgb = self._scaler.reformat(frame, width=width, height=height, format="rgb24", interpolation="AREA")
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.rot90(rgb.to_ndarray(), turns) if turns else rgb.to_ndarray()


def write_video(
    path: str | Path, video: Iterable[np.ndarray], *, fps: float = 8, scale: int = 1, crf: int = 16
) -> None:
    """Write frames as H.264 MP4, whole or not at all.

    Args:
      path: ends in `.mp4`.
      video: `(t, h, w, 3)` uint8, or an iterable of its frames, taken one at a time; odd sides are extended by one
        pixel, as the format wants even ones.
      fps: frames per second.
      scale: enlarge each pixel to a square of this side, for small clips.
      crf: 0 lossless to 51; 16 shows no loss.

    Raises:
      ValueError: there is no frame.
    """

    def enlarged(picture: np.ndarray) -> np.ndarray:
        picture = np.repeat(np.repeat(np.asarray(picture, np.uint8), scale, 0), scale, 1)
        return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")

    temporary = Path(path).with_suffix(".tmp.mp4")
    try:
        _encode(
            os.path.abspath(temporary), map(enlarged, video), fps, {"crf": str(crf)}, f"no frames to write to {path}"
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_video(video: Iterable[np.ndarray], *, fps: float, gop: int, crf: int) -> bytes:
    """H.264 in MP4, in memory, for clips that are read from any frame on: a key frame every `gop` frames, no B frames.

    Args:
      video: `(h, w, 3)` uint8 each, with even sides.
      fps: frames per second.
      gop: at most this many frames are decoded to reach one.
      crf: 0 lossless to 51.

    Returns:
      The bytes of a file; equal frames give equal bytes.

    Raises:
      ValueError: there is no frame.
      BrokenVideoError: the encoder refuses the pictures, for their size as a rule.
    """
    file = io.BytesIO()
    # One thread: x264 writes other bytes with another number of them, and clips are encoded in parallel anyway. With
    # its macroblock tree the same frames gave other bytes once in 150 times; over short groups it gains little.
    options = {"crf": str(crf), "g": str(gop), "bf": "0", "sc_threshold": "0", "preset": "veryfast"}
    options |= {"threads": "1", "mbtree": "0"}
    # The same pictures in 5 to 15 % more bytes, of which a window decodes up to 2.4 times as fast.
    options |= {"x264-params": "cabac=0"}
    try:
        _encode(file, iter(video), fps, options, "no frames to encode")
    except _av().error.FFmpegError as error:
        raise BrokenVideoError(f"cannot be encoded ({error})") from error
    return file.getvalue()


def _encode(file, pictures: Iterator[np.ndarray], fps: float, options: dict[str, str], nothing: str) -> None:
    av = _av()
    first = next(pictures, None)
    if first is None:
        raise ValueError(nothing)
    # The index in front, so that a file can be played while it comes over a network.
    layout = {"movflags": "+faststart"} if isinstance(file, str) else {}
    with av.open(file, "w", format="mp4", options=layout) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in itertools.chain([first], pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

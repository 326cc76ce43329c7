"""Reading video files with PyAV (extra `video`): windows of frames, and frames at a given rate."""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.video_container import (
    BrokenVideoError,
    EncodedVideo,
    VideoStream,
    damage,
    file_times,
    probe,
    shown_times,
)
from pv_vae_jax.data.video_pixels import Converter, deinterlaced

MAX_PAUSE = 2.0  # seconds between two frames; a longer pause is damage or a still, and is left out


def read_video(
    path: str | Path | EncodedVideo,
    *,
    short_side: int | None = None,
    resize: FrameSize | None = None,
    start: int = 0,
    count: int | None = None,
    stride: int = 1,
) -> np.ndarray:
    """Decode frames `start, start + stride, ...` of a file, as a player shows them.

    Upright, with square pixels (`short_side` and `resize` come after that), interlaced frames as whole pictures, alpha
    on black, HDR as SDR.

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
    number = 0
    with VideoStream(path) as video:
        convert = Converter(_target(short_side, resize), path, video.aspect, one_size=True)
        for frame, _ in _frames(video, count):
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
    gap, last, shown, yielded = _gap(info.fps), None, 0.0, 0
    with VideoStream(path) as video:
        convert = Converter(_target(short_side, resize), path, video.aspect, one_size=True)
        for frame, shown in _frames(video, None, gap):
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
    return len(frame_times(path))


def frame_times(path: str | Path, count: int | None = None) -> np.ndarray:
    """`(t,)` seconds from the first frame at which the first `count` frames, or all, are shown, found by decoding.

    They rise. Raises as `read_video`.
    """
    gap = _gap(probe(path).fps)
    with VideoStream(path) as video:
        return np.array([shown for _, shown in _frames(video, count, gap)])


def _gap(fps: float) -> float:
    """Seconds from one frame to the next where times are missing. A damaged header may claim any rate."""
    return min(1 / fps, MAX_PAUSE)


def _frames(video: VideoStream, count: int | None, gap: float = MAX_PAUSE) -> Iterator[tuple]:
    """Frames of PyAV from the start of a file, at most `count`, and the seconds from the first at which they are shown.

    Damaged times run backwards or jump: then, and where there are none, frames follow each other after `gap` seconds.
    """
    decoded, origin, shown = 0, None, 0.0
    with damage(video.path, lambda: f"decoding stops at frame {decoded}"):
        for frame, intact in itertools.islice(deinterlaced(video.decoded(), video.path), count):
            if not intact:
                raise BrokenVideoError(f"{video.path}: frame {decoded} is damaged")
            time = frame.time if frame.time is not None and video.keeps_times else decoded * gap
            origin = time if origin is None else origin
            previous, shown = shown, time - origin
            if decoded and not 0 < shown - previous < MAX_PAUSE:
                origin, shown = time - previous - gap, previous + gap
            yield frame, shown
            decoded += 1


def _decode(
    path: str | Path | EncodedVideo, target: FrameSize | None, start: int, count: int | None, stride: int, seek: bool
) -> list[np.ndarray] | None:
    """Frames of `read_video`, as many as decode; None if it could not `seek` by the frames' times."""
    wanted = range(start, sys.maxsize if count is None else start + count * stride, stride)
    times, frames, position, trusted = None, [], -1, not seek
    with VideoStream(path) as video, damage(path, lambda: f"decoding stops at frame {position + 1}"):
        convert = Converter(target, path, video.aspect)
        if seek:
            # A file is read again and again, so its times are cached; a record in memory is read once.
            once = isinstance(path, EncodedVideo)
            times = shown_times(video) if once else file_times(str(path), os.stat(path).st_mtime_ns)
            if times is None:
                return None
            if start >= len(times):
                return []
            # To the key frame at or before it; an interlaced picture is drawn from the frame before, too.
            video.container.seek(int(times[start - video.interlaced]), stream=video.stream)
        for frame, intact in deinterlaced(video.decoded(), path):
            if times is None:
                position += 1
            else:
                expected, alone = max(position + 1, start), position < 0 and video.interlaced
                position = len(times) if frame.pts is None else int(np.searchsorted(times, frame.pts))
                # Frames before the first key frame after a seek may refer to frames that were not decoded. It may be
                # hidden itself, before the first frame of all.
                trusted = trusted or frame.key_frame or position == 0
                known = position < len(times) and times[position] == frame.pts
                if not known or position > expected or (position >= start and (alone or not trusted)):
                    return None
            if position in wanted:
                if not intact:
                    raise BrokenVideoError(f"{path}: frame {position} is damaged")
                frames.append(convert(frame))
            if count is not None and len(frames) == count:
                break
    return frames


def _target(short_side: int | None, resize: FrameSize | None) -> FrameSize | None:
    return resize or (FrameSize(short_side, short_side) if short_side else None)

"""Video files with PyAV (extra `video`): which stream is shown, and what its container says without decoding."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.storage import on_disk

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")

# FFmpeg's names of the demuxers that may be used. Others, of playlists, read a text and then the files it names.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,m4v,h264,gif"
CONTAINERS += ",jpeg_pipe,png_pipe,webp_pipe,bmp_pipe"  # images, as videos of one frame

TIMED = ("mov,", "matroska,", "gif")  # PyAV's names of containers that store when each frame is shown
INDEXED = ("mov,", "avi")  # and of those whose header lists every frame

MAX_PIXELS = 1 << 26  # of a frame, 8192 x 8192: a damaged header may ask for more memory than the machine has

# Changes when the same file gives other frames or pixels than before: what was made with another must not be mixed in.
READING = 2

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave alpha out


class BrokenVideoError(ValueError):
    """A file that is not a video, or that stops decoding too early. The message names it and gives the reason."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What the container says, as a player shows it.

    Attributes:
      frames: number of frames; a file that is cut or damaged may decode to fewer.
      fps: frames per second; the mean, if it varies.
      height, width: size of the picture, upright and with square pixels. PyAV 18 gives it before any turning.
      sound: whether there is sound.
    """

    frames: int
    fps: float
    height: int
    width: int
    sound: bool = False


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


def import_av() -> Any:
    """PyAV. Raises ImportError, which names the extra, if it is missing."""
    try:
        import av
    except ImportError as error:
        raise ImportError("video files need PyAV: pip install av (the extra [video] holds it)") from error
    av.logging.set_level(av.logging.PANIC)  # pyright: ignore[reportPrivateImportUsage]  # we report broken files, once
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
    if not on_disk(path, "a video").is_file():
        raise FileNotFoundError(f"no video file {path}")
    return os.path.getsize(path)


@contextlib.contextmanager
def damage(path: object, what: Callable[[], str] = lambda: "not readable as video") -> Iterator[None]:
    """Turn errors of FFmpeg into a BrokenVideoError that names the file, and says `what` is wrong.

    Raises:
      ExhaustedError: the machine lacks threads, memory or open files.
    """
    try:
        yield
    except BrokenVideoError:
        raise
    except (import_av().error.FFmpegError, ValueError, OSError) as error:
        raise_if_exhausted(error, path)
        raise BrokenVideoError(f"{path}: {what()} ({error})") from error


# FLV, Ogg, lists of files, any text.
UNREAD = "neither a video container nor an image of the kinds that are read: make it MP4 with ffmpeg"


class VideoStream:
    """An open file, and of its streams the one that a player shows: never the cover of a song. A context manager.

    Args:
      path: video file, or one in memory.

    Attributes:
      container, stream: PyAV's.
      aspect: width of a pixel in its heights.
      interlaced: whether the header, or a frame that was decoded, says that frames are two fields.

    Raises:
      FileNotFoundError: there is no such file.
      BrokenVideoError: there is no readable video stream in it.
      OSError: the system failed, and not the file.
    """

    def __init__(self, path: str | Path | EncodedVideo):
        av, self.path = import_av(), path
        if not _bytes(path):
            raise BrokenVideoError(f"{path}: the file is empty")
        try:
            # Absolute: FFmpeg would take the part before a colon for a protocol.
            file = io.BytesIO(path.data) if isinstance(path, EncodedVideo) else os.path.abspath(path)
            self.container = av.open(file, options={"format_whitelist": CONTAINERS})
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise_if_exhausted(error, path)
            if isinstance(error, OSError) and error.errno != errno.EIO:  # EIO also means a truncated file
                raise
            reason = UNREAD if "not on whitelist" in str(error) else error
            raise BrokenVideoError(f"{path}: not readable as video ({reason})") from error
        streams, best = self.container.streams.video, self.container.streams.best("video")
        shown = [s for s in streams if not s.disposition & av.stream.Disposition.attached_pic]
        self.stream: Any = best if best in shown else next(iter(shown), None)
        if fault := self._open(av, only_covers=bool(streams)):
            self.container.close()
            raise BrokenVideoError(f"{path}: {fault}")

    def _open(self, av, only_covers: bool) -> str:
        """Set up the decoder; what is wrong with the stream, if anything is."""
        if self.stream is None:
            return "the file has no video stream" + (" but an attached picture" if only_covers else "")
        self._decoder = context = self.stream.codec_context
        if context is None:
            return "no decoder for this kind of video"
        ratio = float(self.stream.sample_aspect_ratio or 0)  # 0 is unknown
        self.aspect = ratio if 1 / 16 <= ratio <= 16 else 1.0
        if context.height * context.width * max(self.aspect, 1) > MAX_PIXELS:
            return f"frames of {context.height} x {context.width}, more than {MAX_PIXELS} pixels"
        self.interlaced = context.field_order > 1  # 0 is unknown, 1 progressive
        wanted = ALPHA_DECODERS.get(context.name) if self.stream.metadata.get("alpha_mode") == "1" else None
        if wanted in av.codecs_available:
            self._decoder = av.CodecContext.create(wanted, "r")
            self._decoder.extradata = context.extradata
        for decoder in (context, self._decoder):
            decoder.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change later on
            # Clips are decoded in parallel anyway. More threads would take memory for each open file, and not report
            # damage: what is skipped would depend on the number of cores.
            decoder.thread_count = 1
        return ""

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(self, *_) -> None:
        self.container.close()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture, as the header has it."""
        context = self.stream.codec_context
        size = context.height, round(context.width * self.aspect)
        matrix = getattr(context, "coded_side_data", {}).get("display_matrix")  # since PyAV 19
        return size[::-1] if matrix and turns(matrix)[0] else size

    def indexed_frames(self) -> int | None:
        """Number of frames by the index in the header, of which edit lists hide some; None if there is no full one."""
        entries, promised = self.stream.index_entries, self.stream.frames
        # A damaged header promises more frames than the file has room for.
        if not self.container.format.name.startswith(INDEXED) or not 0 < promised <= _bytes(self.path) // 8:
            return None
        return sum(e.size > 0 and not e.is_discard for e in entries) if len(entries) == promised else None

    def packet_times(self) -> list[int | None]:
        """Presentation time of every frame that is shown, in stored order, from the packets.

        Packets may hold frames that only others refer to. Those ahead of the first key frame, which a cut leaves
        without what they refer to, are shown or not as the decoder decides: only for these the file is decoded.
        """
        vp8, times, lead = self.stream.codec_context.name == "vp8", list[int | None](), False
        with contextlib.closing(self.container.demux(self.stream)) as packets:
            for p in packets:
                if p.size and not p.is_discard and (not vp8 or memoryview(p)[0] & 0x10):  # VP8: show_frame
                    lead |= not p.is_keyframe if not times else None not in (p.pts, times[0]) and p.pts < times[0]
                    times.append(p.pts)
        if lead:
            with VideoStream(self.path) as again:
                return [frame.pts for frame, _ in again.decoded()]
        return times

    @functools.cached_property
    def keeps_times(self) -> bool:
        """Whether frames have times of their own. In AVI they follow each other evenly, unless some were left out."""
        ticks = [entry.timestamp for entry in self.stream.index_entries]
        return self.container.format.name != "avi" or bool(ticks) and ticks[-1] - ticks[0] >= len(ticks)

    def decoded(self) -> Iterator[tuple]:
        """The frames of `container.decode(stream)`, and whether each is intact.

        Decoders fill damaged parts from their surroundings, and later frames refer to them, up to the next key frame.
        PyAV's own generator leaks 150 bytes each time it is left before its end, as every window does, because it does
        not close its generator of packets.
        """
        intact = True
        with contextlib.closing(self.container.demux(self.stream)) as packets:
            for packet in packets:
                for frame in self._decoder.decode(packet):
                    intact = not frame.is_corrupt and (intact or frame.key_frame)
                    self.interlaced |= frame.interlaced_frame
                    yield frame, intact


def turns(matrix: bytes) -> tuple[bool, int, int]:
    """How a display matrix turns pictures: whether rows become columns, and then the step, 1 or -1, of either."""
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    swaps = abs(b) > abs(a)
    return swaps, -1 if (b if swaps else d) < 0 else 1, -1 if (c if swaps else a) < 0 else 1


def probe(path: str | Path) -> VideoInfo:
    """Read what a video file says of itself; WebM, Matroska and MPEG files, which list no frames, to their end.

    Raises:
      FileNotFoundError: there is no such file.
      BrokenVideoError: the file has no readable video stream.
    """
    _bytes(path)
    stat = os.stat(path)
    return _probe(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1 << 18)  # a data set is opened for every stage, and for every size of a stage
def _probe(path: str | Path, modified: int, size: int) -> VideoInfo:
    with VideoStream(path) as video, damage(path):
        stream = video.stream
        fps, frames = float(stream.average_rate or stream.base_rate or 0) or 25.0, video.indexed_frames()
        if frames is None:
            times = video.packet_times()
            frames, known = len(times), [time for time in times if time is not None]
            if len(known) == frames > 1 and video.container.format.name.startswith(TIMED):
                fps = _mean_rate(fps, frames, float((max(known) - min(known)) * stream.time_base))
        if not min(video.shape):
            raise BrokenVideoError(f"{path}: the header gives no frame size")
        return VideoInfo(frames, fps, *video.shape, bool(video.container.streams.audio))


def _mean_rate(claimed: float, frames: int, seconds: float) -> float:
    """The rate that a header claims, or the mean of the times if the last is over a frame off it (screen captures)."""
    rate = (frames - 1) / seconds if seconds > 0 else claimed
    return rate if abs((frames - 1) / claimed - seconds) > 1 / min(rate, claimed) else claimed


@functools.lru_cache(maxsize=256)
def file_times(path: str, modified: int) -> np.ndarray | None:
    """`shown_times` of a file, which is read again and again."""
    with VideoStream(path) as video:
        return shown_times(video)


def shown_times(video: VideoStream) -> np.ndarray | None:
    """Presentation times of all frames in order, from the packets; None if they cannot be trusted to find frames by.

    The header's rate does not locate frames if the rate varies (phones); AVI and MPEG files have decoding times only.
    """
    if not video.container.format.name.startswith(TIMED):
        return None
    try:
        with damage(video.path):
            times = video.packet_times()
    except BrokenVideoError:
        return None
    if None in times or len(set(times)) < len(times):
        return None
    return np.sort(np.asarray(times, np.int64))

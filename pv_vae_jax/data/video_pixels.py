"""From PyAV's frames to what a player shows, RGB of 8 bits: fields, pixel shape, orientation, alpha and HDR."""

import functools
import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np

from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.video_container import BrokenVideoError, import_av, turns

PQ, HLG = 16, 18  # transfer curves of HDR, as FFmpeg numbers them (ITU-R BT.2100)
WHITE = 203.0  # cd/m2 of white in HDR (ITU-R BT.2408): it becomes that of SDR
KNEE = 0.8  # of white: what is brighter is compressed, and what is not stays as it is
BT2020_LUMA = np.array((0.2627, 0.6780, 0.0593), np.float32)
BT2020_TO_BT709 = np.array(  # of linear light (ITU-R BT.2087)
    ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)), np.float32
)


def resize(frame: np.ndarray, size: int | FrameSize) -> np.ndarray:
    """Resize `(h, w, 3)` uint8 by area averaging, as `read_video` does with that `short_side` or `resize`."""
    picture = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return Converter(FrameSize.of(size), "a frame")(picture)


class Converter:
    """Converts decoded frames to `(h, w, 3)` uint8. One for each file, as its tables are computed once a size.

    Pixels become square by another width, alpha is laid on black, and HDR becomes SDR.

    Args:
      target: frames are resized to its `scaled`, for which they count as the upright picture; None keeps the size.
      name: file that the frames are from, used in messages.
      aspect: width of a pixel in its heights.
      one_size: refuse a frame of another size than the first.
    """

    def __init__(self, target: FrameSize | None, name: object, aspect: float = 1.0, *, one_size: bool = False):
        self._target, self._name, self._aspect, self._one_size = target, name, aspect, one_size
        self._shape: tuple[int, ...] | None = None
        self._scaler = import_av().video.reformatter.VideoReformatter()

    def __call__(self, frame) -> np.ndarray:
        matrix = frame.side_data.get("DISPLAYMATRIX")
        swaps, down, right = turns(bytes(matrix)) if matrix else (False, 1, 1)
        height, width = frame.height, max(1, round(frame.width * self._aspect))
        if self._target and swaps:
            width, height = self._target.scaled(width, height)
        elif self._target:
            height, width = self._target.scaled(height, width)
        curve = int(frame.color_trc)
        hdr = curve in (PQ, HLG)
        if _has_alpha(frame.format.name):
            frame = self._on_black(frame)
        picture = self._reformat(frame, width=width, height=height, format="rgb48le" if hdr else "rgb24").to_ndarray()
        picture = from_hdr(picture, curve) if hdr else picture  # (h, w, 3)
        picture = (picture.swapaxes(0, 1) if swaps else picture)[::down, ::right]
        self._shape = self._shape or picture.shape
        if self._one_size and picture.shape != self._shape:
            raise BrokenVideoError(f"{self._name}: the frame size changes within the video")
        return picture

    def _reformat(self, frame, **wanted):
        try:
            # One thread, as for the decoder: since PyAV 17 the default starts one for each core, in every open file.
            return self._scaler.reformat(frame, **wanted, interpolation="AREA", threads=1)
        except import_av().error.FFmpegError as error:
            raise_if_exhausted(error, self._name)
            raise

    def _on_black(self, frame):
        """The visible part of a frame; the frame itself if all of it is."""
        rgba = self._reformat(frame, format="rgba").to_ndarray()  # (h, w, 4)
        if rgba[..., 3].min() == 255:
            return frame
        return import_av().VideoFrame.from_ndarray(on_black(rgba), format="rgb24")


def on_black(rgba: np.ndarray) -> np.ndarray:
    """Lay `(..., 4)` uint8 on black: `(..., 3)` uint8."""
    rgb, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:]
    return ((rgb * alpha + 127) // 255).astype(np.uint8)


@functools.cache
def _has_alpha(name: str) -> bool:
    form = import_av().VideoFormat(name)
    return form.has_palette or any(component.is_alpha for component in form.components)


def from_hdr(picture: np.ndarray, curve: int) -> np.ndarray:
    """HDR `(..., 3)` uint16 of BT.2020 to SDR uint8 of BT.709, both R'G'B' of full range.

    White of HDR becomes white of SDR, nearly: above `KNEE` of it the largest channel is compressed, the others with it.

    Args:
      curve: `PQ` or `HLG`, the latter as on a display of 1000 cd/m2 (ITU-R BT.2100, tables 4 and 5).
    """
    light = _light(curve)[picture]  # (..., 3) float32, 1 is white
    if curve == HLG:  # from the light of the scene to that of the display
        light *= 1000 / WHITE * (light @ BT2020_LUMA)[..., None] ** 0.2
    light = np.maximum(light @ BT2020_TO_BT709.T, 0)
    peak = light.max(-1, keepdims=True)
    excess = np.maximum(peak - KNEE, 0) / (1 - KNEE)
    light *= np.where(peak > KNEE, KNEE - (1 - KNEE) * np.expm1(-excess), peak) / np.maximum(peak, 1e-6)
    return np.rint(255 * light ** (1 / 2.4)).astype(np.uint8)  # ITU-R BT.1886


@functools.cache
def _light(curve: int) -> np.ndarray:
    """Light of each of 65,536 signals, float32: of the display over `WHITE` for PQ, of the scene for HLG."""
    signal = np.linspace(0, 1, 1 << 16)
    if curve == PQ:
        root = signal ** (1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return (10_000 / WHITE * light).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


def deinterlaced(frames: Iterator[tuple], name: object) -> Iterator[tuple]:
    """`(frame, intact)` from the first interlaced frame on as FFmpeg's `bwdif` draws them, one picture for each frame.

    A picture is drawn from the frames before and behind it, and is intact if they are. Progressive frames stay as they
    are.

    Raises:
      BrokenVideoError: the frame size changes behind an interlaced frame of the file `name`.
    """
    before = None
    for item in frames:
        if item[0].interlaced_frame:
            break
        before = item
        yield item
    else:
        return
    # The picture of the progressive frame before it is out already.
    behind = itertools.chain([before] * bool(before), [item], frames, [None])
    graph, shape, held = _bwdif(item[0]), (item[0].height, item[0].width), deque(maxlen=3)
    for number, item in enumerate(behind):
        if item and (item[0].height, item[0].width) != shape:
            raise BrokenVideoError(f"{name}: the frame size changes within the video")
        graph.vpush(item and item[0])
        held.append(item)
        if number:  # `bwdif` waits for the frame behind
            picture, frame = graph.vpull(), held[-2][0]
            for key in ("pts", "time_base", "colorspace", "color_range", "color_trc"):
                setattr(picture, key, getattr(frame, key))
            if number > 1 or not before:
                yield picture, all(each[1] for each in held if each)


def _bwdif(frame):
    graph = import_av().filter.Graph()
    graph.threads = 1
    buffer = graph.add_buffer(template=frame)
    graph.link_nodes(buffer, graph.add("bwdif", "send_frame:deint=interlaced"), graph.add("buffersink")).configure()
    return graph

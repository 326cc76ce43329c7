"""Decoded videos in memory, for sources whose windows are read again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.video_container import BrokenVideoError

if TYPE_CHECKING:
    from pv_vae_jax.data.clips import LazyClip


class FrameCache:
    """Decoded videos of at most `limit` bytes in all; the least recently used are dropped. Thread-safe.

    Small videos are decoded and kept whole; others are read window by window. A damaged video may fail at one window
    and not at another, and only the window may decide: if what was read before, or the cache size, mattered too, a
    resumed run would see other clips than an uninterrupted one.

    Args:
      limit: memory in bytes.
      size: size of the frames.
      cut: whether only what `size.cut` leaves at the centre is kept.
    """

    def __init__(self, limit: int, size: FrameSize, cut: bool):
        self.limit, self.used, self._size, self._cut = limit, 0, size, cut
        self._videos, self._damaged = OrderedDict[int, np.ndarray](), set[int]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._videos)

    def read(self, index: int, clip: LazyClip, start: int, count: int | None, stride: int) -> np.ndarray:
        """`clip.read(start, count, stride)` of video `index`, or the centre of it."""
        if (
            count is not None
            and clip.length * self._size.height * self._size.width * 3 <= self.limit // 8
            and index not in self._damaged
        ):
            try:
                video = self._decoded(index, clip)
            except BrokenVideoError:
                self._damaged.add(index)  # somewhere; the window may be intact
            else:
                if len(video) <= start + (count - 1) * stride:  # the header promised more frames
                    raise BrokenVideoError(f"{len(video)} of {clip.length} frames decode")
                return video[start : start + (count - 1) * stride + 1 : stride]
        return clip.read(start=start, count=count, stride=stride)

    def _decoded(self, index: int, clip: LazyClip) -> np.ndarray:
        with self._lock:
            if index in self._videos:
                self._videos.move_to_end(index)
                return self._videos[index]
        video = clip.read(start=0, count=None, stride=1)  # (t, h, w, 3)
        video = np.ascontiguousarray(self._size.cut(video)) if self._cut else video
        with self._lock:
            if index not in self._videos:
                self._videos[index] = video
                self.used += video.nbytes
            while self.used > self.limit:
                self.used -= self._videos.popitem(last=False)[1].nbytes
        return video

    def __reduce__(self) -> tuple:
        return FrameCache, (self.limit, self._size, self._cut)  # a worker process has a cache of its own

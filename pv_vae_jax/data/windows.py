"""Windows into videos of known length: which there are, in what order, and the draws that choose one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Windowed:
    """What sources of long videos share; they read `count` frames of a video in `_read`.

    Attributes:
      frames, stride: of a clip.
      random: windows start anywhere (training) instead of one after the other (evaluation).
      replaced: of a source that is not random, clips that cannot be read and for which `clip` gave another.
    """

    frames: int
    stride: int
    random: bool
    replaced: set[int]
    _windows: list[tuple[int, int]]  # what `_order` gives

    def _order(self, lengths: np.ndarray, clips: int | None) -> list[tuple[int, int]]:
        """`(window, video)` of every clip; at most `clips` for a source that is not random.

        Window 0 of every video, then window 1, ...: a short evaluation sees as many videos as it can.
        """
        order = sorted((w, v) for v, n in enumerate(lengths // self.span) for w in range(n))
        return order if self.random or clips is None else order[:clips]

    @property
    def span(self) -> int:
        """Source frames from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1

    @property
    def videos(self) -> int:
        """How many videos have a window."""
        return len({video for _, video in self._windows})

    def __len__(self) -> int:
        return len(self._windows)

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """A window of one video: a random start, or the window's own where the source is not random.

        Raises:
          NoVideosError: no video can be read any more.
        """
        window, video = self._windows[index]
        place = rng.random()
        start = lambda n: int(place * (n - self.span + 1)) if self.random else window * self.span  # noqa: E731
        item, found = self._read(video, start, self.frames, rng)
        if found != video and not self.random:
            self.replaced.add(index)
        return item

    def image(self, index: int, rng: np.random.Generator) -> dict:
        """A random frame of one video."""
        place = rng.random()
        return self._read(self._windows[index][1], lambda n: int(place * n), 1, rng)[0]

    def _read(self, video: int, start: Callable[[int], int], count: int, rng: np.random.Generator) -> tuple[dict, int]:
        """`count` frames of a video, or of the next that can be read, and which that is.

        `start` gives the first of them from the number of frames there are.
        """
        raise NotImplementedError

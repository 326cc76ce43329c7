"""Operations on clips `(t, h, w, 3)`: crop, flip, play backwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def crop(video: np.ndarray, size: int, corner: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """A `size x size` square.

    Args:
      video: `(t, h, w, 3)`.
      size: side of the square in pixels.
      corner: how far down and to the right it lies, each in [0, 1), of all places it may have; None is the centre.

    Raises:
      ValueError: the picture is smaller.
    """
    height, width = video.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot crop {size}x{size} from a picture of {height}x{width}")
    if corner is None:
        top, left = (height - size) // 2, (width - size) // 2
    else:
        top, left = int(corner[0] * (height - size + 1)), int(corner[1] * (width - size + 1))
    return video[:, top : top + size, left : left + size]


def centre_crop(video: np.ndarray, size: int) -> np.ndarray:
    """The central `size x size` square; raises as `crop`."""
    return crop(video, size)


def augment(video: np.ndarray, rng: np.random.Generator, *, flip: float = 0.0, reverse: float = 0.0) -> np.ndarray:
    """Mirror with probability `flip`; play backwards with probability `reverse` (paper, figure 2: "RandomReverse").

    Both are drawn for every clip, so that turning one on does not change the other's draws.
    """
    mirrored, backwards = rng.random(2) < (flip, reverse)
    video = video[:, :, ::-1] if mirrored else video
    return video[::-1] if backwards else video

"""Operations on clips `(t, h, w, 3)`: crop, flip, play backwards."""

from __future__ import annotations

import numpy as np


def centre_crop(video: np.ndarray, size: int) -> np.ndarray:
    """The central `size x size` square.

    Raises:
      ValueError: the picture is smaller.
    """
    height, width = video.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot crop {size}x{size} from a picture of {height}x{width}")
    top, left = (height - size) // 2, (width - size) // 2
    return video[:, top : top + size, left : left + size]


def augment(video: np.ndarray, rng: np.random.Generator, *, flip: float = 0.0, reverse: float = 0.0) -> np.ndarray:
    """Mirror with probability `flip`; play backwards with probability `reverse` (paper, figure 2: "RandomReverse").

    Both are drawn for every clip, so that turning one on does not change the other's draws.
    """
    mirrored, backwards = rng.random(2) < (flip, reverse)
    video = video[:, :, ::-1] if mirrored else video
    return video[::-1] if backwards else video

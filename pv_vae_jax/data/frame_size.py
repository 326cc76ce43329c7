"""Sizes of frames, squares or rectangles, and how frames of another size are brought to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Fit = Literal["crop", "pad", "resize"]
FITS = get_args(Fit)


@dataclasses.dataclass(frozen=True)
class FrameSize:
    """Frames of `height x width` pixels, and how others are brought to it.

    Attributes:
      height, width: the size in pixels.
      fit: `crop` resizes frames until they cover the size and cuts off the rest, `pad` resizes them until they fit into
        it and adds black bars, `resize` stretches them. The first two keep the aspect ratio.

    Raises:
      ValueError: a side is below 1, or the fit is unknown.
    """

    height: int
    width: int
    fit: Fit = "crop"

    def __post_init__(self):
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height and width must be at least 1, got {self.height} x {self.width}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be {' or '.join(map(repr, FITS))}, got {self.fit!r}")

    @classmethod
    def of(cls, size: int | Sequence[int] | FrameSize, fit: Fit = "crop") -> FrameSize:
        """The size of a square by its side, of a rectangle by its `(height, width)`, or the given one itself."""
        if isinstance(size, FrameSize):
            return size
        height, width = (size, size) if isinstance(size, int) else size
        return cls(height, width, fit)

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height} x {self.width}"

    def enlarges(self, height: int, width: int) -> bool:
        """Whether frames of `height x width` are enlarged to it."""
        return any(new > old for new, old in zip(self.scaled(height, width), (height, width), strict=True))

    @property
    def description(self) -> str:
        """How frames are brought to this size, in words for the card of a score."""
        size = f"{self.height} x {self.width}"
        if self.fit == "crop" and self.height == self.width:
            return f"short side to {self.height} by area, centre square"
        ways = {"crop": "to cover {} by area, centre cut", "pad": "to fit into {} by area, black bars"}
        return ways.get(self.fit, "stretched to {} by area").format(size)

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which frames of `height x width` are resized before `cut`."""
        if self.fit == "resize":
            return self.height, self.width
        ratios = self.height / height, self.width / width
        if self.fit == "pad":
            scale = min(ratios)
            return min(self.height, max(1, round(height * scale))), min(self.width, max(1, round(width * scale)))
        scale = max(ratios)
        return max(self.height, round(height * scale)), max(self.width, round(width * scale))

    def cut(self, video: np.ndarray, corner: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
        """Crop or pad frames of the size `scaled` to this size.

        Args:
          video: `(t, h, w, 3)`.
          corner: vertical and horizontal position of the crop, each a fraction in [0, 1) of its range; None centres it.

        Returns:
          `(t, height, width, 3)`; a view of `video` unless it is padded.

        Raises:
          ValueError: the frames are too small to crop, too large to pad, or not of this size with `resize`.
        """
        height, width = video.shape[1:3]
        down, right = height - self.height, width - self.width  # pixels to remove
        wrong = {"crop": min(down, right) < 0, "pad": max(down, right) > 0, "resize": bool(down or right)}
        if wrong[self.fit]:
            raise ValueError(
                f"cannot {self.fit} frames of {height} x {width} to {self.height} x {self.width}: resize them first"
            )
        if self.fit == "pad":
            rows, columns = ((-n // 2, -n - -n // 2) for n in (down, right))
            return np.pad(video, ((0, 0), rows, columns, (0, 0))) if down or right else video
        if corner is None:
            top, left = down // 2, right // 2
        else:
            top, left = int(corner[0] * (down + 1)), int(corner[1] * (right + 1))
        return video[:, top : top + self.height, left : left + self.width]  # (t, height, width, 3)

    def uncut(self, video: np.ndarray, height: int, width: int) -> np.ndarray:
        """Remove the bars that `cut` added to frames of `height x width`; a cropped or resized video stays as it is.

        Args:
          video: `(t, height, width, 3)` of this size.
        """
        if self.fit != "pad":
            return video
        top, left = (self.height - height) // 2, (self.width - width) // 2
        return video[:, top : top + height, left : left + width]


def nearest(height: int, width: int, multiple: int, fit: Fit = "crop") -> FrameSize:
    """The size nearest to `height x width` whose sides are multiples of `multiple`.

    `crop` takes the multiples at or below, `pad` those at or above, `resize` the nearest, at least one of each.

    Raises:
      ValueError: frames are too small to crop, or the fit is unknown.
    """
    if fit == "crop" and min(height, width) < multiple:
        raise ValueError(
            f"cannot crop frames of {height} x {width} to multiples of {multiple}: use the fit 'pad' or 'resize'"
        )
    add = {"crop": 0, "pad": multiple - 1}.get(fit, multiple // 2)
    height, width = (max(1, (side + add) // multiple) * multiple for side in (height, width))
    return FrameSize(height, width, fit)

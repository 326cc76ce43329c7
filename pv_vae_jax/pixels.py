"""Pixels between files (uint8) and networks (floats in [-1, 1]), with one rounding for training, commands and scores.

Both functions take NumPy or JAX arrays of any shape and return the same kind.
"""

from typing import Any, TypeVar

Pixels = TypeVar("Pixels", bound=Any)


def to_float(video: Pixels, dtype: str = "float32") -> Pixels:
    """uint8 `[0, 255]` -> float `[-1, 1]`. Call it under `jit`: the transfer to the device then takes a quarter.

    Raises:
      TypeError: the pixels are not uint8; floats in `[-1, 1]` would all become about -1.
    """
    if video.dtype != "uint8":
        raise TypeError(
            f"expected uint8 pixels in [0, 255], got {video.dtype}; convert floats in [-1, 1] with to_uint8"
        )
    return video.astype(dtype) / 127.5 - 1.0


def to_uint8(video: Pixels) -> Pixels:
    """Float, clamped to `[-1, 1]` -> uint8 `[0, 255]`, rounded."""
    return ((video + 1.0) * 127.5).round().clip(0, 255).astype("uint8")

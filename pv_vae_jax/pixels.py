"""Pixels as files keep them and as networks take them; one rounding for training, commands and scores.

Both functions take NumPy or JAX arrays of any shape and return their kind.
"""

from __future__ import annotations

from typing import Any, TypeVar

Pixels = TypeVar("Pixels", bound=Any)


def to_float(video: Pixels, dtype: str = "float32") -> Pixels:
    """uint8 `[0, 255]` -> float `[-1, 1]`. Under `jit` this runs on the device: a quarter of the bytes to transfer.

    Raises:
      TypeError: pixels that are no uint8; floats in `[-1, 1]` would all become about -1.
    """
    if video.dtype != "uint8":
        raise TypeError(f"pixels are uint8 in [0, 255], got {video.dtype}: of floats in [-1, 1], to_uint8 makes them")
    return video.astype(dtype) / 127.5 - 1.0


def to_uint8(video: Pixels) -> Pixels:
    """Float, clamped to `[-1, 1]` and rounded -> uint8."""
    return ((video + 1.0) * 127.5).round().clip(0, 255).astype("uint8")

"""Clips of a source, cut as training cuts them."""

import numpy as np

from pv_vae_jax.data.clips import WindowSource
from pv_vae_jax.data.synthetic import SyntheticVideos
from pv_vae_jax.data.transforms import RandomWindow, ResizeCrop


def clip_of(source, index: int, rng: np.random.Generator, *, frames: int | None = None, crop: str = "centre") -> dict:
    """Element `index` after a random window and the crop: `{"video": (t, H, W, 3) uint8, "label": int32}`."""
    element = source[index]
    if isinstance(source, (WindowSource, SyntheticVideos)):
        return element
    size = source.reader.size
    element = RandomWindow(frames or source.frames, source.stride).random_map(element, rng)
    return ResizeCrop(size.height, size.width, size.fit, random=crop == "random").random_map(element, rng)

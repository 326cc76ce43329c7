"""The perceptual slot: any function of two clips that returns a distance per example."""

from __future__ import annotations

from typing import Protocol

from pv_vae_jax.typing import Array


class Perceptual(Protocol):
    """LPIPS or anything like it. Frames are `(n, h, w, 3)` in [-1, 1]; the result is `(n,)`."""

    def __call__(self, output: Array, target: Array) -> Array: ...


def perceptual_error(distance: Perceptual, output: Array, target: Array) -> Array:
    """Mean of `distance` over all frames of two clips `(b, t, h, w, 3)`."""
    frames = (-1,) + output.shape[2:]
    return distance(output.reshape(frames), target.reshape(frames)).mean()

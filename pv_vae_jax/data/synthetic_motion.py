"""The true motion of a synthetic scene: exact optical flow, occlusion, and the paths of points.

Coordinates are pixels of the frame, x to the right and y down; the centre of pixel (row i, column j) is
(j + 0.5, i + 0.5), as in TAP-Vid.
"""

from collections.abc import Iterable

import numpy as np

from pv_vae_jax.data.synthetic import Scene, Sprite, outside

BACKGROUND = -1


def visible_layer(scene: Scene, t: int, place: np.ndarray) -> np.ndarray:
    """Index of the topmost sprite at places `(..., 2)`, (x, y) in units of the side; -1 is the background."""
    layer = np.full(place.shape[:-1], BACKGROUND)
    for number, sprite in enumerate(scene.sprites):  # later sprites hide earlier ones
        layer[_inside(sprite, t, place)] = number
    return layer


def pixel_centres(size: int) -> np.ndarray:
    """`(size, size, 2)` (x, y) in units of the side."""
    axis = (np.arange(size) + 0.5) / size
    return np.stack(np.meshgrid(axis, axis), axis=-1)


def true_paths(scene: Scene, place: np.ndarray, start: int, ends: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where points seen at `place (..., 2)` in frame `start` are in the frames `ends`; (x, y) in units of the side.

    Returns:
      `(n, ..., 2)` float64 places, and `(n, ...)` bool: the point is hidden or outside.
    """
    layer = visible_layer(scene, start, place)
    paths = [(t, _carry(scene, layer, place, start, t)) for t in ends]
    return np.stack([now for _, now in paths]), np.stack([_hidden(scene, layer, now, t) for t, now in paths])


def exact_flow(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The motion of every pixel to the next frame.

    Returns:
      `(t - 1, size, size, 2)` float64 flow (dx, dy) in pixels, and `(t - 1, size, size)` bool: the point is hidden or
      outside in the next frame.
    """
    place = pixel_centres(size)
    steps = [true_paths(scene, place, t, [t + 1]) for t in range(len(scene.sprites[0].angle) - 1)]
    landing, hidden = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    return (landing - place) * size, hidden


def _own(sprite: Sprite, t: int, place: np.ndarray) -> np.ndarray:
    """Places `(..., 2)` (x, y) in the sprite's own axes (u, v), in units of its radius."""
    dx, dy = np.moveaxis(place - sprite.position[t, ::-1], -1, 0)
    cos, sin = np.cos(sprite.angle[t]), np.sin(sprite.angle[t])
    return np.stack([sin * dy + cos * dx, cos * dy - sin * dx], axis=-1) / sprite.radius


def _inside(sprite: Sprite, t: int, place: np.ndarray) -> np.ndarray:
    """Whether places are inside the outline that `data.synthetic` draws, without its soft edge."""
    return outside(sprite.shape, *np.moveaxis(_own(sprite, t, place), -1, 0)) <= 0


def _carry(scene: Scene, layer: np.ndarray, place: np.ndarray, start: int, end: int) -> np.ndarray:
    """Positions at `end` of material points that were at `place` at `start`. The background does not move."""
    out = place.copy()
    for number, sprite in enumerate(scene.sprites):
        covered = layer == number
        u, v = np.moveaxis(_own(sprite, start, place[covered]) * sprite.radius, -1, 0)
        cos, sin = np.cos(sprite.angle[end]), np.sin(sprite.angle[end])
        out[covered] = np.stack([cos * u - sin * v, sin * u + cos * v], axis=-1) + sprite.position[end, ::-1]
    return out


def _hidden(scene: Scene, layer: np.ndarray, place: np.ndarray, t: int) -> np.ndarray:
    """Whether points of `layer` are outside, or covered by a sprite in front of their own.

    Their own is left out: rounding would hide its border.
    """
    hidden = ((place < 0) | (place > 1)).any(axis=-1)
    for number, sprite in enumerate(scene.sprites):
        hidden |= (number > layer) & _inside(sprite, t, place)
    return hidden

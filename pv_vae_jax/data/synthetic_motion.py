"""The true motion of a synthetic scene: exact optical flow, occlusion, and tracks of points.

Coordinates are pixels of the frame, x to the right and y down; the centre of pixel (row i, column j) is
(j + 0.5, i + 0.5), as in TAP-Vid.
"""

from __future__ import annotations

import numpy as np

from pv_vae_jax.data.synthetic import Scene, Sprite

BACKGROUND = -1


def visible_layer(scene: Scene, t: int, place: np.ndarray) -> np.ndarray:
    """Index of the topmost sprite at places `(..., 2)`, (x, y) in units of the side; -1 is the background."""
    layer = np.full(place.shape[:-1], BACKGROUND)
    for number, sprite in enumerate(scene.sprites):  # later sprites hide earlier ones
        layer[_inside(sprite, t, place)] = number
    return layer


def exact_flow(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The motion of every pixel to the next frame.

    Returns:
      `(t - 1, size, size, 2)` float64 flow (dx, dy) in pixels, and `(t - 1, size, size)` bool: the point is hidden or
      outside in the next frame.
    """
    axis = (np.arange(size) + 0.5) / size
    place = np.stack(np.meshgrid(axis, axis), axis=-1)
    flow, hidden = [], []
    for t in range(len(scene.sprites[0].angle) - 1):
        layer = visible_layer(scene, t, place)
        landing = _carry(scene, layer, place, t, t + 1)
        flow.append((landing - place) * size)
        hidden.append(_hidden(scene, layer, landing, t + 1))
    return np.stack(flow), np.stack(hidden)


def exact_paths(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The motion of every pixel of frame 0 to each frame.

    Returns:
      `(t, size, size, 2)` float64 (dx, dy) in pixels since frame 0, and `(t, size, size)` bool: hidden or outside.
    """
    axis = (np.arange(size) + 0.5) / size
    place = np.stack(np.meshgrid(axis, axis), axis=-1)
    layer = visible_layer(scene, 0, place)
    path, hidden = [], []
    for t in range(len(scene.sprites[0].angle)):
        now = _carry(scene, layer, place, 0, t)
        path.append((now - place) * size)
        hidden.append(_hidden(scene, layer, now, t))
    return np.stack(path), np.stack(hidden)


def tracks(scene: Scene, size: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of frame 0 through the clip, at most half of them on the background.

    Returns:
      `(count, t, 2)` float64 (x, y) in pixels and `(count, t)` bool, occluded.
    """
    points = rng.uniform(0, 1, (64 * count, 2))
    layer = visible_layer(scene, 0, points)
    moving = np.flatnonzero(layer >= 0)[: count - count // 2]
    still = np.flatnonzero(layer < 0)[: count - len(moving)]
    chosen = np.concatenate([moving, still])
    points, layer = points[chosen], layer[chosen]
    path, occluded = [], []
    for t in range(len(scene.sprites[0].angle)):
        place = _carry(scene, layer, points, 0, t)
        path.append(place * size)
        occluded.append(_hidden(scene, layer, place, t))
    return np.stack(path, axis=1), np.stack(occluded, axis=1)


def _own(sprite: Sprite, t: int, place: np.ndarray) -> np.ndarray:
    """Places `(..., 2)` (x, y) in the sprite's own axes (u, v), in units of its radius."""
    dx, dy = np.moveaxis(place - sprite.position[t, ::-1], -1, 0)
    cos, sin = np.cos(sprite.angle[t]), np.sin(sprite.angle[t])
    return np.stack([sin * dy + cos * dx, cos * dy - sin * dx], axis=-1) / sprite.radius


def _inside(sprite: Sprite, t: int, place: np.ndarray) -> np.ndarray:
    """Whether places are inside the outline that `data.synthetic` draws, without its soft edge."""
    u, v = np.moveaxis(_own(sprite, t, place), -1, 0)
    if sprite.shape == "disc":
        return u * u + v * v <= 1
    if sprite.shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.85
    return np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) <= 0.55


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
    outside = ((place < 0) | (place > 1)).any(axis=-1)
    return outside | _above(scene, layer, place, t)


def _above(scene: Scene, layer: np.ndarray, place: np.ndarray, t: int) -> np.ndarray:
    """Whether a sprite in front of the point's own covers it. Its own is left out: rounding would hide its border."""
    covered = np.zeros(layer.shape, bool)
    for number, sprite in enumerate(scene.sprites):
        covered |= (number > layer) & _inside(sprite, t, place)
    return covered

"""Points of the synthetic world with their true paths."""

import numpy as np

from pv_vae_jax.data.synthetic import Scene
from pv_vae_jax.data.synthetic_motion import true_paths, visible_layer


def tracks(scene: Scene, size: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of frame 0, at most half on the background: `(count, t, 2)` (x, y) in pixels, `(count, t)` occluded."""
    points = rng.uniform(0, 1, (64 * count, 2))
    layer = visible_layer(scene, 0, points)
    moving = np.flatnonzero(layer >= 0)[: count - count // 2]
    still = np.flatnonzero(layer < 0)[: count - len(moving)]
    places, hidden = true_paths(scene, points[np.concatenate([moving, still])], 0, range(len(scene.sprites[0].angle)))
    return size * places.swapaxes(0, 1), hidden.T

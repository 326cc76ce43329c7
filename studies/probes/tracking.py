"""Points tracked through a clip, from predicted paths or by the similarity of features, and the scores of tracks."""

from collections.abc import Sequence

import numpy as np

from studies.probes.metrics import tapvid, tracking_auc

RASTER = 256  # tracks are scored in pixels of a picture of this side, as in TAP-Vid
TAPVID_MEANS = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
Track = tuple[np.ndarray, np.ndarray]  # (x, y) of points, `(m, t, 2)` pixels, and whether they are hidden, `(m, t)`


def track_points(paths: np.ndarray, query: np.ndarray) -> Track:
    """Points `(m, 2)` (x, y) of frame 0 through drawn paths `(t, h, w, 3)`, bilinear between pixels.

    Returns:
      `(m, t, 2)` pixels, frame 0 the query itself, and `(m, t)` bool, hidden.
    """
    height, width = paths.shape[1:3]
    x = np.clip(query[:, 0] - 0.5, 0, width - 1)
    y = np.clip(query[:, 1] - 0.5, 0, height - 1)
    left, top = (np.minimum(v.astype(int), side - 2) for v, side in ((x, width), (y, height)))
    dx, dy = (x - left)[:, None], (y - top)[:, None]
    at = lambda row, column: paths[:, row, column].astype(np.float64)  # noqa: E731
    above = at(top, left) * (1 - dx) + at(top, left + 1) * dx
    below = at(top + 1, left) * (1 - dx) + at(top + 1, left + 1) * dx
    found = np.swapaxes(above * (1 - dy) + below * dy, 0, 1)  # m t 3
    moved = query[:, None] + found[..., :2]
    moved[:, 0] = query
    return moved, found[..., 2] > 0


def track_by_similarity(
    features: np.ndarray, query: np.ndarray, size: float, *, temperature: float = 0.05, radius: float = 2.0
) -> np.ndarray:
    """Follow points of frame 0 by cosine similarity of features: soft arg-max around the best place of each frame.

    Args:
      features: `(t, h, w, d)` of one clip, a map a frame.
      query: `(n, 2)` (x, y) in pixels of a square picture.
      size: its side.
      temperature: of the soft arg-max over similarity.
      radius: of its window, in features.

    Returns:
      `(n, t, 2)` in the same pixels; frame 0 is the query itself.
    """
    t, h, w, _ = features.shape
    x = np.asarray(features, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    scale = np.array([w, h]) / size
    cell = np.clip((query * scale).astype(int), 0, [w - 1, h - 1])
    similarity = np.einsum("nd,thwd->nthw", x[0, cell[:, 1], cell[:, 0]], x)
    ys, xs = np.mgrid[0:h, 0:w]
    best = similarity.reshape(len(query), t, -1).argmax(axis=-1)
    by, bx = best // w, best % w
    near = (np.abs(ys - by[..., None, None]) <= radius) & (np.abs(xs - bx[..., None, None]) <= radius)
    weights = np.where(near, np.exp((similarity - similarity.max(axis=(2, 3), keepdims=True)) / temperature), 0)
    weights /= weights.sum(axis=(2, 3), keepdims=True)
    centre = np.stack([(weights * (xs + 0.5)).sum(axis=(2, 3)), (weights * (ys + 0.5)).sum(axis=(2, 3))], axis=-1)
    path = centre / scale
    path[:, 0] = query
    return path


def track_scores(found: Sequence[Track], truth: Sequence[Track], size: int, *, official: bool = False) -> dict:
    """Scores of tracks, means over clips; clips without a visible later point do not count.

    Args:
      found, truth: a pair a clip.
      size: side of the clips, in pixels.
      official: TAP-Vid's own numbers as well.
    """
    scale, scores = RASTER / size, []
    for (path, hidden), (true_path, occluded) in zip(found, truth, strict=True):
        if not occluded[:, 1:].all():
            path, true_path = path * scale, true_path * scale
            scores.append({"tracking_auc": tracking_auc(path, true_path, occluded)})
            if official:
                query = np.concatenate([np.zeros((len(path), 1)), true_path[:, 0, ::-1]], axis=1)  # t, y, x
                numbers = tapvid(query, occluded, true_path, hidden, path)
                scores[-1] |= {name: numbers[name] for name in TAPVID_MEANS}
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def resting(truth: Sequence[Track]) -> list[Track]:
    """The guess that nothing moves: every point stays where it is queried, visible."""
    return [(np.repeat(path[:, :1], path.shape[1], axis=1), np.zeros_like(hidden)) for path, hidden in truth]

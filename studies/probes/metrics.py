"""Scores of what probes read out of features: optical flow, next frames, tracks of points.

Flow is `(..., 2)` (dx, dy) in pixels, tracks are `(n, t, 2)` (x, y) in pixels of a 256 x 256 picture as in TAP-Vid.
"""

import numpy as np

TAPVID_THRESHOLDS = (1, 2, 4, 8, 16)  # pixels
AUC_LIMIT = 10.0


def endpoint_error(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Mean length of the error over all valid pixels of all frames, not the mean of per-clip means.

    Raises:
      ValueError: shapes differ, or no pixel is valid.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or truth.shape[-1] != 2:
        raise ValueError(f"flows have shape (..., 2); got {predicted.shape} and {truth.shape}")
    error = np.linalg.norm(predicted - truth, axis=-1)
    error = error.ravel() if valid is None else error[np.broadcast_to(valid, error.shape)]
    if not error.size:
        raise ValueError("no pixel is valid")
    return float(error.mean())


def tracking_auc(
    predicted: np.ndarray, truth: np.ndarray, occluded: np.ndarray, *, first: np.ndarray | int = 0
) -> float:
    """Area under the curve of accuracy over thresholds from 0 to 10 pixels, in [0, 1].

    Accuracy at a threshold is the share of errors below it, so the area is exactly the mean of `clip(1 - error / 10)`.
    Only visible points after the query frame count.

    Args:
      predicted, truth: `(n, t, 2)`.
      occluded: `(n, t)`.
      first: `(n,)` query frames, or one for all.

    Raises:
      ValueError: no point is left to score.
    """
    error = np.linalg.norm(np.asarray(predicted, np.float64) - truth, axis=-1)
    counts = ~np.asarray(occluded) & (np.arange(error.shape[1]) > np.broadcast_to(first, len(error))[:, None])
    if not counts.any():
        raise ValueError("no visible point lies after its query frame")
    return float(np.clip(1 - error[counts] / AUC_LIMIT, 0, 1).mean())


def tapvid(
    query: np.ndarray,
    occluded: np.ndarray,
    truth: np.ndarray,
    predicted_occluded: np.ndarray,
    predicted: np.ndarray,
    mode: str = "first",
) -> dict[str, float]:
    """TAP-Vid's numbers of one video: occlusion accuracy, points within 1 to 16 pixels, Jaccard, and their means.

    Args:
      query: `(n, 3)` (t, y, x).
      occluded, predicted_occluded: `(n, t)`.
      truth, predicted: `(n, t, 2)`.
      mode: `first` scores frames after the query frame, `strided` all but it.

    Raises:
      ValueError: another mode.
    """
    if mode not in ("first", "strided"):
        raise ValueError(f"the query mode is first or strided, got {mode!r}")
    frames, start = np.arange(truth.shape[1]), np.round(np.asarray(query)[:, :1]).astype(int)
    counts = frames > start if mode == "first" else frames != start
    visible, seen = ~np.asarray(occluded), ~np.asarray(predicted_occluded)
    found = {"occlusion_accuracy": float(np.sum((visible == seen) & counts) / counts.sum())}
    squared = np.sum((np.asarray(predicted, np.float64) - truth) ** 2, axis=-1)
    within, jaccard = [], []
    for threshold in TAPVID_THRESHOLDS:
        near = squared < threshold**2
        within.append(float(np.sum(near & visible & counts) / np.sum(visible & counts)))
        hits = np.sum(near & visible & seen & counts)
        # A point is falsely claimed where none is visible, or where the claim lies too far away.
        claims = np.sum(seen & (~visible | ~near) & counts)
        jaccard.append(float(hits / (np.sum(visible & counts) + claims)))
        found[f"pts_within_{threshold}"], found[f"jaccard_{threshold}"] = within[-1], jaccard[-1]
    found["average_pts_within_thresh"] = float(np.mean(within))
    found["average_jaccard"] = float(np.mean(jaccard))
    return found

"""Distances of two sets of features, and the inception score of one set of predictions; float64 on the host.

Rows are clips. These functions do not know which network made the features, so none is an FVD by itself:
`protocol.name_of` names a number.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pv_vae_jax.evaluation.features import FeatureError, check_features


def frechet_distance(a: np.ndarray, b: np.ndarray, *, ddof: int = 1) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians of two sets of features `(n, d)`.

    Args:
      a, b: the sets.
      ddof: 1 is the unbiased covariance of the original code (TF-GAN); the StyleGAN-V tool takes 0.

    Raises:
      FeatureError: fewer than 2 clips, different dimensions, or features that are not finite.
    """
    (mean_a, cov_a), (mean_b, cov_b) = (_gaussian(x, ddof) for x in (a, b))
    _check_dimensions(a, b)
    return gaussian_distance(mean_a, cov_a, mean_b, cov_b)


def _gaussian(features: np.ndarray, ddof: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(d,)` and covariance `(d, d)`."""
    features = check_features(features)
    if len(features) < 2:
        raise FeatureError(f"a covariance needs at least 2 clips, got {len(features)}")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - ddof)


def _check_dimensions(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[1] != b.shape[1]:
        raise FeatureError(f"expected two sets with features of one dimension, got {a.shape[1]} and {b.shape[1]}")


def gaussian_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians.

    `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. The trace of the root is that of the symmetric
    `(A S_b A)^(1/2)` with `A = S_a^(1/2)`, by eigendecomposition: the product itself is not symmetric, and its root
    (`scipy.linalg.sqrtm`) comes out complex or wrong where a covariance is singular.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = root @ cov_b @ root
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel `(x . y / d + 1)^3`, whole sets, not scaled.

    On I3D logits this is KVD as VideoGPT's descendants compute it. It may be negative near zero, and is not clipped.

    Args:
      a, b: features `(m, d)` and `(n, d)`.

    Raises:
      FeatureError: as `frechet_distance`.
    """
    a, b = check_features(a), check_features(b)
    if min(len(a), len(b)) < 2:
        raise FeatureError(f"the kernel distance needs at least 2 clips in each set, got {len(a)} and {len(b)}")
    _check_dimensions(a, b)
    return _mmd(_kernel(a, a), _kernel(b, b), _kernel(a, b))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mmd(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> float:
    m, n = ab.shape
    within = (aa.sum() - np.trace(aa)) / (m * (m - 1)) + (bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(within - 2 * ab.mean())


LEVEL = 0.95  # of all intervals


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """`exp(E KL(p(y | x) || p(y)))`: mean and standard deviation over `splits` parts of `n` clips."""

    mean: float
    std: float
    splits: int
    clips: int


def check_splits(splits: int, clips: int) -> None:
    """Raise `FeatureError` unless every part of the inception score has two clips."""
    if splits < 1 or clips < 2 * splits:
        raise FeatureError(f"{splits} splits need at least {2 * max(splits, 1)} clips, got {clips}")


def inception_score(logits: np.ndarray, *, splits: int = 10, shuffle_seed: int | None = 42) -> InceptionScore:
    """Inception score of predictions, part by part.

    More splits bias the score down (about a tenth at 2,048 clips and 10 splits), so both numbers belong with it.

    Args:
      logits: `(n, classes)` before the softmax; log-probabilities are logits too.
      splits: number of equal parts.
      shuffle_seed: seed of NumPy's `RandomState` that shuffles the clips first, 42 as in the StyleGAN-V tool; None
        keeps their order.

    Raises:
      FeatureError: logits that are not finite, or fewer clips than twice the splits.
    """
    logits = check_features(logits)
    check_splits(splits, len(logits))
    if shuffle_seed is not None:
        logits = logits[np.random.RandomState(shuffle_seed).permutation(len(logits))]
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    scores = []
    for i in range(splits):
        part = slice(i * len(p) // splits, (i + 1) * len(p) // splits)
        marginal = np.log(np.maximum(p[part].mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp(np.mean(np.sum(p[part] * (log_p[part] - marginal), axis=1))))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits, len(logits))


@dataclasses.dataclass(frozen=True)
class Interval:
    """A bootstrap interval that contains the fraction `level` of the resampled values."""

    low: float
    high: float
    level: float
    resamples: int
    method: str


def mean_interval(values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Interval of the mean of per-clip values `(n,)` (PSNR, SSIM, LPIPS): percentiles of resampled means.

    Raises:
      FeatureError: fewer than 2 values, or values that are not finite.
    """
    values = check_features(np.asarray(values)[:, None])[:, 0]
    if len(values) < 2:
        raise FeatureError("an interval needs at least 2 clips")
    index = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return _percentiles(values[index].mean(axis=1), "percentile bootstrap over clips")


def kernel_interval(a: np.ndarray, b: np.ndarray, *, resamples: int = 200, seed: int = 0) -> Interval:
    """Interval of `kernel_distance`, both sets resampled.

    A clip that is drawn twice must not be paired with itself, or the estimator is biased: pairs of a clip and its own
    copy are left out of the sums, as the diagonal is.
    """
    a, b = check_features(a), check_features(b)
    aa, bb, ab = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    np.fill_diagonal(aa, 0.0)
    np.fill_diagonal(bb, 0.0)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        w, v = (np.bincount(rng.integers(n, size=n), minlength=n).astype(float) for n in ab.shape)
        pairs = [c.sum() ** 2 - np.sum(c**2) for c in (w, v)]  # ordered pairs of two different clips
        if min(pairs) > 0:
            values.append(w @ aa @ w / pairs[0] + v @ bb @ v / pairs[1] - 2 * (w @ ab @ v) / (w.sum() * v.sum()))
    return _percentiles(np.asarray(values), "percentile bootstrap over clips of both sets")


def frechet_interval(a: np.ndarray, b: np.ndarray, *, ddof: int = 1, resamples: int = 40, seed: int = 0) -> Interval:
    """Bootstrap interval of `frechet_distance`, both sets resampled, re-centred on the estimate.

    A Frechet distance has a bias of order tr(S) / n, and a resampled set, having fewer distinct clips, has more of it:
    plain percentiles would lie above the estimate. The resampled values are therefore shifted so that their mean is
    the estimate. The interval says how far another draw of `n` clips might move the number, not where it would be at
    infinite `n`: see `frechet_limit`.
    """
    a, b = check_features(a), check_features(b)
    rng = np.random.default_rng(seed)
    draw = lambda x: x[rng.integers(len(x), size=len(x))]  # noqa: E731
    values = np.array([frechet_distance(draw(a), draw(b), ddof=ddof) for _ in range(resamples)])
    values = values - values.mean() + frechet_distance(a, b, ddof=ddof)
    return _percentiles(values, "bootstrap deviations about the estimate, both sets resampled")


def score_interval(
    x: np.ndarray, score: Callable[[np.ndarray], float], labels: Any = None, *, resamples: int = 100, seed: int = 0
) -> Interval:
    """Interval of any score of one set `(n, d)`, such as the inception score, by resampling clips.

    With `labels` `(n,)`, as many clips of each label are drawn as it has. Re-centred on the estimate, as
    `frechet_interval`: a set with repeated clips scores lower or higher in most measures.
    """
    x, rng = check_features(x), np.random.default_rng(seed)
    labels = np.zeros(len(x)) if labels is None else labels
    classes = [np.flatnonzero(labels == name) for name in np.unique(labels)]
    draws = (np.concatenate([c[rng.integers(len(c), size=len(c))] for c in classes]) for _ in range(resamples))
    values = np.array([score(x[draw]) for draw in draws])
    return _percentiles(values - values.mean() + score(x), "bootstrap deviations about the estimate")


def frechet_limit(a: np.ndarray, b: np.ndarray, *, sizes: int = 10, ddof: int = 1, seed: int = 0) -> float:
    """Frechet distance extrapolated to infinitely many clips (Chong and Forsyth, arXiv 1911.07023).

    Fits a line in `1 / n` to subsets of sizes from a quarter of the clips to all of them.
    """
    a, b = check_features(a), check_features(b)
    most = min(len(a), len(b))
    rng = np.random.default_rng(seed)
    counts = np.unique(np.linspace(max(most // 4, 2), most, sizes).astype(int))
    if len(counts) < 2:
        raise FeatureError(f"{most} clips are too few to extrapolate from: give more")
    pick = lambda x, n: x[rng.choice(len(x), n, replace=False)]  # noqa: E731
    found = [frechet_distance(pick(a, n), pick(b, n), ddof=ddof) for n in counts]
    return float(np.polyfit(1.0 / counts, found, 1)[1])


def paired_squared_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance of the features of each clip and of its own reconstruction.

    This is what "rFVD" means in scripts that compute a Frechet distance per batch with one clip a batch. It is not a
    distance of two sets.
    """
    a, b = check_features(a), check_features(b)
    if a.shape != b.shape:
        raise FeatureError(f"expected paired features of one shape, got {a.shape} and {b.shape}")
    return float(np.mean(np.sum((a - b) ** 2, axis=1)))


def _percentiles(values: np.ndarray, method: str) -> Interval:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, (tail, 100 - tail))
    return Interval(float(low), float(high), LEVEL, len(values), method)

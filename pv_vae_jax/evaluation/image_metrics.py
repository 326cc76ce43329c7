"""PSNR and SSIM of clips, by frame or as means, in float64 on the host.

Data outside the stated range raise an error: scoring [-1, 1] clips as if they were [0, 1] is the most common way to
report a PSNR that is off by 6 dB.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike

CAP = 100.0  # dB, the score of identical frames
WINDOW, SIGMA = 11, 1.5  # of SSIM, Wang et al. 2004
K1, K2 = 0.01, 0.03
SLACK = 1e-3  # by which rounding may leave the range

Range = float | tuple[float, float]


PerceptualDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of clips (t, h, w, 3) uint8 -> (t,)
FrameScores = dict[str, np.ndarray]  # `psnr` and where there is one `ssim` and `perceptual` -> (n, t)


def score_frames(
    a: ArrayLike, b: ArrayLike, value_range: Range, perceptual: PerceptualDistance | None = None
) -> FrameScores:
    """PSNR, SSIM and LPIPS of every frame of clips.

    Args:
      a, b: clips `(n, t, h, w, 3)`.
      value_range: `L` for data in [0, L], or `(low, high)`.
      perceptual: distance of two clips, one number per frame, such as `perceptual.lpips_distance`, which wants uint8.

    Returns:
      Each `(n, t)`: `psnr` in dB, at most 100; `ssim`, unless frames are smaller than its window; and `perceptual`.

    Raises:
      ValueError: as `psnr`; `perceptual` may raise as well.
    """
    found = {"psnr": _by_frame(a, b, value_range, _psnr_frames)}
    if min(np.shape(a)[2:4]) >= WINDOW:
        found["ssim"] = _by_frame(a, b, value_range, _ssim_frames)
    if perceptual:
        found["perceptual"] = np.stack([perceptual(x, y) for x, y in zip(np.asarray(a), np.asarray(b), strict=True)])
    return found


def join_frames(parts: Sequence[FrameScores]) -> FrameScores:
    """The scores of several sets of clips as those of one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summarize_frames(scores: FrameScores, time_factor: int = 0, observed: int | None = None) -> dict[str, dict]:
    """Means over clips, as a JSON tree: score -> `by_frame`, and its means over the frames that are named here.

    Args:
      scores: from `score_frames`.
      time_factor: frames of a group, which is one latent frame, after frame 0; 0 if it is not known.
      observed: frames that the encoder saw, from the first; None for all.

    Returns:
      Score -> `mean`, `first` and `last` of a clip, `group_first` and `group_last` over all groups, `withheld` after
      the observed frames, None where there are no such frames; and `by_frame`.
    """
    tree = {}
    for name, values in scores.items():
        curve = values.mean(axis=0)  # t
        groups = curve[1:].reshape(-1, time_factor) if time_factor else np.zeros((1, 0))
        withheld = curve[len(curve) if observed is None else observed :]
        parts = {"mean": curve, "first": curve[:1], "last": curve[-1:], "withheld": withheld}
        parts |= {"group_first": groups[:, :1], "group_last": groups[:, -1:]}
        tree[name] = {key: float(part.mean()) if part.size else None for key, part in parts.items()}
        tree[name]["by_frame"] = curve.tolist()
    return tree


def psnr(a: ArrayLike, b: ArrayLike, value_range: Range) -> float:
    """Peak signal-to-noise ratio in dB: per frame, capped at 100, then averaged over frames and clips.

    Args:
      a, b: clips `(n, t, h, w, 3)`.
      value_range: `L` for data in [0, L], or `(low, high)`.

    Raises:
      ValueError: the shapes differ, or values are outside the range.
    """
    return float(_by_frame(a, b, value_range, _psnr_frames).mean())


def ssim(a: ArrayLike, b: ArrayLike, value_range: Range) -> float:
    """Structural similarity (Wang et al. 2004), averaged over pixels, RGB channels, frames and clips.

    11 x 11 Gaussian window of sigma 1.5, population covariance, and only pixels whose window is inside the picture:
    scikit-image's `structural_similarity` with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.

    Args:
      a, b: clips `(n, t, h, w, 3)`.
      value_range: `L` for data in [0, L], or `(low, high)`.

    Raises:
      ValueError: as `psnr`, or the pictures are smaller than the window.
    """
    return float(_by_frame(a, b, value_range, _ssim_frames).mean())


def _by_frame(a: ArrayLike, b: ArrayLike, value_range: Range, score: Callable[..., np.ndarray]) -> np.ndarray:
    """`(n, t)`, clip by clip: they are float64, and so are the pictures that SSIM filters."""
    a, b, low, span = _checked(a, b, value_range)
    return np.stack([score(_float(x, low), _float(y, low), span) for x, y in zip(a, b, strict=True)])


def _checked(a: ArrayLike, b: ArrayLike, value_range: Range) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The two clips, the lower end of the range and its width."""
    a, b = np.asarray(a), np.asarray(b)
    low, high = value_range if isinstance(value_range, tuple) else (0.0, value_range)
    if not high > low:
        raise ValueError(f"value_range must be (low, high) with low < high, got ({low}, {high})")
    if a.shape != b.shape:
        raise ValueError(f"expected two clips of one shape, got {a.shape} and {b.shape}")
    if a.ndim != 5 or a.shape[-1] != 3 or 0 in a.shape:
        raise ValueError(f"expected clips of shape (n, t, h, w, 3), got {a.shape}")
    for clip in (a, b):
        # Written so that NaN fails as well.
        if not (clip.min() >= low - SLACK and clip.max() <= high + SLACK):
            raise ValueError(
                f"expected values in [{low:g}, {high:g}], got {clip.min():.4g} to {clip.max():.4g}: set value_range"
            )
    return a, b, float(low), float(high - low)


def _float(clip: np.ndarray, low: float) -> np.ndarray:
    """Shift to [0, width]: SSIM compares brightness, so zero must be black."""
    return clip.astype(np.float64) - low


def _psnr_frames(a: np.ndarray, b: np.ndarray, span: float) -> np.ndarray:
    """`(t,)` dB of `(t, h, w, 3)`."""
    error = np.mean((a - b) ** 2, axis=(1, 2, 3))
    least = span**2 * 10 ** (-CAP / 10)
    return 10 * np.log10(span**2 / np.maximum(error, least))


def _ssim_frames(a: np.ndarray, b: np.ndarray, span: float) -> np.ndarray:
    """`(t,)` of `(t, h, w, 3)`."""
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, got {a.shape[1]} x {a.shape[2]}")
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return np.mean(light * structure, axis=(1, 2, 3))


def _smooth(x: np.ndarray) -> np.ndarray:
    """Gaussian window over height and width of `(t, h, w, 3)`, valid region only."""
    radius = WINDOW // 2
    for axis in (1, 2):
        x = scipy.ndimage.gaussian_filter1d(x, SIGMA, axis=axis, radius=radius)
    return x[:, radius:-radius, radius:-radius]

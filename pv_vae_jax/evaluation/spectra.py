"""Spectra of latents: how many directions channels use, and how fast latents vary over space and time.

Posterior means `(n, g, h, w, z)` as in `latents`; latent frame 0, which stands for one video frame, is left out.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ChannelSpectrum:
    """Eigenvalues of the channels' covariance.

    Attributes:
      shares: `(z,)` of the variance, descending.
      effective: number of equal eigenvalues with the same `(sum)^2 / sum of squares`: 1 for one direction, z for all.
    """

    shares: np.ndarray
    effective: float


def channel_spectrum(means: np.ndarray) -> ChannelSpectrum:
    """Spectrum over all places, times and clips. Latents that never vary have shares of 0."""
    z = _later(means).reshape(-1, means.shape[-1])
    values = np.maximum(np.linalg.eigvalsh(np.atleast_2d(np.cov(z.T, ddof=0)))[::-1], 0)
    total = values.sum()
    if not total:
        return ChannelSpectrum(np.zeros_like(values), 0.0)
    return ChannelSpectrum(values / total, float(total**2 / np.sum(values**2)))


@dataclasses.dataclass(frozen=True)
class PowerSpectrum:
    """Variance per latent value by frequency, channels standardised: all entries of `power` add up to 1.

    Attributes:
      spatial: `(a,)` radial frequency in cycles per latent pixel, centres of equal bins from 0 to 0.5 and beyond.
      by_space: `(a,)` variance in each of those bins.
      temporal: `(b,)` cycles per latent frame, 0 to 0.5.
      by_time: `(b,)` variance at each.
    """

    spatial: np.ndarray
    by_space: np.ndarray
    temporal: np.ndarray
    by_time: np.ndarray


def power_spectrum(means: np.ndarray) -> PowerSpectrum:
    """Power of the discrete Fourier transform over time, height and width, mean over channels and clips.

    The mean of each channel over the set is removed, so frequency 0 holds what differs between clips alone. No window
    is applied: the borders of a clip leak into high frequencies, in all VAEs alike.
    """
    z = _later(means)
    z = (z - z.mean(axis=(0, 1, 2, 3))) / np.maximum(z.std(axis=(0, 1, 2, 3)), 1e-12)
    g, h, w = z.shape[1:4]
    power = np.mean(np.abs(np.fft.fftn(z, axes=(1, 2, 3))) ** 2, axis=(0, 4)) / (g * h * w) ** 2
    frequency = [np.abs(np.fft.fftfreq(size)) for size in (g, h, w)]
    temporal = np.unique(frequency[0])
    by_time = np.array([power[frequency[0] == f].sum() for f in temporal])
    radius = np.sqrt(frequency[1][:, None] ** 2 + frequency[2][None, :] ** 2)
    bins = max(max(h, w) // 2, 1)
    step = 0.5 / bins
    place = np.rint(radius / step).astype(int)
    by_space = np.bincount(place.ravel(), weights=power.sum(axis=0).ravel())
    return PowerSpectrum(np.arange(len(by_space)) * step, by_space, temporal, by_time)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's coefficient of two arrays of one size; ties take their mean rank. NaN where one does not vary."""
    ranks = []
    for values in (np.ravel(a), np.ravel(b)):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    x, y = (r - r.mean() for r in ranks)
    spread = np.sqrt(np.sum(x**2) * np.sum(y**2))
    return float(np.sum(x * y) / spread) if spread else float("nan")


def motion_correlation(means: np.ndarray, motion: np.ndarray) -> float:
    """Rank correlation of how far latents move and how much moves in the video, place by place.

    Args:
      means: `(n, g, h, w, z)`.
      motion: `(n, t - 1, H, W)` amount of motion from each frame to the next, such as the length of optical flow;
        `t = 1 + (g - 1) p_t`. It is averaged over the pixels and frames of a latent.

    Raises:
      ValueError: the shapes do not fit each other, or there are fewer than three latent frames.
    """
    n, g, h, w, _ = means.shape
    steps, height, width = motion.shape[1:]
    if g < 3:
        raise ValueError(f"latents of {g} frames have no two neighbours that stand for groups of frames")
    if len(motion) != n or steps % (g - 1) or height % h or width % w:
        raise ValueError(f"motion {motion.shape} does not fit latents {means.shape}")
    pooled = motion.reshape(n, g - 1, steps // (g - 1), h, height // h, w, width // w).mean(axis=(2, 4, 6))
    moved = np.linalg.norm(np.diff(_later(means), axis=1), axis=-1)  # n g-2 h w
    return rank_correlation(moved, (pooled[:, 1:] + pooled[:, :-1]) / 2)


def _later(means: np.ndarray) -> np.ndarray:
    means = np.asarray(means, np.float64)
    return means[:, 1:] if means.shape[1] > 1 else means

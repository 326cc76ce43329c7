"""Reconstruction quality: PSNR and SSIM of the decoded posterior mean.

Every score of this package is taken on the pixels that a viewer sees: clamped to [-1, 1] and rounded to uint8.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.evaluation.image_metrics import WINDOW, psnr, ssim
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Scores of a set of clips.

    Attributes:
      psnr: dB, mean over frames and clips.
      ssim: mean over frames and clips; None where frames are smaller than its window.
      means: `(n, g, h, w, z)` float32, the posterior means.
    """

    psnr: float
    ssim: float | None
    means: np.ndarray


def score_reconstruction(
    model: VAE, params: Params, video: np.ndarray, *, batch_size: int = 16, label: str = "reconstruction"
) -> Reconstruction:
    """Encode, decode the mean, and compare, batch by batch; the decoded clips are not kept.

    Args:
      model: the VAE.
      params: parameters of the VAE.
      video: `(n, 1 + T, H, W, 3)` uint8.
      batch_size: clips per batch.
      label: label of the progress bar.

    Raises:
      ShapeError: the frame count or size does not fit the model.
    """
    scores, means = [], []
    for start, batch, count in batches(video, batch_size, label):
        decoded, mean = jax.device_get(_reconstruct(model, params, batch))
        truth, decoded = video[start : start + count], decoded[:count]
        similar = ssim(truth, decoded, 255.0) if min(video.shape[2:4]) >= WINDOW else np.nan
        scores.append((psnr(truth, decoded, 255.0), similar))
        means.append(mean[:count])
    weights = [len(mean) for mean in means]
    peak, similar = np.average(scores, axis=0, weights=weights)
    return Reconstruction(float(peak), None if np.isnan(similar) else float(similar), np.concatenate(means))


def reconstruct(model: VAE, params: Params, video: np.ndarray, *, batch_size: int = 16) -> np.ndarray:
    """Decode the posterior means of `(n, 1 + T, H, W, 3)` uint8 clips: the same shape, uint8."""
    decoded = [np.asarray(_reconstruct(model, params, b)[0])[:count] for _, b, count in batches(video, batch_size)]
    return np.concatenate(decoded)


def batches(video: np.ndarray, batch_size: int, label: str | None = None) -> Iterator[tuple[int, np.ndarray, int]]:
    """Yield `(index of the first clip, padded batch, number of real clips)` with a progress bar."""
    if not len(video):
        raise ValueError("expected at least one clip to evaluate, got none")
    interval = 1 if sys.stderr.isatty() else 20
    with tqdm(total=len(video), desc=label, unit="clip", mininterval=interval, disable=label is None) as bar:
        for number, (batch, count) in enumerate(padded_batches(video, batch_size)):
            yield number * batch_size, batch, count
            bar.update(count)


@functools.partial(jax.jit, static_argnums=0)  # at module level, so that all stages of a run share one program
def _reconstruct(model: VAE, params: Params, video: Array) -> tuple[Array, Array]:
    decoded, posterior = model.apply({"params": params}, to_float(video))
    return to_uint8(decoded), posterior.mean

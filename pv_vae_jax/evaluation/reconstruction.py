"""Reconstruction quality: PSNR, SSIM and LPIPS of the decoded posterior mean, frame by frame.

Every score of this package is taken on the pixels that a viewer sees: clamped to [-1, 1] and rounded to uint8.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.evaluation.image_metrics import FrameScores, PerceptualDistance, join_frames, score_frames
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Scores of a set of clips.

    Attributes:
      psnr: dB, mean over frames and clips.
      ssim: mean over frames and clips; None where frames are smaller than its window.
      frames: scores of every frame, each `(n, t)`, see `score_frames`.
      means, logvar: `(n, g, h, w, z)` float32, of the posteriors.
    """

    psnr: float
    ssim: float | None
    frames: FrameScores
    means: np.ndarray
    logvar: np.ndarray


def score_reconstruction(
    model: VAE,
    params: Params,
    video: np.ndarray,
    *,
    batch_size: int = 16,
    perceptual: PerceptualDistance | None = None,
    label: str | None = "reconstruction",
) -> Reconstruction:
    """Encode, decode the mean, and compare, batch by batch; the decoded clips are not kept.

    Args:
      model: the VAE.
      params: parameters of the VAE.
      video: `(n, 1 + T, H, W, 3)` uint8.
      batch_size: clips per batch.
      perceptual: distance that is scored as well.
      label: label of the progress bar; None shows none.

    Raises:
      ShapeError: the frame count or size does not fit the model.
    """
    scores, posteriors = [], []
    for start, batch, count in batches(video, batch_size, label):
        decoded, *posterior = jax.device_get(_reconstruct(model, params, batch))
        scores.append(score_frames(video[start : start + count], decoded[:count], 255.0, perceptual))
        posteriors.append([array[:count] for array in posterior])
    means, logvar = (np.concatenate(arrays) for arrays in zip(*posteriors, strict=True))
    frames = join_frames(scores)
    similar = float(frames["ssim"].mean()) if "ssim" in frames else None
    return Reconstruction(float(frames["psnr"].mean()), similar, frames, means, logvar)


def reconstruct(model: VAE, params: Params, video: np.ndarray, *, batch_size: int = 16) -> np.ndarray:
    """Decode the posterior means of `(n, 1 + T, H, W, 3)` uint8 clips: the same shape, uint8."""
    decoded = [np.asarray(_reconstruct(model, params, b)[0])[:count] for _, b, count in batches(video, batch_size)]
    return np.concatenate(decoded)


def batches(video: np.ndarray, batch_size: int, label: str | None = None) -> Iterator[tuple[int, np.ndarray, int]]:
    """Yield `(index of the first clip, padded batch, number of real clips)` with a progress bar."""
    if not len(video):
        raise ValueError("expected at least one clip to evaluate, got none")
    with progress_bar(total=len(video), desc=label, unit="clip", disable=label is None) as bar:
        for number, (batch, count) in enumerate(padded_batches(video, batch_size)):
            yield number * batch_size, batch, count
            bar.update(count)


@functools.partial(jax.jit, static_argnums=0)  # at module level, so that all stages of a run share one program
def _reconstruct(model: VAE, params: Params, video: Array) -> tuple[Array, Array, Array]:
    decoded, posterior = model.apply({"params": params}, to_float(video))
    return to_uint8(decoded), posterior.mean, posterior.logvar

"""How well a VAE draws frames that it did not see, beside two guesses that need no model.

For every number `k` of dropped groups: squared error on the range [-1, 1], over the dropped frames alone. The guesses
are copying the last frame seen, and going on in a straight line through the last two.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.evaluation.reconstruction import batches
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.predictive import observed_frames, predict_filled
from pv_vae_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class PredictionErrors:
    """Squared errors on [-1, 1], one entry for each `k = 0 .. g - 1`; NaN where there is no such frame (k = 0).

    Attributes:
      predicted: of the model, on the dropped frames.
      seen: of the model, on the observed frames.
      copying: of the last observed frame, on the dropped frames.
      extrapolation: of the straight line through the last two observed frames, clipped; copying where one is observed.
    """

    predicted: np.ndarray
    seen: np.ndarray
    copying: np.ndarray
    extrapolation: np.ndarray

    def average(self, name: str = "predicted") -> float:
        """Mean over `k >= 1`, every `k` alike."""
        return float(np.mean(getattr(self, name)[1:]))

    @property
    def against_copying(self) -> float:
        """Average error over that of copying, less 1: -0.43 is 43 % below copying. NaN for still clips."""
        copying = self.average("copying")
        return self.average() / copying - 1.0 if copying else float("nan")


def score_prediction(
    model: VAE, params: Params, video: np.ndarray, *, seed: int = 0, batch_size: int = 16, label: str = "prediction"
) -> PredictionErrors:
    """Drop every possible number of groups and measure what the decoder draws.

    Args:
      model: the VAE.
      params: its parameters.
      video: `(n, 1 + T, H, W, 3)` uint8, two groups at least.
      seed: of gaussian padding, which also draws a posterior sample; a learnable token decodes the mean.
      batch_size: clips at once.
      label: of the progress bar.

    Raises:
      ValueError: clips of one group leave nothing to drop.
      ShapeError: the clips do not fit the model.
    """
    frames = video.shape[1]
    groups = model.config.latent_frames(frames)
    if groups < 2:
        raise ValueError(f"clips of {frames} frames are one group: nothing can be dropped")
    kept = [observed_frames(frames, k, model.config.time_factor) for k in range(groups)]
    guesses = {"copying": copy_last, "extrapolation": extrapolate}
    total = {name: np.zeros(groups) for name in ("predicted", "seen", *guesses)}
    for start, batch, count in batches(video, batch_size, label):
        truth = to_float(batch[:count], "float64")
        for k, n in enumerate(kept):
            drawn = to_float(np.asarray(_predict(model, params, batch, k, seed, start))[:count], "float64")
            total["seen"][k] += count * np.mean((drawn[:, :n] - truth[:, :n]) ** 2)
            if k == 0:
                continue
            total["predicted"][k] += count * np.mean((drawn[:, n:] - truth[:, n:]) ** 2)
            for name, guess in guesses.items():
                total[name][k] += count * np.mean((guess(truth, n) - truth[:, n:]) ** 2)
    errors = {name: value / len(video) for name, value in total.items()}
    for name in ("predicted", *guesses):
        errors[name][0] = np.nan
    return PredictionErrors(**errors)


def predict(
    model: VAE, params: Params, video: np.ndarray, dropped: int, *, seed: int = 0, batch_size: int = 16
) -> np.ndarray:
    """Withhold the last `dropped` groups of uint8 clips `(n, 1 + T, H, W, 3)`; draw all frames: same shape, uint8."""
    observed_frames(video.shape[1], dropped, model.config.time_factor)
    drawn = [
        np.asarray(_predict(model, params, batch, dropped, seed, start))[:count]
        for start, batch, count in batches(video, batch_size)
    ]
    return np.concatenate(drawn)


def copy_last(video: np.ndarray, observed: int) -> np.ndarray:
    """The last of the `observed` frames, for all later ones: `(n, t, h, w, 3)` -> `(n, t - observed, h, w, 3)`."""
    shape = (video.shape[0], video.shape[1] - observed, *video.shape[2:])
    return np.broadcast_to(video[:, observed - 1 : observed], shape)


def extrapolate(video: np.ndarray, observed: int) -> np.ndarray:
    """Every pixel goes on as from the last but one to the last observed frame, clipped to [-1, 1].

    One observed frame has no direction: it is copied. Shapes as in `copy_last`.
    """
    if observed < 2:
        return copy_last(video, observed)
    last, before = video[:, observed - 1 : observed], video[:, observed - 2 : observed - 1]
    ahead = np.arange(1, video.shape[1] - observed + 1).reshape(1, -1, 1, 1, 1)
    return np.clip(last + ahead * (last - before), -1.0, 1.0)


@functools.partial(jax.jit, static_argnums=0)
def _predict(model: VAE, params: Params, video: Array, dropped: Array, seed: Array, start: Array) -> Array:
    """The filled form takes `k` as data: one program serves every `k`."""
    key = None
    if model.config.pad == "gaussian":
        key = jax.random.fold_in(jax.random.key(seed), start)
    prediction = predict_filled(model, params, to_float(video), jnp.asarray(dropped), key)
    return to_uint8(model.apply({"params": params}, prediction.features, method="to_pixels"))

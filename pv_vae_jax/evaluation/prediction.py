"""How well a VAE draws frames that it did not see, beside two guesses that need no model.

For every number `k` of dropped groups: squared error on the range [-1, 1], over the dropped frames alone. The guesses
are copying the last frame seen, and going on in a straight line through the last two. `score_pattern` does the same for
patterns that withhold something else than the end of a clip.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.dropping import DropFrom, DropPattern, num_droppable
from pv_vae_jax.evaluation.reconstruction import batches
from pv_vae_jax.masking import sample_mask
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.predictive import mask_pixels, observed_frames, predict_filled, predict_masked
from pv_vae_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class PredictionErrors:
    """Squared errors on [-1, 1], one entry for each `k = 0 .. g - 1`; NaN where there is no such frame (k = 0).

    Attributes:
      predicted: of the model, on what is dropped.
      seen: of the model, on what is observed.
      copying: of the last observed frame, on the dropped frames; with patterns, of the last one observed at each pixel.
      extrapolation: of the straight line through the last two observed frames, clipped; copying where one is observed.
        NaN for patterns.
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
    model: VAE,
    params: Params,
    video: np.ndarray,
    *,
    seed: int = 0,
    batch_size: int = 16,
    label: str | None = "prediction",
) -> PredictionErrors:
    """Drop every possible number of groups and measure what the decoder draws.

    Args:
      model: the VAE.
      params: its parameters.
      video: `(n, 1 + T, H, W, 3)` uint8, two groups at least.
      seed: of gaussian padding, which also draws a posterior sample; a learnable token decodes the mean.
      batch_size: clips at once.
      label: of the progress bar; None shows none.

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


def score_pattern(
    model: VAE,
    params: Params,
    video: np.ndarray,
    pattern: DropPattern,
    *,
    drop_from: DropFrom = "pixels",
    seed: int = 0,
    batch_size: int = 16,
    label: str = "prediction",
) -> PredictionErrors:
    """`score_prediction` for any pattern: what is withheld is drawn once for every clip and every `k`.

    Args:
      model, params, video, batch_size, label: as for `score_prediction`.
      pattern: see `masking`; `infill` has one `k` less.
      drop_from: see `predict_masked`. With `latents` the model has seen what it is asked for, copying has not.
      seed: of the masks, and of gaussian padding.

    Raises:
      ValueError: the pattern leaves nothing to drop.
      ShapeError: the clips do not fit the model.
    """
    config, (_, frames, height, width, _) = model.config, video.shape
    grid = (config.latent_frames(frames), height // config.space_factor, width // config.space_factor)
    most = num_droppable(grid[0], pattern)
    if not most:
        raise ValueError(f"clips of {frames} frames are {grid[0]} groups: {pattern!r} leaves nothing to drop")
    total = {name: np.zeros(most + 1) for name in ("predicted", "seen", "copying")}
    counts = {name: np.zeros(most + 1) for name in total}
    draw = jax.jit(sample_mask, static_argnums=(0, 3))
    for start, batch, count in batches(video, batch_size, label):
        truth = to_float(batch[:count], "float64")
        for k in range(most + 1):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), start), k)
            observed = draw(pattern, key, jnp.full(len(batch), k), grid)
            kept = np.asarray(
                mask_pixels(jnp.ones((*batch.shape[:-1], 1)), observed, config.time_factor, config.space_factor)
            )
            kept = kept[:count, ..., 0] == 1
            drawn = to_float(
                np.asarray(_predict_masked(model, drop_from, params, batch, observed, seed, start))[:count], "float64"
            )
            guesses = {
                "seen": (drawn, kept),
                "predicted": (drawn, ~kept),
                "copying": (hold_observed(truth, kept), ~kept),
            }
            for name, (guess, where) in guesses.items():
                total[name][k] += ((guess - truth) ** 2).mean(-1)[where].sum()
                counts[name][k] += where.sum()
    errors = {name: np.divide(total[name], n, out=np.full(most + 1, np.nan), where=n > 0) for name, n in counts.items()}
    return PredictionErrors(**errors, extrapolation=np.full(most + 1, np.nan))


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


def predict_half(
    model: VAE, params: Params, video: np.ndarray, *, batch_size: int = 16
) -> tuple[np.ndarray | None, int]:
    """`predict` from about half of the groups, and the number of observed frames; None for clips of one group."""
    frames = video.shape[1]
    dropped = model.config.latent_frames(frames) // 2
    drawn = predict(model, params, video, dropped, batch_size=batch_size) if dropped else None
    return drawn, frames - dropped * model.config.time_factor


def copy_last(video: np.ndarray, observed: int) -> np.ndarray:
    """The last of the `observed` frames, for all later ones: `(n, t, h, w, 3)` -> `(n, t - observed, h, w, 3)`."""
    shape = (video.shape[0], video.shape[1] - observed, *video.shape[2:])
    return np.broadcast_to(video[:, observed - 1 : observed], shape)


def hold_observed(video: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Every pixel as it was last observed: `copy_last` for masks.

    Args:
      video: `(n, t, h, w, 3)`.
      observed: `(n, t, h, w)` bool, true for all of frame 0.
    """
    frames = np.arange(video.shape[1]).reshape(1, -1, 1, 1)
    last = np.maximum.accumulate(np.where(observed, frames, 0), axis=1)
    return np.take_along_axis(video, last[..., None], axis=1)


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
    prediction = predict_filled(model, params, to_float(video), jnp.asarray(dropped), _key(model, seed, start))
    return to_uint8(model.apply({"params": params}, prediction.latents, method="decode"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict_masked(
    model: VAE, drop_from: DropFrom, params: Params, video: Array, observed: Array, seed: Array, start: Array
) -> Array:
    """The mask is data: one program serves every pattern."""
    key = _key(model, seed, start)
    prediction = predict_masked(model, params, to_float(video), observed, key, drop_from=drop_from)
    return to_uint8(model.apply({"params": params}, prediction.latents, method="decode"))


def _key(model: VAE, seed: Array, start: Array) -> Array | None:
    return jax.random.fold_in(jax.random.key(seed), start) if model.config.pad == "gaussian" else None

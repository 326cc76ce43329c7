"""Latents over space and time: principal components as colours, distance in time (LTD), spectra, motion.

All take posterior means `(n, g, h, w, z)` of a set of clips. Latent frame 0 stands for one video frame and the others
for `p_t` each, so its statistics are its own: it is left out wherever directions or distances are fitted.
"""

import dataclasses
import math

import numpy as np
import scipy.stats

from pv_vae_jax.evaluation.diffusability import channel_spectrum, measure_latents, standardized, without_first
from pv_vae_jax.evaluation.prediction import predict_half, score_prediction
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.typing import Params

SHOWN = 3  # clips with pictures


@dataclasses.dataclass(frozen=True)
class PrincipalColours:
    """Three principal components as RGB.

    Attributes:
      pictures: `(n, g, h, w, 3)` uint8.
      explained: `(3,)` shares of the variance.
    """

    pictures: np.ndarray
    explained: np.ndarray


def principal_colours(means: np.ndarray) -> PrincipalColours:
    """Paint every latent by its first three principal components.

    Components are fitted to all tokens of all clips but those of latent frame 0, centred per channel. The entry of
    largest size of each is made positive, so that signs do not depend on the solver. Colours run from the 1st to the
    99th percentile of the whole set: two pictures of one colour show equal latents.

    Args:
      means: `(n, g, h, w, z)`. With `z < 3` the colours that are left over stay 0.
    """
    means = np.asarray(means, np.float64)
    tokens = without_first(means).reshape(-1, means.shape[-1])
    centre = tokens.mean(axis=0)
    # The right singular vectors of the centred tokens, through their small (z, z) Gram matrix.
    variance, basis = np.linalg.eigh((tokens - centre).T @ (tokens - centre))
    kept = min(3, len(variance))
    basis, share = basis[:, ::-1][:, :kept], np.zeros(3)
    share[:kept] = variance[::-1][:kept] / max(variance.sum(), 1e-30)
    basis = basis * np.sign(np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0))
    values = (means - centre) @ basis
    low, high = np.percentile(values.reshape(-1, kept), (1, 99), axis=0)
    unit = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    pictures = np.zeros((*means.shape[:-1], 3), np.uint8)
    pictures[..., :kept] = np.rint(255 * unit)
    return PrincipalColours(pictures, np.clip(share, 0, 1))


@dataclasses.dataclass(frozen=True)
class TemporalDistance:
    """How far latents move in time, per latent value, in standard deviations of their channel.

    Attributes:
      adjacent: `(n,)` a clip: mean distance of neighbouring latent frames.
      curve: `(d,)` distance at intervals 1 .. d over that at the longest, mean over clips. It should rise to 1.
      chance: mean distance of the same place and time in two different clips; None with one clip.
    """

    adjacent: np.ndarray
    curve: np.ndarray
    chance: float | None

    @property
    def median(self) -> float:
        """Median over clips of the distance of neighbouring latent frames; lower is smoother."""
        return float(np.median(self.adjacent))


def temporal_distance(means: np.ndarray) -> TemporalDistance | None:
    """Latent temporal distance of `means` `(n, g, h, w, z)`, without latent frame 0.

    `|| z[i + d] - z[i] ||_2 / sqrt(h w z)`, mean over `i`; channels are standardised over the set (our choice: VAEs of
    different latent scale cannot be compared otherwise). None with fewer than three latent frames.
    """
    if means.shape[1] < 3:
        return None
    z = standardized(without_first(means))
    distance = lambda a, b: np.sqrt(np.mean((a - b) ** 2, axis=(2, 3, 4)))  # noqa: E731
    by_interval = np.stack([distance(z[:, d:], z[:, :-d]).mean(axis=1) for d in range(1, z.shape[1])], axis=1)
    moving = by_interval[by_interval[:, -1] > 0]  # a frozen clip has no curve
    curve = (moving / moving[:, -1:]).mean(axis=0) if len(moving) else np.zeros(by_interval.shape[1])
    chance = float(distance(z, np.roll(z, 1, axis=0)).mean()) if len(z) > 1 else None
    return TemporalDistance(by_interval[:, 0], curve, chance)


def distance_numbers(means: np.ndarray) -> dict:
    """The numbers of `temporal_distance` as JSON; None where there are fewer than three latent frames."""
    distance = temporal_distance(means)
    if distance is None:
        return dict.fromkeys(("ltd_median", "ltd_curve", "ltd_chance"))
    return {"ltd_median": distance.median, "ltd_curve": distance.curve.tolist(), "ltd_chance": distance.chance}


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
    z = standardized(without_first(means))
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
    """Spearman's rank correlation of two arrays of equal size. NaN where one of them is constant."""
    a, b = np.ravel(a), np.ravel(b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # for which scipy warns
        return float("nan")
    return float(scipy.stats.spearmanr(a, b).statistic)


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
    pooled = pool_motion(motion, (g, h, w))
    moved = np.linalg.norm(np.diff(without_first(np.asarray(means, np.float64)), axis=1), axis=-1)  # n g-2 h w
    return rank_correlation(moved, (pooled[:, 1:] + pooled[:, :-1]) / 2)


def pool_motion(motion: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Motion `(n, t - 1, H, W)`, averaged over the pixels and frames of each latent of a grid g, h, w.

    Returns:
      `(n, g - 1, h, w)`; latent frame 0 has no motion before it.
    """
    (g, h, w), (n, steps, height, width) = grid, motion.shape
    return motion.reshape(n, g - 1, steps // (g - 1), h, height // h, w, width // w).mean(axis=(2, 4, 6))


@dataclasses.dataclass(frozen=True)
class LatentAnalysis:
    """One VAE's latents on a set of clips.

    Attributes:
      name: label of the model.
      numbers: a JSON tree; a number that these clips are too short for, or that needs the VAE, is None.
      colours: `(s, g, h, w, 3)` uint8 principal components of the first clips.
      motion: `(s, g, h, w, 3)` uint8, how much moved before each latent frame; black at frame 0. None if not known.
      reconstruction, prediction: `(s, t, h, w, 3)` uint8 of the first clips; the prediction was given about half of the
        groups, and is None for clips of one group. Both are None without the VAE.
      observed: frames that the prediction was given.
    """

    name: str
    numbers: dict
    colours: np.ndarray
    motion: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    prediction: np.ndarray | None = None
    observed: int = 0


def analyze_given(name: str, latents: dict[str, np.ndarray]) -> LatentAnalysis:
    """Measure latents whose VAE is not at hand, as `latent_sets.read_latents` gives them."""
    means = latents["mean"]
    colours, distance = principal_colours(means), temporal_distance(means)
    channels, power = channel_spectrum(means), power_spectrum(means)
    of_vae = ("weights", "psnr_db", "ssim", "motion_correlation", "energy_motion_correlation", "prediction_mse")
    numbers = {
        "config": f"latents {' x '.join(map(str, means.shape[1:]))}",
        **dict.fromkeys((*of_vae, "copying_mse", "against_copying")),
        "clips": len(means),
        "measures": measure_latents(latents),
        **distance_numbers(means),
        "ltd_quartiles": np.percentile(distance.adjacent, (25, 75)).tolist() if distance else None,
        "ltd_by_clip": distance.adjacent.tolist() if distance else None,
        "ltd_over_chance": distance.median / distance.chance if distance and distance.chance else None,
        "explained_by_3_components": float(colours.explained.sum()),
        "channel_shares": channels.shares.tolist(),
        "effective_channels": channels.effective,
        "power": {name: values.tolist() for name, values in dataclasses.asdict(power).items()},
    }
    return LatentAnalysis(name, numbers, colours.pictures[:SHOWN])


def analyze_latents(
    name: str,
    model: VAE,
    params: Params,
    video: np.ndarray,
    motion: np.ndarray,
    label: np.ndarray | None = None,
    *,
    batch_size: int = 8,
) -> LatentAnalysis:
    """Encode, decode and predict `(n, t, h, w, 3)` uint8 clips, and measure the posterior.

    Args:
      name: label of the model.
      model, params: the VAE.
      video: clips whose length and size the VAE takes.
      motion: `(n, t - 1, h, w)`, how much moves from each frame to the next.
      label: `(n,)` class of each clip; None if it is not known.
      batch_size: clips per step.

    Raises:
      ShapeError: the VAE does not take clips of this length or size.
    """
    score = score_reconstruction(model, params, video, batch_size=batch_size, label=f"{name}: reconstruction")
    means, shown = score.means, video[:SHOWN]
    labels = {} if label is None else {"label": label}
    given = analyze_given(name, {"mean": means, "logvar": score.logvar} | labels)
    numbers = given.numbers | {"config": model.config.name, "weights": weights_hash(params)}
    numbers |= {"psnr_db": score.psnr, "ssim": score.ssim}
    groups, grid = means.shape[1], means.shape[1:4]
    pooled = pool_motion(motion, grid) if groups > 1 else np.zeros((len(video), 0, *grid[1:]))
    if groups > 1:
        errors = score_prediction(model, params, video, batch_size=batch_size, label=f"{name}: prediction")
        later = without_first(means)
        energy = np.linalg.norm(later - later.mean(axis=(0, 1, 2, 3)), axis=-1)
        numbers["energy_motion_correlation"] = finite(rank_correlation(energy, pooled))
        numbers["prediction_mse"], numbers["copying_mse"] = (
            [finite(v) for v in row] for row in (errors.predicted, errors.copying)
        )
        numbers["against_copying"] = finite(errors.against_copying)
    if groups > 2:
        numbers["motion_correlation"] = finite(motion_correlation(means, motion))
    size = min(batch_size, len(shown))
    decoded = reconstruct(model, params, shown, batch_size=size)
    prediction, observed = predict_half(model, params, shown, batch_size=size)
    pictures = _motion_pictures(pooled)[:SHOWN]
    return LatentAnalysis(name, numbers, given.colours, pictures, decoded, prediction, observed)


def _motion_pictures(pooled: np.ndarray) -> np.ndarray:
    """Grey pictures `(n, g, h, w, 3)` uint8 of motion `(n, g - 1, h, w)`; frame 0 is black."""
    scale = max(float(np.percentile(pooled, 99)), 1e-12) if pooled.size else 1.0
    grey = np.rint(255 * np.clip(pooled / scale, 0, 1)).astype(np.uint8)
    return np.repeat(np.pad(grey, ((0, 0), (1, 0), (0, 0), (0, 0)))[..., None], 3, axis=-1)


def finite(value: float) -> float | None:
    """A number for JSON: None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None

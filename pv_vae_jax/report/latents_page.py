"""Measurements of a VAE's latents on a set of clips, and the page that puts several VAEs side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.latent_analysis import (
    channel_spectrum,
    distance_numbers,
    motion_correlation,
    pool_motion,
    power_spectrum,
    principal_colours,
    rank_correlation,
)
from pv_vae_jax.evaluation.prediction import predict_half, score_prediction
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.report.figures import Media, Series, fit, strip
from pv_vae_jax.report.page import BUDGET, PANEL, chart, finite, write_page
from pv_vae_jax.typing import Params

SHOWN = 3  # clips with pictures


@dataclasses.dataclass(frozen=True)
class LatentAnalysis:
    """One VAE's latents on a set of clips.

    Attributes:
      name: label of the model.
      numbers: a JSON tree; a number that these clips are too short for is None.
      colours: `(s, g, h, w, 3)` uint8 principal components of the first clips.
      motion: `(s, g, h, w, 3)` uint8, how much moved before each latent frame; black at frame 0.
      reconstruction, prediction: `(s, t, h, w, 3)` uint8 of the first clips; the prediction was given about half of the
        groups, and is None for clips of one group.
      observed: frames that the prediction was given.
    """

    name: str
    numbers: dict
    colours: np.ndarray
    motion: np.ndarray
    reconstruction: np.ndarray
    prediction: np.ndarray | None
    observed: int


def analyze_latents(
    name: str, model: VAE, params: Params, video: np.ndarray, motion: np.ndarray, *, batch_size: int = 8
) -> LatentAnalysis:
    """Encode, decode and predict `(n, t, h, w, 3)` uint8 clips, and measure the posterior means.

    Args:
      name: label in tables and on the page.
      model, params: the VAE.
      video: clips whose length and size the VAE takes.
      motion: `(n, t - 1, h, w)`, how much moves from each frame to the next.
      batch_size: clips per step.

    Raises:
      ShapeError: the VAE does not take clips of this length or size.
    """
    score = score_reconstruction(model, params, video, batch_size=batch_size, label=f"{name}: reconstruction")
    means, shown = score.means, video[:SHOWN]
    groups, grid = means.shape[1], means.shape[1:4]
    colours, channels, power = principal_colours(means), channel_spectrum(means), power_spectrum(means)
    pooled, errors = np.zeros((len(video), 0, *grid[1:])), None
    if groups > 1:
        pooled = pool_motion(motion, grid)
        errors = score_prediction(model, params, video, batch_size=batch_size, label=f"{name}: prediction")
    later = means[:, 1:] if groups > 1 else means
    energy = np.linalg.norm(later - later.mean(axis=(0, 1, 2, 3)), axis=-1)
    numbers = {
        "config": model.config.name,
        "weights": weights_hash(params),
        "psnr_db": score.psnr,
        "ssim": score.ssim,
        **distance_numbers(means),
        "explained_by_3_components": float(colours.explained.sum()),
        "channel_shares": channels.shares.tolist(),
        "effective_channels": channels.effective,
        "power": {name: values.tolist() for name, values in dataclasses.asdict(power).items()},
        "motion_correlation": finite(motion_correlation(means, motion)) if groups > 2 else None,
        "energy_motion_correlation": finite(rank_correlation(energy, pooled)) if errors else None,
        "prediction_mse": [finite(v) for v in errors.predicted] if errors else None,
        "copying_mse": [finite(v) for v in errors.copying] if errors else None,
        "against_copying": finite(errors.against_copying) if errors else None,
    }
    size = min(batch_size, len(shown))
    decoded = reconstruct(model, params, shown, batch_size=size)
    prediction, observed = predict_half(model, params, shown, batch_size=size)
    pictures = _motion_pictures(pooled)[:SHOWN]
    return LatentAnalysis(name, numbers, colours.pictures[:SHOWN], pictures, decoded, prediction, observed)


def _motion_pictures(pooled: np.ndarray) -> np.ndarray:
    """Grey pictures `(n, g, h, w, 3)` uint8 of motion `(n, g - 1, h, w)`; frame 0 is black."""
    scale = max(float(np.percentile(pooled, 99)), 1e-12) if pooled.size else 1.0
    grey = np.rint(255 * np.clip(pooled / scale, 0, 1)).astype(np.uint8)
    return np.repeat(np.pad(grey, ((0, 0), (1, 0), (0, 0), (0, 0)))[..., None], 3, axis=-1)


def write_analysis(path: Path, facts: dict, analyses: Sequence[LatentAnalysis], video: np.ndarray) -> None:
    """Write the page atomically: tables, curves of all models, pictures of the same clips.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    write_page(
        path,
        "latents.html",
        facts=facts,
        analyses=analyses,
        time=_time([a for a in analyses if a.numbers["ltd_curve"]]),
        spectra=_spectra([(a.name, a.numbers) for a in analyses]),
        prediction=_prediction([a for a in analyses if a.numbers["prediction_mse"]]),
        clips=_pictures(analyses, video, Media(BUDGET)),
    )


def _time(analyses: Sequence[LatentAnalysis]) -> list[dict]:
    if not analyses:
        return []
    curves = [Series(a.name, range(1, len(a.numbers["ltd_curve"]) + 1), a.numbers["ltd_curve"]) for a in analyses]
    values = [np.asarray(a.numbers["ltd_by_clip"]) for a in analyses]
    edges = np.linspace(np.min(values), np.max(values) + 1e-9, 17)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = [
        Series(a.name, middles, np.histogram(v, edges)[0] / len(v)) for a, v in zip(analyses, values, strict=True)
    ]
    ratio, spread = "Distance, relative to the longest interval", "Share of clips by distance of neighbours"
    return [
        chart(ratio, curves, x_label="interval, latent frames"),
        chart(spread, shares, x_label="standard deviations per latent value"),
    ]


def _spectra(numbers: Sequence[tuple[str, dict]]) -> list[dict]:
    shares = [(name, np.maximum(n["channel_shares"], 1e-12)) for name, n in numbers]
    channels = [Series(name, range(1, len(share) + 1), share) for name, share in shares]
    space = [Series(name, n["power"]["spatial"], n["power"]["by_space"]) for name, n in numbers]
    time = [Series(name, n["power"]["temporal"], n["power"]["by_time"]) for name, n in numbers]
    return [
        chart("Variance by channel direction", channels, x_label="eigenvalue", log=True),
        chart("Power by spatial frequency", space, x_label="cycles per latent pixel", log=True),
        chart("Power by temporal frequency", time, x_label="cycles per latent frame", log=True),
    ]


def _prediction(analyses: Sequence[LatentAnalysis]) -> list[dict]:
    if not analyses:
        return []
    lines = [(a.name, a.numbers["prediction_mse"], "line") for a in analyses]  # VAEs may differ in their groups
    lines.append(("copying", analyses[0].numbers["copying_mse"], "dashed"))
    series = [Series(name, range(1, len(row)), np.array(row[1:], float), style) for name, row, style in lines]
    return [chart("Squared error on dropped frames", series, x_label="dropped groups")]


def _pictures(analyses: Sequence[LatentAnalysis], video: np.ndarray, media: Media) -> list[list[tuple[str, dict]]]:
    """(name, pictures side by side) of each clip that is shown."""
    shown, step = [], max((video.shape[1] - 1) // 8, 1)
    for i, clip in enumerate(video[:SHOWN]):
        rows, grids = [("frames", clip[::step])], set()
        for a in analyses:
            if a.motion.shape not in grids:
                # A property of the clips, on the grid of the latents: once for all models of one grid.
                rows.append(("motion", a.motion[i]))
            grids.add(a.motion.shape)
            rows.append((f"{a.name}: components", a.colours[i]))
            rows.append((f"{a.name}: reconstruction", a.reconstruction[i][::step]))
            if a.prediction is not None:
                rows.append((f"{a.name}: prediction from {a.observed} frames", a.prediction[i][::step]))
        shown.append([(name, media.picture(strip(fit(p, PANEL // 2)), f"clip {i}, {name}")) for name, p in rows])
    return shown

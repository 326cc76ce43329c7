"""Measurements of a VAE's latents on a set of clips, and the page that puts several VAEs side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.latent_analysis import (
    channel_spectrum,
    motion_correlation,
    power_spectrum,
    principal_colours,
    rank_correlation,
    temporal_distance,
)
from pv_vae_jax.evaluation.prediction import predict, score_prediction
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.report.figures import Media, Series, fit, strip
from pv_vae_jax.report.page import BUDGET, PANEL, Section, cell, chart, grid, heading, missing, table, text, write_page
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
    means = score.means
    groups, p_t = means.shape[1], model.config.time_factor
    colours, distance = principal_colours(means), temporal_distance(means)
    channels, power = channel_spectrum(means), power_spectrum(means)
    errors, prediction, observed = None, None, video.shape[1]
    if groups > 1:
        errors = score_prediction(model, params, video, batch_size=batch_size, label=f"{name}: prediction")
        dropped = groups // 2
        observed = video.shape[1] - dropped * p_t
        prediction = predict(model, params, video[:SHOWN], dropped, batch_size=min(batch_size, SHOWN))
    later = means[:, 1:] if groups > 1 else means
    pooled, pictures = _motion_pictures(motion, means.shape, SHOWN)
    energy = np.linalg.norm(later - later.mean(axis=(0, 1, 2, 3)), axis=-1)
    numbers = {
        "config": model.config.name,
        "weights": weights_hash(params),
        "psnr_db": score.psnr,
        "ssim": score.ssim,
        "ltd_median": distance.median if distance else None,
        "ltd_quartiles": np.percentile(distance.adjacent, (25, 75)).tolist() if distance else None,
        "ltd_by_clip": distance.adjacent.tolist() if distance else None,
        "ltd_curve": distance.curve.tolist() if distance else None,
        "ltd_chance": distance.chance if distance else None,
        "ltd_over_chance": distance.median / distance.chance if distance and distance.chance else None,
        "explained_by_3_components": float(colours.explained.sum()),
        "channel_shares": channels.shares.tolist(),
        "effective_channels": channels.effective,
        "power": {field.name: getattr(power, field.name).tolist() for field in dataclasses.fields(power)},
        "motion_correlation": _finite(motion_correlation(means, motion)) if groups > 2 else None,
        "energy_motion_correlation": _finite(rank_correlation(energy, pooled)) if groups > 1 else None,
        "prediction_mse": [_finite(v) for v in errors.predicted] if errors else None,
        "copying_mse": [_finite(v) for v in errors.copying] if errors else None,
        "against_copying": _finite(errors.against_copying) if errors else None,
    }
    shown = video[:SHOWN]
    decoded = reconstruct(model, params, shown, batch_size=min(batch_size, len(shown)))
    return LatentAnalysis(name, numbers, colours.pictures[:SHOWN], pictures, decoded, prediction, observed)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _motion_pictures(motion: np.ndarray, shape: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Motion `(n, g - 1, h, w)` averaged over each latent's pixels and frames, and pictures of the first clips."""
    n, g, h, w, _ = shape
    if g < 2:
        return np.zeros((n, 0, h, w)), np.zeros((count, 1, h, w, 3), np.uint8)
    frames, height, width = motion.shape[1:]
    pooled = motion.reshape(n, g - 1, frames // (g - 1), h, height // h, w, width // w).mean(axis=(2, 4, 6))
    scale = max(float(np.percentile(pooled, 99)), 1e-12)
    grey = np.rint(255 * np.clip(pooled[:count] / scale, 0, 1)).astype(np.uint8)
    grey = np.concatenate([np.zeros_like(grey[:, :1]), grey], axis=1)
    return pooled, np.repeat(grey[..., None], 3, axis=-1)


def write_analysis(path: Path, facts: dict, analyses: Sequence[LatentAnalysis], video: np.ndarray) -> None:
    """Write the page atomically: tables, curves of all models, pictures of the same clips.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    media = Media(BUDGET)
    height, width = facts["size"]
    headline = f"{facts['clips']} clips of {facts['frames']} x {height} x {width} from {facts['source']}."
    sections = [
        Section("numbers", "Numbers", _numbers(analyses)),
        Section("time", "Distance in time", _time(analyses)),
        Section("spectra", "Spectra", _spectra(analyses)),
        Section("prediction", "Prediction", _prediction(analyses)),
        Section("pictures", "Clips", _pictures(analyses, video, media)),
    ]
    write_page(path, "Latent analysis", sections, heading="Latents side by side", headline=headline)


def _numbers(analyses: Sequence[LatentAnalysis]) -> list[dict]:
    rows = {
        "latents": "config",
        "weights": "weights",
        "PSNR, dB": "psnr_db",
        "SSIM": "ssim",
        "distance of neighbouring latent frames, median": "ltd_median",
        "the same, relative to different clips (0 frozen, 1 unrelated)": "ltd_over_chance",
        "variance in 3 components": "explained_by_3_components",
        "channels used (effective number)": "effective_channels",
        "latents move where the video moves (rank correlation)": "motion_correlation",
        "latents are large where the video moves (rank correlation)": "energy_motion_correlation",
        "prediction error against copying": "against_copying",
    }
    lines = [[label, *(cell(a.numbers[key]) for a in analyses)] for label, key in rows.items()]
    note = text("A VAE whose latents never change has distance 0: read the distance together with PSNR.")
    return [table(["", *(a.name for a in analyses)], lines), note]


def _time(analyses: Sequence[LatentAnalysis]) -> list[dict]:
    timed = [a for a in analyses if a.numbers["ltd_curve"]]
    if not timed:
        return [missing("Distances in time need clips of at least three latent frames.")]
    curves = [Series(a.name, range(1, len(a.numbers["ltd_curve"]) + 1), a.numbers["ltd_curve"]) for a in timed]
    values = [np.asarray(a.numbers["ltd_by_clip"]) for a in timed]
    edges = np.linspace(min(v.min() for v in values), max(v.max() for v in values) + 1e-9, 17)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = [Series(a.name, middles, np.histogram(v, edges)[0] / len(v)) for a, v in zip(timed, values, strict=True)]
    ratio, spread = "Distance, relative to the longest interval", "Share of clips by distance of neighbours"
    return [
        grid(
            "charts",
            [
                chart(ratio, curves, x_label="interval, latent frames"),
                chart(spread, shares, x_label="standard deviations per latent value"),
            ],
        )
    ]


def _spectra(analyses: Sequence[LatentAnalysis]) -> list[dict]:
    shares = [(a.name, np.maximum(a.numbers["channel_shares"], 1e-12)) for a in analyses]
    powers = [(a.name, a.numbers["power"]) for a in analyses]
    channels = [Series(name, range(1, len(s) + 1), s) for name, s in shares]
    space = [Series(name, power["spatial"], power["by_space"]) for name, power in powers]
    time = [Series(name, power["temporal"], power["by_time"]) for name, power in powers]
    return [
        grid(
            "charts",
            [
                chart("Variance by channel direction", channels, x_label="eigenvalue", log=True),
                chart("Power by spatial frequency", space, x_label="cycles per latent pixel", log=True),
                chart("Power by temporal frequency", time, x_label="cycles per latent frame", log=True),
            ],
        )
    ]


def _prediction(analyses: Sequence[LatentAnalysis]) -> list[dict]:
    shown = [a for a in analyses if a.numbers["prediction_mse"]]
    if not shown:
        return [missing("Prediction needs clips of at least two latent frames.")]

    def errors(name: str, row: list[float | None], style: str = "line") -> Series:
        return Series(name, range(1, len(row)), [math.nan if v is None else v for v in row[1:]], style)

    series = [errors(a.name, a.numbers["prediction_mse"]) for a in shown]  # VAEs may differ in their groups
    series.append(errors("copying", shown[0].numbers["copying_mse"], "dashed"))
    return [grid("charts", [chart("Squared error on dropped frames", series, x_label="dropped groups")])]


def _pictures(analyses: Sequence[LatentAnalysis], video: np.ndarray, media: Media) -> list[dict]:
    blocks, side, step = [], PANEL // 2, max((video.shape[1] - 1) // 8, 1)
    for i in range(min(SHOWN, len(video))):
        rows = [("frames", video[i][::step])]
        for n, a in enumerate(analyses):
            if not any(a.motion.shape == other.motion.shape for other in analyses[:n]):
                # A property of the clips, on the grid of the latents: once for all models of one grid.
                rows.append(("motion", a.motion[i]))
            rows.append((f"{a.name}: components", a.colours[i]))
            rows.append((f"{a.name}: reconstruction", a.reconstruction[i][::step]))
            if a.prediction is not None:
                rows.append((f"{a.name}: prediction from {a.observed} frames", a.prediction[i][::step]))
        blocks.append(heading(f"Clip {i}"))
        for name, pictures in rows:
            blocks += [text(name), media.picture(strip(fit(pictures, side)), f"clip {i}, {name}")]
    return blocks

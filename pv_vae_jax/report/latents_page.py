"""Everything about the latents of one VAE on a set of clips, and the page that puts several VAEs side by side."""

from __future__ import annotations

import dataclasses
import html
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
from pv_vae_jax.report.figures import Media, Series, fit, line_chart, strip
from pv_vae_jax.report.run_page import BUDGET, PANEL, table, write_page
from pv_vae_jax.typing import Params

SHOWN = 3  # clips with pictures


@dataclasses.dataclass(frozen=True)
class LatentAnalysis:
    """One VAE's latents on a set of clips.

    Attributes:
      name: of the model.
      numbers: a JSON tree; None stands for what these clips are too short for.
      colours: `(s, g, h, w, 3)` uint8 principal components of the first clips.
      motion: `(s, g, H, W, 3)` uint8, how much moved before each latent frame; black at frame 0.
      reconstruction, prediction: `(s, t, h, w, 3)` uint8 of the first clips; prediction saw about half the groups, and
        is None where there is one group.
      observed: frames that the prediction saw.
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
      name: for tables and pages.
      model, params: the VAE.
      video: clips that fit it.
      motion: `(n, t - 1, h, w)`, how much moves from each frame to the next.
      batch_size: clips at once.

    Raises:
      ShapeError: the clips do not fit.
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


def write_analysis(path: Path, facts: dict, found: Sequence[LatentAnalysis], video: np.ndarray) -> None:
    """Write the page: tables, curves over all models, pictures of the same clips. Whole or not at all."""
    media = Media(BUDGET)
    height, width = facts["size"]
    headline = f"{facts['clips']} clips of {facts['frames']} x {height} x {width} from {facts['source']}."
    sections = [
        ("numbers", "Numbers", _numbers(found)),
        ("time", "Distance in time", _time(found)),
        ("spectra", "Spectra", _spectra(found)),
        ("prediction", "Prediction", _prediction(found)),
        ("pictures", "Clips", _pictures(found, video, media)),
    ]
    write_page(path, "Latent analysis", "Latents side by side", headline, (), sections)


def _numbers(found: Sequence[LatentAnalysis]) -> str:
    rows = {
        "latents": "config",
        "weights": "weights",
        "PSNR, dB": "psnr_db",
        "SSIM": "ssim",
        "distance of neighbouring latent frames, median": "ltd_median",
        "the same over that of different clips (0 frozen, 1 unrelated)": "ltd_over_chance",
        "variance in 3 components": "explained_by_3_components",
        "channels used (effective number)": "effective_channels",
        "latents move where the video moves (rank correlation)": "motion_correlation",
        "latents are large where the video moves (rank correlation)": "energy_motion_correlation",
        "prediction error against copying": "against_copying",
    }
    cell = lambda v: "-" if v is None else f"{v:.4g}" if isinstance(v, float) else v  # noqa: E731
    lines = [[text, *(cell(a.numbers[key]) for a in found)] for text, key in rows.items()]
    note = "<p>A VAE whose latents never move has distance 0: read it beside PSNR.</p>"
    return table(["", *(a.name for a in found)], lines) + note


def _charts(*charts: str) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _time(found: Sequence[LatentAnalysis]) -> str:
    timed = [a for a in found if a.numbers["ltd_curve"]]
    if not timed:
        return '<p class="none">Clips of fewer than three latent frames have no distances in time.</p>'
    curves = [Series(a.name, range(1, len(a.numbers["ltd_curve"]) + 1), a.numbers["ltd_curve"]) for a in timed]
    values = [np.asarray(a.numbers["ltd_by_clip"]) for a in timed]
    edges = np.linspace(min(v.min() for v in values), max(v.max() for v in values) + 1e-9, 17)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = [Series(a.name, middles, np.histogram(v, edges)[0] / len(v)) for a, v in zip(timed, values, strict=True)]
    return _charts(
        line_chart(
            "Distance over that at the longest interval", curves, x_label="interval, latent frames", whole_x=True
        ),
        line_chart(
            "Share of clips by distance of neighbours",
            shares,
            x_label="standard deviations per latent value",
            ends=False,
        ),
    )


def _spectra(found: Sequence[LatentAnalysis]) -> str:
    series = lambda x, y: [Series(a.name, x(a.numbers), y(a.numbers)) for a in found]  # noqa: E731
    power = lambda key: lambda numbers: numbers["power"][key]  # noqa: E731
    shares = series(lambda n: range(1, len(n["channel_shares"]) + 1), lambda n: np.maximum(n["channel_shares"], 1e-12))
    return _charts(
        line_chart("Variance by channel direction", shares, x_label="eigenvalue", log=True, ends=False),
        line_chart(
            "Power by spatial frequency",
            series(power("spatial"), power("by_space")),
            x_label="cycles per latent pixel",
            log=True,
            ends=False,
        ),
        line_chart(
            "Power by temporal frequency",
            series(power("temporal"), power("by_time")),
            x_label="cycles per latent frame",
            log=True,
            ends=False,
        ),
    )


def _prediction(found: Sequence[LatentAnalysis]) -> str:
    drawn = [a for a in found if a.numbers["prediction_mse"]]
    if not drawn:
        return '<p class="none">Clips of one latent frame leave nothing to predict.</p>'
    values = lambda row: [math.nan if v is None else v for v in row[1:]]  # noqa: E731
    first = drawn[0].numbers["copying_mse"]
    dropped = lambda a: range(1, len(a.numbers["prediction_mse"]))  # noqa: E731  VAEs differ in their groups
    rows = [Series(a.name, dropped(a), values(a.numbers["prediction_mse"])) for a in drawn]
    rows.append(Series("copying", range(1, len(first)), values(first), dashed=True))
    return _charts(line_chart("Squared error on dropped frames", rows, x_label="dropped groups", whole_x=True))


def _pictures(found: Sequence[LatentAnalysis], video: np.ndarray, media: Media) -> str:
    parts = []
    for i in range(min(SHOWN, len(video))):
        parts.append(f"<h3>Clip {i}</h3>")
        rows = [("frames", strip(fit(video[i][:: _every(video.shape[1])], PANEL // 2)))]
        for n, a in enumerate(found):
            side = PANEL // 2
            if not any(a.motion.shape == other.motion.shape for other in found[:n]):
                # The clips' own, on the grid of the latents: once for all models of one grid.
                rows.append(("motion", strip(fit(a.motion[i], side))))
            rows.append((f"{a.name}: components", strip(fit(a.colours[i], side))))
            rows.append((f"{a.name}: reconstruction", strip(fit(a.reconstruction[i][:: _every(video.shape[1])], side))))
            if a.prediction is not None:
                told = f"{a.name}: prediction from {a.observed} frames"
                rows.append((told, strip(fit(a.prediction[i][:: _every(video.shape[1])], side))))
        for label, picture in rows:
            parts.append(f"<p>{html.escape(label)}</p>{media.picture(picture, f'clip {i}, {label}')}")
    return "".join(parts)


def _every(frames: int) -> int:
    return max((frames - 1) // 8, 1)

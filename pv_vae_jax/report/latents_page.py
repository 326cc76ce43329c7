"""The page that puts the latents of several VAEs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.diffusability import MEASURES
from pv_vae_jax.evaluation.latent_analysis import SHOWN, LatentAnalysis
from pv_vae_jax.report.figures import Media, Series, fit, strip
from pv_vae_jax.report.page import BUDGET, PANEL, chart, write_page


def write_analysis(path: Path, facts: dict, analyses: Sequence[LatentAnalysis], video: np.ndarray | None) -> None:
    """Write the page atomically: tables, curves of all models, pictures of the same clips, if there are any.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    write_page(
        path,
        "latents.html",
        facts=facts,
        analyses=analyses,
        measures=measure_rows(analyses),
        time=_time([a for a in analyses if a.numbers["ltd_curve"]]),
        spectra=_spectra([(a.name, a.numbers) for a in analyses]),
        prediction=_prediction([a for a in analyses if a.numbers["prediction_mse"]]),
        clips=_pictures(analyses, video, Media(BUDGET)),
    )


def measure_rows(analyses: Sequence[LatentAnalysis]) -> list[tuple[str, ...]]:
    """In words what was measured without training, and of each model the value with its interval, or what it needs."""
    form = lambda m: m.get("left_out") or "{value:.3g} [{low:.3g}, {high:.3g}]".format(**m)  # noqa: E731
    rows = [(words, *(form(a.numbers["measures"][name]) for a in analyses)) for name, (words, *_) in MEASURES.items()]
    return [("without training, 95 % interval", *(a.name for a in analyses)), *rows]


def _time(analyses: Sequence[LatentAnalysis]) -> list[dict]:
    if not analyses:
        return []
    curves = [Series(a.name, range(1, len(a.numbers["ltd_curve"]) + 1), a.numbers["ltd_curve"]) for a in analyses]
    values = [np.asarray(a.numbers["ltd_by_clip"]) for a in analyses]
    edges = np.linspace(min(map(np.min, values)), max(map(np.max, values)) + 1e-9, 17)
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
    shares = {name: np.maximum(n["channel_shares"], 1e-12) for name, n in numbers}
    channels = [Series(name, range(1, len(share) + 1), share) for name, share in shares.items()]
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


def _pictures(
    analyses: Sequence[LatentAnalysis], video: np.ndarray | None, media: Media
) -> list[list[tuple[str, dict]]]:
    """(name, pictures side by side) of each clip that is shown."""
    shown, step = [], 1 if video is None else max((video.shape[1] - 1) // 8, 1)
    for i in range(SHOWN if video is None else min(len(video), SHOWN)):
        rows, grids = [] if video is None else [("frames", video[i][::step])], set()
        for a in analyses:
            if a.motion is not None and a.motion.shape not in grids:
                # A property of the clips, on the grid of the latents: once for all models of one grid.
                rows.append(("motion", a.motion[i]))
                grids.add(a.motion.shape)
            rows += [(f"{a.name}: components", clip) for clip in a.colours[i : i + 1]]
            if a.reconstruction is not None:
                rows.append((f"{a.name}: reconstruction", a.reconstruction[i][::step]))
            if a.prediction is not None:
                rows.append((f"{a.name}: prediction from {a.observed} frames", a.prediction[i][::step]))
        shown.append([(name, media.picture(strip(fit(p, PANEL // 2)), f"clip {i}, {name}")) for name, p in rows])
    return [rows for rows in shown if rows]

"""The page that puts the latents of several VAEs side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.diffusability import MEASURES
from pv_vae_jax.evaluation.latent_analysis import SHOWN, LatentAnalysis
from pv_vae_jax.report.figures import Series
from pv_vae_jax.report.page import write_page


def write_analysis(path: Path, facts: dict, analyses: Sequence[LatentAnalysis], video: np.ndarray | None) -> None:
    """Write the page atomically: tables, curves of all models, pictures of the same clips, if there are any.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    numbers = {"facts": facts, "analyses": analyses, "measures": measure_rows(analyses)}
    write_page(path, "latents.html", **numbers, shares=_shares(analyses), clips=_pictures(analyses, video))


def measure_rows(analyses: Sequence[LatentAnalysis]) -> list[tuple[str, ...]]:
    """In words what was measured without training, and of each model the value with its interval, or what it needs."""
    form = lambda m: m.get("left_out") or "{value:.3g} [{low:.3g}, {high:.3g}]".format(**m)  # noqa: E731
    rows = [(words, *(form(a.numbers["measures"][name]) for a in analyses)) for name, (words, *_) in MEASURES.items()]
    return [("without training, 95 % interval", *(a.name for a in analyses)), *rows]


def _shares(analyses: Sequence[LatentAnalysis]) -> list[Series]:
    """How many of the clips of each model have which distance of neighbouring latent frames."""
    values = {a.name: np.asarray(a.numbers["ltd_by_clip"]) for a in analyses if a.numbers["ltd_curve"]}
    if not values:
        return []
    edges = np.linspace(min(map(np.min, values.values())), max(map(np.max, values.values())) + 1e-9, 17)
    middles = (edges[1:] + edges[:-1]) / 2
    return [Series(name, middles, np.histogram(v, edges)[0] / len(v)) for name, v in values.items()]


def _pictures(analyses: Sequence[LatentAnalysis], video: np.ndarray | None) -> list[list[tuple[str, np.ndarray]]]:
    """(name, pictures `(n, h, w, 3)`) of each clip that is shown."""
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
        shown.append(rows)
    return [rows for rows in shown if rows]

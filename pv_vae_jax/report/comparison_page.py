"""The page of several runs: tables in the paper's layout, convergence, the same clips of all runs.

The paper's numbers below those of the runs are a reference, not rivals: data, size and training length differ.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.convergence import StepsToTarget, running_mean, steps_to_target
from pv_vae_jax.evaluation.latent_analysis import rank_correlation
from pv_vae_jax.report import paper_table
from pv_vae_jax.report.figures import Media, Series
from pv_vae_jax.report.page import BUDGET, chart, clip_row, write_page

# Stage -> the curve by which runs are compared.
CONVERGENCE = {"image": "mse", "video": "mse", "decoder": "mse", "diffusion": "loss"}
SHOWN = 3  # clips of the table of reconstructions, and generated clips per class


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """The results of one run.

    Attributes:
      name: label in tables.
      metrics: the tree of its `metrics.json`.
      curves: stage -> rows of its metrics file.
      scores: name -> value of distances and other scores of generated clips.
      reconstruction, prediction: `(s, t, h, w, 3)` uint8 of the clips that are shown; None without a stage trained on
        clips, or with one latent frame.
      observed: frames that the prediction was given.
      samples: class -> generated clips `(n, t, h, w, 3)`.
    """

    name: str
    metrics: dict
    curves: dict[str, list[dict]]
    scores: dict[str, float]
    reconstruction: np.ndarray | None = None
    prediction: np.ndarray | None = None
    observed: int = 0
    samples: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def last(self) -> dict:
        """Numbers of its last VAE stage."""
        return list(self.metrics["stages"].values())[-1] if self.metrics["stages"] else {}


def write_comparison(path: Path, runs: Sequence[EvaluatedRun], video: np.ndarray, real: str) -> None:
    """Write the page atomically.

    Args:
      path: ends in `.html`; its folder exists.
      runs: two or more.
      video: `(s, t, h, w, 3)` uint8, the originals of `reconstruction`.
      real: describes the clips that the runs were measured on.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    media, accuracy = Media(BUDGET), accuracy_and_generation(runs)
    write_page(
        path,
        "comparison.html",
        runs=runs,
        real=real,
        paper=paper_table(),
        tables={part: _beside_paper(part, {run.name: row(run) for run in runs}) for part, row in ROWS.items()},
        accuracy=accuracy,
        accuracy_charts=[
            chart(name, [Series(run, [x], [y], "points") for run, x, y in points], x_label="error of dropped frames")
            for name, (points, _) in accuracy.items()
        ],
        convergence={stage: found for stage in CONVERGENCE if (found := _convergence(runs, stage))},
        clips=_clips(runs, video, media),
        samples=_samples(runs, media),
    )


def _beside_paper(part: str, rows: dict[str, dict]) -> dict:
    """Columns of a table, the paper's first, and the rows of the runs and of the paper."""
    paper = paper_table()[part]
    columns = list(dict.fromkeys(key for row in (*paper.values(), *rows.values()) for key in row))
    cells = lambda named: {name: [row.get(column) for column in columns] for name, row in named.items()}  # noqa: E731
    return {"columns": columns, "runs": cells(rows), "paper": cells(paper)}


def _reconstruction(run: EvaluatedRun) -> dict:
    prediction = run.last.get("prediction") or {}
    against = prediction.get("against_copying")
    return {
        "latent": run.metrics["model"],
        "PSNR": run.last.get("psnr_db"),
        "SSIM": run.last.get("ssim"),
        "Error of dropped frames": prediction.get("average"),
        "Against copying": None if against is None else f"{against:+.0%}",
        "Scored": run.last.get("scored"),
    }


def _cost(run: EvaluatedRun) -> dict:
    parts = run.metrics["parameters"]
    return {
        "latent": run.metrics["model"],
        "VAE, M parameters": sum(count for part, count in parts.items() if part != "transformer") / 1e6,
        "transformer, M parameters": parts["transformer"] / 1e6 if "transformer" in parts else None,
        "VAE training, frames/s": _median(run.curves, ("decoder", "video", "image"), "frames_per_second"),
        "transformer training, clips/s": _median(run.curves, ("diffusion",), "clips_per_second"),
        "steps": sum(rows[-1]["step"] for rows in run.curves.values() if rows),
        "device": ", ".join(run.metrics["devices"]),
    }


# Part of the paper's tables -> the row of a run.
ROWS = {
    "generation": lambda run: {"latent": run.metrics["model"]} | run.scores,
    "reconstruction": _reconstruction,
    "cost": _cost,
}


def _median(curves: dict[str, list[dict]], stages: Sequence[str], term: str) -> float | None:
    """Median of a term in the first stage that has it."""
    for stage in stages:
        values = [row[term] for row in curves.get(stage, ()) if row.get(term) is not None]
        if values:
            return float(np.median(values))
    return None


def accuracy_and_generation(runs: Sequence[EvaluatedRun]) -> dict[str, tuple[list[tuple[str, float, float]], float]]:
    """Whether runs that predict better generate better: score -> ((run, error, score) of each, rank correlation).

    The error is that of dropped frames; for distances, where lower is better, a positive correlation means yes. With
    fewer than three runs the correlation is NaN, since it would always be 1 or -1.
    """
    result = {}
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        points = [
            (run.name, run.last["prediction"]["average"], run.scores[name])
            for run in runs
            if name in run.scores and run.last.get("prediction")
        ]
        if len(points) > 1:
            errors, scores = (np.array([point[i] for point in points]) for i in (1, 2))
            result[name] = points, rank_correlation(errors, scores) if len(points) > 2 else math.nan
    return result


def curves_of(runs: Sequence[EvaluatedRun], stage: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of the curve that a stage is compared by, of every run that has it."""
    term = CONVERGENCE[stage]
    points = {
        run.name: [(r["step"], r[term]) for r in run.curves.get(stage, ()) if r.get(term) is not None] for run in runs
    }
    return {name: tuple(zip(*found, strict=True)) for name, found in points.items() if found}


def arrivals(runs: Sequence[EvaluatedRun], stage: str) -> dict[str, StepsToTarget]:
    """`A reaches the end of B` -> when, for all pairs that have the stage's curve."""
    drawn = curves_of(runs, stage)
    pairs = itertools.permutations(drawn, 2)
    return {f"{a} reaches the end of {b}": steps_to_target(*drawn[a], *drawn[b]) for a, b in pairs}


def _convergence(runs: Sequence[EvaluatedRun], stage: str) -> dict | None:
    curves = curves_of(runs, stage)
    if not curves:
        return None
    what = "squared error" if CONVERGENCE[stage] == "mse" else CONVERGENCE[stage]
    series = [Series(name, steps, running_mean(values)) for name, (steps, values) in curves.items()]
    drawn = chart(f"Stage {stage}: {what}", series, x_label="step", log=True, ends=True)
    return {"what": what, "chart": drawn, "arrivals": arrivals(runs, stage)}


def _clips(runs: Sequence[EvaluatedRun], video: np.ndarray, media: Media) -> list[list[dict]]:
    """Rows of each clip: the original beside reconstructions, and beside predictions."""
    decoded = [(run.name, run.reconstruction, video.shape[1]) for run in runs if run.reconstruction is not None]
    predicted = [(f"{r.name}: saw {r.observed}", r.prediction, r.observed) for r in runs if r.prediction is not None]
    kinds = {kind: cells for kind, cells in (("reconstructions", decoded), ("predictions", predicted)) if cells}
    return [
        [
            clip_row(
                [("original", clip, None), *((name, clips[i], seen) for name, clips, seen in cells)],
                media,
                f"clip {i}, original and {kind}",
            )
            for kind, cells in kinds.items()
        ]
        for i, clip in enumerate(video if decoded else ())
    ]


def _samples(runs: Sequence[EvaluatedRun], media: Media) -> dict[str, list[dict]]:
    """Class -> rows of one generated clip of every run that has it."""
    found = {name: [] for run in runs for name in run.samples}
    for name, i in itertools.product(found, range(SHOWN)):
        cells = [(run.name, run.samples[name][i], None) for run in runs if len(run.samples.get(name, ())) > i]
        if cells:
            found[name].append(clip_row(cells, media, f"generated {name}, number {i}"))
    return found

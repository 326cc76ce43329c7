"""The page of several runs: tables in the paper's layout, convergence, the same clips of all runs.

The paper's numbers below those of the runs are a reference, not rivals: data, size and training length differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.convergence import StepsToTarget, running_mean, steps_to_target
from pv_vae_jax.evaluation.latent_analysis import rank_correlation
from pv_vae_jax.report import paper_table
from pv_vae_jax.report.figures import Media, Series
from pv_vae_jax.report.page import (
    BUDGET,
    DASH,
    Section,
    border_key,
    cell,
    chart,
    clip_row,
    grid,
    heading,
    missing,
    table,
    text,
    write_page,
)

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
    media = Media(BUDGET)
    sections = [
        Section("generation", "Generation", _generation(runs)),
        Section("reconstruction", "Reconstruction and prediction", _reconstruction(runs)),
        Section("accuracy", "Prediction and generation", _accuracy(runs)),
        Section("cost", "Cost", _cost(runs)),
        Section("convergence", "Convergence", _convergence(runs)),
        Section("clips", "The same clips", _clips(runs, video, media)),
        Section("samples", "Generated clips", _samples(runs, media)),
    ]
    names = ", ".join(run.name for run in runs)
    headline = f"{names}. Measured on {real}."
    write_page(path, f"{names}: comparison", sections, heading="Runs side by side", headline=headline)


def _with_paper(runs: Sequence[tuple[str, dict]], part: str, more: Sequence[str] = ()) -> list[dict]:
    """Rows of the runs, then those of the paper; `more` are columns that the paper does not have."""
    paper = paper_table()
    rows = [*runs, *((f"{name} (paper)", row) for name, row in paper[part].items())]
    columns = [*dict.fromkeys(key for row in paper[part].values() for key in row), *more]
    body = [(name, *(cell(row.get(column)) for column in columns)) for name, row in rows]
    note = f"Rows marked (paper): {paper['source']}; {paper['protocol'][part]}."
    return [table(("", *columns), body, reference=len(paper[part])), text(note)]


def _generation(runs: Sequence[EvaluatedRun]) -> list[dict]:
    names = dict.fromkeys(name for run in runs for name in run.scores)
    more = [name for name in names if name not in ("FVD", "KVD", "IS")]
    rows = [(run.name, {"latent": run.metrics["model"]} | run.scores) for run in runs]
    none = [] if names else [missing("No run has generated clips.")]
    return none + _with_paper(rows, "generation", more)


def _reconstruction(runs: Sequence[EvaluatedRun]) -> list[dict]:
    rows = []
    for run in runs:
        last, prediction = run.last, run.last.get("prediction") or {}
        row = {"latent": run.metrics["model"], "PSNR": last.get("psnr_db"), "SSIM": last.get("ssim")}
        row |= {"Error of dropped frames": prediction.get("average"), "Scored": last.get("scored")}
        against = prediction.get("against_copying")
        row["Against copying"] = None if against is None else f"{against:+.0%}"
        rows.append((run.name, row))
    return _with_paper(rows, "reconstruction", ("Error of dropped frames", "Against copying", "Scored"))


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


def _accuracy(runs: Sequence[EvaluatedRun]) -> list[dict]:
    results = accuracy_and_generation(runs)
    if not results:
        return [missing("This needs at least two runs that have both a prediction error and a score of generation.")]
    charts, rows = [], []
    for name, (points, correlation) in results.items():
        series = [Series(run, [error], [score], "points") for run, error, score in points]
        charts.append(chart(name, series, x_label="error of dropped frames"))
        shown = f"{correlation:.2f}" if math.isfinite(correlation) else f"{DASH} (needs three runs)"
        rows.append((name, len(points), shown))
    return [grid("charts", charts), table(("", "runs", "rank correlation"), rows)]


def _cost(runs: Sequence[EvaluatedRun]) -> list[dict]:
    rows = []
    for run in runs:
        parts = run.metrics["parameters"]
        vae = sum(count for part, count in parts.items() if part != "transformer")
        row = {"latent": run.metrics["model"], "VAE, M parameters": vae / 1e6}
        row["transformer, M parameters"] = parts["transformer"] / 1e6 if "transformer" in parts else None
        row["VAE training, frames/s"] = _median(run.curves, ("decoder", "video", "image"), "frames_per_second")
        row["transformer training, clips/s"] = _median(run.curves, ("diffusion",), "clips_per_second")
        row["steps"] = sum(rows[-1]["step"] for rows in run.curves.values() if rows)
        row["device"] = ", ".join(run.metrics["devices"])
        rows.append((run.name, row))
    more = ("transformer, M parameters", "VAE training, frames/s", "transformer training, clips/s", "steps", "device")
    return _with_paper(rows, "cost", more)


def _median(curves: dict[str, list[dict]], stages: Sequence[str], term: str) -> float | None:
    for stage in stages:
        values = [row[term] for row in curves.get(stage, ()) if row.get(term) is not None]
        if values:
            return float(np.median(values))
    return None


def curve(run: EvaluatedRun, stage: str) -> tuple[list[float], list[float]]:
    """Steps and values of the curve that a stage is compared by."""
    rows = [row for row in run.curves.get(stage, ()) if row.get(CONVERGENCE[stage]) is not None]
    return [row["step"] for row in rows], [row[CONVERGENCE[stage]] for row in rows]


def arrivals(runs: Sequence[EvaluatedRun], stage: str) -> dict[tuple[str, str], StepsToTarget]:
    """(who arrives, at whose end) -> when, for all pairs that have the stage's curve."""
    drawn = {run.name: curve(run, stage) for run in runs}
    drawn = {name: points for name, points in drawn.items() if points[0]}
    return {(a, b): steps_to_target(*drawn[a], *drawn[b]) for a in drawn for b in drawn if a != b}


def _convergence(runs: Sequence[EvaluatedRun]) -> list[dict]:
    blocks = []
    for stage, term in CONVERGENCE.items():
        curves = {run.name: curve(run, stage) for run in runs}
        curves = {name: points for name, points in curves.items() if points[0]}
        if not curves:
            continue
        what = "squared error" if term == "mse" else term
        series = [Series(name, steps, running_mean(values)) for name, (steps, values) in curves.items()]
        drawn = chart(f"Stage {stage}: {what}", series, x_label="step", log=True, ends=True)
        rows = [(f"{a} reaches the end of {b}", *_arrival(when)) for (a, b), when in arrivals(runs, stage).items()]
        reached = [table(("", f"its {what}", "at step", "of", "steps"), rows)] if rows else []
        blocks += [heading(f"Stage {stage}"), grid("halves", [drawn, reached])]
    if not blocks:
        return [missing("No run has written a curve.")]
    note = (
        "Training curves as running means over the last tenth; lower is better. The table gives the step at which a "
        "run first reaches the final value of another. Losses of transformers in the latents of different VAEs are "
        "not on one scale: compare the distances of generated clips instead."
    )
    return [text(note), *blocks]


def _arrival(when: StepsToTarget) -> tuple[str, str, str, str]:
    step = "never" if when.step is None else f"{when.step:,.0f}"
    saved = DASH if when.sooner is None else f"{abs(when.sooner):.0%} {'fewer' if when.sooner >= 0 else 'more'}"
    return f"{when.score:.4g}", step, f"{when.steps:,.0f}", saved


def _clips(runs: Sequence[EvaluatedRun], video: np.ndarray, media: Media) -> list[dict]:
    decoded = [(run.name, run.reconstruction) for run in runs if run.reconstruction is not None]
    if not decoded:
        return [missing("No run has finished a stage that was trained on clips.")]
    predicted = [(f"{r.name}: saw {r.observed}", r.prediction, r.observed) for r in runs if r.prediction is not None]
    blocks = [border_key("Reconstruction, and prediction from about half of the groups.")]
    for i, clip in enumerate(video):
        cells = [("original", clip, None), *((name, clips[i], len(clip)) for name, clips in decoded)]
        rows = [clip_row(cells, media, f"clip {i}, original and reconstructions")]
        if predicted:
            cells = [("original", clip, None), *((name, clips[i], observed) for name, clips, observed in predicted)]
            rows.append(clip_row(cells, media, f"clip {i}, original and predictions"))
        blocks += [heading(f"Clip {i}", 4), grid("halves", rows)]
    return blocks


def _samples(runs: Sequence[EvaluatedRun], media: Media) -> list[dict]:
    sampled = [run for run in runs if run.samples]
    if not sampled:
        return [missing("No run has generated clips: this takes a finished diffusion stage.")]
    blocks = [text("The first clips of each class, drawn with each run's own seed; nothing was selected.")]
    for name in dict.fromkeys(label for run in sampled for label in run.samples):
        rows = []
        for i in range(SHOWN):
            cells = [(run.name, run.samples[name][i], None) for run in sampled if len(run.samples.get(name, ())) > i]
            if cells:
                rows.append(clip_row(cells, media, f"generated {name}, number {i}"))
        blocks += [heading(name, 4), grid("halves", rows)]
    return blocks

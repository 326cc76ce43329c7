"""One page that puts runs side by side: tables in the paper's layout, convergence, the same clips of all runs.

The paper's own numbers stand below those of the runs, as reference and not as rivals: other data, size and length.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.convergence import StepsToTarget, running_mean, steps_to_target
from pv_vae_jax.evaluation.latent_analysis import rank_correlation
from pv_vae_jax.report.figures import COLOURS, Media, Series, fit, frame, line_chart
from pv_vae_jax.report.run_page import BUDGET, PANEL, PLAIN, borders, table, write_page

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text())
# Stage -> the curve by which runs are compared.
CONVERGENCE = {"image": "mse", "video": "mse", "decoder": "mse", "diffusion": "loss"}
SHOWN = 3  # clips of the table of reconstructions, and a class of generated ones


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """What one run has come to.

    Attributes:
      name: for tables.
      metrics: the tree of its `metrics.json`.
      curves: stage -> rows of its metrics file.
      scores: name -> value, of distances and the like.
      reconstruction, prediction: `(s, t, h, w, 3)` uint8 of the clips that are shown; None without a stage on clips, or
        with one latent frame.
      observed: frames that the prediction saw.
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
    """Write the page, whole or not at all.

    Args:
      path: ends in `.html`; its folder exists.
      runs: two or more.
      video: `(s, t, h, w, 3)` uint8, the clips of `reconstruction` as they are.
      real: what the runs were measured on.
    """
    media = Media(BUDGET)
    sections = [
        ("generation", "Generation", _generation(runs)),
        ("reconstruction", "Reconstruction and prediction", _reconstruction(runs)),
        ("accuracy", "Prediction and generation", _accuracy(runs)),
        ("cost", "Cost", _cost(runs)),
        ("convergence", "Convergence", _convergence(runs)),
        ("clips", "The same clips", _clips(runs, video, media)),
        ("samples", "Generated clips", _samples(runs, media)),
    ]
    heading = ", ".join(run.name for run in runs)
    write_page(path, f"{heading}: comparison", "Runs side by side", f"{heading}. Measured on {real}.", (), sections)


def _cell(value: object) -> object:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def _with_paper(runs: Sequence[tuple[str, dict]], part: str, more: Sequence[str] = ()) -> str:
    """Rows of the runs, then those of the paper; `more` are columns that the paper does not have."""
    paper = PAPER[part]
    columns = list(dict.fromkeys(key for row in paper.values() for key in row)) + list(more)
    rows = [(name, *(_cell(row.get(column)) for column in columns)) for name, row in runs]
    rows += [(f"{name} (paper)", *(_cell(row.get(column)) for column in columns)) for name, row in paper.items()]
    note = f"<p>Rows marked (paper): {html.escape(PAPER['source'])}; {html.escape(PAPER['protocol'][part])}.</p>"
    return table(("", *columns), rows, reference=len(paper)) + note


def _generation(runs: Sequence[EvaluatedRun]) -> str:
    scored = [name for run in runs for name in run.scores]
    more = [name for name in dict.fromkeys(scored) if name not in ("FVD", "KVD", "IS")]
    rows = [(run.name, {"latent": run.metrics["model"]} | run.scores) for run in runs]
    none = "" if scored else '<p class="none">No run has generated clips.</p>'
    return none + _with_paper(rows, "generation", more)


def _reconstruction(runs: Sequence[EvaluatedRun]) -> str:
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

    Error is that of dropped frames; for distances, where lower is better, a positive correlation says yes. With fewer
    than three runs the correlation is NaN, for it would be 1 or -1 whatever they are.
    """
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        points = [
            (run.name, run.last["prediction"]["average"], run.scores[name])
            for run in runs
            if name in run.scores and run.last.get("prediction")
        ]
        if len(points) > 1:
            errors, scores = (np.array([point[i] for point in points]) for i in (1, 2))
            found[name] = points, rank_correlation(errors, scores) if len(points) > 2 else math.nan
    return found


def _accuracy(runs: Sequence[EvaluatedRun]) -> str:
    found = accuracy_and_generation(runs)
    if not found:
        return (
            '<p class="none">This takes two runs at least with both a prediction error and a score of generation.</p>'
        )
    charts, rows = [], []
    for name, (points, correlation) in found.items():
        series = [Series(run, [error], [score]) for run, error, score in points]
        charts.append(line_chart(name, series, x_label="error of dropped frames", ends=False))
        shown = f"{correlation:.2f}" if math.isfinite(correlation) else "– (takes three runs)"
        rows.append((name, len(points), shown))
    return f'<div class="charts">{"".join(charts)}</div>' + table(("", "runs", "rank correlation"), rows)


def _cost(runs: Sequence[EvaluatedRun]) -> str:
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


def _convergence(runs: Sequence[EvaluatedRun]) -> str:
    parts = [
        "<p>Training curves as running means over the last tenth; lower is better. The table says when a run first is "
        "where another ends. Losses of transformers in latents of different VAEs are not on one scale: there, read the "
        "distances of generated clips.</p>"
    ]
    for stage, term in CONVERGENCE.items():
        drawn = {run.name: curve(run, stage) for run in runs}
        drawn = {name: points for name, points in drawn.items() if points[0]}
        if not drawn:
            continue
        what = "squared error" if term == "mse" else term
        series = [Series(name, steps, running_mean(values)) for name, (steps, values) in drawn.items()]
        charts = [
            line_chart(f"Stage {stage}: {what}", series[i : i + COLOURS], x_label="step", log=True)
            for i in range(0, len(series), COLOURS)
        ]
        rows = [(f"{a} reaches the end of {b}", *_told(when)) for (a, b), when in arrivals(runs, stage).items()]
        when = table(("", f"its {what}", "at step", "of", "steps"), rows) if rows else ""
        parts.append(f'<h3>Stage {stage}</h3><div class="halves"><div>{"".join(charts)}</div><div>{when}</div></div>')
    return "".join(parts) if len(parts) > 1 else '<p class="none">No run wrote a curve.</p>'


def _told(when: StepsToTarget) -> tuple[str, str, str, str]:
    step = "never" if when.step is None else f"{when.step:,.0f}"
    saved = "–" if when.sooner is None else f"{abs(when.sooner):.0%} {'fewer' if when.sooner >= 0 else 'more'}"
    return f"{when.score:.4g}", step, f"{when.steps:,.0f}", saved


def _row(cells: Sequence[tuple[str, np.ndarray, int | None]], media: Media, label: str) -> str:
    """Clips side by side in one video, so that they play in step, under their names; borders tell what was seen.

    The last of a cell is how many frames its model saw, or None.
    """
    side = min(PANEL, max(1056 // len(cells) - 8, 64))
    colours = [PLAIN if seen is None else borders(len(clip), seen) for _, clip, seen in cells]
    framed = [frame(fit(clip, side), colour) for (_, clip, _), colour in zip(cells, colours, strict=True)]
    video = np.concatenate(framed, axis=2)
    heads = "".join(f"<span>{html.escape(name)}</span>" for name, *_ in cells)
    width = f"max(min(100%,{video.shape[2]}px),{84 * len(cells)}px)"
    return (
        f'<div class="wide"><div style="width:{width}"><div class="heads" style="grid-template-columns:'
        f'repeat({len(cells)},1fr)">{heads}</div>{media.video(video, label)}</div></div>'
    )


def _clips(runs: Sequence[EvaluatedRun], video: np.ndarray, media: Media) -> str:
    drawn = [(run.name, run.reconstruction) for run in runs if run.reconstruction is not None]
    if not drawn:
        return '<p class="none">No run has finished a stage that was trained on clips.</p>'
    parts = [
        "<p>Reconstruction, and prediction from about half of the groups; the border tells what the encoder was given: "
        '<i class="key seen"></i> frame seen, <i class="key drawn"></i> frame predicted.</p>'
    ]
    seen = [(f"{r.name}: saw {r.observed}", r.prediction, r.observed) for r in runs if r.prediction is not None]
    for i, clip in enumerate(video):
        cells = [("original", clip, None), *((name, shown[i], len(clip)) for name, shown in drawn)]
        rows = [_row(cells, media, f"clip {i}, original and reconstructions")]
        if seen:
            cells = [("original", clip, None), *((name, shown[i], observed) for name, shown, observed in seen)]
            rows.append(_row(cells, media, f"clip {i}, original and predictions"))
        parts.append(f'<h4>Clip {i}</h4><div class="halves">{"".join(rows)}</div>')
    return "".join(parts)


def _samples(runs: Sequence[EvaluatedRun], media: Media) -> str:
    drawn = [run for run in runs if run.samples]
    if not drawn:
        return '<p class="none">No run has generated clips: a diffusion stage makes them.</p>'
    parts = ["<p>Each run's first clips of a class, drawn with its own seed; nothing was selected.</p>"]
    for name in dict.fromkeys(label for run in drawn for label in run.samples):
        rows = []
        for i in range(SHOWN):
            cells = [(run.name, run.samples[name][i], None) for run in drawn if len(run.samples.get(name, ())) > i]
            if cells:
                rows.append(_row(cells, media, f"generated {name}, number {i}"))
        parts.append(f'<h4>{html.escape(name)}</h4><div class="halves">{"".join(rows)}</div>')
    return "".join(parts)

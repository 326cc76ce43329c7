"""The page of one run or of several: verdicts, the same clips of all, numbers beside what they should beat, curves.

All numbers are those of `metrics.json`; a section without results says so. The paper's numbers below those of several
runs are a reference, not rivals: data, size and training length differ.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.convergence import StepsToTarget, running_mean, steps_to_target
from pv_vae_jax.evaluation.latent_analysis import rank_correlation
from pv_vae_jax.messages import counted
from pv_vae_jax.report.figures import Series
from pv_vae_jax.report.page import GUESSES, Cell, cell, chart, percent, write_page
from pv_vae_jax.report.paper import paper_table

# Frames of a clip that have a mean of their own, see `evaluation.image_metrics.summarize_frames`.
FRAMES = {"first": "first", "last": "last", "first of groups": "group_first", "last of groups": "group_last"}
FRAMES |= {"withheld": "withheld", "all": "mean"}
AT_THE_TOP = 3  # clips that open the page

# Stage -> the curve by which runs are compared.
CONVERGENCE = {"image": "mse", "video": "mse", "decoder": "mse", "diffusion": "loss"}
# Curves that have a chart of their own: title, columns of the metrics file, whether the axis may be logarithmic. Every
# other column is a term of the objective.
CHARTS = (
    ("KL divergence, nats per latent value", ("kl",), False),
    ("Adversarial terms and mean logits", ("gan", "discriminator", "logits_real", "logits_fake"), False),
    ("Weight of the adversarial term", ("gan_weight",), True),
    ("Gradient norm", ("gradient_norm",), True),
    ("Frames per second", ("frames_per_second",), False),
    ("Clips per second", ("clips_per_second",), False),
    ("Share of time", ("compute", "data_wait", "checkpoint_wait", "evaluation_wait"), False),
    ("Model FLOP utilisation", ("mfu",), False),
    ("PSNR of held-out clips, dB", ("eval/psnr",), False),
    ("SSIM of held-out clips", ("eval/ssim",), False),
    ("Squared error on withheld groups", ("eval/predicted", "eval/copying"), True),
    ("Flow-matching loss of held-out clips", ("eval/velocity_loss",), False),
)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Everything that a page shows of a run besides numbers; what does not exist stays empty.

    Attributes:
      curves: stage -> rows of its metrics file.
      clips: class of each test clip, its title, and its cells: original, reconstruction, predictions.
      clips_stage: VAE stage that made them.
      stills: original and reconstructed pictures `(n, h, w, 3)` of the image stage.
      latents: (title, frames `(g, h, w, 3)`, principal components as colours `(g, h', w', 3)`) of some clips.
      samples: class -> generated clips and real clips, each `(n, t, h, w, 3)`.
    """

    curves: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    clips: Sequence[tuple[str, str, list[Cell]]] = ()
    clips_stage: str = ""
    stills: tuple[np.ndarray, np.ndarray] | None = None
    latents: Sequence[tuple[str, np.ndarray, np.ndarray]] = ()
    samples: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """The results of one run.

    Attributes:
      name: label in tables.
      metrics: the tree of its `metrics.json`, see `report.run_report`.
      pictures: what else there is to show.
      scores: name -> value of distances and other scores of generated clips.
    """

    name: str
    metrics: dict
    pictures: Pictures
    scores: dict[str, float] = dataclasses.field(default_factory=dict)

    def speed(self, term: str, *stages: str) -> float | None:
        """Median of a curve in the first of the stages that has it."""
        curves = [self.pictures.curves.get(stage, ()) for stage in stages]
        rows = [[row[term] for row in curve if row.get(term) is not None] for curve in curves]
        return next((float(np.median(values)) for values in rows if values), None)

    @property
    def last(self) -> dict:
        """Numbers of its last VAE stage."""
        return list(self.metrics["stages"].values())[-1] if self.metrics["stages"] else {}


def write_report(path: Path, metrics: dict, pictures: Pictures) -> None:
    """Write the page of one run, `write_runs` of it."""
    write_runs(path, [EvaluatedRun(metrics["experiment"], metrics, pictures)])


def write_runs(path: Path, runs: Sequence[EvaluatedRun], real: str = "") -> None:
    """Write the page of one run or of several atomically.

    Args:
      path: ends in `.html`; its folder exists.
      runs: the runs, on the same data.
      real: describes the clips that several runs were measured on.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    found = {stage: convergence(runs, stage) for stage in CONVERGENCE if len(runs) > 1}
    write_page(
        path,
        "run.html",
        runs=runs,
        real=real,
        paper=paper_table(),
        verdicts=[(run.name, verdicts(run.metrics)) for run in runs],
        top=side_by_side(runs),
        frame_heads=FRAMES,
        frame_lines=[line for run in runs for line in frame_lines(run.metrics, run.name if len(runs) > 1 else "")],
        lines=prediction_lines(runs),
        accuracy=accuracy_and_generation(runs),
        convergence={stage: pair for stage, pair in found.items() if pair},
        curve_charts=curve_charts,
    )


def verdicts(metrics: dict) -> dict[str, str]:
    """One line a stage: what it came to, beside what it should beat."""
    rivals, split = metrics.get("baselines") or {}, metrics.get("protocol", {}).get("split")
    best = max(rivals, key=lambda name: rivals[name]["psnr_db"], default=None)
    found = {}
    for name, stage in metrics["stages"].items():
        clips = "clips it was trained on " if split == "train" else ""
        line = f"reconstructs {clips}at {cell(stage['psnr_db'], '.2f')} dB PSNR"
        if best and rivals[best]["scored"] == stage["scored"]:  # not single frames beside clips
            line += f", shipped {best} at {cell(rivals[best]['psnr_db'], '.2f')}"
        if p := stage["prediction"]:
            wins = [guess for guess in GUESSES if p["average"] < p[f"average_{guess}"]]
            line += f"; draws what it did not see with an error {percent(p['against_copying'])} that of copying, "
            line += "and so predicts motion" if len(wins) == len(GUESSES) else "and does not beat both guesses yet"
        found[name] = line
    if samples := metrics.get("samples"):
        found["diffusion"] = f"{counted(samples['clips'], 'clip')} generated"
        sets = samples["distances"]
        for score, value in list(sets.get("generated clips", {}).items())[:1]:
            other = sets["other test clips"][score]
            found["diffusion"] += f" at a {score.split(' (')[0]} of {cell(value)}, other test clips at {cell(other)}"
    return found


def side_by_side(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """Title of the first clips, and rows of cells that play in step: truth, reconstruction, prediction, sample.

    All of them are one row for one run; for several runs each kind is a row, with a cell for each run.
    """
    several, found = len(runs) > 1, []
    clips = next((run.pictures.clips for run in runs if run.pictures.clips), ())
    for i, (name, title, (truth, *_)) in enumerate(clips[:AT_THE_TOP]):
        kinds: dict[str, list[Cell]] = {"Reconstruction": [], "Prediction": [], "Sample": []}
        for run in runs:
            _, reconstruction, *predicted = run.pictures.clips[i][2] if i < len(run.pictures.clips) else (None, None)
            generated = run.pictures.samples.get(name, next(iter(run.pictures.samples.values()), ((),)))[0]
            shown = {
                "Reconstruction": reconstruction,
                "Prediction": predicted[(len(predicted) - 1) // 2] if predicted else None,
            }
            shown["Sample"] = ("", generated[i % len(generated)], None) if len(generated) else None
            for kind, (_, clip, seen) in ((kind, each) for kind, each in shown.items() if each):
                saw = f", saw {seen}" if kind == "Prediction" else ""
                kinds[kind].append(((run.name if several else kind) + saw, clip, seen))
        truth, rows = ("Truth", *truth[1:]), [(kind, cells) for kind, cells in kinds.items() if cells]
        joined = [("Clip", [each for _, cells in rows for each in cells])]
        found.append((title, [(kind, [truth, *cells]) for kind, cells in (rows if several else joined)]))
    return found


def frame_lines(metrics: dict, run: str = "") -> list[tuple[str, list[str], dict]]:
    """(name, PSNR in dB of `FRAMES`, all scores by frame) of what each stage that was trained on clips draws."""
    return [
        (f"{run} stage {stage}, {what}".strip(), [cell(scores["psnr"][key], ".2f") for key in FRAMES.values()], scores)
        for stage, numbers in metrics["stages"].items()
        for what, scores in numbers.get("by_frame", {}).items()
    ]


def prediction_lines(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[float | None], float, float | None]]:
    """(name, squared error for each `k`, average, against copying) of the stages that predict, then of the guesses."""
    name = (lambda run, stage: f"{run.name} stage {stage}") if len(runs) > 1 else (lambda run, stage: f"stage {stage}")
    stages = {name(run, s): of["prediction"] for run in runs for s, of in run.metrics["stages"].items()}
    stages |= {f"shipped {s}": of["prediction"] for s, of in (runs[0].metrics.get("baselines") or {}).items()}
    found = {name: p for name, p in stages.items() if p}
    lines = [(name, p["predicted"], p["average"], p["against_copying"]) for name, p in found.items()]
    for p in list(found.values())[:1]:  # the guesses are the same for all
        copying, straight = p["average_copying"], p["average_extrapolation"]
        lines.append(("copying", p["copying"], copying, None))
        lines.append(("extrapolation", p["extrapolation"], straight, straight / copying - 1 if copying else None))
    return lines


def accuracy_and_generation(runs: Sequence[EvaluatedRun]) -> dict[str, tuple[list[tuple[str, float, float]], float]]:
    """Whether runs that predict better generate better: score -> ((run, error, score) of each, rank correlation).

    The error is that of dropped frames; for distances, where lower is better, a positive correlation means yes. With
    fewer than three runs the correlation is NaN, since it would always be 1 or -1.
    """
    result = {}
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        have = [run for run in runs if name in run.scores and run.last.get("prediction")]
        points = [(run.name, run.last["prediction"]["average"], run.scores[name]) for run in have]
        if len(points) > 1:
            errors, scores = (np.array([point[i] for point in points]) for i in (1, 2))
            result[name] = points, rank_correlation(errors, scores) if len(points) > 2 else math.nan
    return result


def curves_of(runs: Sequence[EvaluatedRun], stage: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of the curve that a stage is compared by, of every run that has it."""
    term, curves = CONVERGENCE[stage], {run.name: run.pictures.curves.get(stage, ()) for run in runs}
    points = {name: [(r["step"], r[term]) for r in rows if r.get(term) is not None] for name, rows in curves.items()}
    return {name: ([s for s, _ in found], [value for _, value in found]) for name, found in points.items() if found}


def arrivals(runs: Sequence[EvaluatedRun], stage: str) -> dict[str, StepsToTarget]:
    """`A reaches the end of B` -> when, for all pairs that have the stage's curve."""
    drawn = curves_of(runs, stage)
    pairs = itertools.permutations(drawn, 2)
    return {f"{a} reaches the end of {b}": steps_to_target(*drawn[a], *drawn[b]) for a, b in pairs}


def convergence(runs: Sequence[EvaluatedRun], stage: str) -> tuple[dict, dict[str, StepsToTarget]] | None:
    """The chart of a stage's curves as running means, and the `arrivals`; None if no run has the curve."""
    what = "squared error" if CONVERGENCE[stage] == "mse" else CONVERGENCE[stage]
    series = [Series(name, steps, running_mean(values)) for name, (steps, values) in curves_of(runs, stage).items()]
    drawn = chart(f"Stage {stage}: {what}", series, x_label="step", log=True, ends=True)
    return (drawn, arrivals(runs, stage)) if series else None


def curve_charts(rows: Sequence[dict]) -> list[dict]:
    """Charts of everything in a metrics file; what `CHARTS` does not name is a term of the objective.

    Positive terms share a logarithmic axis, one that takes other values has its own; a stage with several sizes logs
    terms by size as well (`mse/17x64`), which share a chart for each term.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in names}
    columns = {name: points for name, points in columns.items() if points and name != "step"}
    named = {name for _, names, _ in CHARTS for name in names}
    terms = sorted((name for name in columns if name not in named), key=lambda name: (name != "loss", name))
    positive = [name for name in terms if "/" not in name and all(value >= 0 for _, value in columns[name])]
    groups = [("Loss (weighted sum) and its unweighted terms", positive, True)] if positive else []
    groups += [(title, [name for name in names if name in columns], log) for title, names, log in CHARTS]
    rest = [name for name in terms if name not in positive]
    groups += [(prefix, [name for name in rest if name.split("/")[0] == prefix], False)
               for prefix in dict.fromkeys(name.split("/")[0] for name in rest)]  # fmt: skip
    charts = []
    for title, names, log in groups:
        # A term that is 0 throughout, such as the motion of images, tells nothing.
        shown = [name for name in names if len(names) == 1 or any(value for _, value in columns[name])]
        points = {name: zip(*columns[name], strict=True) for name in shown}
        series = [Series(name.replace("_", " "), x, y) for name, (x, y) in points.items()]
        if series:
            charts.append(chart(title, series, x_label="step", log=log, ends=True))
    return charts

"""The page of one run: numbers with their protocol, prediction errors, clips, samples, latents and training curves.

All numbers are those of `metrics.json`; a section without results says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.report.figures import PLAIN, Media, Series, borders, fit, frame, strip
from pv_vae_jax.report.page import BUDGET, PANEL, Cell, cell, chart, clip_row, stack, write_page

# Frames of a clip that have a mean of their own, see `evaluation.image_metrics.summarize_frames`.
FRAMES = {"first": "first", "last": "last", "first of groups": "group_first", "last of groups": "group_last"}
FRAMES |= {"withheld": "withheld", "all": "mean"}
STRIP_FRAMES = 17  # of a clip shown frame by frame

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
    """Everything that a run's page shows besides numbers; what does not exist stays empty.

    Attributes:
      curves: stage -> rows of its metrics file.
      clips: class of each test clip, and the cells of its `clip_row`: original, reconstruction, predictions.
      clips_stage: VAE stage that made them.
      stills: original and reconstructed pictures `(n, h, w, 3)` of the image stage.
      latents: (class, frames `(g, h, w, 3)`, principal components as colours `(g, h', w', 3)`) of some clips.
      samples: class -> generated clips and real clips, each `(n, t, h, w, 3)`.
    """

    curves: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    clips: Sequence[tuple[str, list[Cell]]] = ()
    clips_stage: str = ""
    stills: tuple[np.ndarray, np.ndarray] | None = None
    latents: Sequence[tuple[str, np.ndarray, np.ndarray]] = ()
    samples: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


def write_report(path: Path, metrics: dict, pictures: Pictures) -> None:
    """Write the page atomically.

    Args:
      path: ends in `.html`; its folder exists.
      metrics: the tree of `metrics.json`, see `report.run_report`.
      pictures: what to show.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    media = Media(BUDGET)
    write_page(
        path,
        "run.html",
        metrics=metrics,
        stage_of_clips=pictures.clips_stage,
        **_clips(pictures, media),
        **_frames(metrics),
        **_prediction(metrics),
        samples=_samples(pictures, media),
        **_latents(metrics["latents"], pictures, media),
        curves={stage: curve_charts(rows) for stage, rows in pictures.curves.items()},
    )


def _clips(pictures: Pictures, media: Media) -> dict:
    """Stills, and the rows of clips and of single frames by class."""
    stills, strips = None, []
    if pictures.stills is not None:
        rows = zip(("Original", "Reconstruction"), pictures.stills, strict=True)
        stills = stack([(name, strip(fit(row, 96))) for name, row in rows], media)
    clips = [(name, clip_row(name, cells, media)) for name, cells in pictures.clips]
    for name, (original, _, *predicted) in pictures.clips[:2]:
        frames = len(original[1])
        index = np.unique(np.linspace(0, frames - 1, min(frames, STRIP_FRAMES)).round().astype(int))
        rows = [
            (label, fit(clip[index], 64), borders(frames, seen)[index]) for label, clip, seen in (original, *predicted)
        ]
        if predicted:
            strips.append((name, stack([(label, strip(frame(shown, of, 3))) for label, shown, of in rows], media)))
    return {"stills": stills, "clips": clips, "strips": strips}


def frame_lines(metrics: dict) -> list[tuple[str, list[str], dict]]:
    """(name, PSNR in dB of `FRAMES`, all scores by frame) of what each stage that was trained on clips draws."""
    return [
        (f"stage {stage}, {what}", [cell(scores["psnr"][key], ".2f") for key in FRAMES.values()], scores)
        for stage, numbers in metrics["stages"].items()
        for what, scores in numbers["by_frame"].items()
    ]


def _frames(metrics: dict) -> dict:
    """The lines, and charts of the scores over the frames of a clip."""
    lines, titles = frame_lines(metrics), {"psnr": "PSNR, dB", "ssim": "SSIM"}
    titles |= {"perceptual": metrics["protocol"]["perceptual"]} if "perceptual" in metrics["protocol"] else {}
    charts = []
    for key, title in titles.items():
        curves = [(name, scores[key]["by_frame"]) for name, _, scores in lines if key in scores]
        series = [Series(name, range(len(curve)), curve) for name, curve in curves]
        charts.append(chart(f"{title}, by frame", series, x_label="frame"))
    return {"frame_heads": FRAMES, "frame_lines": lines, "frame_charts": charts}


def prediction_lines(metrics: dict) -> list[tuple[str, list[float | None], float, float | None]]:
    """(name, squared error for each `k`, average, against copying) of the stages that predict, then of the guesses."""
    stages = {name: stage["prediction"] for name, stage in metrics["stages"].items() if stage["prediction"]}
    lines = [(f"stage {name}", p["predicted"], p["average"], p["against_copying"]) for name, p in stages.items()]
    for p in list(stages.values())[:1]:  # the guesses are the same for all
        copying, straight = p["average_copying"], p["average_extrapolation"]
        lines.append(("copying", p["copying"], copying, None))
        lines.append(("extrapolation", p["extrapolation"], straight, straight / copying - 1 if copying else None))
    return lines


def _prediction(metrics: dict) -> dict:
    """The lines, names of the `k`, and a chart of both."""
    lines = prediction_lines(metrics)
    groups = [f"k = {k}" for k in range(len(lines[0][1]))] if lines else []
    style = lambda name: "dashed" if name in ("copying", "extrapolation") else "line"  # noqa: E731
    series = [Series(name, range(1, len(values)), values[1:], style(name)) for name, values, *_ in lines]
    errors = chart("Squared error on dropped frames", series, x_label="dropped groups k")
    return {"lines": lines, "groups": groups, "errors": errors}


def _samples(pictures: Pictures, media: Media) -> dict[str, list[tuple[str, dict]]]:
    """Class -> (title, clips side by side) of generated and real clips."""
    found = {}
    for name, sets in pictures.samples.items():
        found[name] = []
        for title, clips in zip(("Generated", "Real"), sets, strict=True):
            row = [frame(clip, PLAIN, 2) for clip in fit(clips, PANEL)]
            label = f"{title} clips of {name}, {len(clips)} side by side"
            found[name].append((title, media.video(np.concatenate(row, axis=2), label) if row else None))
    return found


def _latents(numbers: dict | None, pictures: Pictures, media: Media) -> dict:
    """Pictures of latents by class, and the chart of distances in time."""
    painted = []
    for name, frames, colours in pictures.latents if numbers else ():
        small = fit(frames, 96)
        rows, columns = (np.arange(n) * m // n for n, m in zip(small.shape[1:3], colours.shape[1:3], strict=True))
        enlarged = colours[:, rows][:, :, columns]
        painted.append((name, stack([("Frames", strip(small)), ("Latents", strip(enlarged))], media)))
    curve = (numbers or {}).get("ltd_curve") or []
    title = "Distance of latent frames, relative to the longest interval"
    series = Series("latents", range(1, len(curve) + 1), curve)
    return {"latents": painted, "distance": chart(title, [series], x_label="interval, latent frames")}


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
        series = [Series(name.replace("_", " "), *zip(*columns[name], strict=True)) for name in shown]
        if series:
            charts.append(chart(title, series, x_label="step", log=log, ends=True))
    return charts

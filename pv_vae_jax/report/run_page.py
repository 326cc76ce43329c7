"""The page of one run: numbers with their protocol, prediction errors, clips, samples, latents and training curves.

All numbers are those of `metrics.json`; a section without results says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.report.figures import PLAIN, Media, Series, borders, fit, frame, strip
from pv_vae_jax.report.page import (
    BUDGET,
    PANEL,
    Section,
    border_key,
    cell,
    chart,
    clip_row,
    facts,
    grid,
    heading,
    missing,
    percent,
    stack,
    table,
    text,
    write_page,
)

STRIP_FRAMES = 17  # of a clip shown frame by frame
NO_CLIP_STAGE = "No stage that was trained on clips is finished."

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
)


@dataclasses.dataclass(frozen=True)
class ShownClip:
    """One test clip and what the VAE makes of it, all `(t, h, w, 3)` uint8.

    Attributes:
      name: its class.
      original, reconstruction: the clip, and the decoded posterior mean.
      predictions: dropped groups `k` -> clip.
    """

    name: str
    original: np.ndarray
    reconstruction: np.ndarray
    predictions: dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Everything that a run's page shows besides numbers; what does not exist stays empty.

    Attributes:
      curves: stage -> rows of its metrics file.
      clips: test clips with reconstruction and predictions.
      clips_stage: VAE stage that made them.
      time_factor: frames per group.
      stills: original and reconstructed pictures `(n, h, w, 3)` of the image stage.
      latents: (class, frames `(g, h, w, 3)`, principal components as colours `(g, h', w', 3)`) of some clips.
      samples: class -> generated clips and real clips, each `(n, t, h, w, 3)`.
    """

    curves: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    clips: Sequence[ShownClip] = ()
    clips_stage: str = ""
    time_factor: int = 1
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
    media, p = Media(BUDGET), metrics["protocol"]
    sections = [
        Section("numbers", "Numbers", _numbers(metrics)),
        Section("clips", "Reconstruction and prediction", _clips(pictures, media)),
        Section("prediction", "Prediction error", _prediction(metrics)),
        Section("samples", "Generated clips", _samples(metrics, pictures, media)),
        Section("latents", "Latents", _latents(metrics, pictures, media)),
        Section("curves", "Training curves", _curves(pictures)),
        Section("setup", "Model and set-up", _setup(metrics)),
    ]
    headline = (
        f"{metrics['model']} VAE on {p['source']}, {p['frames']} frames of {p['size']} x {p['size']} pixels. "
        f"{', '.join(metrics['devices'])}, {metrics['date']}."
    )
    notes = metrics["notes"] + metrics["missing"]
    name = metrics["experiment"]
    write_page(path, f"{name}: report", sections, heading=name, headline=headline, notes=notes)


def _numbers(metrics: dict) -> list[dict]:
    if not metrics["stages"]:
        return [missing("No VAE stage is finished.")]
    rows = []
    for name, stage in metrics["stages"].items():
        prediction = stage["prediction"] or {}
        scores = (cell(stage["psnr_db"], ".2f"), cell(stage["ssim"], ".4f"), cell(prediction.get("average"), ".4f"))
        against = percent(prediction.get("against_copying"))
        rows.append((name, *scores, against, stage["scored"], cell(stage["steps"]), stage["weights"]))
    head = ("Stage", "PSNR, dB", "SSIM", "Error of dropped frames", "Against copying", "Scored", "Steps", "EMA weights")
    note = (
        "Reconstruction is the decoded posterior mean. The error of dropped frames is the mean squared error on the "
        "range [-1, 1], averaged over k = 1 .. g - 1 dropped groups; copying repeats the last observed frame."
    )
    protocol = {name.replace("_", " "): value for name, value in metrics["protocol"].items()}
    return [table(head, rows), text(note), facts("Protocol of all numbers", protocol)]


def _clips(pictures: Pictures, media: Media) -> list[dict]:
    blocks = []
    if pictures.stills is not None:
        original, result = (strip(fit(p, 96)) for p in pictures.stills)
        rows = [("Original", original), ("Reconstruction", result)]
        blocks += [heading("Stage image: single frames"), stack(rows, media)]
    if not pictures.clips:
        return [*blocks, missing(NO_CLIP_STAGE)]
    drops = list(pictures.clips[0].predictions)
    frames = len(pictures.clips[0].original)
    observed = {k: frames - k * pictures.time_factor for k in drops}
    names = {k: f"k = {k}: saw {observed[k]} of {frames}" for k in drops}
    blocks += [heading(f"Stage {pictures.clips_stage}"), border_key("All panels of a clip play in step.")]
    for clip in pictures.clips:
        cells = [("Original", clip.original, None), ("Reconstruction", clip.reconstruction, frames)]
        cells += [(names[k], clip.predictions[k], observed[k]) for k in drops]
        label = f"{clip.name}: {', '.join(name for name, *_ in cells)}"
        blocks += [heading(clip.name, 4), clip_row(cells, media, label)]
    index = np.unique(np.linspace(0, frames - 1, min(frames, STRIP_FRAMES)).round().astype(int))
    for clip in pictures.clips[:2] if drops else ():
        rows = [("Original", clip.original, None), *((names[k], clip.predictions[k], observed[k]) for k in drops)]
        strips = [(name, strip(frame(fit(c[index], 64), borders(frames, seen)[index], 3))) for name, c, seen in rows]
        blocks += [heading(f"Frame by frame: {clip.name}", 4), stack(strips, media)]
    return blocks


def _prediction(metrics: dict) -> list[dict]:
    stages = {name: stage["prediction"] for name, stage in metrics["stages"].items() if stage["prediction"]}
    if not stages:
        return [missing("No stage that was trained on clips of several groups is finished.")]
    first = next(iter(stages.values()))
    dropped = first["dropped"]
    lines = [(f"stage {name}", p["predicted"], p["average"], p["against_copying"]) for name, p in stages.items()]
    copying, straight = first["average_copying"], first["average_extrapolation"]
    lines.append(("copying", first["copying"], copying, None))
    lines.append(("extrapolation", first["extrapolation"], straight, straight / copying - 1 if copying else None))
    rows = [
        (name, *(cell(v, ".4f") for v in values[1:]), cell(mean, ".4f"), percent(ratio))
        for name, values, mean, ratio in lines
    ]
    styles = ["line"] * len(stages) + ["dashed"] * 2
    series = [Series(line[0], dropped[1:], line[1][1:], style) for line, style in zip(lines, styles, strict=True)]
    groups = [f"k = {k}" for k in dropped]
    observed = [(f"stage {name}", *(cell(v, ".4f") for v in p["seen"])) for name, p in stages.items()]
    p_t = first["observed_frames"][0] - first["observed_frames"][1]
    note = (
        f"k groups of {p_t} frames are dropped from the end of a clip. Copying repeats the last observed frame; "
        "extrapolation continues the last two in a straight line, clipped to the range, and copies where only one "
        "frame was observed. Range [-1, 1]."
    )
    return [
        grid("charts", [chart("Squared error on dropped frames", series, x_label="dropped groups k")]),
        table(["Squared error, dropped frames", *groups[1:], "Average", "Against copying"], rows),
        table(["Squared error, observed frames", *groups], observed),
        text(note),
    ]


def _samples(metrics: dict, pictures: Pictures, media: Media) -> list[dict]:
    if not pictures.samples:
        return [missing("No samples: the diffusion stage is not finished, or no samples were requested.")]
    s = metrics["samples"]
    blocks = [
        text(
            f"{s['clips']} clips, {s['steps']} Euler steps, guidance {s['guidance']:g}, seed {s['seed']}; EMA weights "
            f"{s['weights']} of the transformer, VAE of stage {s['vae_stage']}. Real clips are from the "
            f"{metrics['protocol']['split']} split. All generated clips are in samples.npz beside this page."
        )
    ]
    for name, sets in pictures.samples.items():
        halves = []
        for title, clips in zip(("Generated", "Real"), sets, strict=True):
            if len(clips):
                video = np.concatenate([frame(c, PLAIN, 2) for c in fit(clips, PANEL)], axis=2)
                shown = media.video(video, f"{title} clips of {name}, {len(clips)} side by side")
            else:
                shown = missing("No clip of this class.")
            halves.append([text(title), shown])
        blocks += [heading(name, 4), grid("halves", halves)]
    return blocks


def _latents(metrics: dict, pictures: Pictures, media: Media) -> list[dict]:
    latents = metrics["latents"]
    if not latents:
        return [missing(NO_CLIP_STAGE)]
    cells = []
    for name, frames, colours in pictures.latents:
        small = fit(frames, 96)
        nearest = [np.arange(n) * m // n for n, m in zip(small.shape[1:3], colours.shape[1:3], strict=True)]
        painted = colours[:, nearest[0]][:, :, nearest[1]]
        cells.append([heading(name, 4), stack([("Frames", strip(small)), ("Latents", strip(painted))], media)])
    shares = ", ".join(f"{share:.0%}" for share in latents["explained"])
    blocks = [
        text(
            f"Posterior means of stage {latents['stage']}. First row: the last frame of each group. Second row: the "
            f"first three principal components as red, green and blue ({shares} of the variance). Equal colours mean "
            "equal latents, across all clips."
        ),
        grid("latents", cells),
        heading("Distance in time"),
    ]
    if latents["ltd_median"] is None:
        return [*blocks, missing("Distances in time need clips of at least three latent frames.")]
    curve = Series("latents", range(1, len(latents["ltd_curve"]) + 1), latents["ltd_curve"])
    title = "Distance of latent frames, relative to the longest interval"
    chance = f"; two different clips are {latents['ltd_chance']:.3f} apart" if latents["ltd_chance"] is not None else ""
    note = (
        f"Neighbouring latent frames of a clip are {latents['ltd_median']:.3f} apart (median over clips){chance}. "
        "Root mean square per latent value in standard deviations of its channel, without latent frame 0."
    )
    return [*blocks, text(note), grid("charts", [chart(title, [curve], x_label="interval, latent frames")])]


def _curves(pictures: Pictures) -> list[dict]:
    blocks = []
    for stage, rows in pictures.curves.items():
        blocks.append(heading(f"Stage {stage}"))
        charts = curve_charts(rows)
        blocks.append(grid("charts", charts) if charts else missing("This stage has not written a curve."))
    return blocks or [missing("No stage has been started.")]


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


def _setup(metrics: dict) -> list[dict]:
    parameters = [(name, cell(count)) for name, count in metrics["parameters"].items()]
    versions = [table(("Package", "Version"), list(metrics["versions"].items()))]
    devices = text(f"Devices: {', '.join(metrics['devices'])}")
    return [grid("halves", [table(("Part", "Parameters"), parameters), [*versions, devices]])]

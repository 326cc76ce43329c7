"""One HTML page that shows what a run has come to: numbers with their protocol, curves, clips, latents, samples.

The page holds everything itself: it opens without network, from a mail or a memory stick. All numbers are those of
`metrics.json`; a section without results says so.
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.report.figures import Media, Series, fit, frame, line_chart, strip

BUDGET = 12 << 20  # characters of clips and pictures; the page stays below 15 MB with some room
PANEL = 128  # pixels a side at which a small clip is easy to see
STRIP_FRAMES = 17
PLAIN, SEEN, DRAWN = (138, 138, 146), (38, 110, 214), (242, 125, 12)  # borders: truth, frames seen, frames predicted

# Curves that share a chart: title, terms, whether values are best read on a logarithmic axis.
CHARTS = (
    ("Loss terms (unweighted) and total", ("loss", "mse", "motion", "perceptual"), True),
    ("KL divergence, nats a latent value", ("kl",), False),
    ("Adversarial terms and mean logits", ("gan", "discriminator", "logits_real", "logits_fake"), False),
    ("Weight of the adversarial term", ("gan_weight",), True),
    ("Gradient norm", ("gradient_norm",), True),
    ("Frames a second", ("frames_per_second",), False),
    ("Clips a second", ("clips_per_second",), False),
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
    """Everything a report shows that is not a number; what is empty was not there to show.

    Attributes:
      curves: stage -> rows of its metrics file.
      clips: with reconstruction and predictions.
      clips_stage: VAE stage that drew them.
      time_factor: frames a group.
      stills: original and reconstructed pictures `(n, h, w, 3)` of the image stage.
      latents: (class, frames `(g, h, w, 3)`, principal colours `(g, h', w', 3)`) of some clips.
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
    """Write the page, whole or not at all.

    Args:
      path: ends in `.html`; its folder exists.
      metrics: the tree that `metrics.json` holds, see `cli.evaluate`.
      pictures: what to show.
    """
    media = Media(BUDGET)
    sections = [
        ("numbers", "Numbers", _numbers(metrics)),
        ("clips", "Reconstruction and prediction", _clips(pictures, media)),
        ("prediction", "Prediction error", _prediction(metrics)),
        ("samples", "Generated clips", _samples(metrics, pictures, media)),
        ("latents", "Latents", _latents(metrics, pictures, media)),
        ("curves", "Training curves", _curves(pictures)),
        ("setup", "Model and set-up", _setup(metrics)),
    ]
    notes = metrics["notes"] + metrics["missing"]
    write_page(path, f"{metrics['experiment']}: report", metrics["experiment"], _headline(metrics), notes, sections)


def write_page(
    path: Path, title: str, heading: str, headline: str, notes: Sequence[str], sections: Sequence[tuple[str, str, str]]
) -> None:
    """Write a page that stands alone, whole or not at all.

    Args:
      path: ends in `.html`; its folder exists.
      title, heading, headline, notes: plain text.
      sections: (anchor, title, HTML) of each.
    """
    links = "".join(f'<a href="#{name}">{section}</a>' for name, section, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{section}</h2>{content}</section>' for name, section, content in sections)
    told = "".join(f'<p class="note">{_text(note)}</p>' for note in notes)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<header><h1>{_text(heading)}</h1><p>{_text(headline)}</p>{told}</header><nav>{links}</nav>"
        f"<main>{body}</main></body></html>\n"
    )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _text(value: object) -> str:
    return html.escape(str(value))


def _headline(metrics: dict) -> str:
    p = metrics["protocol"]
    devices = ", ".join(metrics["devices"])
    return (
        f"{metrics['model']} VAE on {p['source']}, {p['frames']} frames of {p['size']} x {p['size']} pixels. "
        f"{devices}, {metrics['date']}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]], reference: int = 0) -> str:
    """The first column names the row; the others are numbers, right-aligned. The last `reference` rows stand back."""
    cells = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    kinds = [""] * (len(rows) - reference) + [' class="reference"'] * reference
    body = "".join(
        f'<tr{kind}><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>'
        for row, kind in zip(rows, kinds, strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _value(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{abs(value):.0%} {'below' if value < 0 else 'above'}"


def _numbers(metrics: dict) -> str:
    stages = metrics["stages"]
    if not stages:
        return '<p class="none">No VAE stage is finished.</p>'
    rows = []
    for name, stage in stages.items():
        prediction = stage["prediction"] or {}
        rows.append(
            (
                name,
                _value(stage["psnr_db"], ".2f"),
                _value(stage["ssim"]),
                _value(prediction.get("average")),
                _percent(prediction.get("against_copying")),
                stage["scored"],
                f"{stage['steps']:,}",
                stage["weights"],
            )
        )
    head = ("Stage", "PSNR, dB", "SSIM", "Error of dropped frames", "Against copying", "Scored", "Steps", "EMA weights")
    note = (
        "Reconstruction is the decoded posterior mean. The error of dropped frames is squared, on the range [-1, 1], "
        "and averaged over k = 1 .. g - 1 dropped groups; copying repeats the last frame seen."
    )
    return table(head, rows) + f"<p>{note}</p>{_protocol(metrics)}"


def _protocol(metrics: dict) -> str:
    items = "".join(f"<dt>{_text(k.replace('_', ' '))}</dt><dd>{_text(v)}</dd>" for k, v in metrics["protocol"].items())
    return f'<details open><summary>Protocol of all numbers</summary><dl class="facts">{items}</dl></details>'


def _clips(pictures: Pictures, media: Media) -> str:
    parts = []
    if pictures.stills is not None:
        original, result = (strip(fit(p, 96)) for p in pictures.stills)
        parts.append("<h3>Stage image: single frames</h3>")
        parts.append(_rows([("Original", original), ("Reconstruction", result)], media))
    if not pictures.clips:
        return "".join(parts) + '<p class="none">No stage that was trained on clips is finished.</p>'
    drops = list(pictures.clips[0].predictions)
    frames = len(pictures.clips[0].original)
    seen = {k: frames - k * pictures.time_factor for k in drops}
    parts.append(
        f"<h3>Stage {_text(pictures.clips_stage)}</h3><p>Every clip plays in step. The border tells what "
        'the encoder was given: <i class="key seen"></i> frame seen, <i class="key drawn"></i> frame predicted.</p>'
    )
    heads = ["Original", "Reconstruction"] + [f"k = {k}: saw {seen[k]} of {frames}" for k in drops]
    cells = "".join(f"<span>{_text(head)}</span>" for head in heads)
    side = min(PANEL, 1056 // len(heads) - 8)
    for clip in pictures.clips:
        panels = [frame(fit(clip.original, side), PLAIN), frame(fit(clip.reconstruction, side), SEEN)]
        panels += [frame(fit(clip.predictions[k], side), borders(frames, seen[k])) for k in drops]
        video = np.concatenate(panels, axis=2)
        label = f"{clip.name}: {', '.join(heads)}"
        # At least 84 pixels a panel: a narrow screen scrolls.
        width = f"max(min(100%,{video.shape[2]}px),{84 * len(heads)}px)"
        columns = f"grid-template-columns:repeat({len(heads)},1fr)"
        parts.append(
            f'<h4>{_text(clip.name)}</h4><div class="wide panels" tabindex="0"><div style="width:{width}">'
            f'<div class="heads" style="{columns}">{cells}</div>{media.video(video, label)}</div></div>'
        )
    for clip in pictures.clips[:2] if drops else ():
        index = np.unique(np.linspace(0, frames - 1, min(frames, STRIP_FRAMES)).round().astype(int))
        show = lambda video, colour: strip(frame(fit(video[index], 64), colour, 3))  # noqa: B023, E731
        rows = [("Original", show(clip.original, PLAIN))]
        rows += [
            (heads[2 + i], show(clip.predictions[k], borders(frames, seen[k])[index])) for i, k in enumerate(drops)
        ]
        parts.append(f"<h4>Frame by frame: {_text(clip.name)}</h4>" + _rows(rows, media))
    return "".join(parts)


def borders(frames: int, seen: int) -> np.ndarray:
    """`(frames, 3)` colours of the border: seen by the encoder, then drawn without it."""
    return np.array([SEEN if t < seen else DRAWN for t in range(frames)])


def _rows(rows: Sequence[tuple[str, np.ndarray]], media: Media) -> str:
    """Pictures of equal width below each other, each under its name."""
    content = "".join(f"<p>{_text(name)}</p>{media.picture(picture, name)}" for name, picture in rows)
    least = min(rows[0][1].shape[1], 760)
    return f'<div class="wide"><div class="rows" style="min-width:{least}px">{content}</div></div>'


def _prediction(metrics: dict) -> str:
    found = {name: stage["prediction"] for name, stage in metrics["stages"].items() if stage["prediction"]}
    if not found:
        return '<p class="none">No stage that was trained on clips of several groups is finished.</p>'
    first = next(iter(found.values()))
    dropped = first["dropped"]
    lines = [(f"stage {name}", p["predicted"], p["average"], p["against_copying"]) for name, p in found.items()]
    for name in ("copying", "extrapolation"):
        average = first[f"average_{name}"]
        ratio = average / first["average_copying"] - 1 if name != "copying" and first["average_copying"] else None
        lines.append((name, first[name], average, ratio))
    head = ["Squared error, dropped frames", *(f"k = {k}" for k in dropped[1:]), "Average", "Against copying"]
    rows = [
        (name, *(_value(v) for v in values[1:]), _value(mean), _percent(ratio)) for name, values, mean, ratio in lines
    ]
    seen = [(f"stage {name}", *(_value(v) for v in p["seen"])) for name, p in found.items()]
    series = [Series(name, dropped[1:], values[1:], name in ("copying", "extrapolation")) for name, values, *_ in lines]
    chart = line_chart("Squared error on dropped frames", series, x_label="dropped groups k", whole_x=True)
    p_t = first["observed_frames"][0] - first["observed_frames"][1]
    return (
        f'<div class="charts">{chart}</div>{table(head, rows)}'
        + table(["Squared error, observed frames", *(f"k = {k}" for k in dropped)], seen)
        + f"<p>k groups of {p_t} frames are withheld from the end of a clip. Copying repeats the last frame seen; "
        "extrapolation goes on in a straight line through the last two, clipped to the range, and copies where one "
        "frame is seen. Range [-1, 1].</p>"
    )


def _samples(metrics: dict, pictures: Pictures, media: Media) -> str:
    if not pictures.samples:
        return '<p class="none">No samples: the diffusion stage is not finished, or none were asked for.</p>'
    s = metrics["samples"]
    parts = [
        f"<p>{s['clips']} clips, {s['steps']} Euler steps, guidance {s['guidance']:g}, seed {s['seed']}; EMA weights "
        f"{_text(s['weights'])} of the transformer, VAE of stage {_text(s['vae_stage'])}. Real clips are of the "
        f"{_text(metrics['protocol']['split'])} split. All clips are in <code>samples.npz</code> beside this page.</p>"
    ]
    for name, (generated, real) in pictures.samples.items():
        halves = []
        for title, clips in (("Generated", generated), ("Real", real)):
            if len(clips):
                video = np.concatenate([frame(c, PLAIN, 2) for c in fit(clips, PANEL)], axis=2)
                shown = media.video(video, f"{title} clips of {name}, {len(clips)} side by side")
            else:
                shown = '<p class="none">None of this class.</p>'
            halves.append(f"<div><p>{title}</p>{shown}</div>")
        parts.append(f'<h4>{_text(name)}</h4><div class="halves">{"".join(halves)}</div>')
    return "".join(parts)


def _latents(metrics: dict, pictures: Pictures, media: Media) -> str:
    found = metrics["latents"]
    if not found:
        return '<p class="none">No stage that was trained on clips is finished.</p>'
    shares = ", ".join(f"{share:.0%}" for share in found["explained"])
    parts = [
        f"<p>Posterior means of stage {_text(found['stage'])}. First row: the last frame of each group. Second row: "
        f"the first three principal components as red, green and blue ({shares} of the variance). Equal colours are "
        "equal latents, over all clips.</p>"
    ]
    for name, frames, colours in pictures.latents:
        small = fit(frames, 96)
        nearest = [np.arange(n) * m // n for n, m in zip(small.shape[1:3], colours.shape[1:3], strict=True)]
        painted = colours[:, nearest[0]][:, :, nearest[1]]
        rows = [("Frames", strip(small)), ("Latents", strip(painted))]
        parts.append(f'<div class="latent"><h4>{_text(name)}</h4>{_rows(rows, media)}</div>')
    parts = [parts[0], f'<div class="latent-grid">{"".join(parts[1:])}</div>', "<h3>Distance in time</h3>"]
    if found["ltd_median"] is None:
        return "".join(parts) + '<p class="none">Clips of fewer than three latent frames have no curve.</p>'
    intervals = range(1, len(found["ltd_curve"]) + 1)
    curve = line_chart(
        "Distance of latent frames, as a share of the longest interval's",
        [Series("latents", intervals, found["ltd_curve"])],
        x_label="interval, latent frames", whole_x=True,
    )  # fmt: skip
    chance = f"; two different clips are {found['ltd_chance']:.3f} apart" if found["ltd_chance"] is not None else ""
    parts.append(
        f"<p>Neighbouring latent frames of a clip are {found['ltd_median']:.3f} apart (median over clips){chance}. "
        "Root mean square per latent value in standard deviations of its channel, without latent frame 0.</p>"
        f'<div class="charts">{curve}</div>'
    )
    return "".join(parts)


def _curves(pictures: Pictures) -> str:
    parts = []
    for stage, rows in pictures.curves.items():
        parts.append(f"<h3>Stage {_text(stage)}</h3>")
        if not rows:
            parts.append('<p class="none">This stage wrote no curve.</p>')
            continue
        terms = {term for row in rows for term in row} - {"step"}
        charts = [(title, [t for t in names if t in terms], log) for title, names, log in CHARTS]
        rest = sorted(terms - {t for _, names, _ in CHARTS for t in names})
        alone = sorted({term.split("/")[0] for term in rest})  # a stage with several sizes logs terms by size as well
        charts += [(t, [term for term in rest if term.split("/")[0] == t], False) for t in alone]
        drawn = [_chart(title, names, log, rows) for title, names, log in charts if names]
        parts.append(f'<div class="charts">{"".join(drawn)}</div>')
    return "".join(parts) or '<p class="none">No stage has been started.</p>'


def _chart(title: str, names: Sequence[str], log: bool, rows: Sequence[dict]) -> str:
    series = []
    for name in names:
        have = [row for row in rows if row.get(name) is not None]
        values = [row[name] for row in have]
        if any(values) or len(names) == 1:  # a term that is 0 throughout (motion of images) says nothing
            series.append(Series(name.replace("_", " "), [row["step"] for row in have], values))
    return line_chart(title, series, x_label="step", log=log)


def _setup(metrics: dict) -> str:
    parameters = [(name, f"{count:,}") for name, count in metrics["parameters"].items()]
    versions = [(name, version) for name, version in metrics["versions"].items()]
    devices = "".join(f"<li>{_text(device)}</li>" for device in metrics["devices"])
    return (
        '<div class="halves"><div>' + table(("Part", "Parameters"), parameters) + "</div><div>"
        + table(("Package", "Version"), versions) + f"<p>Devices</p><ul>{devices}</ul></div></div>"
    )  # fmt: skip


STYLE = r"""
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f26;--soft:#5b6472;--line:#d9dee6;--card:#f6f8fa;--note:#fff3d6;
--c0:#1f6fd6;--c1:#d9480f;--c2:#2b8a3e;--c3:#9c36b5;--c4:#b08900;--c5:#0b7285}
@media(prefers-color-scheme:dark){:root{--page:#14171c;--ink:#e6e9ee;--soft:#9aa4b2;--line:#333a45;--card:#1c2128;
--note:#3a3016;--c0:#6ea8fe;--c1:#ff922b;--c2:#69db7c;--c3:#da77f2;--c4:#ffd43b;--c5:#3bc9db}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1140px;padding:16px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.7rem;margin:.3em 0;overflow-wrap:anywhere}h2{font-size:1.3rem;margin:2em 0 .5em;
border-bottom:1px solid var(--line)}h3{font-size:1.05rem;margin:1.4em 0 .4em}
h4{font-size:.92rem;margin:1em 0 .3em;overflow-wrap:anywhere}p{margin:.5em 0}
header p,dt,.rows p,.halves p,.legend{color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;padding:8px 0;border-bottom:1px solid var(--line)}
a{color:var(--c0)}.note{background:var(--note);color:var(--ink)!important;padding:6px 10px;border-radius:6px}
.none{color:var(--soft);font-style:italic}.wide{overflow-x:auto}
@media(max-width:640px){.panels::before{content:"more panels to the right: scroll \2192";display:block;position:sticky;
left:0;width:max-content;font-size:.8rem;color:var(--c0)}}
table{border-collapse:collapse;margin:.6em 0;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;font-weight:400}
td,tbody th{white-space:nowrap}
thead th{color:var(--soft);font-size:.86rem;vertical-align:bottom}
th:first-child{text-align:left}tbody th{font-weight:600}
.halves tbody th{white-space:normal;min-width:9em}
@media(max-width:600px){tbody th{white-space:normal;min-width:9em}th,td{padding:4px 6px}}
.reference{color:var(--soft)}.reference th{font-weight:400}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:.5em 0}
.facts dd{margin:0;overflow-wrap:anywhere}
video,img{display:block;height:auto;border-radius:3px}
video:not(:hover,:focus)::-webkit-media-controls{opacity:0}
.heads{display:grid;font-size:.8rem;color:var(--soft);text-align:center;line-height:1.25}.heads span{padding:2px}
.heads+video{width:100%!important}.rows p{margin:.35em 0 .1em;font-size:.82rem}.rows img{width:100%}
.halves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:8px 24px}
.halves p{margin:0;font-size:.85rem}
.latent-grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));
gap:4px 24px}.latent .rows{min-width:0!important}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
.chart{margin:0;padding:8px 10px;background:var(--card);border:1px solid var(--line);border-radius:8px;max-width:560px}
.chart h4{margin:0 0 4px}svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:13px}
svg path{fill:none;stroke-width:2}.grid{stroke:var(--line)}
.legend{list-style:none;margin:4px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.82rem}
.legend b{color:var(--ink);font-weight:600}
.legend i{display:inline-block;width:18px;margin-right:5px;vertical-align:middle;
border-top:3px solid}.legend .dashed{border-top-style:dashed}
.key{display:inline-block;width:12px;height:12px;border:3px solid;border-radius:2px;vertical-align:-1px}
.seen{border-color:rgb(38,110,214)}.drawn{border-color:rgb(242,125,12)}
"""

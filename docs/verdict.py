"""What the studies say about the question of this repository, in three sentences: `python docs/verdict.py`.

`--page` writes the same sentences, the chart and the tables into docs/results.md. Everything is read from the stored
scores: `docs/results/motion/study.json` decides, its `pilot/study.json` chose the size, and the older ablations stand
beside them.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from studies.ablation.results import Results, read_results
from studies.ablation.tables import markdown

DOCS = Path(__file__).resolve().parent
CHART = "images/verdict.svg"
BASELINE, METHOD = "Baseline", "Whole method"  # the two rows of the motion study that are compared
ASIDE = (", walk", ", KL ", " as long")  # in names of rows that have other clips, weights or lengths: not in the chart
WHOLE = ("+ Decoder Fine-tuning", "+ Motion-aware Objective")  # the whole method in the ablations, the fuller one first
NETWORKS = {"own": "our feature network", "random": "a random network"}


def read(path: Path) -> dict | None:
    """A `study.json`; None if it is not there."""
    return json.loads(path.read_text()) if path.exists() else None


# Sentences


def sentences(tree: dict | None, ablations: Sequence[Results]) -> str:
    """The verdict, the numbers behind it, and what the controls say."""
    if tree is None:
        cells = sum(len(study.cells) for study in ablations)
        return (
            "Whether prediction makes latents easier to diffuse is open. The study that can decide it, with a rule "
            "written beforehand, a control that must win and one that must lose, has not been run to the end. "
            f"{cells} cells of earlier ablations are a hint, not a proof: their rows differ in reconstruction as "
            "well, and no control shows that they could have seen an effect."
        )
    rows = {row["name"]: row for row in tree["rows"]}
    won, lost = tree["controls"]["positive"], tree["controls"]["negative"]
    verdict = f"**{tree['verdict'][:1].upper()}{tree['verdict'][1:]}.**"
    said = f"At an equal PSNR of {tree['primary']['psnr']:.1f} dB, {rows[BASELINE]['mean']:.1%} of the clips generated "
    said += "from the baseline's latents keep their law of motion within a pixel"
    if METHOD in rows:
        said += f", and {rows[METHOD]['mean']:.1%} from the predictive VAE's ({_points(tree['effect'])})"
    early = tree["verdict"].startswith("unfinished")
    wins = "wins" if won["won"] else "has not won yet" if early else "does not win"
    loses = "loses" if lost["lost"] else "has not lost yet" if early else "does not lose"
    return (
        f"{verdict} {said}; real clips reach {tree['primary']['real']:.1%}. The control that must win, latents "
        f"aligned to the state of the world, {wins} ({_points(won['effect'])}), the control that must lose, rotated "
        f"latents, {loses} ({_points(lost['effect'])}), and where motion is random and nothing can be predicted, "
        f"the difference is {_points(tree['placebo']['effect'])}."
    )


def _points(effect: dict | None) -> str:
    """A difference of shares in percentage points, with its interval and the number of paired seeds."""
    if effect is None:
        return "not measured yet"
    found = effect["difference"]
    ends = [None if found[end] is None else 100 * found[end] for end in ("low", "high")]
    interval = "" if None in ends else f" [{ends[0]:.1f}, {ends[1]:.1f}]"
    return f"{100 * found['mean']:+.1f} points{interval}, {found['count']} seed{'s' if found['count'] > 1 else ''}"


# Tables


def motion_table(tree: dict) -> str:
    """One line a row of the motion study."""
    head = ("row", "seeds", "clips that keep their law", "less the baseline", "PSNR, dB", "steps to the baseline's end")
    body = []
    for row in tree["rows"]:
        low, high = row["interval"]
        span = "" if low is None else f" [{low:.1%}, {high:.1%}]"
        shares = row["share_of_steps"]
        reached = f"{np.median(shares):.0%}" if len(shares) == len(row["seeds"]) and shares else "-"
        name = f"{row['name']}{' (far)' if row['far'] else ''}"
        less = "-" if row["difference"] is None else _points(row["difference"])
        body.append((name, str(len(row["seeds"])), f"{row['mean']:.1%}{span}", less, f"{row['psnr']:.2f}", reached))
    return markdown(head, body)


def whole(study: Results) -> str | None:
    """The row of an ablation that is the whole method, or most of it."""
    return next((name for name in WHOLE if name in study.rows), None)


def ablation_table(studies: Sequence[Results]) -> str:
    """One line a study that has several seeds, the whole method less the baseline; the trials in a sentence below."""
    head = ["study", "cells", "row", "seeds", *(f"Frechet, {name}" for name in NETWORKS.values()), "PSNR, dB"]
    body, trials = [], []
    for study in studies:
        link, row = f"[`{study.name}`](results/{study.name}/README.md)", whole(study)
        if row is None or len(study.seeds(row)) < 2:
            trials.append(link)
            continue
        found = [study.difference(row, study.rows[0], f"generation.{name}.frechet") for name in NETWORKS]
        found.append(study.difference(row, study.rows[0], "reconstruction.psnr"))
        count = str(found[0].count if found[0] else 0)
        body.append([link, str(len(study.cells)), row.removeprefix("+ "), count, *map(_difference, found)])
    return markdown(head, body) + (f"\n\nTrials of one or two cells: {', '.join(trials)}." if trials else "")


def _difference(found) -> str:
    if found is None:
        return "-"
    return f"{found.mean:+.2f}" + ("" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]")


# The chart


def chart(tree: dict | None, studies: Sequence[Results]) -> tuple[str, str]:
    """The drawing and its alternative text: the rows of the motion study, or without it the ablations."""
    if tree is not None:
        shown = [row for row in tree["rows"] if not row["far"] and not any(mark in row["name"] for mark in ASIDE)]
        rows = [(row["name"], row["mean"], *row["interval"]) for row in shown]
        rows.append(("Real clips", tree["primary"]["real"], None, None))
        title = "Share of generated clips that keep their law of motion, at equal PSNR"
        baseline = next(row["mean"] for row in tree["rows"] if row["name"] == BASELINE)
        return dots(title, rows, baseline, ".0%", "baseline"), title
    title = "Frechet distance, whole method less baseline (our feature network): left of 0 is better"
    rows = []
    for study in studies:
        if (row := whole(study)) and len(study.seeds(row)) > 1:
            if found := study.difference(row, study.rows[0], "generation.own.frechet"):
                rows.append((study.name, found.mean, found.low, found.high))
    return dots(title, rows, 0.0, "g", "no difference"), title


def dots(title: str, rows: Sequence[tuple], mark: float, form: str, marked: str) -> str:
    """An SVG with a line a row, `(name, mean, low, high)` with or without interval, and a dashed line at `mark`."""
    left, right, top, step, width = 190, 40, 56, 26, 720
    values = [value for _, *found in rows for value in found if value is not None] + [mark]
    low, high = min(values), max(values)
    pad = (high - low) * 0.04 or 1.0
    low, high, bottom = low - pad, high + pad, top + step * len(rows)

    def x(value: float) -> float:
        return round(left + (width - left - right) * (value - low) / (high - low), 1)

    parts = [f'<text class="t" x="12" y="24">{html.escape(title)}</text>']
    for tick in _ticks(low, high):
        parts.append(f'<line class="g" x1="{x(tick)}" x2="{x(tick)}" y1="{top - 8}" y2="{bottom}"/>')
        parts.append(f'<text class="s" x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:{form}}</text>')
    parts.append(f'<line class="m" x1="{x(mark)}" x2="{x(mark)}" y1="{top - 8}" y2="{bottom}"/>')
    parts.append(f'<text class="s" x="{x(mark)}" y="{top - 12}" text-anchor="middle">{marked}</text>')
    for i, (name, mean, lower, upper) in enumerate(rows):
        y = top + step * i + step / 2
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>')
        if lower is not None:
            parts.append(f'<line class="c" x1="{x(lower)}" x2="{x(upper)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle cx="{x(mean)}" cy="{y}" r="5"/>')
    style = (
        ".v{--i:#1b1f26;--s:#5b6472;--g:#d9dee6;--c:#1f6fd6;--p:#fff}"
        "@media(prefers-color-scheme:dark){.v{--i:#e6e9ee;--s:#9aa4b2;--g:#333a45;--c:#6ea8fe;--p:#1c2128}}"
        "text{font:13px system-ui,sans-serif;fill:var(--i)}.t{font-weight:bold}.s{fill:var(--s);font-size:12px}"
        ".g{stroke:var(--g)}.m{stroke:var(--s);stroke-dasharray:4 3}.c{stroke:var(--c);stroke-width:2}"
        "circle{fill:var(--c)}"
    )
    return (
        f'<svg class="v" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 30}" width="{width}" '
        f'height="{bottom + 30}" role="img" aria-label="{html.escape(title)}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="var(--p)"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers between the ends."""
    step = 10.0 ** np.floor(np.log10((high - low) / 3))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 7)
    return [float(round(i * step, 9)) for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


# The page


def blocks(results: Path) -> tuple[dict[str, str], str]:
    """Name -> text of every generated part of the page, and the chart."""
    tree, pilot = (read(results / "motion" / name / "study.json") for name in ("", "pilot"))
    ablations = read_results(results)
    drawing, title = chart(tree, ablations)
    verdict = [sentences(tree, ablations), f"![{title}]({CHART})"]
    if tree is not None:
        verdict.append(motion_table(tree))
    if pilot is not None:
        verdict += [f"Pilot, two seeds that do not count: {pilot['verdict']}.", motion_table(pilot)]
    return {"verdict": "\n\n".join(verdict), "ablations": ablation_table(ablations)}, drawing


def write_page(page: Path, results: Path) -> None:
    """Put the generated parts into `page`, leave the rest of it as it is, and draw the chart."""
    parts, drawing = blocks(results)
    text = page.read_text()
    for name, part in parts.items():
        begin, end = f"<!-- {name}: python docs/verdict.py --page -->", f"<!-- end of {name} -->"
        text, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{part}\n{end}", text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise SystemExit(f"{page} has lost its marks, {begin} and {end}")
    (page.parent / CHART).parent.mkdir(parents=True, exist_ok=True)
    (page.parent / CHART).write_text(drawing)
    page.write_text(text)


def main(argv: Sequence[str]) -> None:
    """Print the sentences, or write the page."""
    if list(argv) not in ([], ["--page"]):
        raise SystemExit(__doc__)
    if argv:
        write_page(DOCS / "results.md", DOCS / "results")
    else:
        print(sentences(read(DOCS / "results" / "motion" / "study.json"), read_results(DOCS / "results")))


if __name__ == "__main__":
    main(sys.argv[1:])

"""What the studies say about the question of this repository, in three sentences: `python docs/verdict.py`.

`--page` writes the same sentences, the chart and the tables into docs/results.md. Everything is read from the stored
scores: `docs/results/motion/study.json` decides, its `pilot/study.json` chose the size, and the older ablations stand
beside them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pv_vae_jax.report.figures import COLOURS, SOFT, chart_file
from studies.ablation.results import Results, read_results
from studies.ablation.tables import markdown

DOCS = Path(__file__).resolve().parent
CHART = "images/verdict.svg"
BASELINE, METHOD = "Baseline", "Whole method"  # the two rows of the motion study that are compared
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
    read = f"At an equal PSNR of {tree['primary']['psnr']:.1f} dB" if tree["primary"]["equal_psnr"] else "As sampled"
    said = f"{read}, {rows[BASELINE]['mean']:.1%} of the clips generated from the baseline's latents keep their law of "
    said += "motion within a pixel"
    if METHOD in rows:
        ends, far = tree["both_ends"], ", an extrapolation" * rows[METHOD]["far"]
        again = f"; at its own PSNR of {ends['psnr']:.1f} dB {_points(ends['effect'])}" if ends else ""
        plain = rows[METHOD]["as_sampled"]["difference"]
        again += f"; as sampled, at one KL weight, {_points(plain)}" if ends else ""
        shown = f"{_points(tree['effect'])}{far * bool(ends)}{again}"
        said += f", and {rows[METHOD]['mean']:.1%} from the predictive VAE's ({shown})"
    early = tree["verdict"].startswith("unfinished")
    wins = "wins" if won["won"] else "has not won yet" if early else "does not win"
    loses = "loses" if lost["lost"] else "has not lost yet" if early else "does not lose"
    walk = tree["placebo"]["effect"]
    level = "nothing has been measured yet" if walk is None else f"the difference is {_points(walk)}"
    return (
        f"{verdict} {said}; real clips reach {tree['primary']['real']:.1%}. The control that must win, latents "
        f"aligned to the state of the world, {_control(wins, won)}, the control that must lose, rotated latents, "
        f"{_control(loses, lost)}, and where motion is random and nothing can be predicted, {level}."
    )


def _control(word: str, control: dict) -> str:
    return "is not measured yet" if control["effect"] is None else f"{word} ({_points(control['effect'])})"


def _points(effect: dict | None) -> str:
    """A difference of shares in percentage points, with its interval and the number of paired seeds."""
    if effect is None:
        return "not measured yet"
    found = effect["difference"]
    ends = [None if found[end] is None else 100 * found[end] for end in ("low", "high")]
    interval = "" if None in ends else f" [{ends[0]:.1f}, {ends[1]:.1f}]"
    return f"{100 * found['mean']:+.1f} points{interval}, {found['count']} seed{'s' if found['count'] > 1 else ''}"


# Tables


def called(row: dict) -> str:
    """A row's name, marked if its PSNR is more than a dB away and no curve of its own bridges that."""
    return f"{row['name']} (far)" if row["far"] else row["name"]


def motion_table(tree: dict) -> str:
    """One line a row of the motion study."""
    equal = tree["primary"]["equal_psnr"]
    head = ["row", "seeds", "clips that keep their law", "less the baseline"]
    head += ["as sampled", "less the baseline"] * equal + ["PSNR, dB", "steps to the baseline's end"]
    predicted = any("predicted" in row["secondary"] for row in tree["rows"])
    head += ["laws kept with 1, 2 groups withheld"] * predicted
    body = []
    for row in tree["rows"]:
        low, high = row["interval"]
        span = "" if low is None else f" [{low:.1%}, {high:.1%}]"
        shares = row["share_of_steps"]
        reached = f"{np.median(shares):.0%}" if len(shares) == len(row["seeds"]) and shares else "-"
        less = "-" if row["difference"] is None else _points(row["difference"])
        seen = [row["secondary"].get(key) for key in ("predicted", "predicted_two")]
        drawn = "-" if None in seen else ", ".join(f"{share:.0%}" for share in seen)
        mean, level = f"{row['mean']:.1%}{span}", f"{row['psnr']:.2f}"
        plain = row["as_sampled"]
        sampled = [f"{plain['mean']:.1%}", "-" if plain["difference"] is None else _points(plain["difference"])] * equal
        body.append((called(row), str(len(row["seeds"])), mean, less, *sampled, level, reached, *[drawn] * predicted))
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


def chart(path: Path, tree: dict | None, studies: Sequence[Results]) -> str:
    """Draws the rows of the motion study, or without it the ablations; returns the alternative text."""
    if tree is not None:
        shown = [row for row in tree["rows"] if row["difference"] is not None and ", KL " not in row["name"]]
        equal = tree["primary"]["equal_psnr"]
        series = {"as sampled": [(row["name"], *_difference_of(row["as_sampled"]["difference"])) for row in shown]}
        if equal:
            series["at equal PSNR"] = [(called(row), *_difference_of(row["difference"])) for row in shown]
        title = "Clips that keep their law of motion, less those of the same baseline"
        dots(path, title, series, "+.0%")
        return title
    title = "Frechet distance, whole method less baseline (our feature network): left of 0 is better"
    rows = []
    for study in studies:
        if (row := whole(study)) and len(study.seeds(row)) > 1:
            if found := study.difference(row, study.rows[0], "generation.own.frechet"):
                rows.append((study.name, found.mean, found.low, found.high))
    dots(path, title, {"mean and 95 % interval": rows}, "g")
    return title


def _difference_of(found: dict) -> tuple[float, float | None, float | None]:
    return found["difference"]["mean"], found["difference"]["low"], found["difference"]["high"]


def dots(path: Path, title: str, series: dict[str, Sequence[tuple]], form: str) -> None:
    """An SVG with a line a row, `(name, mean, low, high)` with or without interval, in each of the series."""
    rows = next(reversed(series.values()))  # the last one's names are shown
    with chart_file(path, title, 720, 90 + 30 * len(rows)) as axes:
        for number, (name, values) in enumerate(series.items()):
            offset = 0.24 * (number - (len(series) - 1) / 2)
            for y, (_, mean, low, high) in enumerate(values):
                ends = None if low is None else [[mean - low], [high - mean]]
                label = {"label": name} if y == 0 else {}
                axes.errorbar([mean], [y + offset], xerr=ends, fmt="o", color=COLOURS[number][0], **label)
        axes.axvline(0.0, color=SOFT[0], linestyle="--")
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.figure.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:{form}}")
        axes.margins(x=0.04, y=0.1)
        axes.grid(axis="x")
        axes.legend(loc="best")
        axes.invert_yaxis()


# The page


def blocks(results: Path, picture: Path) -> dict[str, str]:
    """Name -> text of every generated part of the page; the chart is drawn."""
    tree, pilot = (read(results / "motion" / name / "study.json") for name in ("", "pilot"))
    ablations = read_results(results)
    verdict = [sentences(tree, ablations), f"![{chart(picture, tree, ablations)}]({CHART})"]
    if tree is not None:
        verdict.append(motion_table(tree))
    if pilot is not None:
        verdict.append(f"[The pilot](results/motion/README.md#what-the-pilot-chose): {pilot['verdict']}.")
    return {"verdict": "\n\n".join(verdict), "ablations": ablation_table(ablations)}


def write_page(page: Path, results: Path) -> None:
    """Put the generated parts into `page`, leave the rest of it as it is, and draw the chart."""
    text, picture = page.read_text(), page.parent / CHART
    picture.parent.mkdir(parents=True, exist_ok=True)
    parts = blocks(results, picture)
    for name, part in parts.items():
        begin, end = f"<!-- {name}: python docs/verdict.py --page -->", f"<!-- end of {name} -->"
        text, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{part}\n{end}", text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise SystemExit(f"{page} has lost its marks, {begin} and {end}")
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

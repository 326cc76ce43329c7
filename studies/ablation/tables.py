"""Tables of a study's page as Markdown: each function makes one from the stored scores, `page.md.jinja` orders them."""

import json
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pv_vae_jax.report.figures import number
from studies.ablation.results import (
    Distance,
    Estimate,
    Reach,
    Results,
    against,
    prediction_correlation,
    prediction_error,
    reach,
)

# Column of the paper -> what it measures, our name of it, our score. Distances are taken on each feature network.
COLUMNS = {
    "gFVD": ("generation", "Frechet, {network}", "generation.{network}.frechet"),
    "rFVD": ("reconstruction", "rFrechet, {network}", "reconstruction.frechet.{network}"),
    "PSNR": ("reconstruction", "PSNR", "reconstruction.psnr"),
    "SSIM": ("reconstruction", "SSIM", "reconstruction.ssim"),
}
FLOOR = "real against real"
DISTANCES: dict[str, Distance] = {"Frechet": "frechet", "kernel": "kernel"}
GUESSES = ("copying", "extrapolation")
NETWORKS = {
    "own": "the feature network that ships with the library",
    "random": "a network of that shape with seeded random weights",
    "i3d": "I3D",
}


# Facts


def seconds(study: Results) -> str:
    """Mean seconds of each stage over the cells that trained it without interruption; empty if none did."""
    cells = list(study.cells.values())
    stages = dict.fromkeys(stage for cell in cells for stage in cell["seconds"])
    found = {stage: [cell["seconds"][stage] for cell in cells if stage in cell["seconds"]] for stage in stages}
    return ", ".join(f"{stage} {number(float(np.mean(values)))}" for stage, values in found.items())


def steps(study: Results) -> str:
    """Steps of each stage; those of the decoder only where a row tunes one."""
    tuned = any(row.get("decoder_of") for row in study.plan["rows"])
    found = study.first["steps"].items()
    return ", ".join(f"{stage} {count}" for stage, count in found if stage != "decoder" or tuned)


def versions(study: Results) -> str:
    """Sets of package versions that the cells were made with."""
    found = {", ".join(f"{name} {version}" for name, version in c["versions"].items()) for c in study.cells.values()}
    return "; ".join(sorted(found))


def mixed(study: Results) -> list[str]:
    """Names of facts in which the cells of a study differ and must not."""
    return [
        what
        for what in ("steps", "clips", "networks", "draws")
        if len({json.dumps(cell.get(what)) for cell in study.cells.values()}) > 1
    ]


def other_transformers(study: Results) -> list[tuple[str, int, str]]:
    """`(row, seed, decoder_of)` of cells that tuned a decoder for a transformer that is not the one scored."""
    found = []
    for row in study.plan["rows"]:
        for seed in study.seeds(row["name"]):
            both = study.cells[row["name"], seed], study.cells.get((row.get("decoder_of", ""), seed), {})
            if len({cell["transformer"] for cell in both if "transformer" in cell}) > 1:
                found.append((row["name"], seed, row["decoder_of"]))
    return found


# Scores


def scores(study: Results) -> dict[str, str]:
    """Column -> path of every score of samples and reconstructions that all cells have."""
    found = {f"{name}, {net}": f"generation.{net}.{kind}" for net in study.networks for name, kind in DISTANCES.items()}
    found |= {f"rFrechet, {network}": f"reconstruction.frechet.{network}" for network in study.networks}
    found |= {"PSNR": "reconstruction.psnr", "SSIM": "reconstruction.ssim"}
    return found | ({study.perceptual: "reconstruction.perceptual"} if study.perceptual else {})


def paper_table(study: Results, table: dict) -> str:
    """Rows of one table of the paper that the study plans, with our scores and the paper's."""
    header = ["row", "seeds", *scores(study), *(f"paper: {column}" for column in table["columns"])]
    planned, body = {row["name"] for row in study.plan["rows"]}, []
    for row in table["rows"]:
        ours = row["row"]
        if ours in planned:
            named = row["name"] if row["name"] == ours else f"{row['name']} ({ours})"
            paper = [number(row[column]) for column in table["columns"]]
            body.append([named, str(len(study.seeds(ours))), *_row_scores(study, ours), *paper])
    return markdown(header, [*body, _padded([FLOOR, "", *_floor(study)], header)])


def own_rows(study: Results, paper: dict) -> list[dict]:
    """Planned rows with a cell that no table of the paper has."""
    known = {row["row"] for table in paper["tables"] for row in table["rows"]}
    return [row for row in study.plan["rows"] if row["name"] in study.rows and row["name"] not in known]


def own_table(study: Results, own: list[dict]) -> str:
    """Scores of these rows and of those they are compared with."""
    shown = {_compared_with(study, row) for row in own} | {row["name"] for row in own}
    header = ["row", "settings", "seeds", *scores(study)]
    body = []
    for row in study.plan["rows"]:
        if row["name"] in shown:
            settings = "; ".join(f"`{key}={value}`" for key, value in row.get("settings", {}).items())
            seeds = str(len(study.seeds(row["name"])))
            body.append([row["name"], settings, seeds, *_row_scores(study, row["name"])])
    return markdown(header, [*body, _padded([FLOOR, "", "", *_floor(study)], header)])


def gains(study: Results, own: list[dict]) -> str:
    """Each of these rows less the row it is compared with; empty if no seed has both."""
    body = []
    for row in own:
        other = _compared_with(study, row)
        for name, score in (scores(study) | {"prediction error": prediction_error}).items():
            found = study.difference(row["name"], other, score)
            if found is not None and other != row["name"]:
                interval = "one seed" if found.count == 1 else "excludes 0" if found.sign else "holds 0"
                body.append([f"{other} → {row['name']}", name, _text(found, "+"), interval])
    return markdown(["step", "score", "difference", "interval"], body) if body else ""


def less_the_first(study: Results) -> str:
    """Each row less the first, on every score; once more over the seeds of one device where seeds mix devices."""
    columns = scores(study) | {"class probe": "latents.class_probe.accuracy"}
    first, *others = study.rows
    found = {}
    for row in others:
        shared = set(study.seeds(row)) & set(study.seeds(first))
        same = sum(study.cells[row, seed]["device"] == study.cells[first, seed]["device"] for seed in shared)
        named = f"{row}, both on one device: {same} of {len(shared)} seeds"
        for name, one_device, count in ((row, False, len(shared)), (named, True, same)):
            if not one_device or 0 < same < len(shared):
                differences = [study.difference(row, first, s, one_device=one_device) for s in columns.values()]
                found[name] = differences, count
    kept = [i for i in range(len(columns)) if any(differences[i] is not None for differences, _ in found.values())]
    body = [[name, *(_counted(gain[i], count, "+") for i in kept)] for name, (gain, count) in found.items()]
    return markdown(["row", *(name for i, name in enumerate(columns) if i in kept)], body)


def _row_scores(study: Results, row: str) -> list[str]:
    """As `scores` names them; dashes for a row without a cell. A single seed shows its interval over clips."""
    found = []
    for path in scores(study).values():
        estimate = study.estimate(row, path) if row in study.rows else None
        clips = list(study.values(row, f"{path}_interval").values())
        if estimate and estimate.count == 1 and clips:
            found.append(_span(estimate.mean, *clips[0]) + " clips")
        else:
            found.append(_text(estimate))
    return found


def _floor(study: Results) -> list[str]:
    """Distances of real clips from real clips."""
    paths = [f"floor.{network}.{kind}" for network in study.networks for kind in DISTANCES.values()]
    return [number(study.measured(study.rows[0], path).mean) for path in paths]


def _compared_with(study: Results, row: dict) -> str:
    return row.get("compared_with") or study.plan["rows"][0]["name"]


# Signs


def signs(study: Results, table: dict) -> tuple[str, str]:
    """Each row less the one before, in the paper and here.

    Returns:
      A count of the verdicts, and the table; both are empty if no seed has two rows that follow each other.
    """
    body, verdicts = [], {"generation": [], "reconstruction": []}
    for before, row in zip(table["rows"], table["rows"][1:], strict=False):
        for column in table["columns"]:
            delta = round(row[column] - before[column], 6)
            of, name, path = COLUMNS[column]
            for named, score in dict.fromkeys((name.format(network=n), path.format(network=n)) for n in study.networks):
                ours = study.difference(row["row"], before["row"], score)
                if ours is None:
                    continue
                verdicts[of].append(_verdict(delta, ours))
                step = f"{before['name']} → {row['name']}"
                body.append([step, named, f"{column} {delta:+.4g}", _text(ours, "+"), verdicts[of][-1]])
    counts = [
        f"{of}: {_count(found, 'agrees')} as in the paper, {_count(found, '**disagrees**')} against it"
        for of, found in verdicts.items()
        if found
    ]
    return "; ".join(counts).capitalize(), markdown(["step", "score", "paper", "here", "sign"], body) if body else ""


def _count(verdicts: list[str], sign: str) -> str:
    """`3 (2 significantly)` of these verdicts."""
    found = [verdict for verdict in verdicts if verdict.startswith(sign)]
    return f"{len(found)} ({sum('excludes 0' in verdict for verdict in found)} significantly)"


def _verdict(delta: float, ours: Estimate) -> str:
    if delta == 0:
        return "no sign in the paper"
    agrees = "agrees" if delta * ours.mean > 0 else "**disagrees**"
    if ours.count == 1:
        return f"{agrees}, one seed"
    return f"{agrees}, interval excludes 0" if ours.sign else f"{agrees}, interval holds 0"


# Convergence, prediction, latents


def convergence(study: Results) -> tuple[str, str]:
    """The largest share of all steps that is a first score, and the shares in which rows reach the first row's end.

    Empty if no two curves can be compared.
    """
    body, earliest = [], 0.0
    for row in study.rows:
        for network in study.networks:
            for name, distance in DISTANCES.items():
                first = reach(study, row, study.rows[0], network, distance)
                last = reach(study, row, study.rows[0], network, distance, stays=True)
                if first is None or last is None:
                    continue
                by_seed = ", ".join(percent(share) for share in last.seeds)
                body.append([row, f"{name}, {network}", _reached(first), _reached(last), by_seed])
                earliest = max(earliest, first.earliest)
    header = ["row", "distance", "at first", "for good", "for good, by seed"]
    return percent(earliest), markdown(header, body) if body else ""


def _reached(found: Reach) -> str:
    """The mean with its interval, or how many seeds get there."""
    if found.mean is None:
        there = int(np.isfinite(found.seeds).sum())
        return f"{there} of {len(found.seeds)} seeds" if there else "not reached"
    if found.mean.low is None or found.mean.high is None:
        return percent(found.mean.mean)
    return f"{percent(found.mean.mean)} [{percent(found.mean.low)}, {percent(found.mean.high)}]"


def prediction(study: Results) -> str:
    """Error by dropped groups, and its share of the error of each guess."""

    def errors(row: str, name: str) -> list[str]:
        return [number(study.measured(row, lambda c, k=k: c["prediction"][name][k]).mean) for k in range(groups)]

    groups = len(study.first["prediction"]["predicted"])
    header = ["row", *(f"k = {k}" for k in range(1, groups + 1)), *(f"of {guess}" for guess in GUESSES)]
    body = [
        [row, *errors(row, "predicted"), *(percent(study.measured(row, against(guess)).mean) for guess in GUESSES)]
        for row in study.rows
    ]
    return markdown(header, [*body, *([f"*{guess}*", *errors(study.rows[0], guess), "", ""] for guess in GUESSES)])


def correlation(study: Results) -> str:
    """Prediction error against generation distance, of all rows and of those that drop frames."""
    blind = {row["name"] for row in study.plan["rows"] if row.get("settings", {}).get("video.drop_ratio") == 0}
    groups = {"all rows": study.rows, "rows that withhold frames": [row for row in study.rows if row not in blind]}
    body = []
    for named, rows in groups.items():
        for network in study.networks:
            found = prediction_correlation(study, network, rows)
            # Coefficients of few ranks are short fractions: without their last digits a tie rounds the same everywhere.
            pooled, within = ("-" if math.isnan(v) else f"{round(v, 9):+.2f}" for v in (found.pooled, found.within))
            body.append([named, network, within, str(found.seeds), pooled, str(found.cells)])
    return markdown(["cells", "network", "within seeds", "seeds", "pooled", "cells"], body)


def latents(study: Results) -> str:
    """Smoothness, spread and class probe of the latents."""
    body = []
    for row in study.rows:
        probes = [study.estimate(row, f"latents.class_probe.{name}") for name in ("accuracy", "chance")]
        body.append(
            [
                row,
                _text(study.estimate(row, "latents.temporal_distance")),
                _text(study.estimate(row, "latents.std")),
                *("not measured" if found is None else _counted(found, len(study.seeds(row))) for found in probes),
            ]
        )
    return markdown(["row", "temporal distance", "spread", "class probe", "chance"], body)


def classes(study: Results) -> str:
    """Scores of the clips of each class; empty without classes."""

    def share(name: str) -> Callable[[dict], float | None]:
        """Error over that of copying; None without scores, or for clips without motion, which copying draws exactly."""

        def of(cell: dict) -> float | None:
            found = cell.get("classes", {}).get(name)
            return found["predicted"] / found["copying"] if found and found["copying"] else None

        return of

    names = dict.fromkeys(name for cell in study.cells.values() for name in cell.get("classes", {}))
    body = []
    for row in study.rows:
        for name in names:
            found = study.estimate(row, f"classes.{name}.predicted")
            if found is not None:
                of_copying = study.estimate(row, share(name))
                distances = [study.estimate(row, f"classes.{name}.frechet.{n}") for n in study.networks]
                shown = "-" if of_copying is None else percent(of_copying.mean)
                body.append([row, name, _text(found), shown, *map(_text, distances)])
    header = ["row", "class", "prediction error", "of copying", *(f"Frechet, {n}" for n in study.networks)]
    return markdown(header, body) if names else ""


# Text


def _text(estimate: Estimate | None, sign: str = "") -> str:
    return "-" if estimate is None else _span(estimate.mean, estimate.low, estimate.high, sign)


def _span(mean: float, low: float | None, high: float | None, sign: str = "") -> str:
    text = f"{'+' if sign and mean > 0 else ''}{number(mean)}"
    return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]"


def _counted(found: Estimate | None, seeds: int, sign: str = "") -> str:
    """With the number of seeds behind it where those are not all."""
    text = _text(found, sign)
    return text if found is None or found.count == seeds else f"{text} ({found.count} of {seeds} seeds)"


def percent(share: float) -> str:
    """`50 %`; an infinite share is never reached."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else "not reached"


def _padded(cells: list[str], header: Sequence[str]) -> list[str]:
    return cells + ["-"] * (len(header) - len(cells))


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body))

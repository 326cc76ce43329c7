"""The page of all studies, `docs/results.md`, and its charts: made from the stored scores alone, the same every time.

Numbers of the paper come from `paper.json` in the folder of the scores. Remarks are printed as they stand: those on one
study from `notes.md` in its folder, those on all of them, such as what was tried and why, from `notes.md` beside them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.report.figures import number
from pv_vae_jax.typing import ConfigError
from studies.ablation.charts import Curve, chart
from studies.ablation.results import (
    Distance,
    Estimate,
    Reach,
    Results,
    against,
    curves,
    prediction_correlation,
    prediction_error,
    reach,
    read_results,
)

# Paper's column -> what of, our name of it, our score. Distances are taken on each feature network.
COLUMNS = {
    "gFVD": ("generation", "Frechet, {network}", "generation.{network}.frechet"),
    "rFVD": ("reconstruction", "rFrechet, {network}", "reconstruction.frechet.{network}"),
    "PSNR": ("reconstruction", "PSNR", "reconstruction.psnr"),
    "SSIM": ("reconstruction", "SSIM", "reconstruction.ssim"),
}
FLOOR = "real against real"
DISTANCES: dict[str, Distance] = {"Frechet": "frechet", "kernel": "kernel"}
LOOKS = {
    "own": "the feature network that ships with the library",
    "random": "a network of that shape with seeded random weights",
    "i3d": "I3D",
}


def write_page(results: Path, page: Path) -> None:
    """Write `page`, and the charts into the folders of the studies under `results`.

    Raises:
      ConfigError: no scores, no `paper.json`, or damaged files.
    """
    studies = read_results(results)
    if not studies:
        raise ConfigError(
            f"{results} holds no scores: run a study first, python -m studies.ablation --config ... --workdir ..."
        )
    try:
        paper = json.loads((results / "paper.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{results / 'paper.json'} cannot be read: {error}") from error
    lines = [
        "# Results",
        "",
        "Does prediction make latents easier to diffuse? `python -m studies.ablation` trains the rows of the paper's",
        "ablations, and rows beyond them, with equal networks, clips, steps and seeds; this page is made of the stored",
        "scores by `python -m studies.ablation --page=docs/results.md`, numbers and charts alike.",
        "",
        f"Columns named *paper* are from {paper['source']}.",
        "Data, size and feature network are others, so signs compare and sizes do not.",
        "Brackets hold 95 % intervals: Student's t over seeds; of one seed a bootstrap over clips, marked *clips*,",
        "which knows nothing of how seeds differ. Each is of one number alone: of many, some exclude 0 by chance.",
        "Means are over the seeds that a row has, differences seed by seed over those that both rows have: where a row",
        "has fewer seeds than another, compare by the difference.",
        "*Real against real* is the distance of real clips of the other split, which a generator gets that repeats",
        "them; in older cells of an endless world, of other clips of the same split.",
    ]
    if len(studies) > 1:
        lines += ["", "## All studies", "", *_side_by_side(studies)]
    lines += _notes(results, "## What was tried")
    for study in studies:
        lines += _study(study, paper, results / study.plan["name"], os.path.relpath(results, page.parent))
    page.parent.mkdir(parents=True, exist_ok=True)
    _write(page, "\n".join(lines) + "\n")


def _study(study: Results, paper: dict, folder: Path, link: str) -> list[str]:
    name = study.plan["name"]
    _write(folder / "prediction.svg", _prediction_chart(study))
    picture = lambda file, text: ["", f"![{text}]({link}/{name}/{file}.svg)"]  # noqa: E731
    lines = ["", f"## Study `{name}`", "", *_facts(study)]
    for table in paper["tables"]:
        if sum(row["row"] in study.rows for row in table["rows"]) > 1:
            lines += ["", f"### {table['title']}", "", *_table(study, table), "", *_signs(study, table)]
    own = _own_rows(study, paper)
    if own:
        lines += ["", "### Rows that the paper does not have", "", *_own_table(study, own), "", *_gains(study, own)]
    several = len(study.rows) > 1
    if several:
        lines += ["", f"### Each row less `{study.rows[0]}`", "", *_less_the_first(study)]
    if any(len(cell["curve"][study.networks[0]]["step"]) > 1 for cell in study.cells.values()):  # not the end alone
        lines += ["", "### Along training", *(["", *_reach(study)] if several else [])]
        for network in study.networks:
            _write(folder / f"training-{network}.svg", _training_chart(study, network))
            lines += picture(f"training-{network}", f"Frechet distance along training, {network}")
    lines += ["", "### Frames that the encoder did not see", "", *_prediction(study)]
    lines += picture("prediction", "Prediction error over dropped groups")
    if several:
        _write(folder / "correlation.svg", _correlation_chart(study, study.networks[0]))
        lines += ["", "### Prediction against generation", "", *_correlation(study)]
        lines += picture("correlation", "Prediction error against generation distance")
    lines += ["", "### Latents", "", *_latents(study)]
    if any("classes" in cell for cell in study.cells.values()):
        lines += ["", "### By class of motion", "", *_classes(study)]
    return lines + _notes(folder, "### Remarks")


def _notes(folder: Path, heading: str) -> list[str]:
    """What somebody wrote, as it stands."""
    notes = folder / "notes.md"
    return ["", heading, "", notes.read_text(encoding="utf-8").strip()] if notes.exists() else []


def _side_by_side(studies: Sequence[Results]) -> list[str]:
    """The final distance of every row of every study, and what it gains on the first row of its study."""
    networks = list(dict.fromkeys(network for study in studies for network in study.networks))
    header = ["study", "row", "seeds"]
    for network in networks:
        header += [f"Frechet, {network}", f"less the first row, {network}"]
    body = []
    for study in studies:
        first = study.plan["rows"][0]["name"]
        most = max(len(study.seeds(row)) for row in study.rows)
        for row in study.rows:
            count = len(study.seeds(row))
            cells = [f"`{study.plan['name']}`", row, str(count) if count == most else f"{count} of {most}"]
            for network in networks:
                score = f"generation.{network}.frechet"
                gain = study.difference(row, first, score) if row != first else None
                cells += [_said(study.estimate(row, score)), _said(gain, "+")]
            body.append(cells)
    return [
        "The distance at the end of training; lower is better. It compares within a study, not between worlds.",
        "",
        *_markdown(header, body),
    ]


def _facts(study: Results) -> list[str]:
    cells = list(study.cells.values())
    first, planned = cells[0], len(study.plan["rows"]) * len(study.plan["seeds"])
    tuned = any(row.get("decoder_of") for row in study.plan["rows"])
    steps = {stage: n for stage, n in first["steps"].items() if stage != "decoder" or tuned}
    count = first["clips"]
    devices = sorted({cell["device"] for cell in cells})
    versions = sorted({", ".join(f"{k} {v}" for k, v in cell["versions"].items()) for cell in cells})
    stages = list(dict.fromkeys(stage for cell in cells for stage in cell["seconds"]))
    seconds = {s: [c["seconds"][s] for c in cells if s in c["seconds"]] for s in stages}
    spent = ", ".join(f"{stage} {number(float(np.mean(values)))}" for stage, values in seconds.items())
    lines = [
        f"World: {study.plan['world']}.",
        "",
        f"- Cells: {len(cells)} of {planned} planned (rows times seeds); seeds in: "
        + "; ".join(f"{row} {len(study.seeds(row))}" for row in study.rows)
        + ".",
        f"- Parameters: {number(first['parameters']['vae'])} of the VAE, "
        f"{number(first['parameters']['transformer'])} of the diffusion transformer.",
        "- Steps: " + ", ".join(f"{stage} {n}" for stage, n in steps.items()) + ".",
        f"- Clips: {count['latents']} encoded for diffusion, {count['scored']} generated for a score, compared with as "
        f"many real ones of split {count['reference']}.",
        f"- Device: {'; '.join(devices)}."
        + (f" Seconds a stage, mean of those that ran through: {spent}." if spent else ""),
        f"- Versions: {'; '.join(versions)}.",
        "- Feature networks: " + "; ".join(f"`{n}` is {LOOKS.get(n, n)}" for n in study.networks) + ".",
    ]
    for what in ("steps", "clips", "networks"):
        if len({json.dumps(cell.get(what)) for cell in cells}) > 1:
            lines.append(f"- **Cells of this study differ in {what}: they are not comparable.**")
    looked = sum("perceptual" in cell for cell in cells)
    if looked and not study.perceptual:
        lines.append(
            "- Cells of this study differ in their perceptual distance, which is left out; "
            f"{looked} of {len(cells)} have one."
        )
    for row in study.plan["rows"]:
        for seed in study.seeds(row["name"]):
            both = study.cells[row["name"], seed], study.cells.get((row.get("decoder_of", ""), seed), {})
            if len({cell["transformer"] for cell in both if "transformer" in cell}) > 1:
                lines.append(
                    f"- **{row['name']}, seed {seed}, took another transformer than the one scored as "
                    f"{row['decoder_of']}: that was trained anew.**"
                )
    return lines


def _table(study: Results, table: dict) -> list[str]:
    header = ["row", "seeds", *_score_header(study), *(f"paper: {column}" for column in table["columns"])]
    planned, body = {row["name"] for row in study.plan["rows"]}, []
    for row in table["rows"]:
        ours = row["row"]
        if ours not in planned:
            continue
        named = row["name"] if row["name"] == ours else f"{row['name']} ({ours})"
        paper = [number(row[column]) for column in table["columns"]]
        body.append([named, str(len(study.seeds(ours))), *_row_scores(study, ours), *paper])
    floor = [FLOOR, "", *_floor(study)]
    body.append(floor + ["-"] * (len(header) - len(floor)))
    return _markdown(header, body)


def _score_header(study: Results) -> list[str]:
    generation = [f"{kind}, {network}" for network in study.networks for kind in DISTANCES]
    return generation + [f"rFrechet, {network}" for network in study.networks] + list(_pairwise(study))


def _pairwise(study: Results) -> dict[str, str]:
    """Name -> score of what compares a reconstruction with its clip."""
    scores = {"PSNR": "reconstruction.psnr", "SSIM": "reconstruction.ssim"}
    return scores | ({study.perceptual: "reconstruction.perceptual"} if study.perceptual else {})


def _row_scores(study: Results, row: str) -> list[str]:
    """As `_score_header` names them; dashes for a row without a cell."""
    if row not in study.rows:
        return ["-"] * len(_score_header(study))
    cells = [_generation(study, row, network, kind) for network in study.networks for kind in ("frechet", "kernel")]
    cells += [_said(study.estimate(row, f"reconstruction.frechet.{n}")) for n in study.networks]
    return cells + [_said(study.estimate(row, score)) for score in _pairwise(study).values()]


def _floor(study: Results) -> list[str]:
    """Distances of real clips from real clips."""
    scores = [f"floor.{network}.{kind}" for network in study.networks for kind in ("frechet", "kernel")]
    return [number(study.measured(study.rows[0], score).mean) for score in scores]


def _own_rows(study: Results, paper: dict) -> list[dict]:
    """Planned rows with a cell that no table of the paper has."""
    known = {row["row"] for table in paper["tables"] for row in table["rows"]}
    return [row for row in study.plan["rows"] if row["name"] in study.rows and row["name"] not in known]


def _compared_with(study: Results, row: dict) -> str:
    return row.get("compared_with") or study.plan["rows"][0]["name"]


def _own_table(study: Results, own: list[dict]) -> list[str]:
    """What these rows are compared with, and they."""
    others = {_compared_with(study, row) for row in own} | {row["name"] for row in own}
    header = ["row", "settings", "seeds", *_score_header(study)]
    body = []
    for row in study.plan["rows"]:
        if row["name"] in others:
            settings = "; ".join(f"`{key}={value}`" for key, value in row.get("settings", {}).items())
            seeds = str(len(study.seeds(row["name"])))
            body.append([row["name"], settings, seeds, *_row_scores(study, row["name"])])
    floor = [FLOOR, "", "", *_floor(study)]
    body.append(floor + ["-"] * (len(header) - len(floor)))
    return _markdown(header, body)


def _gains(study: Results, own: list[dict]) -> list[str]:
    """Each of these rows less the row it is compared with."""
    names = {f"{kind}, {n}": f"generation.{n}.{kind.lower()}" for n in study.networks for kind in DISTANCES}
    names |= {f"rFrechet, {n}": f"reconstruction.frechet.{n}" for n in study.networks}
    names |= _pairwise(study) | {"prediction error": prediction_error}
    body = []
    for row in own:
        other = _compared_with(study, row)
        for name, score in names.items():
            found = study.difference(row["name"], other, score)
            if found is not None and other != row["name"]:
                surely = "one seed" if found.count == 1 else "excludes 0" if found.sign else "holds 0"
                body.append([f"{other} → {row['name']}", name, _said(found, "+"), surely])
    if not body:
        return ["No seed has both a row and the one it is compared with yet."]
    return [
        "Each row less the one it is compared with. Below 0 is better, but for PSNR and SSIM above. The prediction",
        "error is that of the last groups, whatever a row withholds in training.",
        "",
        *_markdown(["step", "score", "difference", "interval"], body),
    ]


def _less_the_first(study: Results) -> list[str]:
    """What a row gains on the first one, on every score."""
    scores = {f"{n}, {net}": f"generation.{net}.{n.lower()}" for net in study.networks for n in DISTANCES}
    scores |= {f"rFrechet, {network}": f"reconstruction.frechet.{network}" for network in study.networks}
    scores |= _pairwise(study) | {"class probe": "latents.class_probe.accuracy"}
    first, *others = study.rows
    found = {}
    for row in others:
        shared = set(study.seeds(row)) & set(study.seeds(first))
        same = sum(study.cells[row, seed]["device"] == study.cells[first, seed]["device"] for seed in shared)
        for one_device, count in ((False, len(shared)), (True, same)):
            if one_device and same in (0, len(shared)):
                continue
            gains = [study.difference(row, first, score, one_device=one_device) for score in scores.values()]
            named = f"{row}, both on one device: {same} of {len(shared)} seeds" if one_device else row
            found[named] = gains, count
    kept = [i for i in range(len(scores)) if any(gains[i] is not None for gains, _ in found.values())]
    body = [[name, *(_counted(gains[i], n, "+") for i in kept)] for name, (gains, n) in found.items()]
    return [
        "Below 0 is better for distances; above it for PSNR, SSIM and the class that is read out of the latents.",
        "",
        *_markdown(["row", *(name for i, name in enumerate(scores) if i in kept)], body),
    ]


def _generation(study: Results, row: str, network: str, kind: str) -> str:
    estimate = study.measured(row, f"generation.{network}.{kind}")
    if estimate.count > 1:
        return _said(estimate)
    (seed,) = study.seeds(row)
    return _span(estimate.mean, *study.cells[row, seed]["generation"][network][f"{kind}_interval"]) + " clips"


def _signs(study: Results, table: dict) -> list[str]:
    """Each row less the one before, in the paper and here."""
    body, said = [], {"generation": [], "reconstruction": []}
    for before, row in zip(table["rows"], table["rows"][1:], strict=False):
        for column in table["columns"]:
            delta = round(row[column] - before[column], 6)
            of, name, path = COLUMNS[column]
            for named, score in dict.fromkeys((name.format(network=n), path.format(network=n)) for n in study.networks):
                ours = study.difference(row["row"], before["row"], score)
                if ours is None:
                    continue
                verdict = _verdict(delta, ours)
                said[of].append(verdict)
                step = f"{before['name']} → {row['name']}"
                body.append([step, named, f"{column} {delta:+.4g}", _said(ours, "+"), verdict])
    if not body:
        return []
    counts = [
        f"{of}: {_count(verdicts, 'agrees')} as in the paper, {_count(verdicts, '**disagrees**')} against it"
        for of, verdicts in said.items()
        if verdicts
    ]
    return [
        "Signs, each row less the one before; surely: by an interval that excludes 0.",
        f"{'; '.join(counts).capitalize()}.",
        "",
        *_markdown(["step", "score", "paper", "here", "sign"], body),
    ]


def _count(verdicts: list[str], sign: str) -> str:
    """`3 (2 surely)` of these verdicts."""
    found = [verdict for verdict in verdicts if verdict.startswith(sign)]
    return f"{len(found)} ({sum('excludes 0' in verdict for verdict in found)} surely)"


def _verdict(delta: float, ours: Estimate) -> str:
    if delta == 0:
        return "no sign in the paper"
    agrees = "agrees" if delta * ours.mean > 0 else "**disagrees**"
    if ours.count == 1:
        return f"{agrees}, one seed"
    return f"{agrees}, interval excludes 0" if ours.sign else f"{agrees}, interval holds 0"


def _reach(study: Results) -> list[str]:
    baseline = study.rows[0]
    body, earliest = [], 0.0
    for row in study.rows:
        for network in study.networks:
            for name, distance in DISTANCES.items():
                first = reach(study, row, baseline, network, distance)
                last = reach(study, row, baseline, network, distance, stays=True)
                if first is None or last is None:
                    continue
                line = [row, f"{name}, {network}", _reached(first), _reached(last)]
                body.append([*line, ", ".join(_percent(s) for s in last.seeds)])
                earliest = max(earliest, first.earliest)
    if not body:
        return ["No two curves to compare yet."]
    return [
        f"Share of all steps after which a row is as near to real clips as `{baseline}` at its end: at first, and for",
        "good. Seed by seed, on straight lines over the logarithm of the step; the mean is geometric, with Student's",
        f"t interval, where every seed gets there. First scores are at up to {_percent(earliest)} of the steps: what",
        f"is reached there may have been reached sooner. `{baseline}` against itself says how much of a share below",
        "100 % is chance, or samples that get worse again.",
        "",
        *_markdown(["row", "distance", "at first", "for good", "for good, by seed"], body),
    ]


def _reached(found: Reach) -> str:
    """The mean with its interval, or how many seeds get there."""
    if found.mean is None:
        there = int(np.isfinite(found.seeds).sum())
        return f"{there} of {len(found.seeds)} seeds" if there else "not reached"
    if found.mean.low is None or found.mean.high is None:
        return _percent(found.mean.mean)
    return f"{_percent(found.mean.mean)} [{_percent(found.mean.low)}, {_percent(found.mean.high)}]"


def _prediction(study: Results) -> list[str]:
    groups = len(next(iter(study.cells.values()))["prediction"]["predicted"])
    header = ["row", *(f"k = {k}" for k in range(1, groups + 1)), "of copying", "of extrapolation"]
    body = []
    for row in study.rows:
        errors = [study.measured(row, lambda c, k=k: c["prediction"]["predicted"][k]) for k in range(groups)]
        shares = [study.measured(row, against(guess)) for guess in ("copying", "extrapolation")]
        body.append([row, *(number(e.mean) for e in errors), *(_percent(e.mean) for e in shares)])
    for guess in ("copying", "extrapolation"):
        errors = [study.measured(study.rows[0], lambda c, k=k: c["prediction"][guess][k]) for k in range(groups)]  # noqa: B023
        body.append([f"*{guess}*", *(number(e.mean) for e in errors), "", ""])
    return [
        "Squared error on [-1, 1] over the last k groups, which are withheld; and over all k as a share of the error",
        "of two guesses that need no network. Below 100 % the network knows more than the guess.",
        "",
        *_markdown(header, body),
    ]


def _correlation(study: Results) -> list[str]:
    blind = {row["name"] for row in study.plan["rows"] if row.get("settings", {}).get("video.drop_ratio") == 0}
    body = []
    for named, rows in (
        ("all rows", study.rows),
        ("rows that withhold frames", [row for row in study.rows if row not in blind]),
    ):
        for network in study.networks:
            found = prediction_correlation(study, network, rows)
            pooled, within = ("-" if math.isnan(v) else f"{v:+.2f}" for v in (found.pooled, found.within))
            body.append([named, network, within, str(found.seeds), pooled, str(found.cells)])
    return [
        "Spearman's coefficient of prediction error and final Frechet distance; positive is the paper's direction.",
        "Within seeds: the mean of one coefficient a seed, over its rows. Pooled: over all cells, where seeds differ",
        "as well, as their clips do. Rows that share an encoder are not independent: descriptions, not tests.",
        "",
        *_markdown(["cells", "network", "within seeds", "seeds", "pooled", "cells"], body),
    ]


def _latents(study: Results) -> list[str]:
    body = [
        [
            row,
            _said(study.estimate(row, "latents.temporal_distance")),
            _said(study.estimate(row, "latents.std")),
            _measured(study, row, "latents.class_probe.accuracy"),
            _measured(study, row, "latents.class_probe.chance"),
        ]
        for row in study.rows
    ]
    return [
        "Latent temporal distance: median distance of neighbouring latent frames, channels standardised; lower is",
        "smoother. Spread is the standard deviation of all posterior means. Class probe: share of the test clips",
        "whose class ridge regression reads out of these means; chance is to name the commonest. It is not measured",
        "where clips have no classes, or a cell is older than the score.",
        "",
        *_markdown(["row", "temporal distance", "spread", "class probe", "chance"], body),
    ]


def _measured(study: Results, row: str, score: str) -> str:
    """A score that not every cell has."""
    found = study.estimate(row, score)
    return "not measured" if found is None else _counted(found, len(study.seeds(row)))


def _counted(found: Estimate | None, seeds: int, sign: str = "") -> str:
    """With how many of the seeds it is of, where it is not of all."""
    said = _said(found, sign)
    return said if found is None or found.count == seeds else f"{said} ({found.count} of {seeds} seeds)"


def _classes(study: Results) -> list[str]:
    names = dict.fromkeys(name for cell in study.cells.values() for name in cell.get("classes", {}))
    body = []
    for row in study.rows:
        for name in names:
            found = study.estimate(row, f"classes.{name}.predicted")
            if found is None:
                continue
            share = study.estimate(row, lambda c, n=name: _share(c.get("classes", {}).get(n)))
            distances = [study.estimate(row, f"classes.{name}.frechet.{n}") for n in study.networks]
            body.append(
                [row, name, _said(found), "-" if share is None else _percent(share.mean), *map(_said, distances)]
            )
    header = ["row", "class", "prediction error", "of copying", *(f"Frechet, {n}" for n in study.networks)]
    return ["Fewer clips than above, so distances compare within a class only.", "", *_markdown(header, body)]


def _share(scores: dict | None) -> float | None:
    """Of copying; None without scores, or of what stands still, which copying draws exactly."""
    return scores["predicted"] / scores["copying"] if scores and scores["copying"] else None


def _training_chart(study: Results, network: str) -> str:
    drawn = []
    for row in study.rows:
        steps, values = curves(study, row, network)
        style = "line" if len(steps) > 1 else "points"
        band = {"low": values.min(axis=0), "high": values.max(axis=0)} if len(values) > 1 else {}
        name = f"{row} ({len(values)} {'seeds' if band else 'seed'})"
        drawn.append(Curve(name, steps, values.mean(axis=0), style=style, **band))
    floor = study.measured(study.rows[0], f"floor.{network}.frechet").mean
    every = [step for curve in drawn for step in curve.x]
    drawn.append(Curve(FLOOR, (min(every), max(every)), (floor, floor), style="dashed"))
    title = f"{study.plan['name']}: generation along training, {network}"
    return chart(title, drawn, x_label="diffusion steps (band: all seeds)", y_label="Frechet distance", log=True)


def _prediction_chart(study: Results) -> str:
    groups = range(1, len(next(iter(study.cells.values()))["prediction"]["predicted"]) + 1)

    def mean(row: str, name: str) -> list[float]:
        return np.mean([study.cells[row, seed]["prediction"][name] for seed in study.seeds(row)], axis=0).tolist()

    drawn = [Curve(row, groups, mean(row, "predicted")) for row in study.rows]
    guesses = ("copying", "extrapolation")
    drawn += [Curve(guess, groups, mean(study.rows[0], guess), style="dashed") for guess in guesses]
    title = f"{study.plan['name']}: error of frames that were withheld"
    return chart(title, drawn, x_label="withheld groups k", y_label="squared error", log=True)


def _correlation_chart(study: Results, network: str) -> str:
    drawn = []
    for row in study.rows:
        cells = [study.cells[row, seed] for seed in study.seeds(row)]
        distances = [cell["generation"][network]["frechet"] for cell in cells]
        drawn.append(Curve(row, [prediction_error(cell) for cell in cells], distances, style="points"))
    title = f"{study.plan['name']}: prediction and generation"
    return chart(title, drawn, x_label="prediction error, mean over k", y_label=f"final Frechet distance, {network}")


def _said(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    return _span(estimate.mean, estimate.low, estimate.high, sign)


def _span(mean: float, low: float | None, high: float | None, sign: str = "") -> str:
    said = f"{'+' if sign and mean > 0 else ''}{number(mean)}"
    return said if low is None or high is None else f"{said} [{number(low)}, {number(high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "not reached"


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

"""What the stored cells say, by a rule that was written down before the first of them.

The primary score of a cell is the share of generated clips that keep their law within a pixel. Rows differ in how well
they reconstruct, so it is read at one PSNR, the baseline's mean: for a seed with several KL weights on the line between
its points, for any other by the mean slope of those lines.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.storage import write_json
from pv_vae_jax.typing import ConfigError
from studies.ablation.results import Estimate, over_seeds, steps_to_reach
from studies.motion.plan import Row, Study

SHARE = 0.1  # an effect is at least this part of the distance between the baseline and real clips
SIGNS = 7 / 8  # of the paired seeds must have its sign
LEAST, PILOT = 8, 2  # pairs of seeds; fewer decide nothing
FAR = 1.0  # dB; a row whose own points are farther from where it is read is marked
SECONDARY = {
    "frames": "generated.frames",
    "one_object": "generated.one_object",
    "appear": "generated.appear",
    "vanish": "generated.vanish",
    "class": "generated.class",
    "skill_energy": "skill.energy",
    "skill_sliced_wasserstein": "skill.sliced_wasserstein",
    "reconstructed": "reconstructed.kept",
    "rate": "rate",
    "predicted": "predicted.1",
    "predicted_two": "predicted.2",
}
RULE = {
    "primary": "share of generated clips with one object in all frames that keeps the law asked for within a pixel, at "
    "the baseline's mean PSNR",
    "effect": f"mean of paired differences at least {SHARE:.0%} of the distance between the baseline and real clips, "
    f"of one sign in at least {SIGNS:.1%} of 8 or more paired seeds",
    "controls": "latents aligned to the world's state win by the same rule; rotated latents lose by it, where the "
    "distance is that between the baseline and real clips with shuffled frames, the lowest score; else no verdict",
    "placebo": "in `walk` the 95 % interval of the difference holds 0, and the mean is below half the effect",
    "both ends": "read at the method's mean PSNR, the effect is one by the same rule",
}


class Cells:
    """Stored cells.

    Attributes:
      plan: the study.
      trees: `(row, seed)` -> the cell's scores.
    """

    def __init__(self, study: Study, trees: dict[tuple[str, int], dict]):
        self.plan, self.trees = study, trees

    def seeds(self, row: str) -> list[int]:
        """Seeds of which the row has a cell."""
        return sorted(seed for name, seed in self.trees if name == row)

    def get(self, row: str, seed: int, score: str) -> Any:
        """A number of a cell by its path, `generated.kept`; None where the cell lacks it."""
        tree: Any = self.trees[row, seed]
        for part in score.split("."):
            tree = tree.get(part) if isinstance(tree, dict) else None
        return tree

    def mean(self, row: str, score: str) -> float:
        """Over the row's seeds."""
        return float(np.mean([self.get(row, seed, score) for seed in self.seeds(row)]))

    def points(self, row: Row, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """PSNR and primary score of a row and of its other KL weights, by rising PSNR."""
        names = [row.name, *(other.name for other in self.plan.rows if other.curve == row.name)]
        found = sorted(
            (self.get(n, seed, "psnr"), self.get(n, seed, "generated.kept")) for n in names if (n, seed) in self.trees
        )
        return np.array([x for x, _ in found]), np.array([y for _, y in found])


def read_cells(study: Study, folder: Path) -> Cells:
    """The cells of `study` in `folder`; files of other settings are left alone.

    Raises:
      ConfigError: a file is damaged.
    """
    trees = {}
    for cell in study.cells():
        path = folder / f"{cell.name}.json"
        if path.exists():
            try:
                trees[cell.row.name, cell.seed] = json.loads(path.read_text())
            except ValueError as error:
                raise ConfigError(f"{path} is damaged ({error}): remove it, and the study makes it again") from error
    return Cells(study, trees)


def slope(cells: Cells, row: Row) -> float:
    """Change of the primary score with a dB of PSNR: mean over seeds of the least squares line through their points."""
    lines = []
    for seed in cells.seeds(row.name):
        x, y = cells.points(row, seed)
        if len(x) > 1 and np.ptp(x) > 0:
            lines.append(np.polyfit(x, y, 1)[0])
    return float(np.mean(lines)) if lines else 0.0


def read_at(x: np.ndarray, y: np.ndarray, psnr: float, outside: float) -> float:
    """The score at `psnr` of points `(x, y)` by rising `x`: between them on straight lines, outside by a slope."""
    inside = float(np.clip(psnr, x[0], x[-1]))
    return float(np.interp(inside, x, y) + outside * (psnr - inside))


def at_psnr(cells: Cells, row: Row, psnr: float) -> dict[int, float]:
    """Seed -> primary score of a row at `psnr`. A row that is on no curve has the slope of its baseline's."""
    curves = {other.curve for other in cells.plan.rows}
    own = next((name for name in (row.curve, row.name, row.against) if name and name in curves), "")
    line = slope(cells, cells.plan.row(own or cells.plan.roles.baseline))
    return {seed: read_at(*cells.points(row, seed), psnr, line) for seed in cells.seeds(row.name)}


def as_sampled(cells: Cells, row: Row, psnr: float) -> dict[int, float]:
    """Seed -> primary score of a row's own cells, wherever their PSNR is; in the place of `at_psnr`."""
    return {seed: cells.get(row.name, seed, "generated.kept") for seed in cells.seeds(row.name)}


@dataclasses.dataclass(frozen=True)
class Effect:
    """Paired differences of a row from the baseline.

    Attributes:
      difference: over seeds.
      distance: between the baseline and the end it is measured by: real clips, or the floor.
      same_sign: share of the seeds whose difference has the sign of the mean.
      found: 1 or -1 if the rule calls it an effect of that sign, else 0.
    """

    difference: Estimate
    distance: float
    same_sign: float
    found: int


def effect(values: dict[int, float], baseline: dict[int, float], end: float, least: int = LEAST) -> Effect | None:
    """By the rule, with the distance to the score `end`; None without a pair."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    found = over_seeds(differences.tolist())
    distance = abs(end - float(np.mean([baseline[seed] for seed in seeds])))
    same = float(np.mean(np.sign(differences) == np.sign(found.mean)))
    large = abs(found.mean) >= SHARE * distance and same >= SIGNS and len(seeds) >= least
    return Effect(found, distance, same, int(np.sign(found.mean)) if large else 0)


def judge(cells: Cells) -> dict:
    """The tree of `study.json`."""
    study, roles = cells.plan, cells.plan.roles
    if not cells.seeds(roles.baseline):
        raise ConfigError(f"there is no cell of the row {roles.baseline!r} yet: run the study first")
    least = PILOT if study.pilot else LEAST
    curves = [0, 0] if study.pilot else curve_cells(cells)
    equal = curves[1] > 0 and curves[0] == curves[1]
    read = at_psnr if equal else as_sampled  # the slope of a few seeds would move all rows
    scores, effects, plain = {}, {}, {}
    for row in study.rows:
        scores[row.name] = {}
        if not cells.seeds(row.name):
            continue
        other = reference(cells, row)
        level = cells.mean(other.name, "psnr")
        scores[row.name] = read(cells, row, level)
        if row != other:
            # In `walk`, clips are compared with reconstructed ones.
            top = "reconstructed.kept" if other.name == roles.placebo_baseline else "real.kept"
            end = cells.mean(other.name, "shuffled.kept" if row.name == roles.negative else top)
            effects[row.name] = effect(scores[row.name], read(cells, other, level), end, least)
            plain[row.name] = effect(as_sampled(cells, row, level), as_sampled(cells, other, level), end, least)
    positive, negative, method = (effects.get(name) for name in (roles.positive, roles.negative, roles.method))
    won, lost = bool(positive and positive.found > 0), bool(negative and negative.found < 0)
    placebo = effects.get(roles.placebo_method)
    doubt = None  # why the placebo forbids a claim; empty if it does not
    if placebo and method and placebo.difference.count >= study.row(roles.placebo_method).seeds:
        half = abs(placebo.difference.mean) >= abs(method.difference.mean) / 2
        seen = placebo.difference.sign != 0 or placebo.difference.low is None
        doubt = "in the placebo as well" if seen else "half of it or more in the placebo as well" if half else ""
    both_ends = _at_method(cells) if equal else None
    return {
        "rule": RULE,
        "primary": {
            "equal_psnr": equal,
            "psnr": cells.mean(roles.baseline, "psnr"),
            "real": cells.mean(roles.baseline, "real.kept"),
            "shuffled": cells.mean(roles.baseline, "shuffled.kept"),
        },
        "rows": [
            _row(cells, row, scores[row.name], effects.get(row.name), plain.get(row.name))
            for row in study.rows
            if scores[row.name]
        ],
        "controls": {
            "positive": {"row": roles.positive, "won": won, "effect": _tree(positive)},
            "negative": {"row": roles.negative, "lost": lost, "effect": _tree(negative)},
        },
        "placebo": {"holds": None if doubt is None else not doubt, "effect": _tree(placebo)},
        "effect": _tree(method),
        "both_ends": both_ends,
        "verdict": _verdict((positive, negative, method), won and lost, doubt, both_ends, least, curves),
    }


def _at_method(cells: Cells) -> dict:
    """Method and baseline at the mean PSNR of the method.

    Where no KL weight takes the method up to the PSNR of the baseline, its score there is an extrapolation. Heavier
    weights take the baseline down towards the method, so here both are read near cells of both.
    """
    roles, level = cells.plan.roles, cells.mean(cells.plan.roles.method, "psnr")
    method, baseline = (at_psnr(cells, cells.plan.row(name), level) for name in (roles.method, roles.baseline))
    return {
        "psnr": level,
        "baseline": float(np.mean(list(baseline.values()))),
        "method": float(np.mean(list(method.values()))),
        "effect": _tree(effect(method, baseline, cells.mean(roles.baseline, "real.kept"))),
        "slopes": {name: slope(cells, cells.plan.row(name)) for name in (roles.baseline, roles.method)},
    }


def curve_cells(cells: Cells) -> list[int]:
    """How many cells of the curves there are, and how many are planned."""
    planned = [(row.name, seed) for row in cells.plan.rows if row.curve for seed in range(row.seeds)]
    return [sum(cell in cells.trees for cell in planned), len(planned)]


def reference(cells: Cells, row: Row) -> Row:
    """The row that `row` is compared with, of which there are cells: itself, if there are none."""
    name = row.against or cells.plan.roles.baseline
    return cells.plan.row(name) if cells.seeds(name) else row


def _verdict(
    effects: tuple[Effect | None, ...],
    controls: bool,
    doubt: str | None,
    both_ends: dict | None,
    least: int,
    curves: list[int],
) -> str:
    """A sentence; `effects` are of the positive control, the negative one, and the method."""
    counts = [found.difference.count if found else 0 for found in effects]
    if min(counts) < least:
        return f"unfinished: the rule needs {least} pairs of both controls and the method, and there are {min(counts)}"
    if curves[0] < curves[1]:
        return f"unfinished: the curves, without which no PSNR is equal, have {curves[0]} of {curves[1]} cells"
    if not controls:
        return "this size cannot tell: a control is not as it must be"
    if least < LEAST:
        return "the controls are as they must be: this size can tell"
    method = effects[2]
    if not method or not method.found:
        return f"no effect of {SHARE:.0%} found, with working controls"
    if doubt is None:
        return "unfinished: the placebo lacks cells"
    if doubt:
        return f"an effect at equal PSNR, but {doubt}: not claimed"
    if both_ends is None or both_ends["effect"]["found"] != method.found:
        return "an effect at the baseline's PSNR and none at the method's: not claimed"
    return f"prediction makes latents {'easier' if method.found > 0 else 'harder'} to diffuse"


def _row(cells: Cells, row: Row, scores: dict[int, float], found: Effect | None, plain: Effect | None) -> dict:
    own, level = over_seeds(list(scores.values())), cells.mean(row.name, "psnr")
    other = reference(cells, row)
    shares = [share for seed in scores if (share := reach(cells, row.name, other.name, seed)) is not None]
    losses = [cells.get(row.name, seed, "curve.loss")[-2:] for seed in scores]
    still = float(np.mean([pair[0] / pair[-1] - 1 for pair in losses]))  # from the last score but one to the last
    secondary = {}
    for name, path in SECONDARY.items():
        values = [value for seed in scores if (value := cells.get(row.name, seed, path)) is not None]
        secondary |= {name: float(np.mean(values))} if values else {}
    return {
        "name": row.name,
        "seeds": sorted(scores),
        "mean": own.mean,
        "interval": [own.low, own.high],
        "as_sampled": {"mean": cells.mean(row.name, "generated.kept"), "difference": _tree(plain)},
        "psnr": level,
        "far": bool(abs(level - cells.mean(other.name, "psnr")) > FAR and not _spans(cells, row, other)),
        "against": "" if row == other else other.name,
        "difference": _tree(found),
        "share_of_steps": shares,
        "loss_still_falls": still,
        "secondary": secondary,
        "velocity_loss": np.mean([cells.get(row.name, seed, "velocity_loss") for seed in scores], axis=0).tolist(),
    }


def _spans(cells: Cells, row: Row, other: Row) -> bool:
    """Whether the row's mean curve over KL weights spans the PSNR of the row that it is compared with."""
    curve = [name.name for name in cells.plan.rows if row.name in (name.name, name.curve) and cells.seeds(name.name)]
    levels = [cells.mean(name, "psnr") for name in curve]
    return len(levels) > 1 and min(levels) <= cells.mean(other.name, "psnr") <= max(levels)


def reach(cells: Cells, row: str, other: str, seed: int) -> float | None:
    """Share of its steps in which a row keeps as many laws as `other` at its end; None if it never does.

    Scores before the last one are of fewer clips, and so noisier.
    """
    if (other, seed) not in cells.trees:
        return None
    curve, end = cells.get(row, seed, "curve"), cells.get(other, seed, "curve.kept")[-1]
    share = steps_to_reach(curve["step"], -np.array(curve["kept"]), -end) / curve["step"][-1]
    return share if np.isfinite(share) else None


def _tree(found: Effect | None) -> dict | None:
    return None if found is None else dataclasses.asdict(found)


def write_verdict(study: Study, results: Path) -> dict:
    """Judge the cells in `results/cells`, and write `results/study.json`."""
    tree = judge(read_cells(study, results / "cells"))
    write_json(results / "study.json", tree)
    return tree

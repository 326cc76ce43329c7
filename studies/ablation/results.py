"""Stored scores of a study, and what they say together: means over seeds, differences, steps to reach, correlation.

Seeds are paired: cells of one seed share initial weights, order of clips and noise, so a row is compared with another
seed by seed. A folder holds `study.json`, which says what was planned, and one file a cell.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pv_vae_jax.evaluation.latent_analysis import rank_correlation
from pv_vae_jax.typing import ConfigError

PLAN = "study.json"
# 97.5 % point of Student's t with 1, 2, ... degrees of freedom; beyond the last, the last: rather too wide.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
Distance = Literal["frechet", "kernel"]
# A path into a cell such as `generation.own.frechet`, or a function of the cell; None where the cell lacks it.
Score = str | Callable[[dict], float | None]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean of `count` values with its 95 % interval; an interval takes two values, and is None without."""

    mean: float
    count: int
    low: float | None = None
    high: float | None = None

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval excludes 0, else 0."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return 0
        return 1 if self.mean > 0 else -1


def over_seeds(values: list[float]) -> Estimate:
    """Mean and Student's t interval of one value a seed.

    Raises:
      ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("no seed has this value")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, 1)
    half = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return Estimate(mean, len(values), mean - half, mean + half)


@dataclasses.dataclass(frozen=True)
class Results:
    """The scores of one study.

    Attributes:
      plan: the tree of `study.json`: `name`, `world`, `rows` in order, `seeds`.
      cells: `(row, seed)` -> tree of the cell.
    """

    plan: dict
    cells: dict[tuple[str, int], dict]

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.plan["name"]

    @property
    def first(self) -> dict:
        """A cell, for the facts that all cells share."""
        return next(iter(self.cells.values()))

    @property
    def rows(self) -> list[str]:
        """Rows of which there is a cell, in the order of the plan."""
        return [row["name"] for row in self.plan["rows"] if self.seeds(row["name"])]

    def seeds(self, row: str) -> list[int]:
        """Seeds of which the row has a cell."""
        return sorted(seed for name, seed in self.cells if name == row)

    @property
    def networks(self) -> list[str]:
        """Feature networks with which all cells are scored."""
        first, *others = (cell["generation"] for cell in self.cells.values())
        return [name for name in first if all(name in other for other in others)]

    @property
    def curves(self) -> bool:
        """Whether any cell is scored along training, not only at its end."""
        return any(len(cell["curve"][self.networks[0]]["step"]) > 1 for cell in self.cells.values())

    @property
    def perceptual(self) -> str | None:
        """Name of the perceptual distance with which all cells are scored; None if there is none, or several."""
        names = {cell.get("perceptual") for cell in self.cells.values()}
        return names.pop() if len(names) == 1 else None

    def values(self, row: str, score: Score) -> dict[int, float]:
        """Seed -> a score of the row: a path such as `generation.own.frechet`, or a function of the cell's tree.

        Seeds without the score are left out.
        """
        take: Any = score if callable(score) else lambda cell: _at(cell, score)
        found = {seed: take(self.cells[row, seed]) for seed in self.seeds(row)}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, row: str, score: Score) -> Estimate | None:
        """Over seeds; None if no cell has the score."""
        values = list(self.values(row, score).values())
        return over_seeds(values) if values else None

    def measured(self, row: str, score: Score) -> Estimate:
        """Over seeds, of a score that every cell has.

        Raises:
          ValueError: no cell has it.
        """
        return over_seeds(list(self.values(row, score).values()))

    def difference(self, row: str, other: str, score: Score, *, one_device: bool = False) -> Estimate | None:
        """`row` less `other`, over the seeds that both have; `one_device`: those that ran on one kind of device."""
        a, b = self.values(row, score), self.values(other, score)
        device = lambda name, seed: self.cells[name, seed]["device"]  # noqa: E731
        seeds = [s for s in sorted(a.keys() & b.keys()) if not one_device or device(row, s) == device(other, s)]
        return over_seeds([a[seed] - b[seed] for seed in seeds]) if seeds else None


def read_results(folder: Path) -> list[Results]:
    """The studies of `folder`, one folder each, by name; those without a finished cell are left out.

    Raises:
      ConfigError: a file is damaged, its row or settings are not those of the plan, or a row and seed have two files.
    """
    studies = []
    for plan in sorted(folder.glob(f"*/{PLAN}")):
        found = Results(_read(plan), {})
        known, planned = {row["name"] for row in found.plan["rows"]}, found.plan.get("cells")
        for path in sorted(plan.parent.glob("*.json")):
            if path.name == PLAN:
                continue
            cell = _read(path)
            key: Any = cell.get("row"), cell.get("seed")
            if key[0] not in known:
                raise ConfigError(f"{path} is a cell of row {key[0]!r}, which {plan} does not have: remove one of them")
            if planned is not None and path.stem not in planned:
                own = [name for name in planned if name.rpartition("-")[0] == path.stem.rpartition("-")[0]]
                raise ConfigError(
                    f"{path} was made with other settings than {plan} plans, whose cell of this row and seed is "
                    f"{own[0] if own else 'none'}: remove {path.name}, or start the study with its settings again"
                )
            if key in found.cells:
                raise ConfigError(
                    f"{path} is a second cell of row {key[0]!r}, seed {key[1]}, and {plan} is too old to say which is "
                    "its own: remove the stale one, or start the study again, which writes the plan"
                )
            found.cells[key] = cell
        if found.cells:
            studies.append(found)
    return studies


def prediction_error(cell: dict) -> float:
    """Squared error of the dropped frames, mean over every number of dropped groups."""
    return float(np.mean(cell["prediction"]["predicted"]))


def against(guess: str) -> Callable[[dict], float]:
    """A score: the prediction error over that of `copying` or `extrapolation`; below 1 the network knows more."""
    return lambda cell: prediction_error(cell) / float(np.mean(cell["prediction"][guess]))


def steps_to_reach(steps: list[int], distances: np.ndarray, target: float) -> float:
    """First step at which the running minimum of `distances` is at `target` or below.

    Between two scored steps the minimum runs in a straight line over the logarithm of the step. What is reached at the
    first scored step is reported as that step, for nothing is known of those before. Infinite if it is never reached.
    """
    best = np.minimum.accumulate(np.asarray(distances, float))
    reached = np.flatnonzero(best <= target)
    if not len(reached):
        return float("inf")
    i = int(reached[0])
    if i == 0 or best[i] == target:
        return float(steps[i])
    share = (best[i - 1] - target) / (best[i - 1] - best[i])
    return float(np.exp(np.log(steps[i - 1]) + share * (np.log(steps[i]) - np.log(steps[i - 1]))))


@dataclasses.dataclass(frozen=True)
class Reach:
    """Steps in which a row reaches the baseline's last distance, over the steps of the whole training.

    Attributes:
      seeds: the share of each seed that both have; infinite where it is never reached.
      mean: geometric mean of `seeds` with Student's t interval; None if one seed never reaches it.
      earliest: the largest share that a first scored step is: no smaller one can be told of every seed.
    """

    seeds: list[float]
    mean: Estimate | None
    earliest: float


def reach(
    results: Results, row: str, baseline: str, network: str, distance: Distance = "frechet", *, stays: bool = False
) -> Reach | None:
    """Convergence of `row` against the end of `baseline`, seed by seed; None without curves of a seed of both.

    Args:
      results: of a study.
      row, baseline: names of rows.
      network: whose features.
      distance: the Frechet or the kernel distance.
      stays: count the steps from which on the row stays as near, rather than those in which it is so at first: samples
        of a network that has hardly begun can be nearer to real clips than those that follow.
    """
    shares, first = [], []
    for seed in results.seeds(row):
        curve = results.cells[row, seed]["curve"][network]
        steps, distances = curve["step"], np.asarray(curve[distance], float)
        if (baseline, seed) not in results.cells or len(steps) < 2:  # a row that scores its end alone has no curve
            continue
        if stays:
            distances = np.maximum.accumulate(distances[::-1])[::-1]  # the farthest that is still to come
        target = results.cells[baseline, seed]["curve"][network][distance][-1]
        shares.append(steps_to_reach(steps, distances, target) / steps[-1])
        first.append(steps[0] / steps[-1])
    if not shares:
        return None
    if not np.isfinite(shares).all():
        return Reach(shares, None, max(first))
    logs = over_seeds([float(np.log(share)) for share in shares])
    ends = [None if end is None else float(np.exp(end)) for end in (logs.low, logs.high)]
    return Reach(shares, Estimate(float(np.exp(logs.mean)), logs.count, *ends), max(first))


def curves(results: Results, row: str, network: str) -> tuple[list[int], np.ndarray]:
    """Steps and Frechet distances `(seeds, steps)` of a row along training.

    Cells that are scored at other steps are read off their own lines, straight over the logarithm of the step, and
    those of which the end alone is scored are left out where others have more.
    """
    found = [results.cells[row, seed]["curve"][network] for seed in results.seeds(row)]
    found = [curve for curve in found if len(curve["step"]) > 1] or found
    begin = max(curve["step"][0] for curve in found)
    end = min(curve["step"][-1] for curve in found)
    steps = sorted({step for curve in found for step in curve["step"] if begin <= step <= end})
    read = [np.interp(np.log(steps), np.log(curve["step"]), curve["frechet"]) for curve in found]
    return steps, np.array(read)


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Rank correlation of prediction error and final Frechet distance.

    Attributes:
      pooled: over all cells; between seeds as well, which differ in their clips.
      within: mean over seeds of the coefficient over one seed's cells.
      cells, seeds: how many each is of; NaN of too few.
    """

    pooled: float
    within: float
    cells: int
    seeds: int


def prediction_correlation(results: Results, network: str, rows: list[str]) -> Correlation:
    """Over the cells of `rows`; a coefficient takes three cells."""

    def coefficient(seeds: list[int]) -> tuple[float, int]:
        cells = [results.cells[row, seed] for row in rows for seed in seeds if (row, seed) in results.cells]
        if len(cells) < 3:
            return float("nan"), len(cells)
        x = np.array([prediction_error(cell) for cell in cells])
        return rank_correlation(x, np.array([c["generation"][network]["frechet"] for c in cells])), len(cells)

    seeds = sorted({seed for row in rows for seed in results.seeds(row)})
    pooled, count = coefficient(seeds)
    within = [value for value, _ in (coefficient([seed]) for seed in seeds) if np.isfinite(value)]
    return Correlation(pooled, float(np.mean(within)) if within else float("nan"), count, len(within))


def _at(tree: dict, path: str):
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _read(path: Path) -> dict:
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and the study makes it again") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no scores: remove it")
    return tree

"""When does one run get to where another ends? The figure behind "converges 52 % faster".

Training curves are noisy, so both the curve that arrives and the score to arrive at are running means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

WINDOW = 0.1  # of the curve


@dataclasses.dataclass(frozen=True)
class StepsToTarget:
    """One run compared with the end of another.

    Attributes:
      step: at which its curve first is as low as the other's end; None if it never is.
      steps: length of the other.
      score: the other's end.
    """

    step: float | None
    steps: float
    score: float

    @property
    def sooner(self) -> float | None:
        """Share of the other's steps that this one saved; below 0 if it took longer, None if it never arrived."""
        return None if self.step is None else 1 - self.step / self.steps


def running_mean(values: Sequence[float], share: float = WINDOW) -> np.ndarray:
    """Mean over the last `share` of the curve up to each point; nothing after it is looked at."""
    width = max(int(round(share * len(values))), 1)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    start = np.maximum(np.arange(len(values)) + 1 - width, 0)
    return (total[1:] - total[start]) / (np.arange(len(values)) + 1 - start)


def steps_to_target(
    steps: Sequence[float], values: Sequence[float], other_steps: Sequence[float], other: Sequence[float]
) -> StepsToTarget:
    """Compare a curve, lower is better, with the end of `other`.

    Raises:
      ValueError: a curve without points.
    """
    if not len(values) or not len(other):
        raise ValueError("a curve without points has no end")
    score = float(running_mean(other)[-1])
    there = np.flatnonzero(running_mean(values) <= score)
    return StepsToTarget(float(steps[there[0]]) if len(there) else None, float(other_steps[-1]), score)

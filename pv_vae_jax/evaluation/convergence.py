"""Steps until one run reaches the final score of another: the figure behind "converges 52 % faster".

Training curves are noisy, so both the curve and the target are running means.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

WINDOW = 0.1  # fraction of the curve that is averaged


@dataclasses.dataclass(frozen=True)
class StepsToTarget:
    """When one run reaches the final score of another.

    Attributes:
      step: first step at which its curve is as low as the other's final score; None if it never is.
      steps: length of the other run.
      score: final score of the other run.
    """

    step: float | None
    steps: float
    score: float

    @property
    def sooner(self) -> float | None:
        """Fraction of the other's steps that was saved; negative if it took longer, None if it never got there."""
        return None if self.step is None else 1 - self.step / self.steps


def running_mean(values: Sequence[float], share: float = WINDOW) -> np.ndarray:
    """Mean over the last fraction `share` of the curve up to each point; later points do not enter."""
    width = max(int(round(share * len(values))), 1)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    start = np.maximum(np.arange(len(values)) + 1 - width, 0)
    return (total[1:] - total[start]) / (np.arange(len(values)) + 1 - start)


def steps_to_target(
    steps: Sequence[float], values: Sequence[float], other_steps: Sequence[float], other: Sequence[float]
) -> StepsToTarget:
    """Compare a curve, lower is better, with the end of `other`.

    Raises:
      ValueError: a curve is empty.
    """
    if not len(values) or not len(other):
        raise ValueError("a curve needs at least one point")
    score = float(running_mean(other)[-1])
    there = np.flatnonzero(running_mean(values) <= score)
    return StepsToTarget(float(steps[there[0]]) if len(there) else None, float(other_steps[-1]), score)

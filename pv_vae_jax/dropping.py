"""How many groups of a clip a training step withholds: the number `k` of section 3.1 of the paper.

`k` counts latent frames: the encoder sees all but `k` of a clip's `g`, and the decoder draws them all. It is drawn in
`Dropping.draw` and nowhere else, from (seed, step) alone; the grain transform `data.DropFutureFrames` calls it.
A batch carries it as `batch["dropped"]`, int32: `()` if the whole batch shares it, `(b,)` if each example has its own.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

DropPattern = Literal["future", "infill", "block", "tube", "random"]
SPATIAL: tuple[DropPattern, ...] = ("block", "tube", "random")  # patterns that choose positions within a frame
DropFrom = Literal["pixels", "latents"]
DropSchedule = Literal["constant", "linear", "cosine"]


def num_droppable(groups: int, pattern: DropPattern = "future") -> int:
    """Largest `k` of a pattern for clips of `groups` groups: all after the first, for `infill` all between the ends."""
    return max(groups - (2 if pattern == "infill" else 1), 0)


def max_dropped(groups: int, ratio: float, pattern: DropPattern = "future") -> int:
    """Largest `k` drawn in training, `floor((g - 1) r)` (section 3.1); for `infill`, `floor((g - 2) r)`.

    Raises:
      ValueError: `ratio` is outside [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"the dropping ratio must be in [0, 1], got {ratio}")
    # The small term keeps 5 * 0.6 from becoming 2.999...
    return math.floor(num_droppable(groups, pattern) * ratio + 1e-9)


def scheduled_ratio(schedule: DropSchedule, step: int, ramp_steps: float, first: float, last: float) -> float:
    """Dropping ratio at step `step` of a stage, counted from 0.

    The ratio goes from `first` to `last` within `ramp_steps` steps, evenly (`linear`) or along half a cosine
    (`cosine`), and then stays there; with `constant` it is `last` throughout.
    """
    if schedule == "constant" or step >= ramp_steps:
        return last
    progress = step / ramp_steps
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return first + (last - first) * progress


@dataclasses.dataclass(frozen=True)
class Dropping:
    """How a stage draws `k`: uniformly from 0 to `max_dropped` at the ratio of the step. The default drops nothing.

    Attributes:
      ratio: `r` of the paper, the largest share of the droppable groups to drop; with a schedule, its final value.
      pattern: decides how many groups can be dropped, see `num_droppable`.
      per_example: draws a `k` for each example instead of one for the batch.
      schedule, ratio_start, ramp_steps: see `scheduled_ratio`.
    """

    ratio: float = 0.0
    pattern: DropPattern = "future"
    per_example: bool = False
    schedule: DropSchedule = "constant"
    ratio_start: float = 0.0
    ramp_steps: float = 0.0

    def draw(self, groups: int, batch_size: int, seed: int, step: int) -> np.ndarray:
        """`k` for the global batch of step `step`: `()` int32, or `(batch_size,)` with `per_example`.

        Args:
          groups: latent frames in each clip of the batch; an image has 1, so its `k` is 0.
          batch_size: examples in the global batch, of which every host takes its share.
          seed: seed of the stream of batches.
          step: step of the stage.
        """
        ratio = scheduled_ratio(self.schedule, step, self.ramp_steps, self.ratio_start, self.ratio)
        most = max_dropped(groups, ratio, self.pattern)
        rng = np.random.default_rng([seed, 2, step])
        shape = (batch_size,) if self.per_example else ()
        return np.asarray(rng.integers(0, most + 1, size=shape, dtype=np.int32))  # k ~ U{0, ..., floor((g - 1) r)}

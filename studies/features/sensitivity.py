"""What a feature network notices: distances of clips from their own damaged copies, grade by grade.

The floor beside them is the distance of two halves of the clean set: damage below it is lost in the noise of sampling.
"""

import dataclasses

import numpy as np

from pv_vae_jax.evaluation.distances import frechet_distance, kernel_distance
from pv_vae_jax.evaluation.networks.extract import FeatureNetwork, extract
from studies.features.corruptions import GRADES, corrupt


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Distances from the clean set.

    Attributes:
      clips: in the set.
      frechet, kernel: damage -> distance at each of its `GRADES`.
      floor_frechet, floor_kernel: of two halves of the clean set.
    """

    clips: int
    frechet: dict[str, list[float]]
    kernel: dict[str, list[float]]
    floor_frechet: float
    floor_kernel: float


def measure_sensitivity(
    network: FeatureNetwork, video: np.ndarray, *, seed: int = 0, batch_size: int = 8
) -> Sensitivity:
    """Damage `(n, t, h, w, 3)` uint8 in every way of `GRADES` and measure.

    Raises:
      FeatureError: as the distances.
    """
    clean = extract(network, video, batch_size=batch_size)
    order = np.random.default_rng(seed).permutation(len(video))
    half, other = clean[order[: len(order) // 2]], clean[order[len(order) // 2 :]]
    frechet, kernel = {}, {}
    for kind, grades in GRADES.items():
        found = [extract(network, corrupt(video, kind, grade, seed), batch_size=batch_size) for grade in grades]
        frechet[kind] = [frechet_distance(clean, x) for x in found]
        kernel[kind] = [kernel_distance(clean, x) for x in found]
    return Sensitivity(len(video), frechet, kernel, frechet_distance(half, other), kernel_distance(half, other))


def sensitivity_table(found: Sensitivity) -> list[str]:
    """Lines for a terminal, one kind of damage after the other."""
    lines = [
        f"{'damage':10}{'grade':>8}{'Frechet':>11}{'kernel':>11}   {found.clips} clips against their damaged copies"
    ]
    for kind, grades in GRADES.items():
        for grade, a, b in zip(grades, found.frechet[kind], found.kernel[kind], strict=True):
            lines.append(f"{kind:10}{grade:8g}{a:11.4g}{b:11.4g}")
    lines.append(f"{'halves':10}{'':8}{found.floor_frechet:11.4g}{found.floor_kernel:11.4g}   clean, no damage")
    return lines

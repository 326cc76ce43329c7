"""How near drawn latents are to real ones, as a share: 0 for a Gaussian of equal covariance, 1 for other real latents.

Distances between latents have no unit that two VAEs share. Both are taken after the real latents are whitened, over
their `COMPONENTS` largest principal components, and read between the two ends.
"""

import numpy as np
from scipy.spatial.distance import cdist

COMPONENTS = 64
DIRECTIONS = 256
ENDS = 4  # sets of latents that give an end


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """`2 E|a - b| - E|a - a'| - E|b - b'|` of samples `(n, d)` and `(m, d)`; without bias, so 0 in the mean if alike.

    Szekely and Rizzo, Journal of Statistical Planning and Inference 143 (2013).
    """
    within = sum(cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b))
    return float(2 * cdist(a, b).mean() - within)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Mean over `DIRECTIONS` directions of the Wasserstein-2 distance of the projections of `(n, d)` samples, squared.

    Bonneel et al., Journal of Mathematical Imaging and Vision 51 (2015).
    """
    if len(a) != len(b):
        raise ValueError(f"expected as many samples of both, got {len(a)} and {len(b)}")
    way = np.random.default_rng(seed).standard_normal((a.shape[1], DIRECTIONS))
    way /= np.linalg.norm(way, axis=0)
    return float(np.square(np.sort(a @ way, axis=0) - np.sort(b @ way, axis=0)).mean())


def latent_skill(drawn: np.ndarray, real: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, float]:
    """`(d(gauss, real) - d(drawn, real)) / (d(gauss, real) - d(other, real))` of both distances `d`.

    Args:
      drawn, real: `(n, ...)`, generated and held-out latents.
      other: `(m, ...)` with `m >= n`, other real latents: they give the components and the covariance.
      seed: draws the Gaussian, and the directions.
    """
    drawn, real, other = (x.reshape(len(x), -1).astype(np.float64) for x in (drawn, real, other))
    centre = other.mean(axis=0)
    _, spread, axes = np.linalg.svd(other - centre, full_matrices=False)
    keep = min(COMPONENTS, int((spread > 1e-6 * spread[0]).sum()))
    scale = axes[:keep].T / (spread[:keep] / np.sqrt(len(other) - 1))
    n, rng = len(drawn), np.random.default_rng(seed)
    a, b, c = ((x - centre) @ scale for x in (drawn, real, other))
    # Both ends are means over several sets, so that their own noise is small.
    gaussian = [rng.standard_normal((n, keep)) for _ in range(ENDS)]
    others = [c[i * n : (i + 1) * n] for i in range(min(ENDS, len(c) // n))]
    skills = {}
    for name, distance in (("energy", energy_distance), ("sliced_wasserstein", sliced_wasserstein)):
        worst, best = (float(np.mean([distance(x, b) for x in sets])) for sets in (gaussian, others))
        skills[name] = float((worst - distance(a, b)) / (worst - best))
    return skills

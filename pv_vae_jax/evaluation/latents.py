"""What latents look like over space and time: their principal components as colours, and how far they move.

Both take posterior means `(n, g, h, w, z)` of a set of clips. Latent frame 0 stands for one video frame and the others
for `p_t` each, so its statistics are its own: it is left out wherever directions or distances are fitted.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PrincipalColours:
    """Three principal components as RGB.

    Attributes:
      pictures: `(n, g, h, w, 3)` uint8.
      explained: `(3,)` shares of the variance.
    """

    pictures: np.ndarray
    explained: np.ndarray


def principal_colours(means: np.ndarray) -> PrincipalColours:
    """Paint every latent by its first three principal components.

    Components are fitted to all tokens of all clips but those of latent frame 0, centred per channel. The entry of
    largest size of each is made positive, so that signs do not depend on the solver. Colours run from the 1st to the
    99th percentile of the whole set: two pictures of one colour show equal latents.

    Args:
      means: `(n, g, h, w, z)`. With `z < 3` the colours that are left over stay 0.
    """
    means = np.asarray(means, np.float64)
    tokens = _without_first(means).reshape(-1, means.shape[-1])
    centre = tokens.mean(axis=0)
    # The right singular vectors of the centred tokens, through their small (z, z) Gram matrix.
    variance, basis = np.linalg.eigh((tokens - centre).T @ (tokens - centre))
    kept = min(3, len(variance))
    basis, share = basis[:, ::-1][:, :kept], np.zeros(3)
    share[:kept] = variance[::-1][:kept] / max(variance.sum(), 1e-30)
    basis = basis * np.sign(np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0))
    values = (means - centre) @ basis
    low, high = np.percentile(values.reshape(-1, kept), (1, 99), axis=0)
    unit = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    pictures = np.zeros((*means.shape[:-1], 3), np.uint8)
    pictures[..., :kept] = np.rint(255 * unit)
    return PrincipalColours(pictures, np.clip(share, 0, 1))


@dataclasses.dataclass(frozen=True)
class TemporalDistance:
    """How far latents move in time, per latent value, in standard deviations of their channel.

    Attributes:
      adjacent: `(n,)` a clip: mean distance of neighbouring latent frames.
      curve: `(d,)` distance at intervals 1 .. d over that at the longest, mean over clips. It should rise to 1.
      chance: mean distance of the same place and time in two different clips; None with one clip.
    """

    adjacent: np.ndarray
    curve: np.ndarray
    chance: float | None

    @property
    def median(self) -> float:
        """Median over clips of the distance of neighbouring latent frames; lower is smoother."""
        return float(np.median(self.adjacent))


def temporal_distance(means: np.ndarray) -> TemporalDistance | None:
    """Latent temporal distance of `means` `(n, g, h, w, z)`, without latent frame 0.

    `|| z[i + d] - z[i] ||_2 / sqrt(h w z)`, mean over `i`; channels are standardised over the set (our choice: VAEs of
    different latent scale cannot be compared otherwise). None with fewer than three latent frames.
    """
    if means.shape[1] < 3:
        return None
    z = np.asarray(_without_first(means), np.float64)
    z = (z - z.mean(axis=(0, 1, 2, 3))) / np.maximum(z.std(axis=(0, 1, 2, 3)), 1e-12)
    distance = lambda a, b: np.sqrt(np.mean((a - b) ** 2, axis=(2, 3, 4)))  # noqa: E731
    by_interval = np.stack([distance(z[:, d:], z[:, :-d]).mean(axis=1) for d in range(1, z.shape[1])], axis=1)
    moving = by_interval[by_interval[:, -1] > 0]  # a frozen clip has no curve
    curve = (moving / moving[:, -1:]).mean(axis=0) if len(moving) else np.zeros(by_interval.shape[1])
    chance = float(distance(z, np.roll(z, 1, axis=0)).mean()) if len(z) > 1 else None
    return TemporalDistance(by_interval[:, 0], curve, chance)


def _without_first(means: np.ndarray) -> np.ndarray:
    return means[:, 1:] if means.shape[1] > 1 else means

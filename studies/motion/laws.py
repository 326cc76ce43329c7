"""The laws of motion of the synthetic world, fitted to tracks.

A law is a family of paths with a few numbers. Fitted is the member that is nearest to a track by least squares: the
best of many drawn ones, refined by Levenberg-Marquardt. Tracks here are in the world's own units, see `world_units`.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from scipy.stats import qmc

from pv_vae_jax.data.synthetic import ZOOM, drop, reflect

DRAWN = 13  # 2^13 members of a law are tried
STARTS = 3  # of which so many are refined
ITERATIONS = 15


@dataclasses.dataclass(frozen=True)
class Law:
    """A family of paths.

    Attributes:
      path: numbers `(m, p)` and frames `(t,)` -> `(m, t, 2)` places (y, x).
      low, high: the range of each number, as the world draws it.
    """

    path: Callable[[np.ndarray, np.ndarray], np.ndarray]
    low: tuple[float, ...]
    high: tuple[float, ...]


def _columns(numbers: np.ndarray) -> list[np.ndarray]:
    return [column[:, None] for column in numbers.T]


def _bounce(numbers: np.ndarray, t: np.ndarray) -> np.ndarray:
    y, x, heading, speed, radius = _columns(numbers)
    way = speed * t
    return np.stack([reflect(y + way * np.sin(heading), radius), reflect(x + way * np.cos(heading), radius)], axis=-1)


def _fall(numbers: np.ndarray, t: np.ndarray) -> np.ndarray:
    start, floor, x = _columns(numbers)
    return np.stack([drop(start, floor, t), np.broadcast_to(x, (len(x), len(t)))], axis=-1)


def _orbit(numbers: np.ndarray, t: np.ndarray, way: int) -> np.ndarray:
    y, x, reach, speed, phase = _columns(numbers)
    turn = way * speed * t + phase
    return np.stack([y + reach * np.sin(turn), x + reach * np.cos(turn)], axis=-1)


def _swing(numbers: np.ndarray, t: np.ndarray) -> np.ndarray:
    y, x, along, reach, speed = _columns(numbers)
    out = reach * np.cos(speed * t)
    return np.stack([y + out * np.sin(along), x + out * np.cos(along)], axis=-1)


ANGLE = (-np.pi, 3 * np.pi)  # twice around, so that no angle lies at an end
# A law of two branches is two families; numbers in the order in which the functions above name them.
LAWS: dict[str, tuple[Law, ...]] = {
    "bounce": (Law(_bounce, (0.12, 0.12, ANGLE[0], 0.025, 0.12), (0.88, 0.88, ANGLE[1], 0.06, 0.2)),),
    "orbit": tuple(
        Law(functools.partial(_orbit, way=way), (0.4, 0.4, 0.15, 0.12, ANGLE[0]), (0.6, 0.6, 0.3, 0.3, ANGLE[1]))
        for way in (-1, 1)
    ),
    "fall": (Law(_fall, (0.15, 0.8, 0.15), (0.4, 0.88, 0.85)),),
    "swing": (Law(_swing, (0.4, 0.4, ANGLE[0], 0.2, 0.2), (0.6, 0.6, ANGLE[1], 0.35, 0.4)),),
}


def world_units(place: np.ndarray, size: int) -> np.ndarray:
    """Places in pixels of a plain clip of side `size`, in units of the world that `ZOOM` shows smaller."""
    return 0.5 + (place / size - 0.5) / ZOOM


def fit(track: np.ndarray, law: str, frames: np.ndarray | None = None) -> np.ndarray:
    """The nearest member of `law` to each track.

    Args:
      track: `(n, t, 2)` in units of the world.
      law: its name.
      frames: `(n,)` number of first frames to fit; None fits all.

    Returns:
      `(n, t, 2)` paths, in the frames that were not fitted too.
    """
    n, t = track.shape[:2]
    seen = np.arange(t) < (np.full(n, t) if frames is None else frames)[:, None]
    found = [_nearest(track, branch, seen.astype(float)) for branch in LAWS[law]]
    best = np.argmin([error for _, error in found], axis=0)
    return np.stack([path for path, _ in found])[best, np.arange(n)]


@functools.cache
def _members(law: Law, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn numbers `(m, p)` of a law and their paths `(m, t, 2)`."""
    drawn = qmc.scale(qmc.Sobol(len(law.low), seed=0).random_base2(DRAWN), law.low, law.high)
    return drawn, law.path(drawn, np.arange(t))


def _nearest(track: np.ndarray, law: Law, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paths `(n, t, 2)` and their squared errors `(n,)` over the frames `seen (n, t)`."""
    n, t = seen.shape
    drawn, paths = _members(law, t)
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2, without what all members share.
    error = (
        seen @ np.square(paths).sum(-1).T
        - 2 * (track * seen[..., None]).reshape(n, -1) @ paths.reshape(len(paths), -1).T
    )
    starts = np.argpartition(error, STARTS, axis=1)[:, :STARTS].ravel()  # n STARTS
    path, left = _refine(law, drawn[starts], np.repeat(track, STARTS, 0), np.repeat(seen, STARTS, 0))
    best = left.reshape(n, STARTS).argmin(axis=1) + STARTS * np.arange(n)
    return path[best], left[best]


def _refine(law: Law, numbers: np.ndarray, track: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt for all tracks at once, within a law's ranges. Returns paths and squared errors."""
    low, high = np.array(law.low), np.array(law.high)
    t, step = np.arange(track.shape[1]), 1e-5 * (high - low)
    weight = np.repeat(seen, 2, axis=1)  # (m, 2 t), as the rest is laid out

    def rest(numbers: np.ndarray) -> np.ndarray:
        return (law.path(numbers, t) - track).reshape(len(numbers), -1) * weight

    now = rest(numbers)
    error, damping = np.square(now).sum(1), np.full(len(now), 1e-2)
    for _ in range(ITERATIONS):
        slope = np.stack([(rest(numbers + step * axis) - now) / step[i] for i, axis in enumerate(np.eye(len(low)))], 2)
        square = np.einsum("mrp,mrq->mpq", slope, slope)
        ridge = damping[:, None] * np.einsum("mpp->mp", square) + 1e-12
        square[:, range(len(low)), range(len(low))] += ridge
        move = np.linalg.solve(square, np.einsum("mrp,mr->mp", slope, now)[..., None])[..., 0]
        trial = np.clip(numbers - move, low, high)
        after = rest(trial)
        better = np.square(after).sum(1) < error
        numbers, now = np.where(better[:, None], trial, numbers), np.where(better[:, None], after, now)
        error, damping = np.square(now).sum(1), np.where(better, damping / 3, damping * 4)
    return law.path(numbers, t), error

"""Mean and covariance of features that arrive batch by batch, in float64 and constant memory.

Moments of parts merge exactly (Chan, Golub and LeVeque's update), so each host may process a part of a set.
"""

from __future__ import annotations

import dataclasses

import numpy as np


class FeatureError(ValueError):
    """Features or clips that cannot be scored honestly; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Statistics of `count` features of dimension `d`.

    Attributes:
      count: number of features.
      mean: `(d,)` float64.
      scatter: `(d, d)` float64, the sum of outer products of centred features.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> Moments:
        """No features yet."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Moments of `(n, d)`.

        Raises:
          FeatureError: a feature is not finite.
        """
        features = check_features(features)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    def add(self, features: np.ndarray) -> Moments:
        """Moments with the features `(n, d)` of one more batch."""
        return self.merge(Moments.of(features))

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """`(d, d)`; `ddof` 1 is unbiased, 0 divides by the count.

        Raises:
          FeatureError: fewer than 2 features.
        """
        if self.count < 2:
            raise FeatureError(f"a covariance needs at least 2 clips, got {self.count}")
        return self.scatter / (self.count - ddof)


def check_features(features: np.ndarray) -> np.ndarray:
    """`(n, d)` as float64.

    Raises:
      FeatureError: the shape is not (n, d), the array is empty, or features are not finite (their clips are counted).
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise FeatureError(f"expected features of shape (n, d), one row per clip; got {features.shape}")
    broken = ~np.isfinite(features).all(axis=1)
    if broken.any():
        raise FeatureError(
            f"{broken.sum()} of {len(features)} clips have features that are NaN or infinite, the first is clip "
            f"{int(broken.argmax())}: inspect those clips; leaving them out would change the set"
        )
    return features

"""Features of clips, one row each, and the error for what cannot be scored."""

import numpy as np


class FeatureError(ValueError):
    """Features or clips that cannot be scored honestly; the message says why and what to do."""


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

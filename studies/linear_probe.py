"""Linear probes of frozen features in closed form: of labels, and of targets on the features' grid."""

from collections.abc import Iterator

import numpy as np

PENALTIES = 10.0 ** np.arange(-7, 4)  # times the mean square of the features


def class_accuracy(train: np.ndarray, label: np.ndarray, test: np.ndarray, test_label: np.ndarray) -> float:
    """Accuracy on test clips of a ridge regression to one-hot labels.

    The penalty minimises the leave-one-out error on the training clips, which ridge regression has in closed form, so
    nothing is tuned on the test clips.

    Args:
      train, test: `(n, ...)`, flattened; they are standardised by the training clips.
      label, test_label: `(n,)` integers.

    Raises:
      ValueError: fewer than two classes.
    """
    classes = np.unique(label)
    if len(classes) < 2:
        raise ValueError(f"a class probe needs clips of at least two classes, got {len(classes)}")
    x, held = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (train, test))
    mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    x, held = (x - mean) / deviation, (held - mean) / deviation
    y = (label[:, None] == classes).astype(np.float64)
    centre = y.mean(axis=0)
    # Dual form: there are more features than clips.
    values, vectors = np.linalg.eigh(x @ x.T)
    values = np.maximum(values, 0)
    turned = vectors.T @ (y - centre)
    best, dual = np.inf, None
    for penalty in PENALTIES * values.mean():
        inverse = 1 / (values + penalty)
        weights = vectors @ (inverse[:, None] * turned)
        # Residual of the fit that leaves clip i out: weight i over the i-th diagonal entry of the inverse.
        error = np.mean(np.square(weights / ((vectors**2) @ inverse)[:, None]))
        if error < best:
            best, dual = error, weights
    answer = classes[(held @ (x.T @ dual) + centre).argmax(axis=1)]
    return float(np.mean(answer == test_label))


def ridge(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ridge regressions of `y (n, c)` on `x (n, d)`, from the weakest penalty to one that leaves the mean of `y`.

    Yields:
      `(d, c)` and `(c,)` float32.
    """
    centre_x, centre_y = x.mean(axis=0), y.mean(axis=0)
    x, y = (x - centre_x).astype(np.float64), y - centre_y
    values, vectors = np.linalg.eigh(x.T @ x)
    turned = vectors.T @ (x.T @ y)
    for penalty in PENALTIES * max(values.mean(), 1e-12):
        kernel = vectors @ (turned / (np.maximum(values, 0) + penalty)[:, None])
        yield kernel.astype(np.float32), (centre_y - centre_x @ kernel).astype(np.float32)
    yield np.zeros((x.shape[1], y.shape[1]), np.float32), centre_y.astype(np.float32)

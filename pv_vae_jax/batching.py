"""Rows in batches of one size, so that a compiled program meets one shape."""

from collections.abc import Iterable, Iterator

import numpy as np


def padded_batches(rows: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `(batch, count)`: `size` rows, the last batch filled up with its last row; `count` are real."""
    batch: list[np.ndarray] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield np.stack(batch), size
            batch = []
    if batch:
        yield np.stack(batch + [batch[-1]] * (size - len(batch))), len(batch)

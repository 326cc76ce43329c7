"""Batches for training. The batch of global step `s` depends on (seed, `s`) alone.

Data position is therefore one integer: a run may stop anywhere and go on with other threads or another number of hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

from pv_vae_jax.data.clips import augment

ENDLESS = 1 << 40  # steps; grain wants a length


class Clips(Protocol):
    """What batches are made of: a video source, image frames or cached latents."""

    def __len__(self) -> int: ...

    def clip(self, index: int, rng: np.random.Generator) -> dict: ...


class Batches(Iterator[dict[str, np.ndarray]], Protocol):
    """A stream of batches; closing it ends the threads behind it."""

    def close(self) -> None: ...


def train_batches(
    source: Clips,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    flip: float = 0.0,
    reverse: float = 0.0,
    max_dropped: int = 0,
    dropped: Literal["shared", "per_example"] = "shared",
    threads: int = 2,
    host_index: int = 0,
    host_count: int = 1,
) -> Batches:
    """Endless batches from step `start_step` on, prepared ahead by grain's threads.

    Args:
      source: clips by index; every epoch walks all of them in a new order.
      batch_size: of the global batch.
      seed: with the step it decides everything drawn.
      start_step: global step of the first batch.
      flip, reverse: see `clips.augment`; they touch `video` only.
      max_dropped: `k` is uniform over `0 .. max_dropped` (section 3.1); the same for every host.
      dropped: one `k` for the batch (an int32 scalar) or one an example (`(b,)`).
      threads: that read and decode.
      host_index, host_count: this host yields its contiguous share of every global batch.

    Yields:
      Whatever `source.clip` holds, stacked along a leading axis, and `dropped`.

    Raises:
      ValueError: the hosts cannot share the batch equally.
    """
    import grain

    if batch_size % host_count:
        raise ValueError(f"{host_count} hosts cannot share a batch of {batch_size} equally")
    local = batch_size // host_count
    order = grain.MapDataset.range(len(source)).shuffle(seed=seed % 2**32).repeat()
    rows = range(host_index * local, (host_index + 1) * local)

    def item(position: int) -> dict:
        rng = np.random.default_rng([seed, 1, position])
        example = dict(source.clip(int(order[position]), rng))  # pyright: ignore[reportArgumentType]
        if "video" in example:
            example["video"] = augment(example["video"], rng, flip=flip, reverse=reverse)
        return example

    def batch(step: int) -> dict[str, np.ndarray]:
        items = [item(step * batch_size + row) for row in rows]
        stacked = {name: np.stack([i[name] for i in items]) for name in items[0]}
        rng = np.random.default_rng([seed, 2, step])
        k = rng.integers(0, max_dropped + 1, size=batch_size, dtype=np.int32)  # paper: k ~ U{0, ..., floor((G - 1) r)}
        return stacked | {"dropped": k[rows.start : rows.stop] if dropped == "per_example" else k[0]}

    steps = grain.MapDataset.range(start_step, ENDLESS).map(batch)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))

"""Training batches of one source. The batch of global step `s` depends on (seed, `s`) alone.

The position in the data is therefore one integer: a run may stop anywhere and continue with another number of threads
or hosts. `data.mixture` combines several sources and adds `k`, the number of dropped groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from pv_vae_jax.data.clips import augment

ENDLESS = 1 << 40  # steps; grain wants a length


class Clips(Protocol):
    """A source of clips: videos, single frames or cached latents."""

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
    threads: int = 2,
    host_index: int = 0,
    host_count: int = 1,
) -> Batches:
    """Endless batches from step `start_step` on, prepared ahead by grain's threads.

    Args:
      source: clips by index; every epoch walks all of them in a new order.
      batch_size: examples of the global batch.
      seed: seed of everything that is drawn, together with the step.
      start_step: global step of the first batch.
      flip, reverse: probabilities of `clips.augment`, which changes `video` only.
      threads: number of threads that read and decode.
      host_index, host_count: this host yields its contiguous share of every global batch.

    Yields:
      The entries of `source.clip`, stacked along a leading axis.

    Raises:
      ValueError: `batch_size` is not a multiple of `host_count`.
    """
    import grain

    if batch_size % host_count:
        raise ValueError(f"batch_size must be a multiple of the {host_count} hosts that share it, got {batch_size}")
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
        return {name: np.stack([i[name] for i in items]) for name in items[0]}

    steps = grain.MapDataset.range(start_step, ENDLESS).map(batch)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))

"""Training batches of a VAE stage: one stream of clips of several sizes and of images. Each batch is of one kind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from pv_vae_jax.data.pipeline import Clips, train_batches
from pv_vae_jax.dropping import Dropping


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """One kind of batch.

    Attributes:
      source: source of its clips.
      batch_size: examples of its global batches; `balanced_batch_sizes` gives all kinds the same cost.
      weight: number of its batches in every `sum of weights` steps.
      groups: latent frames of its clips, which bound `k`; images have 1 and drop nothing.
    """

    source: Clips
    batch_size: int
    weight: int = 1
    groups: int = 1


def balanced_batch_sizes(shapes: Sequence[tuple[int, int, int]], largest: int, *, multiple: int = 1) -> list[int]:
    """Batch sizes with which batches of different shapes cost about the same: equal numbers of pixels.

    Args:
      shapes: `(frames, height, width)` of each kind.
      largest: batch size of the kind with the most pixels a clip.
      multiple: every batch size is a multiple of it, for the devices that share the batch.

    Raises:
      ValueError: `largest` is not a multiple of `multiple`.
    """
    if largest < 1 or largest % multiple:
        raise ValueError(f"the batch size must be a multiple of {multiple}, got {largest}")
    pixels = [frames * height * width for frames, height, width in shapes]
    budget = largest * max(pixels)
    return [budget // (each * multiple) * multiple for each in pixels]  # never more than the budget


def mixed_batches(
    parts: Sequence[MixtureComponent],
    dropping: Dropping,
    *,
    seed: int,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    **settings: Any,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Endless batches of all parts, each as often as its weight says, in an order drawn anew for every round.

    The batch of global step `s` depends on (seed, `s`) alone, and each part walks its own clips epoch by epoch as
    `train_batches` does.

    Args:
      parts: the kinds of batches.
      dropping: how `k` is drawn; `Dropping()` drops nothing.
      seed, start_step, host_index, host_count, settings: as for `train_batches`.

    Yields:
      Batches of `train_batches` with `dropped`, int32: `k` of the batch, `()`, or of this host's examples, `(b,)`.

    Raises:
      ValueError: a weight is below 1, or a batch size is not a multiple of `host_count`.
    """
    if not parts or min(part.weight for part in parts) < 1:
        raise ValueError("a mixture must have at least one part, and every part a weight of at least 1")
    seeds = [seed + 7_919 * i for i in range(len(parts))]  # parts of one source do not walk it alike
    deck = np.repeat(np.arange(len(parts)), [part.weight for part in parts])
    rounds, place = divmod(start_step, len(deck))

    def order(number: int) -> np.ndarray:
        return np.random.default_rng([seed, 3, number]).permutation(deck)

    seen = np.bincount(order(rounds)[:place], minlength=len(parts))
    done = [rounds * part.weight + int(count) for part, count in zip(parts, seen, strict=True)]  # batches of each part
    hosts = dict(host_index=host_index, host_count=host_count)
    streams = [
        train_batches(part.source, batch_size=part.batch_size, seed=part_seed, start_step=first, **hosts, **settings)
        for part, part_seed, first in zip(parts, seeds, done, strict=True)
    ]

    def dropped(i: int, step: int) -> np.ndarray:
        # A schedule follows the steps of the stage, all parts together; a constant ratio each part's own stream.
        at = (seeds[i], done[i]) if dropping.schedule == "constant" else (seed, step)
        k = dropping.draw(parts[i].groups, parts[i].batch_size, *at)
        return np.split(k, host_count)[host_index] if k.ndim else k

    def generate() -> Generator[dict[str, np.ndarray], None, None]:
        try:
            for step in itertools.count(start_step):
                i = int(order(step // len(deck))[step % len(deck)])
                yield next(streams[i]) | {"dropped": dropped(i, step)}
                done[i] += 1
        finally:
            for stream in streams:
                stream.close()

    return generate()

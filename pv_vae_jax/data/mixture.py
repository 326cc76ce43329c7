"""Batches of several kinds in one stream: resolutions, lengths, images between clips. Each batch is of one kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from pv_vae_jax.data.pipeline import Clips, train_batches


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """One kind of batch.

    Attributes:
      source: of its clips.
      batch_size: of its global batches; `balanced_batch_sizes` makes all kinds cost the same.
      share: its batches in every `sum of shares` steps.
      max_dropped: as for `train_batches`; 0 for images.
    """

    source: Clips
    batch_size: int
    share: int = 1
    max_dropped: int = 0


def balanced_batch_sizes(shapes: Sequence[tuple[int, int, int]], largest: int, *, multiple: int = 1) -> list[int]:
    """Batch sizes with which batches of different shapes cost about the same: equal numbers of pixels.

    Args:
      shapes: `(frames, height, width)` of each kind.
      largest: batch size of the kind with the most pixels a clip.
      multiple: of which every batch size is one: the devices that share the batch.

    Raises:
      ValueError: `largest` is no multiple.
    """
    if largest < 1 or largest % multiple:
        raise ValueError(f"a batch of {largest} is no multiple of {multiple}")
    pixels = [frames * height * width for frames, height, width in shapes]
    budget = largest * max(pixels)
    return [budget // (each * multiple) * multiple for each in pixels]  # never more than the budget


def mixed_batches(
    parts: Sequence[MixtureComponent], *, seed: int, start_step: int = 0, **settings: Any
) -> Generator[tuple[int, dict[str, np.ndarray]], None, None]:
    """Endless batches of all parts, each part by its share, in an order drawn anew for every round.

    The batch of global step `s` depends on (seed, `s`) alone, and each part walks its own clips epoch by epoch as
    `train_batches` does.

    Args:
      parts: the kinds.
      seed, start_step, settings: as for `train_batches`.

    Yields:
      `(part, batch)`: which of the parts it is.

    Raises:
      ValueError: a share is not positive, or the hosts cannot share a batch equally.
    """
    if not parts or min(part.share for part in parts) < 1:
        raise ValueError("every part of a mixture has a share of at least 1")
    deck = np.repeat(np.arange(len(parts)), [part.share for part in parts])
    rounds, within = divmod(start_step, len(deck))

    def order(number: int) -> np.ndarray:
        return np.random.default_rng([seed, 3, number]).permutation(deck)

    seen = order(rounds)[:within]
    streams = [
        train_batches(
            part.source,
            batch_size=part.batch_size,
            seed=seed + 7_919 * i,  # parts of one source do not walk it alike
            start_step=rounds * part.share + int((seen == i).sum()),
            max_dropped=part.max_dropped,
            **settings,
        )
        for i, part in enumerate(parts)
    ]

    def generate() -> Generator[tuple[int, dict[str, np.ndarray]], None, None]:
        number, first = rounds, within
        try:
            while True:
                for i in order(number)[first:].tolist():
                    yield i, next(streams[i])
                number, first = number + 1, 0
        finally:
            for stream in streams:
                stream.close()

    return generate()

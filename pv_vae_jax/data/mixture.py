"""Training batches of a VAE stage: clips of several sizes and images, each batch of one kind, with `k`."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from pv_vae_jax.data.pipeline import SEED_STRIDE, Batches, Elements, batched, examples, mixed, stream
from pv_vae_jax.data.transforms import DropFutureFrames


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """One kind of batch.

    Attributes:
      clips: elements by index.
      transforms: what makes examples of one shape of them.
      batch_size: examples of its global batches; `balanced_batch_sizes` gives all kinds the same cost.
      weight: number of its batches in every `sum of weights` steps.
    """

    clips: Elements
    transforms: Iterable[Any]
    batch_size: int
    weight: int = 1


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
    dropping: DropFutureFrames,
    *,
    seed: int,
    start_step: int = 0,
    threads: int = 2,
    workers: int = 0,
    host_index: int | Sequence[int] = 0,
    host_count: int = 1,
) -> Batches:
    """Endless batches of all parts, each as often as its weight says, evenly spread.

    The batch of global step `s` depends on (seed, `s`) alone, and each part walks its own clips epoch by epoch.

    Args:
      parts: the kinds of batches.
      dropping: how `k` is drawn; seed and hosts are set here.
      seed, start_step, threads, workers, host_index, host_count: as for `pipeline.train_batches`.

    Yields:
      Batches with `dropped`, int32: `k` of the batch, `()`, or of this host's examples, `(b,)`.

    Raises:
      ValueError: a weight is below 1, or a batch size is not a multiple of `host_count`.
    """
    hosts: Any = dict(host_index=host_index, host_count=host_count)
    streams = [
        batched(examples(part.clips, part.transforms, seed=seed + SEED_STRIDE * i), part.batch_size, **hosts)
        for i, part in enumerate(parts)
    ]
    dropping = dataclasses.replace(dropping, seed=seed, **hosts)
    batches = mixed(streams, [part.weight for part in parts]).map_with_index(dropping)
    return stream(batches, start_step=start_step, threads=threads, workers=workers)

"""From a source of clips to training batches, with grain. The batch of step `s` depends on (seed, `s`) alone.

    examples   shuffled, repeated and transformed elements of one source
    batched    this host's rows of its global batches
    mixed      batches of several sources in turn
    stream     an iterator over batches, prepared ahead

The position in the data is one integer, the step. A run may stop anywhere and go on with another number of threads,
worker processes or hosts, because it slices the data set (`batches[step:]`) instead of restoring an iterator.
"""

import collections
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from pv_vae_jax.data.clips import LazyClip
from pv_vae_jax.data.transforms import TransformError, parts_of

SEED_STRIDE = 7_919  # between parts of a mixture, so that two sizes of one source do not walk it alike
LONGEST = 1 << 40  # elements of a source; more than that is a data set that repeats already


class Elements(Protocol):
    """Clips by index: a list, a source, a `grain.MapDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Batches(Iterator[dict[str, np.ndarray]], Protocol):
    """A stream of batches; closing it ends the threads behind it."""

    def close(self) -> None: ...


def examples(clips: Elements, transforms: Iterable[Any] = (), *, seed: int, shuffle: bool = True) -> grain.MapDataset:
    """Endless examples: every epoch walks all clips, in a new order.

    Every transform has a stream of draws of its own, by its name: adding one changes no other's.

    Args:
      clips: elements by index, `{"video": (t, H, W, 3) uint8 or LazyClip, "label": int}` or any others.
      transforms: grain transforms, applied in this order.
      seed: seed of the order and of all draws.
      shuffle: draw a new order for each epoch.

    Raises:
      TypeError: `clips` has no length, or no elements by index.
      ValueError: `clips` is empty, or repeats already.
    """
    if not isinstance(clips, grain.MapDataset):
        if not (hasattr(clips, "__len__") and hasattr(clips, "__getitem__")):
            raise TypeError(
                f"expected a grain.MapDataset or a sequence of clips, got {type(clips).__name__}: training needs a "
                "source with __len__ and __getitem__, such as a list"
            )
        clips = grain.MapDataset.source(clips)  # pyright: ignore[reportAssignmentType, reportArgumentType]
    if not 0 < len(clips) < LONGEST:
        found = "none" if not len(clips) else "a data set that repeats"
        raise ValueError(f"expected clips that end, got {found}: shuffling and repeating are done here")
    dataset: Any = clips
    dataset = dataset.shuffle(seed=_stream_seed(seed, "shuffle")) if shuffle else dataset
    dataset, count = dataset.repeat(), collections.Counter()
    for transform in transforms:
        name = type(transform).__name__
        count[name] += 1
        if isinstance(transform, grain.transforms.RandomMap):
            dataset = dataset.random_map(transform, seed=_stream_seed(seed, f"{name} {count[name]}"))
        else:
            dataset = dataset.map(transform)
    return dataset


def _stream_seed(seed: int, name: str) -> int:
    """A 32-bit seed for the draws that `name` stands for."""
    return zlib.crc32(f"{seed} {name}".encode())


def batched(
    dataset: grain.MapDataset, batch_size: int, *, host_index: int | Sequence[int] = 0, host_count: int = 1
) -> grain.MapDataset:
    """Batches whose entries are stacked along a leading axis.

    Args:
      dataset: endless examples.
      batch_size: examples of a global batch.
      host_index, host_count: every global batch is cut into `host_count` equal parts, of which this host reads part
        `host_index`, or several, in the order given.

    Raises:
      ValueError: `batch_size` is not a multiple of `host_count`.
    """
    rows = parts_of(np.arange(batch_size), host_index, host_count)
    return _Rows(dataset, batch_size, rows).batch(len(rows), drop_remainder=True, batch_fn=stack)


class _Rows(grain.MapDataset):
    """The elements at `rows` of every `batch_size` elements; no other is read."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows.tolist()

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, len(self._rows))
        return self._parent[step * self._batch_size + self._rows[row]]


def stack(elements: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Elements as one batch; labels and other integers become int32.

    Raises:
      TransformError: a clip is still to be read, or elements have different entries or shapes.
    """
    first = elements[0]
    for element in elements:
        if element.keys() != first.keys():
            raise TransformError(f"batch: expected the entries {', '.join(first)}, got {', '.join(element)}")
        for name, value in element.items():
            if isinstance(value, LazyClip):
                raise TransformError(f"batch: expected arrays, got a LazyClip as {name!r}: put RandomWindow before it")
            if np.shape(value) != np.shape(first[name]):
                raise TransformError(
                    f"batch: expected {name!r} of one shape, got {np.shape(first[name])} and {np.shape(value)}: put "
                    "RandomWindow and ResizeCrop before it"
                )
    batch = {name: np.stack([np.asarray(element[name]) for element in elements]) for name in first}
    return {name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in batch.items()}


def mixed(parts: Sequence[grain.MapDataset], weights: Sequence[int]) -> grain.MapDataset:
    """Batches of all parts in turn, part `i` `weights[i]` times in every `sum(weights)` steps, evenly spread.

    Raises:
      ValueError: there is no part, or a weight is below 1.
    """
    if not parts or min(weights) < 1:
        raise ValueError("a mixture must have at least one part, and every part a weight of at least 1")
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(list(parts), list(weights))


def stream(batches: grain.MapDataset, *, start_step: int = 0, threads: int = 2, workers: int = 0) -> Batches:
    """An iterator over `batches` from step `start_step` on.

    Args:
      batches: endless batches by step.
      start_step: step of the first batch.
      threads: number of threads that read and decode, in each process.
      workers: number of worker processes; 0 reads in this one. Decoders of video release Python's lock, so threads are
        enough for files; workers pay off for transforms that are written in Python. They are started anew, which takes
        seconds, and a program needs `if __name__ == "__main__"`.
    """
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = batches[start_step:].to_iter_dataset(ahead)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads one of its flags, also in a notebook
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)


def train_batches(
    clips: Elements,
    transforms: Iterable[Any] = (),
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    threads: int = 2,
    workers: int = 0,
    host_index: int | Sequence[int] = 0,
    host_count: int = 1,
) -> Batches:
    """Endless batches of one source: `examples`, `batched` and `stream` in one call, whose arguments and errors it has.

    Yields:
      The entries of the transformed elements, stacked along a leading axis.
    """
    dataset = examples(clips, transforms, seed=seed)
    dataset = batched(dataset, batch_size, host_index=host_index, host_count=host_count)
    return stream(dataset, start_step=start_step, threads=threads, workers=workers)

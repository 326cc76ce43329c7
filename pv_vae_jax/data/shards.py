"""ArrayRecord shards: written atomically, read through one index over all of them."""

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.storage import atomic, remedy

OPEN = 128  # maximum number of files held open


class BrokenRecordError(ValueError):
    """A record that cannot be read, while its neighbours may be intact. The message names the file."""


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Write `records` to `path` atomically and return their number.

    Several processes may write the same file at once: each uses a temporary name of its own.

    Raises:
      OSError: the file cannot be written, for example because the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    count = 0
    with atomic(path) as temporary:
        with _system_errors(path):
            writer = ArrayRecordWriter(str(temporary), "group_size:1")  # one record a chunk, for random access
        try:
            for record in records:
                with _system_errors(path):
                    writer.write(record)
                count += 1
        finally:
            with _system_errors(path):
                writer.close()
    return count


@contextlib.contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Turn ArrayRecord's RuntimeError for failures of the system into an OSError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("; writing")[0]
        mend = remedy(error) or "find what the system objects to"
        raise OSError(f"cannot write {path} ({reason}): {mend}, and run the same command again") from error


def remove_partial_shards(folder: Path) -> None:
    """Remove what killed writers left. A writer still running would fail, so the caller makes sure that none is."""
    # `.at` names the file that `prepare` was decoding; the last two patterns are those of earlier versions.
    for pattern in (".*.partial.*", "[0-9]*.at", ".*.partial", "[0-9]*.tmp"):
        for temporary in folder.glob(pattern):
            temporary.unlink(missing_ok=True)


class Shards:
    """Records of several files as one sequence. Reading is safe from many threads.

    Every chunk of an ArrayRecord file carries a hash: a record with a flipped bit raises instead of being returned.

    Args:
      paths: ArrayRecord files, in order.
      counts: number of records in each, from the manifest, so that a damaged file does not shift the others' indices.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        self.paths, self._counts = list(paths), list(counts)
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._reader = functools.lru_cache(OPEN)(_open_reader)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        """Record `index`.

        Raises:
          IndexError: `index` is out of range.
          BrokenRecordError: the file is missing, truncated or damaged at this record.
          ExhaustedError: the machine lacks threads, memory or open files.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[file - 1]) if file else 0)
        try:
            reader, lock = self._reader(self.paths[file])
            with lock:
                return reader.read([place])[0]
        except (RuntimeError, OSError, IndexError, ValueError) as error:
            raise_if_exhausted(error, self.paths[file])
            reason = str(error).split("; reading")[0][:200]
            raise BrokenRecordError(f"record {place} of {self.paths[file]}: {reason}") from error

    def incomplete(self) -> dict[Path, str]:
        """Files that are missing, or do not hold as many records as they should -> what is wrong with each."""
        found = [self._reader(path)[0].num_records() if path.is_file() else 0 for path in self.paths]
        whole = zip(self.paths, found, self._counts, strict=True)
        return {path: f"{n} of {count} records can be read" for path, n, count in whole if n != count}

    def __reduce__(self) -> tuple:
        return Shards, (self.paths, self._counts)  # a worker process opens readers of its own


def _open_reader(path: Path) -> tuple[Any, threading.Lock]:
    """A reader, and the lock under which one thread at a time uses it."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise FileNotFoundError("the file is missing")
    return ArrayRecordReader(str(path), "readahead_buffer_size:0"), threading.Lock()

"""ArrayRecord files, and JSON beside them: written whole or not at all, read by one index over all of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.storage import partial

OPEN = 128  # files held open at once


class BrokenRecordError(ValueError):
    """A record that cannot be read; its neighbours may well be whole. The message names the file."""


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Write `records` to `path`, which appears when the last one is in it; return their number.

    Several writers may make the same file at once: each writes under a name of its own.

    Raises:
      OSError: it cannot be written, as the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = partial(path)
    try:
        with _system_errors(path):
            writer, count = ArrayRecordWriter(str(temporary), "group_size:1"), 0  # a record a chunk, for random access
        try:
            for record in records:
                with _system_errors(path):
                    writer.write(record)
                count += 1
        finally:
            with _system_errors(path):
                writer.close()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


@contextlib.contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Context that raises as OSError what ArrayRecord tells of the system as RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("; writing")[0]
        raise OSError(f"cannot write {path} ({reason}): make room, and run the same command again") from error


def remove_partial_shards(folder: Path) -> None:
    """Remove what killed writers left; one still at work fails, so the caller knows that there is none."""
    # The second says what `prepare.run_task` was at, the third is of versions before.
    for pattern in (".*.partial", "[0-9]*.at", "[0-9]*.tmp"):
        for temporary in folder.glob(pattern):
            temporary.unlink(missing_ok=True)


class Shards:
    """Records of several files as one sequence. Reading is safe from many threads.

    Every chunk of an ArrayRecord file carries its hash, so a record with a flipped bit raises and is never returned.

    Args:
      paths: of the files, in order.
      counts: records in each, as their manifest says: a damaged file does not move the records of others.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        self.paths, self._ends = list(paths), np.cumsum(counts, dtype=np.int64)
        self._readers: OrderedDict[int, tuple] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        """Record `index`.

        Raises:
          IndexError: there is none.
          BrokenRecordError: the file is gone, cut or damaged there.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[file - 1]) if file else 0)
        try:
            reader, lock = self._reader(file)
            with lock:
                return reader.read([place])[0]
        except (RuntimeError, OSError, IndexError, ValueError) as error:
            reason = str(error).split("; reading")[0][:200]
            raise BrokenRecordError(f"record {place} of {self.paths[file]}: {reason}") from error

    def _reader(self, file: int) -> tuple:
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if file not in self._readers:
                if not self.paths[file].is_file():
                    raise FileNotFoundError("the file is gone")
                reader = ArrayRecordReader(str(self.paths[file]), "readahead_buffer_size:0")
                self._readers[file] = (reader, threading.Lock())
                while len(self._readers) > OPEN:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(file)
            return self._readers[file]

    def __getstate__(self) -> dict:
        """Readers stay in their process: a worker opens its own."""
        return {"paths": self.paths, "_ends": self._ends}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _readers=OrderedDict(), _lock=threading.Lock())


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

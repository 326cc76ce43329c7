"""What was left out of a data set, named once, and how much of it may be."""

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import weakref
from typing import Any


class SkipLog:
    """Logs to standard error what was left out, each name once, for all sources that share the log.

    A run opens its data several times, for every stage and size, and all of them meet the same broken file; so do its
    worker processes, which share the log through empty files in a temporary folder.

    Args:
      max_damaged_files: largest share of a folder's files, and of the examples of a TensorFlow dataset, that may be
        damaged; others stand in for them.
      max_damaged_records: the same for the clips in shards of `pv-vae prepare`, which made them whole.
    """

    def __init__(self, max_damaged_files: float = 0.05, max_damaged_records: float = 0.0):
        self.max_damaged_files, self.max_damaged_records = max_damaged_files, max_damaged_records
        self._names: set[str] = set()
        self._lines: set[str] = set()
        self._lock = threading.Lock()
        self._folder = ""

    def skip(self, name: object, reason: object) -> None:
        """Log that `name` was left out, with the first reason."""
        with self._lock:
            if self._first(self._names, str(name)):
                number = len(os.listdir(self._folder)) if self._folder else len(self._names)
                print(f"skipped {name}: {reason} ({number} so far)", file=sys.stderr)

    def say(self, line: str) -> None:
        """Log another line, once."""
        with self._lock:
            if line not in self._lines:
                self._lines.add(line)
                print(line, file=sys.stderr)

    def _first(self, seen: set[str], name: str) -> bool:
        """Whether no process has logged `name` before."""
        if name in seen:
            return False
        seen.add(name)
        return not self._folder or self._claim(name)

    def _claim(self, name: str) -> bool:
        path = os.path.join(self._folder, hashlib.sha256(os.fsencode(name)).hexdigest())
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            if not self._folder:
                self._folder = tempfile.mkdtemp(prefix="pv_vae_skipped_")
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
                for name in self._names:
                    self._claim(name)
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()
        self.__dict__.update(state)

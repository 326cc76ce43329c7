"""What could not be read, told once."""

from __future__ import annotations

import sys
import threading


class SkipLog:
    """Names on standard error what was left out, each thing once, however many sources share the log.

    A run opens its data several times, for every stage and size; all of these meet the same broken file.
    """

    def __init__(self):
        self._names: set[str] = set()
        self._lines: set[str] = set()
        self._lock = threading.Lock()

    def skip(self, name: object, why: object) -> None:
        """Name what was left out, and the first reason there was."""
        with self._lock:
            if str(name) not in self._names:
                self._names.add(str(name))
                print(f"skipped {name}: {why} ({len(self._names)} so far)", file=sys.stderr)

    def say(self, line: str) -> None:
        """Another line, unless it was said before."""
        with self._lock:
            if line not in self._lines:
                self._lines.add(line)
                print(line, file=sys.stderr)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

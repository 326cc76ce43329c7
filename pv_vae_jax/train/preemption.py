"""Stopping in order: SIGTERM or Ctrl-C ends a run between two steps, in all of its processes."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from pv_vae_jax.sharding.processes import anywhere

T = TypeVar("T")


class Preempted(RuntimeError):
    """SIGTERM or Ctrl-C came: the state is saved, and the same command goes on from there.

    Attributes:
      status: that a process ended by this signal exits with.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class stop_signal:
    """Context in which SIGTERM or Ctrl-C only leaves a mark, which `came` reports after each step.

    A second Ctrl-C stops at once. With several processes, JAX catches SIGTERM wherever it arrives, and `came` answers
    yes on all of them after the same step; Ctrl-C is left alone.

    Attributes:
      number: of the signal that came.
    """

    NAMES: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

    _calls = itertools.count()  # over all stages of this process: the steps that processes agree on only ever grow

    def __enter__(self) -> stop_signal:
        self._mark, self._old, self.number = False, {}, signal.SIGTERM
        if jax.process_count() == 1:
            try:
                self._old = {number: signal.signal(number, self._set) for number in self.NAMES}
            except ValueError:  # not the main thread (a notebook's worker): keep the default
                pass
        return self

    def _set(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self._mark:
                raise KeyboardInterrupt
            print("\nsaving after this step, then stopping; Ctrl-C again stops at once", file=sys.stderr)
        self._mark, self.number = True, number

    def came(self) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() == 1:
            return self._mark
        return multihost_utils.reached_preemption_sync_point(next(self._calls))

    def late(self) -> bool:
        """Whether the signal came after the last step's `came`; with several processes the next stage hears of it."""
        return self._mark

    def between(self, items: Iterable[T], name: str) -> Iterator[T]:
        """`items` up to the signal: before each, the processes wait for each other, as steps of training do.

        All of them must take items until there are none: one that has fewer then waits for the others, so that all
        ask `came` equally often.

        Raises:
          Interrupted: it came, while `name` was made.
        """
        ended = object()
        rest = iter(items)
        while anywhere((item := next(rest, ended)) is not ended):
            if self.came():
                break
            if item is not ended:
                yield item  # pyright: ignore[reportReturnType]
        else:
            if not self.late():
                return
        raise Preempted(f"{name}: {self.NAMES[self.number]}; the same command goes on from there", 128 + self.number)

    def __exit__(self, *_: Any) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

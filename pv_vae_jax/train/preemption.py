"""Preemption: SIGTERM or Ctrl-C ends a run between two steps, in all of its processes."""

import contextlib
import itertools
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

import jax
from jax.experimental import multihost_utils

from pv_vae_jax.sharding.processes import any_process

T = TypeVar("T")


SIGNALS: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Preempted(RuntimeError):
    """The run was stopped by SIGTERM or Ctrl-C: its state is saved, and the same command continues from there.

    Args:
      number: number of the signal.
      work: name of what was stopped.
      when: when it was stopped, and what was saved.

    Attributes:
      status: exit status of a process that this signal ended.
    """

    def __init__(self, number: int, work: str, when: str = ""):
        super().__init__(f"{work}: {SIGNALS[number]}{when}; run the same command to continue")
        self.status = 128 + number


class PreemptionHandler:
    """Context manager that turns SIGTERM and Ctrl-C into a flag, which `should_stop` reads after each step.

    A second Ctrl-C stops at once. With several processes, JAX catches SIGTERM in whichever process it arrives, and
    `should_stop` is true in all of them after the same step; Ctrl-C keeps its default action.

    Attributes:
      number: number of the signal that arrived.
    """

    _calls = itertools.count()  # shared by all stages of this process: JAX needs growing step numbers

    def __enter__(self) -> Self:
        self._flag, self._old, self.number = False, {}, signal.SIGTERM
        if jax.process_count() == 1:
            with contextlib.suppress(ValueError):  # not the main thread (a notebook's): signals keep their action
                self._old = {number: signal.signal(number, self._set) for number in SIGNALS}
        return self

    def _set(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self._flag:
                raise KeyboardInterrupt
            print("\nsaving after this step, then stopping; Ctrl-C again stops at once", file=sys.stderr)
        self._flag, self.number = True, number

    def should_stop(self) -> bool:
        """Whether to stop after this step; with several processes, all must call it equally often."""
        if jax.process_count() == 1:
            return self._flag
        return multihost_utils.reached_preemption_sync_point(next(self._calls))

    def arrived_late(self) -> bool:
        """Whether the signal arrived after the last `should_stop`; several processes learn of it in the next stage."""
        return self._flag

    def until_preempted(self, items: Iterable[T], name: str) -> Iterator[T]:
        """Yield `items` until the signal arrives. Before each, the processes wait for each other, as in training.

        Every process must exhaust the iterator: one with fewer items then waits for the others, so that all call
        `should_stop` equally often.

        Raises:
          Preempted: the signal arrived; the message begins with `name`.
        """
        ended = object()
        rest = iter(items)
        while any_process((item := next(rest, ended)) is not ended):
            if self.should_stop():
                break
            if item is not ended:
                yield item  # pyright: ignore[reportReturnType]
        else:
            if not self.arrived_late():
                return
        raise Preempted(self.number, name)

    def __exit__(self, *_: Any) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

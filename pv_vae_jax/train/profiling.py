"""Traces of some training steps, and a profile of the device's memory where it ran out, both by `jax.profiler`."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from pv_vae_jax.typing import ConfigError


@dataclasses.dataclass(frozen=True)
class ProfileWindow:
    """The steps to trace: `count` from the `first` on, as this process takes them in a stage; step 1 compiles."""

    first: int
    count: int

    @classmethod
    def parse(cls, text: str) -> ProfileWindow | None:
        """The window that `START:COUNT` means; None for an empty text.

        Raises:
          ConfigError: it is written otherwise, starts before step 2, or has no step.
        """
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if text and not (match and int(match[1]) > 1 and int(match[2]) > 0):
            raise ConfigError(
                "--profile must be START:COUNT such as 10:3, from step 2 on since step 1 compiles, "
                f"got {text!r}: change it"
            )
        return cls(int(match[1]), int(match[2])) if match else None


class StepProfiler:
    """Names every step for profilers, and traces those of `window`, if there is one, into `folder`.

    Each process writes a file of its own. Python's own calls are left out, so that files stay small.
    """

    def __init__(self, stage: str, folder: Path, window: ProfileWindow | None):
        shared = jax.process_count() > 1  # processes of one machine would take the same name
        self._folder = folder / f"process_{jax.process_index()}" if shared else folder
        self._stage, self._window, self._taken, self._tracing = stage, window, 0, False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A step, from fetching its batch to dispatching it."""
        self._taken += 1
        if self._window and self._taken == self._window.first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(self._stage, step_num=number):
            yield

    def after(self, logs: Any) -> None:
        """End the trace with its last step, once the devices have done it; `logs` is what the step gave."""
        if self._tracing and self._window and self._taken == self._window.first + self._window.count - 1:
            jax.block_until_ready(logs)
            self.close()

    def close(self) -> None:
        """End a trace that is still open; to be called however the stage ends."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            print(f"{self._stage}: profile written; pip install xprof, xprof --logdir {self._folder}", file=sys.stderr)
        elif self._window and self._taken < self._window.first:
            print(f"{self._stage}: ended before step {self._window.first}, nothing was profiled", file=sys.stderr)


@contextlib.contextmanager
def memory_profile(folder: Path) -> Iterator[None]:
    """Write what fills the device's memory to `folder/memory.prof` if the block runs out of it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            path = folder / "memory.prof"
            with contextlib.suppress(Exception):  # the error itself matters more
                jax.profiler.save_device_memory_profile(str(path))
                print(f"what filled the device's memory: pprof --web {path}", file=sys.stderr)
        raise

"""Traces of some training steps, and a profile of the device's memory where it ran out, both by `jax.profiler`."""

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from pv_vae_jax.storage import is_remote
from pv_vae_jax.typing import ConfigError

Window = tuple[int, int]  # the first step to trace and their number, as this process takes them in a stage


def parse_window(text: str) -> Window | None:
    """The steps that `START:COUNT` names; None for an empty text.

    Raises:
      ConfigError: it is written otherwise, starts before step 2, or has no step.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if text and not (match and int(match[1]) > 1 and int(match[2]) > 0):
        expected = "START:COUNT such as 10:3, from step 2 on since step 1 compiles"
        raise ConfigError(f"--profile must be {expected}, got {text!r}: change it")
    return (int(match[1]), int(match[2])) if match else None


class StepProfiler:
    """Names every step for profilers, and traces those of `window`, if there is one, into `folder`.

    Each process writes a file of its own. Python's own calls are left out, so that files stay small. `kept` is where
    `folder` will be in the end, which in a bucket is elsewhere.
    """

    def __init__(self, stage: str, folder: Path, window: Window | None, kept: Path):
        # Processes of one machine would take the same name.
        own = f"process_{jax.process_index()}" if jax.process_count() > 1 else ""
        self._folder, self._kept = folder / own, kept / own
        self._stage, self._window, self._taken, self._tracing = stage, window, 0, False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A step, from fetching its batch to dispatching it."""
        self._taken += 1
        if self._window and self._taken == self._window[0]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(self._stage, step_num=number):
            yield

    def after(self, logs: Any) -> None:
        """End the trace with its last step, once the devices have done it; `logs` is what the step gave."""
        if self._tracing and self._window and self._taken == sum(self._window) - 1:
            jax.block_until_ready(logs)
            self.close()

    def close(self) -> None:
        """End a trace that is still open; to be called however the stage ends."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            fetch, place = "", self._kept
            if is_remote(place):
                fetch, place = f"gcloud storage rsync -r {place} profile, ", Path("profile")
            print(f"{self._stage}: profile written; pip install xprof, {fetch}xprof --logdir {place}", file=sys.stderr)
        elif self._window and self._taken < self._window[0]:
            print(f"{self._stage}: ended before step {self._window[0]}, nothing was profiled", file=sys.stderr)


@contextlib.contextmanager
def memory_profile(folder: Path) -> Iterator[None]:
    """Write what fills the device's memory to `folder/memory.prof` if the block runs out of it."""
    folder = Path(tempfile.gettempdir()) if is_remote(folder) else folder
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            with contextlib.suppress(Exception):  # the error itself matters more
                jax.profiler.save_device_memory_profile(str(folder / "memory.prof"))
                print(f"what filled the device's memory: pprof --web {folder / 'memory.prof'}", file=sys.stderr)
        raise

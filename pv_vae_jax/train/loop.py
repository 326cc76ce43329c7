"""The one loop that runs every stage: fetch, step, log, guard, save, stop."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from pv_vae_jax.sharding.rules import put_batch, state_sharding
from pv_vae_jax.train.checkpoint import Checkpoints, abstract
from pv_vae_jax.train.guard import check_finite, check_finite_params
from pv_vae_jax.train.metrics import MetricWriter
from pv_vae_jax.train.state import TrainState

Batch = dict[str, np.ndarray]


class Interrupted(RuntimeError):
    """SIGTERM came: the state is saved, and the same command goes on from there."""


def run_stage(
    *,
    name: str,
    folder: Path,
    mesh: Mesh,
    create: Callable[[], TrainState],
    program: Callable[[int, Batch], Callable[[TrainState, Any], tuple[TrainState, dict]]],
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    log_every: int,
    checkpoint_every: int,
    checkpoints_kept: int = 2,
    unit: str = "frames",
    units_per_step: int = 1,
) -> TrainState:
    """Run a stage to its last step, from its newest checkpoint if there is one.

    Args:
      name: of the stage, for messages.
      folder: holds `checkpoints/` and the curves.
      mesh: devices.
      create: makes the state of step 0; called without a checkpoint, or abstractly with one.
      program: the jitted step for a step number and a batch on the host (the GAN may be off, k may differ).
      batches: iterator from a given step on; batch `s` must depend on `s` alone.
      steps: of the whole stage.
      log_every, checkpoint_every: in steps. All terms are kept for every step and looked at once per `log_every`, so
        the device is never waited for in between.
      checkpoints_kept: newest states kept.
      unit, units_per_step: what the progress bar counts a second.

    Returns:
      The state after the last step.

    Raises:
      NonFiniteError: a term became NaN or infinite; no state from after that step is saved.
      Interrupted: after SIGTERM, with the state saved.
    """
    checkpoints = Checkpoints(folder / "checkpoints", checkpoints_kept)
    shapes = jax.eval_shape(create)
    sharding = state_sharding(mesh, shapes)
    start = checkpoints.latest()
    if start is None:
        state, start = jax.device_put(create(), sharding), 0
    else:
        state = checkpoints.restore(start, abstract(shapes, sharding))
        print(f"{name}: resumed at step {start} of {steps}", file=sys.stderr)
    if start >= steps:
        checkpoints.close()
        return state

    writer = MetricWriter(folder, start)
    pending: list[tuple[int, dict]] = list(writer.unwritten)
    waited, since, counted = 0.0, time.perf_counter(), 0
    stream = batches(start)
    bar = tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=1.0 if sys.stderr.isatty() else 20.0)

    def look() -> list[tuple[int, dict[str, float]]]:
        rows = [(s, {k: float(v) for k, v in logs.items()}) for s, logs in jax.device_get(pending)]
        pending.clear()
        check_finite(name, rows)
        return rows

    def flush(step: int) -> None:
        nonlocal waited, since, counted
        rows = look()
        elapsed = time.perf_counter() - since
        # Terms may come and go within a window (the GAN starts): each is averaged over the steps that have it.
        terms = {term for _, logs in rows for term in logs}
        scalars = {term: float(np.mean([logs[term] for _, logs in rows if term in logs])) for term in sorted(terms)}
        rate = {f"{unit}_per_second": counted * units_per_step / elapsed, "data_wait": waited / elapsed}
        writer.write(step, scalars | rate)
        speed = f"{rate[f'{unit}_per_second']:.0f} {unit}/s, waiting for data {rate['data_wait']:.0%}"
        bar.set_postfix_str(f"loss {scalars['loss']:.4g}, {speed}", refresh=False)
        waited, since, counted = 0.0, time.perf_counter(), 0

    try:
        with _sigterm() as stop, jax.set_mesh(mesh):
            for step in range(start, steps):
                fetch = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - fetch
                state, logs = program(step, batch)(state, put_batch(mesh, batch))
                pending.append((step + 1, logs))
                counted += 1
                bar.update()
                stopping = bool(stop)  # read once: the signal may come between any two lines
                regular = (step + 1) % checkpoint_every == 0 or step + 1 == steps
                if (step + 1) % log_every == 0 or regular:
                    flush(step + 1)  # never save a state that the guard has not seen
                if stopping:
                    writer.set_aside(look())
                if regular or stopping:
                    check_finite_params(name, step + 1, state.params)
                    checkpoints.save(step + 1, state)
                if stopping:
                    break
            if stop:
                raise Interrupted(f"{name}: SIGTERM at step {step + 1}; saved, the same command goes on from there")
    finally:
        bar.close()
        writer.close()
        checkpoints.close()
        if hasattr(stream, "close"):
            stream.close()
    return state


class _sigterm:
    """Context in which SIGTERM only leaves a mark; the object is true once it came."""

    def __enter__(self) -> _sigterm:
        self._came = False
        try:
            self._old = signal.signal(signal.SIGTERM, self._mark)
        except ValueError:  # not the main thread (a notebook's worker): keep the default
            self._old = None
        return self

    def _mark(self, *_: Any) -> None:
        self._came = True

    def __bool__(self) -> bool:
        return self._came

    def __exit__(self, *_: Any) -> None:
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

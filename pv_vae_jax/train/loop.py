"""The one loop that runs every stage: fetch, step, log, check, save, stop."""

import contextlib
import functools
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pv_vae_jax.progress import progress_bar
from pv_vae_jax.sharding.processes import is_primary_process, shard_from_host
from pv_vae_jax.sharding.rules import check_split, put_batch, state_sharding
from pv_vae_jax.storage import Spool
from pv_vae_jax.train.checkpoint import Checkpoints, abstract
from pv_vae_jax.train.health import HealthMonitor
from pv_vae_jax.train.held_out import Evaluator, Scores
from pv_vae_jax.train.mfu import StepTimer, model_flops, peak, utilisation
from pv_vae_jax.train.nan_check import check_finite, check_finite_params
from pv_vae_jax.train.preemption import Preempted, PreemptionHandler
from pv_vae_jax.train.profiling import StepProfiler, memory_profile
from pv_vae_jax.train.programs import forget_programs
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.stage import Stage
from pv_vae_jax.train.state import TrainState
from pv_vae_jax.train.time_left import time_left
from pv_vae_jax.train.writers import NoOpWriter, StageWriters


def run_stage(stage: Stage, run: Run) -> TrainState:
    """Train `stage` to its last step, from its newest checkpoint in the work directory of `run` if there is one.

    With several processes, all must call it: each feeds its own share of a batch, and the first writes the curves.

    Returns:
      The state after the last step.

    Raises:
      ConfigError: too large a part of the parameters would be replicated on every device, see `sharding.rules`.
      NonFiniteError: a term became NaN or infinite; no state after that step is saved.
      Preempted: SIGTERM or the first Ctrl-C arrived; the state is saved.
    """
    forget_programs()  # of models trained before in this process
    name, mesh, settings = stage.name, run.mesh, run.experiment
    sharding = state_sharding(mesh, stage.abstract_state)
    check_split(mesh, stage.abstract_state.params, sharding.params)
    checkpoints = Checkpoints(run.folder(name) / "checkpoints", settings.checkpoints_kept, settings.checkpoint_every)
    start, state = _begin(stage, run, sharding, checkpoints)
    if start >= stage.steps:
        checkpoints.close()
        return state

    programs = {}  # static arguments and shapes of a batch -> the step compiled for them, and its FLOPs
    stream = stage.batches(run, start)  # first, as it may refuse the data
    curves, evaluate = Curves(stage, run, start), Evaluator(stage, run)
    profiler = StepProfiler(name, curves.folder / "profile", run.profile, run.folder(name) / "profile")
    # Active until saving is done: a second signal must not interrupt it.
    with PreemptionHandler() as preemption, jax.set_mesh(mesh), memory_profile(run.folder(name)):
        number, stopping = start, False
        try:
            for number in range(start, stage.steps):
                with profiler.step(number + 1):
                    with curves.timer("data"):
                        batch = next(stream)
                    static = stage.static_args(number, batch)
                    key = (*sorted(static.items()), *map(np.shape, batch.values()))
                    if is_new := key not in programs:
                        curves.show_compiling()
                    placed = stage.prepare(put_batch(mesh, batch))
                    if is_new:
                        flops = count_flops(stage, static, state, placed, mesh)
                        programs[key] = stage.jit_step(static, sharding), flops
                    step, flops = programs[key]
                    with jax.transfer_guard("disallow"):  # only explicit transfers to and from the device
                        state, logs = step(state, placed)
                    curves.add(number + 1, logs, stage.units(placed), flops)
                profiler.after(logs)
                stopping = preemption.should_stop()  # asked once: the signal may arrive between any two lines
                regular = (number + 1) % settings.checkpoint_every == 0 or number + 1 == stage.steps
                scores = None
                if evaluate.due(number + 1):
                    curves.fetch_logs()  # finite, and the devices are done with what is not the evaluation's
                    with curves.timer("evaluation"):
                        scores = evaluate(number + 1, state)
                if (number + 1) % settings.log_every == 0 or regular or scores:
                    curves.write_logs(number + 1, scores)  # before saving, so that no unchecked state is saved
                if stopping:
                    curves.save_pending()
                if regular or stopping:
                    check_finite_params(name, number + 1, state.all_params)
                    with curves.timer("checkpoint"):
                        curves.sync()
                        checkpoints.save(number + 1, state)
                if stopping:
                    break
            if stopping or preemption.arrived_late():
                raise Preempted(preemption.number, name, f" at step {number + 1}, saved")
        finally:
            with contextlib.ExitStack() as closing:  # all of them, the last first, even if one fails
                closing.callback(getattr(stream, "close", lambda: None))
                for part in (checkpoints, curves, profiler):
                    closing.callback(part.close)
    return state


def _begin(stage: Stage, run: Run, sharding: TrainState, checkpoints: Checkpoints) -> tuple[int, TrainState]:
    """The step to start at and the state there: the newest checkpoint, or the first state of the stage."""
    if (newest := checkpoints.restore_newest(abstract(stage.abstract_state, sharding))) is not None:
        print(f"{stage.name}: resumed at step {newest[0]} of {stage.steps}", file=sys.stderr)
        return newest
    places = {"params": sharding.params, "discriminator": getattr(sharding.discriminator, "params", None)}
    restored = {
        network: {part: shard_from_host(tree, places[network][part]) for part, tree in trees.items()}
        for network, trees in stage.restored(run).items()
    }
    return 0, stage.jit_init(sharding)(restored)


def count_flops(stage: Stage, static_args: dict[str, Any], state: TrainState, batch: dict, mesh: Mesh) -> float:
    """Floating-point operations of one step; 0 on devices without a published peak."""
    if peak(mesh.devices.flat[0].device_kind) is None:
        return 0.0
    return model_flops(functools.partial(stage.flops_step, **static_args), state, batch)


class Curves:
    """Progress bar and curves of a stage.

    The terms of every step stay on the device and are fetched once per `log_every` steps, so that nothing waits for the
    device in between. What is written is their mean over the window since the last `write_logs`.

    Attributes:
      folder: the folder of the stage, or on a bucket the local one that is brought there.
      timer: measures how the time of the window divides into parts.
    """

    def __init__(self, stage: Stage, run: Run, start: int):
        self._run, self._name, self._unit = run, stage.name, stage.unit
        self._devices, self._peak = run.mesh.size, peak(run.mesh.devices.flat[0].device_kind)
        self._spool = Spool(run.folder(stage.name))
        self.folder = self._spool.folder
        self._writer = StageWriters(run, stage.name, start, self.folder) if is_primary_process() else NoOpWriter()
        objective = getattr(stage.config, "objective", None)
        self._health = HealthMonitor(stage.name, objective, stage.frozen) if objective else None
        self._pending: list[tuple[int, dict]] = list(self._writer.unwritten)
        self.timer, self._units, self._flops, self._compiling = StepTimer(), 0, 0.0, False
        self._bar = progress_bar(total=stage.steps, initial=start, desc=self._name, unit="step")

    def show_compiling(self) -> None:
        """Show that a program for the next step is being compiled."""
        self._compiling = True
        self._bar.bar_format = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}]"  # no rate
        self._bar.set_description(f"{self._name}, compiling")

    def add(self, step: int, logs: dict, units: int, flops: float) -> None:
        """Take the terms of a step that has been dispatched."""
        if self._compiling:
            self._bar.bar_format = None
            self._bar.set_description(self._name, refresh=False)
            self._bar.unpause()  # the rate excludes compile time
            self._compiling = False
        self._pending.append((step, logs))
        self._units, self._flops = self._units + units, self._flops + flops
        self._bar.update()

    def fetch_logs(self) -> list[tuple[int, dict[str, float]]]:
        """The terms of the pending steps as numbers, once they are checked to be finite."""
        rows = [(s, {k: float(v) for k, v in logs.items()}) for s, logs in jax.device_get(self._pending)]
        check_finite(self._name, rows)
        self._pending = list(rows)
        return rows

    def sync(self) -> None:
        """Bring the curves to a bucket. Before a state is saved: who resumes there needs every row up to it."""
        self._spool.sync()

    def save_pending(self) -> None:
        """Save the terms of the pending steps for the process that will resume here."""
        self._writer.save_pending(self.fetch_logs())

    def write_logs(self, step: int, scores: Scores | None = None) -> None:
        """Write the means and rates of the window that ends with `step`, and `scores`, and begin a new one."""
        rows, scores = self.fetch_logs(), scores or {}
        self._pending.clear()
        elapsed, shares = self.timer.read()
        # Terms may come and go within a window (the GAN starts): each is averaged over the steps that have it.
        terms = {term for _, logs in rows for term in logs}
        means = {term: float(np.mean([logs[term] for _, logs in rows if term in logs])) for term in sorted(terms)}
        rates = {f"{self._unit}_per_second": self._units / elapsed}
        rates |= {part if part == "compute" else f"{part}_wait": share for part, share in shares.items()}
        speed = f"{self._units / elapsed:.0f} {self._unit}/s, "
        speed += ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        if self._flops and self._peak:
            seconds = elapsed * (shares["compute"] + shares["data"])
            rates["mfu"] = utilisation(self._flops, seconds, self._devices, self._peak)
            speed += f", {rates['mfu']:.1%} of peak"
        left = time_left(self._run, self._name, self._bar.total - step, elapsed / max(len(rows), 1))
        self._writer.write(step, scores | {"scalars": means | rates | scores.get("scalars", {})})
        for warning in self._health.check(step, means) if self._health else ():
            self._bar.write(warning, file=sys.stderr)
        # What a narrow terminal cuts off is at the end.
        self._bar.set_postfix_str(f"{left}; loss {means['loss']:.4g}, {speed}", refresh=False)
        self._units, self._flops = 0, 0.0

    def close(self) -> None:
        self._bar.close()
        try:
            self._writer.close()
        finally:
            self._spool.close()

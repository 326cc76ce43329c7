"""The one loop that runs every stage: fetch, step, log, guard, save, stop."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from pv_vae_jax.sharding.processes import is_primary_process, shard_from_host
from pv_vae_jax.sharding.rules import check_split, put_batch, state_sharding
from pv_vae_jax.train.checkpoint import Checkpoints, abstract
from pv_vae_jax.train.mfu import StepTimer, model_flops, peak, utilisation
from pv_vae_jax.train.nan_check import check_finite, check_finite_params
from pv_vae_jax.train.preemption import Preempted, stop_signal
from pv_vae_jax.train.state import TrainState
from pv_vae_jax.train.writers import MetricWriter, NoOpWriter
from pv_vae_jax.typing import ConfigError

Batch = dict[str, np.ndarray]


def run_stage(
    *,
    name: str,
    folder: Path,
    mesh: Mesh,
    create: Callable[[dict], TrainState],
    given: Callable[[], dict],
    step: Callable[..., tuple[TrainState, dict]],
    options: Callable[[int, Batch], dict],
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    log_every: int,
    checkpoint_every: int,
    checkpoints_kept: int = 2,
    prepare: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] | None = None,
    unit: str = "frames",
    units: Callable[[dict[str, jax.Array]], int] = lambda batch: 1,
    counted_step: Callable[..., Any] | None = None,
) -> TrainState:
    """Run a stage to its last step, from its newest checkpoint if there is one.

    Args:
      name: of the stage, for messages.
      folder: holds `checkpoints/` and the curves.
      mesh: devices.
      create: makes the state of step 0 from what `given` returned, and draws what is not in there; traced, so that each
        device makes its own part only.
      given: reads parameters to start from: `{}`, or trees named `params` and `discriminator`, of which parts may be
        missing. Called only where there is no checkpoint.
      step: pure function of state, batch and options.
      options: keyword arguments of `step` for a step number and a batch on the host, which they may change; each
        combination is compiled once (the GAN may be off, k may differ).
      batches: iterator from a given step on; batch `s` must depend on `s` alone.
      steps: of the whole stage.
      log_every, checkpoint_every: in steps. All terms are kept for every step and looked at once per `log_every`, so
        the device is never waited for in between.
      checkpoints_kept: newest states kept.
      prepare: makes of a global batch on the devices what the step takes, by computations of its own.
      unit, units: what the progress bar counts a second, and how many a global batch holds.
      counted_step: `step` without recomputation, whose operations are counted on devices with a known peak; default
        `step`.

    With several processes, all call this alike; each feeds its own rows, and the first writes the curves.

    Returns:
      The state after the last step.

    Raises:
      ConfigError: too much of the parameters would stay whole on every device, see `sharding.rules`.
      NonFiniteError: a term became NaN or infinite; no state from after that step is saved.
      Interrupted: after SIGTERM or the first Ctrl-C, with the state saved.
    """
    shapes = jax.eval_shape(lambda: create({}))
    sharding = state_sharding(mesh, shapes)
    try:
        check_split(mesh, shapes.params, sharding.params)
    except ValueError as error:
        raise ConfigError(f"stage {name}: {error}") from error
    checkpoints = Checkpoints(folder / "checkpoints", checkpoints_kept, checkpoint_every)
    restored = checkpoints.restore_newest(abstract(shapes, sharding))
    if restored is None:
        places = {"params": sharding.params, "discriminator": getattr(sharding.discriminator, "params", None)}
        source = {
            network: {part: shard_from_host(tree, places[network][part]) for part, tree in trees.items()}
            for network, trees in given().items()
        }
        state, start = jax.jit(create, out_shardings=sharding, donate_argnums=0)(source), 0
        del source
    else:
        start, state = restored
        print(f"{name}: resumed at step {start} of {steps}", file=sys.stderr)
    if start >= steps:
        checkpoints.close()
        return state

    programs: dict[tuple, Callable] = {}

    def program(number: int, batch: Batch) -> tuple[tuple, Callable[[TrainState, Any], tuple[TrainState, dict]], bool]:
        """What the options choose, its program, and whether that is yet to be compiled."""
        chosen = options(number, batch)
        key = tuple(sorted(chosen.items()))
        if key in programs:
            return key, programs[key], False

        def named(state: TrainState, batch: Any) -> tuple[TrainState, dict]:
            return step(state, batch, **chosen)

        named.__name__ = f"{name}_step"  # in messages and profiles of XLA
        # Stated, not left to the compiler: the state of one step must be the input of the next as it lies.
        out = (sharding, NamedSharding(mesh, PartitionSpec()))
        programs[key] = jax.jit(named, out_shardings=out, donate_argnums=0)
        return key, programs[key], True

    writer = MetricWriter(folder, start) if is_primary_process() else NoOpWriter()
    pending: list[tuple[int, dict]] = list(writer.unwritten)
    clock, counted, worked = StepTimer(), 0, 0.0
    device_peak, flops = peak(mesh.devices.flat[0].device_kind), {}
    stream = batches(start)
    bar = tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=1.0 if sys.stderr.isatty() else 20.0)

    def look() -> list[tuple[int, dict[str, float]]]:
        rows = [(s, {k: float(v) for k, v in logs.items()}) for s, logs in jax.device_get(pending)]
        pending.clear()
        check_finite(name, rows)
        return rows

    def flush(step: int) -> None:
        nonlocal counted, worked
        rows = look()
        elapsed, shares = clock.read()
        # Terms may come and go within a window (the GAN starts): each is averaged over the steps that have it.
        terms = {term for _, logs in rows for term in logs}
        scalars = {term: float(np.mean([logs[term] for _, logs in rows if term in logs])) for term in sorted(terms)}
        rate = {f"{unit}_per_second": counted / elapsed, "compute": shares.pop("compute")}
        rate |= {f"{part}_wait": share for part, share in shares.items()}
        speed = f"{rate[f'{unit}_per_second']:.0f} {unit}/s, "
        speed += ", ".join(f"{part} {share:.0%}" for part, share in [("compute", rate["compute"]), *shares.items()])
        if worked and device_peak:
            seconds = elapsed * (rate["compute"] + rate["data_wait"])
            rate["mfu"] = utilisation(worked, seconds, mesh.size, device_peak)
            speed += f", {rate['mfu']:.1%} of peak"
        writer.write(step, scalars | rate)
        bar.set_postfix_str(f"loss {scalars['loss']:.4g}, {speed}", refresh=False)
        counted, worked = 0, 0.0

    with stop_signal() as stop, jax.set_mesh(mesh):  # to the end of saving: a second signal must not break it off
        number, stopping = start, False
        try:
            for number in range(start, steps):
                with clock("data"):
                    batch = next(stream)
                key, run, new = program(number, batch)
                if new:
                    bar.set_description(f"{name}, compiling")
                placed = put_batch(mesh, batch)
                if prepare is not None:
                    placed = prepare(placed)
                if device_peak:
                    key = (key, *(leaf.shape for leaf in jax.tree.leaves(placed)))
                    if key not in flops:
                        flops[key] = model_flops(functools.partial(counted_step or step, **dict(key[0])), state, placed)
                    worked += flops[key]
                with jax.transfer_guard("disallow"):  # what crosses to the device and back is put and got by name
                    state, logs = run(state, placed)
                if new:
                    bar.set_description(name, refresh=False)
                    bar.unpause()  # the rate is that of steps alone
                pending.append((number + 1, logs))
                counted += units(placed)
                bar.update()
                stopping = stop.came()  # asked once: the signal may come between any two lines
                regular = (number + 1) % checkpoint_every == 0 or number + 1 == steps
                if (number + 1) % log_every == 0 or regular:
                    flush(number + 1)  # never save a state that the guard has not seen
                if stopping:
                    writer.save_pending(look())
                if regular or stopping:
                    check_finite_params(name, number + 1, state.params)
                    with clock("checkpoint"):
                        checkpoints.save(number + 1, state)
                if stopping:
                    break
            if stopping or stop.late():
                where = f"{name}: {stop.NAMES[stop.number]} at step {number + 1}"
                raise Preempted(f"{where}; saved, the same command goes on from there", 128 + stop.number)
        finally:
            bar.close()
            writer.close()
            checkpoints.close()
            if hasattr(stream, "close"):
                stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    return state

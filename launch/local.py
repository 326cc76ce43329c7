#!/usr/bin/env python3
"""Start one training run, or a sweep of them, on this machine.

  python launch local --config experiments/demo.py --workdir runs/ratio \\
      --sweep config.video.drop_ratio=0.5,0.75,1.0 --sweep config.seed=0,1 --config.image.steps=200

Each point of the sweep has its own folder below the work directory, and its output a prefix. Stopped, the same command
continues, as `pv-vae train` does. With --processes a run is split over that many processes, which find each other
through jax.distributed. The first process that fails stops its run; the run is started again up to --restarts times,
and then stops the sweep. SIGTERM and Ctrl-C let every run save its state first.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from experiment import (
    COORDINATOR,
    COUNT,
    INDEX,
    WRONG_CALL,
    Experiment,
    Run,
    make_parser,
    merged,
    parse,
    require_config,
    shell_line,
)

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Process:
    """A command, its environment variables beside the launcher's, and the prefix of its output lines."""

    label: str
    command: tuple[str, ...]
    environment: dict[str, str]


def processes_of(
    experiment: Experiment, run: Run, count: int, port: int, devices: Callable[[int], dict[str, str]]
) -> list[Process]:
    """The processes of a run; `devices(i)` are the variables that give process `i` its devices."""
    command = (sys.executable, *run.arguments)
    found = []
    for index in range(count):
        environment = merged(experiment.environment, devices(index))
        label = run.name
        if count > 1:
            environment |= {COORDINATOR: f"localhost:{port}", COUNT: str(count), INDEX: str(index)}
            label = f"{run.name} {index}".strip()
        found.append(Process(label, command, environment))
    return found


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_together(processes: list[Process], stop: threading.Event, grace: float) -> int:
    """Run the processes of one run until all have ended; the first that fails, or `stop`, ends the others.

    Args:
      processes: processes of the run.
      stop: event that ends them when it is set from outside.
      grace: seconds between SIGTERM, at which a run saves its state, and SIGKILL.

    Returns:
      Exit status of the first failure, 128 + n for signal n; 0 if none failed.
    """
    running: list[subprocess.Popen] = []
    readers = []
    status = 0
    try:
        for process in processes:
            running.append(_start(process))
            readers.append(threading.Thread(target=_relay, args=(running[-1], process.label), daemon=True))
            readers[-1].start()
        while not stop.is_set() and not status:
            codes = [process.poll() for process in running]
            status = next((code for code in codes if code), 0)
            if None not in codes:
                break
            time.sleep(0.05)
    finally:
        _end(running, grace)
        for reader in readers:
            reader.join(timeout=5)  # a loader process that outlives its parent may hold the pipe open
    status = status or next((process.returncode for process in running if process.returncode), 0)
    return status if status >= 0 else 128 - status


def run_again(
    name: str, processes: Callable[[], list[Process]], restarts: int, stop: threading.Event, grace: float
) -> int:
    """Call `run_together`, and up to `restarts` more times after a failure; return the last exit status."""
    for attempt in range(restarts + 1):
        status = run_together(processes(), stop, grace)
        if status in (0, WRONG_CALL) or stop.is_set() or attempt == restarts:
            break
        say(name, f"exit status {status}; restart {attempt + 1} of {restarts} from the newest checkpoint")
    return status


class Sweep:
    """Runs points in parallel; a point that still fails after its restarts stops all of them."""

    def __init__(self, parallel: int, restarts: int = 0, grace: float = 60.0):
        self.parallel, self.restarts, self.grace, self.stop = parallel, restarts, grace, threading.Event()

    def run(self, points: dict[str, Callable[[int], list[Process]]]) -> int:
        """Run `{name: processes}`, each called with its slot, 0 to `parallel` - 1; return the first bad status."""
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.parallel):
            slots.put(slot)

        def one(name: str, make: Callable[[int], list[Process]]) -> int:
            if self.stop.is_set():
                return 0  # never started: the failure that stopped the sweep is reported
            slot = slots.get()
            try:
                status = run_again(name, lambda: make(slot), self.restarts, self.stop, self.grace)
            finally:
                slots.put(slot)
            if status and not self.stop.is_set():
                others = "; stopping the others" if len(points) > 1 else ""
                say(name, f"failed with exit status {status}{others}")
                self.stop.set()
                return status
            return 0

        with _signals(self.stop) as caught, ThreadPoolExecutor(self.parallel) as pool:
            statuses = list(pool.map(one, points, points.values()))
        return next((status for status in statuses if status), 128 + caught[0] if caught else 0)


def say(name: str, text: str) -> None:
    """Print a line of the launcher's own about the run `name`."""
    print(f"[{name}] {text}" if name else text, file=sys.stderr, flush=True)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM set `stop`; yields the list of signals received."""
    caught: list[int] = []

    def note(number: int, _frame) -> None:
        caught.append(number)
        stop.set()

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _start(process: Process) -> subprocess.Popen:
    # In a group of its own, so that Ctrl-C reaches the launcher only, which ends the run and its loader processes.
    return subprocess.Popen(
        process.command,
        env=merged(dict(os.environ), process.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )


def _relay(process: subprocess.Popen, label: str) -> None:
    with process.stdout:
        for line in process.stdout:
            print(f"[{label}] {line.rstrip()}" if label else line.rstrip(), flush=True)


def _end(running: list[subprocess.Popen], grace: float) -> None:
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
        alive = [process for process in running if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, number)
        until = time.monotonic() + (patience or 0)
        for process in alive:
            try:
                process.wait(None if patience is None else max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                pass


def gpus_for(args, parser, points: int, environment: dict[str, str]) -> list[str]:
    """The GPUs to give out, by the names that CUDA knows; CUDA_VISIBLE_DEVICES, of --env or of this shell, names them.

    It is set by many schedulers, and the others belong to somebody else.
    """
    wanted = min(args.parallel, points) * args.processes * args.gpus
    visible = environment.get(VISIBLE, os.environ.get(VISIBLE))
    if visible is None:
        return [str(number) for number in range(wanted)]
    found = [name for name in visible.split(",") if name]
    if len(found) < wanted:
        parser.error(
            f"{wanted} GPUs are needed, and {VISIBLE}={visible} names {len(found)}: "
            "give fewer --processes, --parallel or --gpus"
        )
    return found


def devices_of(args, gpus: list[str], slot: int, index: int) -> dict[str, str]:
    """Variables that give process `index` of the run in `slot` its devices."""
    if args.cpu_devices:
        count = f"--xla_force_host_platform_device_count={args.cpu_devices}"
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
    if args.gpus:
        first = (slot * args.processes + index) * args.gpus
        return {VISIBLE: ",".join(gpus[first : first + args.gpus])}
    return {}


def main(argv: list[str]) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--processes", type=int, default=1, help="processes of every run (default 1)")
    parser.add_argument("--parallel", type=int, default=1, help="runs in parallel (default 1)")
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--cpu-devices", type=int, default=0, help="virtual CPU devices of every process")
    devices.add_argument("--gpus", type=int, default=0, help="GPUs of every process (default: all)")
    parser.add_argument("--port", type=int, default=0, help="port of process 0 (default: a free one)")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds a run has to save its state (default 60)")
    experiment, args = parse(parser, argv, processes=1, parallel=1, cpu_devices=0, gpus=0, port=0, grace=0)
    gpus = gpus_for(args, parser, len(experiment.sweep), experiment.environment)
    if args.port and args.parallel > 1:
        parser.error("--port needs --parallel 1: leave it out, and every run takes a free port")

    def make(run: Run) -> Callable[[int], list[Process]]:
        def processes(slot: int) -> list[Process]:
            port = args.port or free_port()
            return processes_of(
                experiment, run, args.processes, port, lambda index: devices_of(args, gpus, slot, index)
            )

        return processes

    require_config(parser, experiment)
    points = {run.name: make(run) for run in experiment.runs()}
    if args.dry_run:
        for place, processes in enumerate(points.values()):
            for process in processes(place % args.parallel):
                print(shell_line(process.environment, process.command))
        return 0
    return Sweep(args.parallel, args.restarts, args.grace).run(points)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

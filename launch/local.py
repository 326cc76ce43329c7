#!/usr/bin/env python3
"""Start one training run, or a sweep of them, on this machine.

  python launch/local.py --config experiments/demo.py --workdir runs/ratio \\
      --sweep config.video.drop_ratio=0.5,0.75,1.0 --sweep config.seed=0,1 --config.image.steps=200

Each setting gets a folder of its own below the work directory, and its lines a prefix. The same command goes on where
it was stopped, since `pv-vae train` does. One failure stops the sweep. Only the standard library is needed here.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def settings(sweep: list[str]) -> list[dict[str, str]]:
    """All combinations of `key=a,b,c` entries, as `[{key: a}, ...]`; one empty setting without a sweep."""
    axes = []
    for entry in sweep:
        key, equals, values = entry.partition("=")
        if not equals or not values or not key.startswith("config."):
            raise SystemExit(f"--sweep takes config.KEY=VALUE,VALUE, got {entry!r}")
        axes.append([(key, value) for value in values.split(",")])
    return [dict(combination) for combination in itertools.product(*axes)]


def name_of(setting: dict[str, str]) -> str:
    """Folder of a setting, such as `video.drop_ratio=0.5,seed=1`; "" without a sweep."""
    return ",".join(f"{key.removeprefix('config.')}={value}".replace("/", "_") for key, value in setting.items())


def command_of(config: str, workdir: str, setting: dict[str, str], extra: list[str]) -> list[str]:
    """The command line of one run."""
    folder = Path(workdir) / name_of(setting) if setting else Path(workdir)
    flags = [f"--{key}={value}" for key, value in setting.items()]
    return [sys.executable, "-m", "pv_vae_jax", "train", "--config", config, "--workdir", str(folder), *flags, *extra]


class Sweep:
    """Runs commands side by side and stops all of them when one fails."""

    def __init__(self, parallel: int):
        self.parallel, self._running, self._lock, self._failed = parallel, set(), threading.Lock(), False

    def run(self, commands: dict[str, list[str]]) -> int:
        """Run `{name: command}`; the first exit status that is not 0, or 0."""
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                statuses = list(pool.map(self._one, commands, commands.values()))
            except KeyboardInterrupt:
                self._stop()
                raise
        return next((status for status in statuses if status), 0)

    def _one(self, name: str, command: list[str]) -> int:
        with self._lock:
            if self._failed:
                return 0  # never started: the failure that stopped the sweep is what is reported
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self._running.add(process)
        with process:
            for line in process.stdout:
                text = line.rstrip().rpartition("\r")[2]
                print(f"[{name}] {text}" if name else text, flush=True)
        status = process.returncode
        with self._lock:
            self._running.discard(process)
            first = bool(status) and not self._failed
        if first:
            print(f"[{name}] failed with exit status {status}; the others are stopped", file=sys.stderr)
            self._stop()
        return status if first else 0

    def _stop(self) -> None:
        """SIGTERM makes a run save its state before it exits."""
        with self._lock:
            self._failed = True
            for process in self._running:
                process.terminate()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="experiment file")
    parser.add_argument("--workdir", required=True, help="folder of the run, or of all runs of a sweep")
    parser.add_argument("--sweep", action="append", default=[], metavar="config.KEY=A,B", help="repeat for a grid")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and exit")
    args, extra = parser.parse_known_args(argv)
    if args.parallel < 1:
        parser.error("--parallel is at least 1")
    commands = {name_of(s): command_of(args.config, args.workdir, s, extra) for s in settings(args.sweep)}
    if args.dry_run:
        print("\n".join(map(shlex.join, commands.values())))
        return 0
    return Sweep(args.parallel).run(commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

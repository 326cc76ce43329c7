"""Measure time and memory side by side with PyTorch and diffusers; results are JSON files, from which a page is made.

  python -m benchmarks --list                   # names, one line each; --list vae shows the settings of one
  python -m benchmarks vae --config.sizes=demo  # settings of a bench are flags
  python -m benchmarks --all                    # the set, each bench in its own process; run it again to resume
  python -m benchmarks --accelerator            # what only a GPU or TPU shows, in about ten minutes; one file to send
  python -m benchmarks --page                   # write docs/performance.md again from the results

Run it in a clone of the repository. The bench `benchmarks/NAME.py` writes `benchmarks/results/NAME_DEVICE.json`.
`--all` skips benches that have a result of this very code, `--all --fresh` does not.
"""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import harness
from benchmarks.registry import benches, described, find_bench, in_set, is_of
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.config_files import override
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m benchmarks`."""
    for name, text in (
        ("list", "print the names, or the settings of the bench that is named"),
        ("all", "run the set, each bench in its own process; benches with a result of this code are skipped"),
        ("fresh", "with --all or --accelerator: skip nothing"),
        ("accelerator", "what only a GPU or TPU shows, in about ten minutes; all of it ends in one file"),
        ("page", "write docs/performance.md again from the results"),
    ):
        flags.DEFINE_bool(name, False, text, flag_values=values)
    flags.DEFINE_integer("threads", 0, "cores to use; 0 is all", lower_bound=0, flag_values=values)
    flags.DEFINE_string("out", "", "folder for the result; default benchmarks/results", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Do what the flags say."""
    out = Path(values.out) if values.out else harness.RESULTS
    wanted = sum((values.list, values.all, values.accelerator, values.page)) + bool(positional and not values.list)
    if wanted != 1 or len(positional) > 1:
        raise ConfigError(
            f"name one bench of {', '.join(benches())}, or give one of --list, --all, --accelerator, --page"
        )
    if overrides and not positional:
        raise ConfigError("--config flags are for a single bench: name it")
    if values.list:
        print(described(*positional))
    elif values.all:
        run_all(values.threads, out, values.fresh, {name: {} for name in benches() if in_set(name)})
    elif values.accelerator:
        print(f"send {run_accelerator(values.threads, out, values.fresh)}")
    elif values.page:
        from benchmarks.page import write_page

        print(write_page())
    else:
        run_one(positional[0], overrides, values.threads, out)


def run_one(name: str, overrides: dict[str, str], threads: int, out: Path) -> dict:
    """Run bench `name` in this process, write its record to a file of `out`, and return it."""
    bench = find_bench(name)
    settings = override(bench.Settings(), overrides)
    threads, load, code = harness.pin(threads), round(os.getloadavg()[0], 2), harness.code()
    start = time.perf_counter()
    measured = bench.run(settings)
    record = {
        "bench": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": harness.device(),
        "threads": threads,
        "load_before": load,
        "versions": harness.versions(),
        "code": code,
        "settings": dataclasses.asdict(settings),
        "seconds": round(time.perf_counter() - start, 1),
        **measured,
    }
    if not record["results"]:  # it keeps its results itself
        return record
    out.mkdir(parents=True, exist_ok=True)
    path = harness.result_path(name, record["device"], out)
    write_json(path, record)
    print(f"\n{bench.table(record['results'])}\n")
    for aim in record["aims"]:
        bound = f"at most {aim['most']}" if aim["most"] is not None else f"at least {aim['least']}"
        print(f"{'met' if aim['met'] else 'MISSED'}: {aim['what']} {aim['value']} (aim: {bound})")
    print(f"{name}: {record['seconds']:.0f} s, written to {path}")
    return record


def run_all(threads: int, out: Path, fresh: bool, chosen: dict[str, dict[str, Any]]) -> None:
    """The `chosen` benches with their settings, each in a process of its own.

    Raises:
      ChildProcessError: some failed; the others have been run.
    """
    # Asked in a process of its own: a device that this one held would be missing to the others.
    device = harness.in_process("harness", "device")
    failed = []
    for name, settings in chosen.items():
        path = harness.result_path(name, device, out)
        if not fresh and path.exists() and is_of(path, harness.code(), threads, settings):
            print(f"{name}: has a result of this code, {path}", flush=True)
            continue
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", "benchmarks", name, f"--threads={threads}", f"--out={out.absolute()}"]
        command += [f"--config.{field}={value}" for field, value in settings.items()]
        if subprocess.run(command, cwd=harness.HERE.parent).returncode:
            failed.append(name)
    if failed:
        raise ChildProcessError(f"{', '.join(failed)} failed; the same command runs only these again")


# Speed and memory by the paper's protocol; MFU, and the time of every kind of operation; Wan2.2 beside diffusers.
ACCELERATOR = {
    "paper": {"warmup": 10, "timed": 30},
    "roofline": {"against": "none"},
    "wan22": {"compiled": True, "rounds": 3},
}


def run_accelerator(threads: int, out: Path, fresh: bool) -> Path:
    """Run what only an accelerator can show, and put all records into one file of `out`; what fails leaves the others.

    Raises:
      ConfigError: JAX finds none.
      ChildProcessError: some failed; the file holds the others.
    """
    device = harness.in_process("harness", "device")
    if device["platform"] == "cpu":
        raise ConfigError("JAX finds a CPU alone: install it for your accelerator, e.g. pip install -U 'jax[cuda13]'")
    path = harness.result_path("accelerator", device, out)
    try:
        run_all(threads, out, fresh, ACCELERATOR)
    finally:
        found = [harness.result_path(name, device, out) for name in ACCELERATOR]
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, {"device": device, "records": [json.loads(p.read_text()) for p in found if p.exists()]})
    return path


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_module

    run_module("python -m benchmarks")

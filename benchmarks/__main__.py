"""Measure time and memory, side by side with what one would use instead; results are JSON, and a page is made of them.

  python -m benchmarks --list                   # names, one line each; --list vae shows the settings of one
  python -m benchmarks vae --config.sizes=demo  # settings of a bench are flags
  python -m benchmarks --all                    # every bench of the set, each in its own process; run it again to go on
  python -m benchmarks --page                   # docs/performance.md again from the results

Benches are files of the clone, `benchmarks/NAME.py`, so this runs in one. A result goes to
`benchmarks/results/NAME_DEVICE.json`. `--all` skips what has a result of this very code, `--fresh` does not.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import difflib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pv_vae_jax.storage import write_json
from pv_vae_jax.train.config_files import override
from pv_vae_jax.typing import ConfigError

CLONE = Path(__file__).resolve().parents[1]


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m benchmarks`."""
    for name, told in (
        ("list", "print the names, or what the one named takes"),
        ("all", "run the set, one process a bench, skipping what has a result of this code"),
        ("fresh", "with --all: skip nothing"),
        ("page", "write docs/performance.md again from the results"),
    ):
        flags.DEFINE_bool(name, False, told, flag_values=values)
    flags.DEFINE_integer("threads", 0, "cores to use; 0 is all", lower_bound=0, flag_values=values)
    flags.DEFINE_string("out", "", "folder for the result; default benchmarks/results", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Do what the flags say."""
    out = Path(values.out) if values.out else CLONE / "benchmarks" / "results"
    wanted = sum((values.list, values.all, values.page)) + bool(positional and not values.list)
    if wanted != 1 or len(positional) > 1:
        raise ConfigError(f"name one bench of {', '.join(benches())}, or give one of --list, --all, --page")
    if overrides and not positional:
        raise ConfigError("--config flags are for a single bench: name it")
    if values.list:
        print(described(*positional))
    elif values.all:
        run_all(values.threads, out, values.fresh)
    elif values.page:
        from benchmarks.page import write_page

        print(write_page())
    else:
        run_one(positional[0], overrides, values.threads, out)


def run_one(name: str, overrides: dict[str, str], threads: int, out: Path) -> dict:
    """Run bench `name` in this process, write its record to a file of `out`, and return it."""
    from benchmarks import harness

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


def run_all(threads: int, out: Path, fresh: bool) -> None:
    """Every bench whose `IN_SET` is true, each in a process of its own.

    Raises:
      ConfigError: some failed; the others have been run.
    """
    from benchmarks import harness

    # Asked in a process of its own: a device that this one held would be missing to the others.
    device = harness.in_process("harness", "device")
    failed = []
    for name in benches():
        path = harness.result_path(name, device, out)
        if not in_set(name):
            continue
        if not fresh and path.exists() and is_of(path, harness.code(), threads):
            print(f"{name}: has a result of this code, {path}", flush=True)
            continue
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", "benchmarks.__main__", name, f"--threads={threads}", f"--out={out}"]
        if subprocess.run(command, env=os.environ | {"PYTHONPATH": str(CLONE)}).returncode:
            failed.append(name)
    if failed:
        raise ChildProcessError(f"{', '.join(failed)} failed; the same command runs only these again")


def is_of(path: Path, code: str, threads: int) -> bool:
    """Whether the result in `path` is of this code, default settings and so many threads."""
    import json

    record = json.loads(path.read_text())
    default = json.loads(json.dumps(dataclasses.asdict(find_bench(record["bench"]).Settings())))
    cores = threads or len(os.sched_getaffinity(0))
    return (record.get("code"), record.get("settings"), record.get("threads")) == (code, default, cores)


def benches() -> dict[str, str]:
    """Names of all benches and the first line of what they say; nothing is imported."""
    found = {}
    for path in sorted((CLONE / "benchmarks").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if {"run", "table", "Settings"} <= functions:
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def find_bench(name: str):
    """The module of a bench.

    Raises:
      ConfigError: there is none of this name.
    """
    known = benches()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"unknown bench {name!r}; {hint}")
    return importlib.import_module(f"benchmarks.{name.replace('-', '_')}")


def in_set(name: str) -> bool:
    """Whether `--all` runs it: not what takes hours or needs what few have."""
    return getattr(find_bench(name), "IN_SET", True)


def described(name: str | None = None) -> str:
    """One line a bench; or what bench `name` says, and its settings with their defaults."""
    if name is None:
        width = max(map(len, benches()))
        return "\n".join(f"{known:{width}}  {line}" for known, line in benches().items())
    bench = find_bench(name)
    fields = dataclasses.asdict(bench.Settings())
    listed = "\n".join(f"  --config.{field}={value!r}" for field, value in fields.items())
    return f"{bench.__doc__}\n{bench.Settings.__doc__}\n\n{listed}"


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_command

    sys.exit(run_command(sys.modules[__name__], "python -m benchmarks", sys.argv[1:]))

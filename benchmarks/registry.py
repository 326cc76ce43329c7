"""The benches of this folder: modules with `Settings`, `run(settings)` and `table(results)`."""

import ast
import dataclasses
import importlib
import json
import os
import types
from pathlib import Path

from benchmarks import harness
from pv_vae_jax.messages import did_you_mean
from pv_vae_jax.typing import ConfigError


def benches() -> dict[str, str]:
    """Names of all benches and the first line of their docstrings; nothing is imported."""
    found = {}
    for path in sorted(harness.HERE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if {"run", "table", "Settings"} <= names:
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def find_bench(name: str) -> types.ModuleType:
    """The module of a bench.

    Raises:
      ConfigError: no bench has this name.
    """
    known = benches()
    if name not in known:
        raise ConfigError(f"unknown bench {name!r}; {did_you_mean(name, known)}")
    return importlib.import_module(f"benchmarks.{name.replace('-', '_')}")


def in_set(name: str) -> bool:
    """Whether `--all` runs it; benches that take hours or need rare hardware are not in the set."""
    return getattr(find_bench(name), "IN_SET", True)


def is_of(path: Path, code: str, threads: int, settings: dict) -> bool:
    """Whether the result in `path` was measured with this code, these `settings` and so many threads."""
    record = json.loads(path.read_text())
    asked = json.loads(json.dumps(dataclasses.asdict(find_bench(record["bench"]).Settings(**settings))))
    cores = threads or len(os.sched_getaffinity(0))
    return (record.get("code"), record.get("settings"), record.get("threads")) == (code, asked, cores)


def described(name: str | None = None) -> str:
    """One line a bench; or the docstring of bench `name`, and its settings with their defaults."""
    if name is None:
        width = max(map(len, benches()))
        return "\n".join(f"{known:{width}}  {line}" for known, line in benches().items())
    bench = find_bench(name)
    fields = dataclasses.asdict(bench.Settings())
    listed = "\n".join(f"  --config.{field}={value!r}" for field, value in fields.items())
    return f"{bench.__doc__}\n{bench.Settings.__doc__}\n\n{listed}"

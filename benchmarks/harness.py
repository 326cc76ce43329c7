"""What the benches share: cores, turns and medians, processes of their own, facts about the machine, result files."""

import hashlib
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pv_vae_jax.typing import ConfigError
from pv_vae_jax.versions import versions as installed

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "diffusers", "av", "decord")


def pin(threads: int) -> int:
    """Keep this process and its children on `threads` cores, 0 for all that are allowed; returns their number.

    XLA and PyTorch size their thread pools by it, so this comes before either starts a device. Memory of a GPU is taken
    as it is needed, or JAX would leave nothing to the other side.

    Raises:
      ConfigError: fewer cores are allowed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise ConfigError(f"{threads} threads asked for, {len(cores)} cores allowed: give --threads={len(cores)}")
    chosen = cores[: threads or len(cores)]
    os.sched_setaffinity(0, chosen)
    os.environ["OMP_NUM_THREADS"] = str(len(chosen))
    return len(chosen)


def torch_device() -> Any:
    """The PyTorch device beside JAX's; its threads are those of `pin`.

    Raises:
      ImportError: PyTorch is not installed; the message names the extra.
      ConfigError: JAX runs on an accelerator that this PyTorch does not see.
    """
    import jax

    torch = need("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    backend = jax.default_backend()
    if backend == "cpu":
        return torch.device("cpu")
    if backend == "gpu" and torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as JAX does by default
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda")
    raise ConfigError(
        f"JAX runs on {backend}, which this PyTorch does not see: install a build that does, or measure ours alone "
        "with --config.against=none"
    )


def need(package: str) -> Any:
    """A package to compare with.

    Raises:
      ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"this bench compares with {package}: pip install -e '.[benchmark]', or --config.against=none where the "
            "bench has it"
        ) from error


def names(chosen: Iterable[str], known: Iterable[str], what: str) -> tuple[str, ...]:
    """The names in a setting, which may hold several with commas.

    Raises:
      ConfigError: one is not known.
    """
    found = tuple(part for text in chosen for part in text.split(",") if part)
    known = tuple(known)
    if not found or (unknown := set(found) - set(known)):
        wrong = f"no {what}" if not found else f"unknown {what} {', '.join(sorted(unknown))}"
        raise ConfigError(f"{wrong}: choose of {', '.join(known)}")
    return found


def take_turns(runs: dict[str, Callable[[], Any]], rounds: int, *, warmup: int = 1, seconds: float = 120.0) -> dict:
    """Time calls in turns (A B C A B C ...), so that what else the machine does meets all alike.

    Args:
      runs: calls by name; each returns when its work is done.
      rounds: timed calls of each.
      warmup: calls of each between the first and the timed ones.
      seconds: no new round begins after so long, from the third on.

    Returns:
      By name: `median_ms`, `least_ms`, `most_ms`, `rounds`, and `first_s` of the very first call, which compiles.
    """
    first = {name: _seconds(run) for name, run in runs.items()}
    for _ in range(warmup):
        for run in runs.values():
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - start > seconds:
            break
        for name, run in runs.items():
            taken[name].append(1e3 * _seconds(run))
    return {
        name: {
            "median_ms": round(statistics.median(t), 3),
            "least_ms": round(min(t), 3),
            "most_ms": round(max(t), 3),
            "rounds": len(t),
            "first_s": round(first[name], 2),
        }
        for name, t in taken.items()
    }


def in_turn(program: Callable[..., tuple[Any, dict]], state: Any, *given: Any) -> Callable[[], None]:
    """A call that takes one training step after another from `state`, and waits for each loss as `loss.item()` does."""
    held = [state]  # a program may write over the state it is given
    del state

    def once() -> None:
        held[0], logs = program(held[0], *given)
        float(logs["loss"])

    return once


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(times: dict, ours: str = "ours") -> dict[str, float]:
    """Median of `ours` over the median of each other."""
    own = times[ours]["median_ms"]
    return {name: round(own / t["median_ms"], 3) for name, t in times.items() if name != ours}


def fastest(times: dict, prefix: str) -> str | None:
    """The name with the smallest median among those that begin with `prefix`."""
    found = [name for name in times if name.startswith(prefix)]
    return min(found, key=lambda name: times[name]["median_ms"]) if found else None


def aim(what: str, value: float, *, most: float | None = None, least: float | None = None) -> dict:
    """A figure that should be at most, or at least, so much."""
    met = (most is None or value <= most) and (least is None or value >= least)
    return {"what": what, "value": round(value, 4), "most": most, "least": least, "met": bool(met)}


def in_process(
    bench: str, function: str, *arguments: Any, env: dict[str, str] | None = None, timeout: float | None = None
) -> Any:
    """`benchmarks.<bench>.<function>(*arguments)` in a process of its own; both ways by JSON.

    Raises:
      RuntimeError: the process failed; its message is on standard error.
      subprocess.TimeoutExpired: it took longer than `timeout` seconds.
    """
    done = subprocess.run(
        child_command(bench, function, *arguments),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
        cwd=HERE.parent,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(
            f"the process of {bench}.{function} ended with status {done.returncode}: its message is above"
        )
    return json.loads(done.stdout.splitlines()[-1])


def child_command(bench: str, function: str, *arguments: Any) -> list[str]:
    """The command of `in_process`; run it in the clone."""
    code = (
        f"import json, sys; from benchmarks.{bench} import {function} as call; "
        "print(json.dumps(call(*json.loads(sys.argv[1]))))"
    )
    return [sys.executable, "-c", code, json.dumps(arguments)]


def resident(mark: str = "VmRSS") -> int:
    """Resident bytes of this process (Linux): `VmRSS` now, `VmHWM` the highest since `forget_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(mark))
    return 1024 * int(line.split()[1])


def forget_peak() -> int:
    """Let the kernel forget the highest resident size of this process; returns the present one in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def random_like(shapes: Any, seed: int = 0) -> Any:
    """Parameters of given shapes, scaled so that activations stay of order one.

    Drawn by hand: the zeros that a fresh network starts some layers from would hide differences between two networks.
    """
    import jax
    import numpy as np

    rng = np.random.default_rng(seed)

    def draw(path: tuple, p: Any) -> Any:
        if path[-1].key == "gamma":
            return 1 + 0.1 * rng.standard_normal(p.shape, np.float32)
        stacked = path[0].key == "pairs"  # layers under nn.scan: the first axis counts them
        into = np.prod(p.shape[int(stacked) : -1]) if p.ndim > 1 + stacked else 100
        return rng.standard_normal(p.shape, np.float32) / max(1, into) ** 0.5

    return jax.tree.map_with_path(draw, shapes)


# Facts and files


def device() -> dict:
    """What JAX runs on."""
    import jax

    found = jax.devices()[0]
    kind = found.device_kind
    if found.platform == "cpu":
        cpu = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
        kind = model[1].strip() if model else platform.machine()
    return {"platform": found.platform, "kind": kind, "count": len(jax.devices())}


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {package: version for package, version in installed(PACKAGES).items() if version != "not installed"}
    return {"python": platform.python_version()} | found


def code() -> str:
    """Hash of the sources that a result is of: the package's and the benches'."""
    files = [p for folder in (HERE.parent / "pv_vae_jax", HERE) for p in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(HERE.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def result_path(bench: str, found: dict, folder: Path = RESULTS) -> Path:
    """`<bench>_<device>.json` for the device of `device()`."""
    name = "cpu" if found["platform"] == "cpu" else re.sub(r"[^a-z0-9]+", "_", found["kind"].lower()).strip("_")
    return folder / f"{bench.replace('-', '_')}_{name}.json"


def read_results(folder: Path = RESULTS) -> list[dict]:
    """All result files, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


# Markdown


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; None is an empty cell."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def ms(value: float) -> str:
    """Milliseconds with three digits, or seconds from ten seconds on."""
    return f"{value / 1e3:.1f} s" if value >= 1e4 else f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"

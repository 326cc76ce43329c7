"""Programs of several processes: start, barriers, and arrays to and from the host."""

import os
import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pv_vae_jax.typing import ConfigError

# Names that JAX and its launchers use.
COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
WAIT = 7 * 24 * 3600  # seconds: one process may encode for days while the others wait


def start_processes(coordinator: str = "", count: int = 0, index: int = -1) -> None:
    """Join the processes of this run, before anything touches a device; a single process does nothing.

    Args:
      coordinator: `host:port` of process 0, or `auto` where JAX knows the cluster (TPU pods, SLURM, Open MPI,
        Kubernetes).
      count, index: number of processes, and the index of this one. Values that are not given come from the environment:
        `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`.

    Raises:
      ConfigError: one of the three is missing or out of range.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR, "")
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    count = count or _number(COUNT, 0)
    index = index if index >= 0 else _number(INDEX, -1)
    if not coordinator and not count and index < 0:
        return
    if not coordinator or count < 1 or not 0 <= index < count:
        raise ConfigError(
            f"got process {index} of {count} with coordinator {coordinator or None}: give all of --coordinator "
            f"host:port, --processes and --process (0 to processes - 1), or {COORDINATOR}, {COUNT} and {INDEX}"
        )
    # With detection, JAX gives a process in a SLURM shell only the node's first GPU, whatever these arguments are.
    method = "deactivate"
    jax.distributed.initialize(coordinator, num_processes=count, process_id=index, cluster_detection_method=method)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise ConfigError(f"{name} must be a number, got {text!r}")
    return int(text) if text else default


def is_primary_process() -> bool:
    """Whether this is the process that writes the files of a run."""
    return jax.process_index() == 0


def restore_default_sigterm() -> None:
    """Let SIGTERM end this process from here on.

    With several processes, JAX catches it for loops that poll it (`train.preemption`); work that never polls and has
    nothing to save would ignore it.
    """
    if jax.process_count() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier `name`."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(name, timeout=WAIT)


def broadcast_string(text: Callable[[], str]) -> str:
    """The result of `text`, which only the first process calls, on all processes; it is cut to 1000 bytes."""
    if jax.process_count() == 1:
        return text()
    from jax.experimental import multihost_utils

    data = np.zeros(1_000, np.uint8)
    if is_primary_process():
        found = text().encode()[: len(data)]
        data[: len(found)] = np.frombuffer(found, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(data)).rstrip(b"\0").decode(errors="replace")


def any_process(here: bool) -> bool:
    """Whether `here` is true in any process; all must call it, and wait for each other."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(here)).any())


def gather_to_host(tree: Any) -> Any:
    """NumPy copy of a tree of global arrays on the first process; `None` leaves on the others.

    Every process must call it. Arrays are gathered one by one, so that a device never holds more than one full array.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def fetch(leaf: jax.Array) -> np.ndarray | None:
        value = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(value) if is_primary_process() else None

    return jax.tree.map(fetch, tree)


def shard_from_host(tree: Any, sharding: Any) -> Any:
    """Global arrays from host arrays that are equal in every process: each device takes its own part only."""

    def place(leaf: Any, where: jax.sharding.Sharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and jax.process_count() == 1:
            return jax.device_put(leaf, where)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    return jax.tree.map(place, tree, sharding)

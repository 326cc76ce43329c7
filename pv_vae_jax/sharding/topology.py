"""Compile for absent TPUs: libtpu builds programs for a named topology without a chip.

    devices = topology_devices("v5p:4x4x4")

Names as libtpu takes them: `v5e:4x4`, `v5p:2x2x1`, `v6e:16x16`. The smallest is one host.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import jax

from pv_vae_jax.sharding.hlo import Traffic, traffic


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a TPU generation.

    Attributes:
      flops: dense bfloat16 a second.
      hbm: bytes of memory.
      bandwidth: bytes a second between the memory and the chip.
      links: bytes a second that a chip sends over its interconnect, all links together, one way.
    """

    flops: float
    hbm: float
    bandwidth: float
    links: float


# Google's system architecture pages (cloud.google.com/tpu/docs/v5e, v5p, v6e): peak compute, HBM, HBM bandwidth, and
# interchip interconnect bandwidth, which is bidirectional there and halved here.
CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 200e9),
    "v5p": Chip(459e12, 95e9, 2_765e9, 600e9),
    "v6e": Chip(918e12, 32e9, 1_640e9, 400e9),
}


class DoesNotFit(ValueError):
    """A program needs more memory than a chip has; the message says how much."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One chip's share of a compiled step.

    Attributes:
      peak_bytes: peak memory, arguments included.
      traffic: collectives by kind; with several slices what crosses the network is a kind of its own.
    """

    peak_bytes: int
    traffic: dict[str, Traffic]


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Devices of `slices` times the topology `name`, for a mesh to compile on; they cannot run anything.

    Raises:
      ImportError: libtpu is not installed.
      ValueError: libtpu does not know the topology.
    """
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("a topology needs libtpu: pip install libtpu (the extra [tpu-topology] holds it)") from error
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # of this machine; it warns that it finds none
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # its lock protects chips, and we use none
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices)
    except Exception as error:  # libtpu's own errors have no common type
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"expected a TPU topology such as v5e:4x4, v5p:4x4x4 or v6e:16x16, got {name!r} ({reason})"
        ) from error


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Compile with little optimisation and no cache: 3-D convolutions take minutes to hours at TPU's full effort.

    Memory then is an estimate from below of what a full build needs. Programs for absent chips cannot be read back from
    the compilation cache.
    """
    config: Any = jax.config  # whose settings type checkers do not see
    old = config.jax_optimization_level, config.jax_enable_compilation_cache
    jax.config.update("jax_optimization_level", "O0")
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", old[0])
        jax.config.update("jax_enable_compilation_cache", old[1])


def compile_step(lowered: jax.stages.Lowered, slice_size: int = 0) -> Compiled:
    """Compile and measure; `slice_size` as for `hlo.traffic`.

    Raises:
      DoesNotFit: the memory of a chip is too small.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        used = re.search(r"[Uu]sed ([\d.]+[KMGT]?)i?B? of ([\d.]+[KMGT]?)i?B? hbm", text)
        used = used or re.search(r"([\d.]+[KMGT])\)? exceeds available HBM \(?([\d.]+[KMGT])", text)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        amount = f"it needs {used[1]}, a chip has {used[2]}" if used else " ".join(text.split())[:300]
        raise DoesNotFit(f"does not fit: {amount}") from error
    return Compiled(peak_bytes(compiled), traffic(compiled.as_text() or "", slice_size))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory that a device needs to run a program: arguments, results and temporaries together.

    On CPUs, whose compiler leaves temporaries out of the peak that it tells, the sum of all parts.
    """
    memory: Any = compiled.memory_analysis()
    outputs: Any = jax.tree.leaves(compiled.output_shardings)
    if memory.peak_memory_in_bytes and next(iter(outputs[0].device_set)).platform != "cpu":
        return memory.peak_memory_in_bytes
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes

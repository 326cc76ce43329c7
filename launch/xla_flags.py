"""Compiler flags by kind of device, in one place.

A set is on by default only once it has been measured, and then records the result; none has been so far. `--xla-set
NAME` turns one on. XLA ends a process at an unknown flag, so `tests/test_launch.py` has it parse those that it can.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FlagSet:
    """Flags that belong together.

    Attributes:
      variable: environment variable that passes them to the compiler.
      flags: the flags as they are written.
      why: what they are meant to achieve.
      measured: device, model and change of the step time; None until somebody has measured it.
    """

    variable: str
    flags: tuple[str, ...]
    why: str
    measured: str | None = None


SETS = {
    "gpu-overlap": FlagSet(
        "XLA_FLAGS",
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_enable_pipelined_all_gather=true",
            "--xla_gpu_enable_pipelined_reduce_scatter=true",
            "--xla_gpu_enable_pipelined_all_reduce=true",
        ),
        "gather parameters and reduce gradients while computing; for several GPUs",
    ),
    "tpu-overlap": FlagSet(
        "LIBTPU_INIT_ARGS",
        (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_enable_async_all_gather=true",
        ),
        "gather parameters while computing; for fsdp over several chips",
    ),
}

VARIABLES = sorted({chosen.variable for chosen in SETS.values()})

"""Compiled programs that a process no longer needs."""

import gc
from pathlib import Path

import jax

MOST_PIECES = 40_000


def forget_programs(most: int = MOST_PIECES) -> bool:
    """Drop all compiled programs if the process has more than `most` pieces of memory; whether it did.

    Linux lets a process have 65,530 pieces (`vm.max_map_count`). Every program that XLA compiles for a CPU takes some,
    and without them it ends with a segmentation fault or an error that names other causes. A process that trains model
    after model would get there. What is still needed compiles again when it is next called.
    """
    pieces = Path("/proc/self/maps")
    if not pieces.exists() or pieces.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    return True

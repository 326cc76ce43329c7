"""Memory that one step frees stays with the process for the next, where a command asks the C library for it."""

import os
import platform
import subprocess
import sys

import pytest

LARGE = 64 << 20
FAULTS = """
import ctypes, resource, sys
from pv_vae_jax.cli.main import configure_cpu

configure_cpu(long=sys.argv[1] == "long")
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = library.memset.argtypes = [ctypes.c_size_t]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):  # a step: a large buffer, used and freed
    buffer = library.malloc(int(sys.argv[2]))
    library.memset(buffer, 1, int(sys.argv[2]))
    library.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do with freed memory")
@pytest.mark.parametrize(
    ("program", "environment", "kept"),
    [
        ("long", {}, True),
        ("short", {}, False),
        ("long", {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),  # the user's own stays
        ("long", {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
)
def test_memory_that_a_step_frees_stays_for_the_next(program, environment, kept):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    command = [sys.executable, "-c", FAULTS, program, str(LARGE)]
    told = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    once = LARGE // os.sysconf("SC_PAGE_SIZE")
    assert (int(told.stdout) < 2 * once) == kept

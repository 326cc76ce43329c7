"""XLA's CPU compiler computes what single operations compute, at the sizes and ranks where versions of it failed.

jaxlib 0.10.2 and 0.11.0 fuse reductions by YNNPACK: the results of many rows are silently wrong (jax-ml/jax#39103), and
at rank 7 and 8 the process crashes (jax-ml/jax#40412, #39257).
"""

import os
import subprocess
import sys

import jaxlib
import pytest

FLAG = "--xla_cpu_experimental_ynn_fusion_type="

START = "import jax, jax.numpy as jnp, numpy as np; normal = np.random.default_rng(0).standard_normal\n"
PROGRAMS = {
    "many rows": """
f = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
arguments = [normal((32_769, 3), np.float32)]
""",
    "rank 7": """
f = lambda a, b: jnp.sum(a * b, axis=3)
arguments = [normal((3, 1, 2, 2, 8, 8, 8), np.float32) for _ in range(2)]
""",
    "rank 8": """
f = lambda a, b: jnp.log(jnp.maximum(jnp.sum(a[..., None, None, None, None, None] * b, axis=2), 1e-16))
arguments = [np.ones((10, 4, 6), np.float32), np.ones((10, 4, 6, 9, 9, 9, 9, 9), np.float32)]
""",
}
END = "np.testing.assert_allclose(jax.jit(f)(*arguments), f(*arguments), rtol=1e-4, atol=1e-4)"


@pytest.mark.parametrize("name", PROGRAMS)
def test_reductions_are_right_and_do_not_crash(name):
    """In a process of its own, with the flags of this one."""
    done = subprocess.run(
        [sys.executable, "-c", START + PROGRAMS[name] + END],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (
        f"jaxlib {jaxlib.__version__} computes wrongly on this CPU; set XLA_FLAGS='{FLAG}' (nothing after the =), or "
        f"install another jaxlib. Exit status {done.returncode}\n{done.stderr[-500:]}"
    )

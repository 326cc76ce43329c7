"""oneDNN's convolutions and products on a CPU compute what XLA's own do, for every form that this library uses.

XLA offers them behind a flag. Before jaxlib 0.12 oneDNN has faults of its own (oneDNN 3.11.3, 3.11.4 and 3.12.2 mend
wrong convolutions and products), so nothing here turns it on there.
"""

import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import jaxlib
import numpy as np
import pytest

from pv_vae_jax.cli import main

ROOT = Path(__file__).resolve().parents[1]
FLAG = "--xla_cpu_experimental_onednn_custom_call=true"
VERSION = tuple(int(part) for part in jaxlib.__version__.split(".")[:2])

pytestmark = [
    pytest.mark.skipif(VERSION < (0, 12), reason=f"jaxlib {jaxlib.__version__} has a faulty oneDNN; it needs 0.12"),
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"), reason="XLA's CPU builds have oneDNN on x86 only"
    ),
]

PROGRAM = """
import dataclasses, sys
from concurrent.futures import ThreadPoolExecutor
import jax, jax.numpy as jnp, numpy as np
from pv_vae_jax.layers.conv import LOWERINGS, causal_conv3d, conv2d
from pv_vae_jax.layers.conv_cpu import has_onednn

def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)

def with_gradients(run):  # of the sum of sines, so that no gradient is constant
    def compute(*arguments):
        return run(*arguments), jax.grad(lambda *a: jnp.sin(run(*a).astype(jnp.float32)).sum(), (0, 1))(*arguments)
    return compute

x, kernel, bias = normal(0, 2, 5, 9, 10, 20), normal(1, 3, 3, 3, 20, 24) / 20, normal(2, 24)
convolutions = {
    lowering: with_gradients(lambda x, k, form=lowering: causal_conv3d(x, k, bias.astype(x.dtype), lowering=form))
    for lowering in LOWERINGS if lowering != 'auto'
}
def strided(x, kernel):  # the down-sampling of the VAE: odd padding, and a residual that is added in place
    y = conv2d(x, kernel[0], stride=2, padding=((0, 1), (0, 1)))
    return y + y[..., ::-1]
convolutions["strided"] = with_gradients(strided)
def column(a, b):  # an addend of one non-trivial dimension that is not the last
    return a @ b + a[:, :1]
def batch_of_one(a, b):
    return jnp.einsum("bhnd,bhmd->bhnm", a[None, None], b.T[None, None])
a, b = normal(3, 320, 256), normal(4, 256, 288) / 16
cases = {
    f"{name} {dtype}": (run, [v.astype(dtype) for v in values])
    for dtype in (jnp.float32.dtype, jnp.bfloat16.dtype)
    for name, run, values in (
        *((name, run, (x, kernel)) for name, run in convolutions.items()),
        ("column addend", with_gradients(column), (a, b)),
        ("batch of one", with_gradients(batch_of_one), (a, b)),
    )
}
compiled = {name: jax.jit(run).lower(*values).compile() for name, (run, values) in cases.items()}
results = {name: jax.device_get(compiled[name](*values)) for name, (_, values) in cases.items()}
with ThreadPoolExecutor(2) as pool:  # two programs at once must not get each other's primitives
    names = [name for name in cases if "float32" in name and "16" not in name] * 3
    for name, again in zip(names, pool.map(lambda name: jax.device_get(compiled[name](*cases[name][1])), names)):
        for one, other in zip(jax.tree.leaves(results[name]), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=f"{name} beside another program")
results = {name: [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(result)] for name, result in results.items()}
arrays = {f"{name} {i}": leaf for name, result in results.items() for i, leaf in enumerate(result)}
texts = {name: program.as_text() for name, program in compiled.items()}
used = ["__onednn$convolution" in texts["direct float32"], "__onednn$matmul" in texts["batch of one float32"]]
used.append(has_onednn())
here = jax.sharding.Mesh(jax.devices(), "x").abstract_mesh
device = dataclasses.replace(here.abstract_device, platform="tpu")
with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
    assert not has_onednn(), "what this process has, in a program for a TPU"
np.savez(sys.argv[1], used=used, **arrays)
"""


def run(path: Path, flags: str) -> dict[str, np.ndarray]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert not done.returncode, done.stderr
    return dict(np.load(path))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("onednn") / "plain.npz", "")


# Without YNNPACK, XLA leaves more products to oneDNN, with their addends.
@pytest.mark.parametrize(
    "flags", [FLAG, pytest.param(f"{FLAG} --xla_cpu_experimental_ynn_fusion_type=", marks=pytest.mark.slow)]
)
def test_what_we_compute_does_not_change_with_onednn(tmp_path, plain, flags):
    fast = run(tmp_path / "fast.npz", flags)
    assert not plain["used"].any() and fast["used"].all(), "the flag has no effect, so this test shows nothing"
    assert plain.keys() == fast.keys()
    for name in plain.keys() - {"used"}:
        expected = plain[name]
        scale = np.abs(expected).max()
        tolerance = 2e-2 if "bfloat16" in name else 2e-5
        np.testing.assert_allclose(fast[name] / scale, expected / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("version", "machine", "flags", "expected"),
    [
        ("0.12.0.1", "x86_64", "", f"{FLAG}"),
        ("0.12.0.1", "x86_64", "--xla_cpu_max_isa=AVX2", f"--xla_cpu_max_isa=AVX2 {FLAG}"),
        ("0.12.0.1", "x86_64", FLAG.replace("true", "false"), FLAG.replace("true", "false")),  # the user's own stays
        ("0.12.0.1", "aarch64", "", ""),  # XLA ends a process that sets a flag which it does not know
        ("0.10.1", "x86_64", "", ""),
        ("0.13.0", "x86_64", "", ""),
    ],
)
def test_the_flag_is_set_where_it_was_seen_to_work(version, machine, flags, expected, monkeypatch):
    monkeypatch.setattr(main, "installed_version", {"jaxlib": version}.__getitem__)
    monkeypatch.setattr(main.platform, "machine", lambda: machine)
    monkeypatch.setenv("XLA_FLAGS", flags)
    with warnings.catch_warnings():
        main.configure_cpu()
    assert os.environ["XLA_FLAGS"] == expected

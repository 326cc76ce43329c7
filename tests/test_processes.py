"""Several real processes on this machine run one program, and what they leave fits any other number of devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax import pretrained
from pv_vae_jax.config import load_experiment
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import state_sharding
from pv_vae_jax.train.checkpoint import Checkpoints, abstract
from pv_vae_jax.train.metrics import read_metrics
from tests.test_cli import pv_vae, tiny_experiment  # noqa: F401

# One stage of three steps with the GAN on, a k an example, and a state after every second step.
VIDEO = ("--config.image.steps=0", "--config.video.steps=3", "--config.video.objective.gan_start=0", "--stage=video")
ALL = ("--config.image.steps=2", "--config.video.steps=3", "--config.decoder.steps=0", "--config.diffusion.steps=3")


def start(count: int, devices: int, *arguments, workdir: Path) -> list[subprocess.Popen]:
    """`pv-vae train` in `count` processes of `devices` virtual devices each; each writes `<workdir>.<i>.log`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    processes = []
    for i in range(count):
        command = [sys.executable, "-m", "pv_vae_jax", "train", "--workdir", str(workdir), *map(str, arguments)]
        command += [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={i}"]
        with Path(f"{workdir}.{i}.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    return processes


def finish(processes: list[subprocess.Popen], workdir: Path, status: int = 0, seconds: float = 280) -> list[str]:
    """Wait for all; what each wrote."""
    try:
        found = [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    texts = [Path(f"{workdir}.{i}.log").read_text() for i in range(len(processes))]
    assert found == [status] * len(processes), "\n".join(texts)
    return texts


def close(workdir: Path, reference: Path, stage: str) -> None:
    """A stage's weights and curve equal those of another run within what five digits of float32 allow."""
    for part in ("vae_params", "diffusion"):  # a VAE stage has no diffusion
        a, b = (getattr(pretrained.load(w / stage / "model"), part) for w in (workdir, reference))
        for x, y in zip(
            jax.tree.leaves(getattr(a, "params", a)), jax.tree.leaves(getattr(b, "params", b)), strict=True
        ):
            np.testing.assert_allclose(x, y, atol=2e-4)
    rows, expected = (read_metrics(w / stage / "metrics.jsonl") for w in (workdir, reference))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["loss"], other["loss"], rtol=1e-3)


@pytest.fixture(scope="module")
def alone(tiny_experiment, tmp_path_factory):  # noqa: F811
    """The same run in one process on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    status, _, error = pv_vae("train", "--config", tiny_experiment, "--workdir", workdir, *VIDEO)
    assert status == 0, error
    return workdir


def test_two_processes_train_one_model(alone, tiny_experiment, tmp_path):  # noqa: F811
    """Two processes of two devices, `fsdp` across them: one curve, one model, the state of one process alone.

    The state is then restored on eight devices, four and one, and every array is the same to the bit.
    """
    workdir = tmp_path / "two"
    flags = ("--config", tiny_experiment, *VIDEO, "--config.mesh.fsdp=4")
    finish(start(2, 2, *flags, workdir=workdir), workdir)
    close(workdir, alone, "video")

    experiment = load_experiment(tiny_experiment)
    folder = workdir / "video" / "checkpoints"
    held = {}
    for devices in (8, 4, 1):
        mesh = make_mesh(data=1, fsdp=devices, devices=jax.devices()[:devices])
        checkpoints = Checkpoints(folder)
        assert checkpoints.latest() == 3
        shapes = state_shapes(experiment)
        state = checkpoints.restore(3, abstract(shapes, state_sharding(mesh, shapes)))
        checkpoints.close()
        assert (devices == 1) == all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
        held[devices] = jax.device_get(state)
    assert int(held[1].step) == 3  # the data position
    for devices in (8, 4):
        for a, b in zip(jax.tree.leaves(held[1]), jax.tree.leaves(held[devices]), strict=True):
            np.testing.assert_array_equal(a, b)
    ema = pretrained.load(workdir / "video" / "model").vae_params
    for a, b in zip(jax.tree.leaves(held[1].ema), jax.tree.leaves(ema), strict=True):
        np.testing.assert_array_equal(a, b)


def state_shapes(experiment):
    """Abstract state of stage video."""
    from pv_vae_jax.cli.inspect import abstract_step

    return abstract_step(experiment, "video")[1]

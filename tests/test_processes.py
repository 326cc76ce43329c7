"""Several real processes on this machine run one program, and what they leave fits any other number of devices."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax.model import load
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.processes import start_processes
from pv_vae_jax.sharding.rules import state_sharding
from pv_vae_jax.train.checkpoint import Checkpoints, abstract
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.stages import build_stage
from pv_vae_jax.train.writers import read_metrics
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
        a, b = (getattr(load(w / stage / "model"), part) for w in (workdir, reference))
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


@pytest.mark.slow
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
    ema = load(workdir / "video" / "model").vae_params
    for a, b in zip(jax.tree.leaves(held[1].ema), jax.tree.leaves(ema), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("count", "devices", "mesh"), [(2, 2, ("fsdp=2", "context=2")), (4, 1, ("fsdp=2",))])
def test_all_stages_in_several_processes(tiny_experiment, tmp_path, count, devices, mesh):  # noqa: F811
    """VAE, latents, transformer and report; then the same command in one process finds all of it finished."""
    flags = ("--config", tiny_experiment, *ALL, *(f"--config.mesh.{axis}" for axis in mesh), "--config.mesh.data=-1")
    workdirs = {n: tmp_path / f"run{n}" for n in (1, count)}
    status, _, error = pv_vae("train", "--workdir", workdirs[1], *flags[:2], *ALL)
    assert status == 0, error
    texts = finish(start(count, devices, *flags, workdir=workdirs[count]), workdirs[count], seconds=1_200)
    for stage in ("image", "video", "diffusion"):
        close(workdirs[count], workdirs[1], stage)
        assert sum(f"{stage}: done in" in text for text in texts) == 1  # said once
    assert (workdirs[count] / "report" / "report.html").exists()
    status, _, error = pv_vae("train", "--workdir", workdirs[count], *flags[:2], *ALL)
    assert status == 0 and "diffusion: finished before" in error


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_sigterm_to_one_process_stops_all_and_one_process_goes_on(tiny_experiment, tmp_path):  # noqa: F811
    workdir = tmp_path / "stopped"
    flags = ("--config", tiny_experiment, *VIDEO, "--config.video.steps=400", "--config.checkpoint_every=1000")
    flags += ("--config.mesh.data=4",)
    processes = start(2, 2, *flags, workdir=workdir)
    end = time.monotonic() + 600
    while not read_metrics(workdir / "video" / "metrics.jsonl") and time.monotonic() < end:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    texts = finish(processes, workdir, status=143, seconds=600)
    assert all("saved; run the same command to continue" in text for text in texts)
    saved = max(int(p.name) for p in (workdir / "video" / "checkpoints").iterdir() if p.name.isdigit())
    status, _, error = pv_vae("train", "--workdir", workdir, *flags)
    assert status == 0 and f"video: resumed at step {saved} of 400" in error


@contextlib.contextmanager
def two_processes(code: str):
    """Two processes that join each other and run `code`, in which `index` is their number.

    What they print arrives alone: Gloo writes to file descriptor 1 in pieces, which is made that of errors.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    join = "import os, sys; sys.stdout = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1); index = int(sys.argv[1])\n"
    join += "from pv_vae_jax.sharding.processes import start_processes\n"
    join += f"start_processes('localhost:{port}', 2, index)\n"
    command = [sys.executable, "-c", join + code]
    with contextlib.ExitStack() as stack:
        processes = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        yield processes


def test_processes_with_unequal_shares_stop_together():
    """The first has nothing to do and waits for the second, until SIGTERM comes to one of them."""
    code = (
        "import itertools, time\n"
        "from pv_vae_jax.train.preemption import Preempted, PreemptionHandler\n"
        "with PreemptionHandler() as handler:\n"
        "    print(list(handler.until_preempted(range(3 * index), 'short')), flush=True)\n"
        "    try:\n"
        "        for _ in handler.until_preempted(itertools.count() if index else (), 'endless'):\n"
        "            time.sleep(0.05)\n"
        "    except Preempted as stopped:\n"
        "        print(stopped, flush=True)\n"
        "        sys.exit(stopped.status)\n"
    )
    with two_processes(code) as processes:
        assert [process.stdout.readline() for process in processes] == ["[]\n", "[0, 1, 2]\n"]
        processes[0].send_signal(signal.SIGTERM)
        for process in processes:
            assert process.wait(timeout=60) == 143
            assert process.stdout.readline() == "endless: SIGTERM; run the same command to continue\n"


def test_processes_whose_devices_alternate_make_one_batch():
    """Rows of a process are no neighbours then, as on a torus; the sharding says which it reads."""
    code = (
        "import jax, numpy as np\n"
        "from jax.experimental import multihost_utils\n"
        "from pv_vae_jax.data.transforms import parts_of\n"
        "from pv_vae_jax.sharding.mesh import make_mesh\n"
        "from pv_vae_jax.sharding.rules import host_share, put_batch\n"
        "ours, theirs = ([d for d in jax.devices() if d.process_index == i] for i in (0, 1))\n"
        "mesh = make_mesh(data=4, devices=[d for pair in zip(ours[:2], theirs[:2]) for d in pair])\n"
        "whole = np.arange(24).reshape(8, 3)\n"
        "batch = put_batch(mesh, {'x': parts_of(whole, *host_share(mesh))})\n"
        "found = multihost_utils.process_allgather(batch['x'], tiled=True)\n"
        "print(host_share(mesh), np.array_equal(found, whole), flush=True)\n"
    )
    with two_processes(code) as processes:
        said = [process.communicate(timeout=120)[0] for process in processes]
    assert said == ["((0, 2), 4) True\n", "((1, 3), 4) True\n"]


def test_sigterm_ends_processes_that_report():
    """The first makes the report and the second waits for it: neither asks whether the signal came."""
    code = (
        "import pathlib, time, types\n"
        "from pv_vae_jax.cli import train\n"
        "from pv_vae_jax.report import run_report\n"
        "def report(_):\n"
        "    print('reporting', flush=True)\n"
        "    time.sleep(60)\n"
        "run_report.evaluate_run = train.barrier = report\n"
        "none = dict(steps=lambda stage: 0, finished=lambda stage: False)\n"
        "train.open_run = lambda *_, **__: types.SimpleNamespace(workdir=pathlib.Path('none'), **none)\n"
        "train.load_experiment = lambda *_: types.SimpleNamespace(writers=())\n"
        "train.start_processes = train.perceptual_term = train.check_stages = train.missing_board = lambda *_: None\n"
        "flags = dict(config='', workdir='', stage='all', profile='', coordinator='', processes=0, process=-1)\n"
        "train.run(types.SimpleNamespace(**flags), {})\n"
    )
    with two_processes(code) as processes:
        assert [process.stdout.readline() for process in processes] == ["reporting\n"] * 2
        for process in processes[::-1]:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=30) for process in processes] == [-signal.SIGTERM] * 2


def test_processes_that_do_not_fit_together_are_refused(monkeypatch):
    start_processes()  # nothing given, nothing in the environment: one process
    for given in (("localhost:1", 2, 2), ("", 2, 0), ("localhost:1", 0, 0)):
        with pytest.raises(ValueError, match="give all of --coordinator"):
            start_processes(*given)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES must be a number, got 'two'"):
        start_processes("localhost:1")


def test_who_is_told_everything_does_not_ask_the_cluster():
    """In a shell of `srun --pty` JAX would take the GPU that SLURM's variables name, the first, in each process."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    code = "from jax._src.xla_bridge import CUDA_VISIBLE_DEVICES\n"
    code += "from pv_vae_jax.sharding.processes import start_processes\n"
    code += f"start_processes('localhost:{port}', 1, 0); print(CUDA_VISIBLE_DEVICES.value)"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_JOBID": "7", "SLURM_STEP_NODELIST": "n", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_NUM_NODES": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | slurm, capture_output=True, text=True, timeout=120)
    assert done.stdout == "all\n", done.stderr


def state_shapes(experiment):
    """Abstract state of stage video."""
    return build_stage(experiment, "video").abstract_state

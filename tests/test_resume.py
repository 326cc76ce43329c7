"""A run that was stopped anywhere goes on with the same command and ends with the same bits."""

import asyncio
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax import params_io
from pv_vae_jax.data import latents
from pv_vae_jax.model import load
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.params_io import find_damage, write_params
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.train import stages, vae_stage
from pv_vae_jax.train.checkpoint import CheckpointError, Checkpoints, ignore_abandoned_reads
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.sizes import check_mesh, sized_batches
from pv_vae_jax.train.writers import JsonlWriter, read_metrics
from pv_vae_jax.typing import ConfigError, WeightsError
from tests.test_cli import files, pv_vae, tiny_experiment  # noqa: F401

# The GAN is off for two steps and on for two; the windows of the curve do not end where states are saved.
CHANGES = ("--config.image.steps=0", "--config.decoder.steps=0", "--config.log_every=3", "--config.checkpoint_every=2")


class PowerCut(Exception):
    pass


def cut():
    raise PowerCut


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice():
    interrupt()
    interrupt()


@pytest.fixture
def train(tiny_experiment, monkeypatch):  # noqa: F811
    """`train(workdir, {step: event})`: train stage video, calling each event as its step begins.

    Returns the exit status, the state that training ended with (None if it did not end) and standard error.
    """
    states, real_batches, real_run = [], vae_stage.mixed_batches, stages.run_stage

    def run_stage(*arguments):
        states.append(real_run(*arguments))
        return states[-1]

    def run(workdir: Path, events=None, stage="video", changes=CHANGES):
        def mixed_batches(*arguments, start_step, **more):
            stream = real_batches(*arguments, start_step=start_step, **more)
            try:
                for step, batch in enumerate(stream, start_step):
                    (events or {}).get(step, lambda: None)()
                    yield batch
            finally:
                stream.close()

        states.clear()
        monkeypatch.setattr(vae_stage, "mixed_batches", mixed_batches)
        monkeypatch.setattr(stages, "run_stage", run_stage)
        status, _, error = pv_vae(
            "train", "--config", tiny_experiment, "--workdir", workdir, f"--stage={stage}", *changes
        )
        return status, states[-1] if states else None, error

    return run


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Filled by the first test that needs it: work directory, state and curve of the uninterrupted run."""
    return {"workdir": tmp_path_factory.mktemp("straight") / "run"}


@pytest.fixture
def reference(straight, train):
    if "state" not in straight:
        status, straight["state"], error = train(straight["workdir"])
        assert status == 0, error
    return straight


def curve(folder: Path) -> list[dict]:
    """Rows of a stage without what a clock decides."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.endswith(("_per_second", "_wait", "compute"))} for row in rows]


def assert_same_run(reference, workdir, state):
    expected, found = (jax.tree_util.tree_leaves_with_path(s) for s in (reference["state"], state))
    for (path, a), (other, b) in zip(expected, found, strict=True):
        assert path == other and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert curve(workdir / "video") == curve(reference["workdir"] / "video")
    for name in ("model/vae.safetensors", "model/config.json", "discriminator.safetensors"):
        assert (workdir / "video" / name).read_bytes() == (reference["workdir"] / "video" / name).read_bytes()


def test_the_reference_is_worth_comparing_with(reference):
    state = reference["state"]
    assert int(state.step) == 4 and state.discriminator is not None
    assert [row["step"] for row in curve(reference["workdir"] / "video")] == [2, 3, 4]
    for tree in (state.params, state.ema, state.opt_state, state.discriminator.params, state.discriminator.opt_state):
        assert any(np.any(leaf) for leaf in jax.tree.leaves(tree))
    differs = [np.any(a != b) for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True)]
    assert any(differs)


def test_a_crash_costs_the_steps_since_the_last_whole_state_and_nothing_else(reference, train, tmp_path):
    with pytest.raises(PowerCut):
        train(tmp_path, {1: cut})  # nothing saved yet
    with pytest.raises(PowerCut):
        train(tmp_path, {3: cut})
    folder = tmp_path / "video"
    assert not (folder / "model").exists()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "gan": 0.5}\n{"step": 4, "lo')  # written after the state that is taken up, and cut off
    (folder / "checkpoints" / "3").mkdir()
    (folder / "checkpoints" / "7" / "default").mkdir(parents=True)  # a copy that broke off
    (folder / "checkpoints" / "4.orbax-checkpoint-tmp-123" / "default").mkdir(parents=True)
    (folder / "checkpoints" / "4.orbax-checkpoint-tmp-123" / "_CHECKPOINT_METADATA").write_text("{}")
    status, state, error = train(tmp_path)
    assert status == 0 and "video: resumed at step 2 of 4" in error
    assert f"removed {folder}/checkpoints/7: it is not whole" in error
    assert_same_run(reference, tmp_path, state)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2", "4"]


def test_a_signal_saves_and_the_same_command_goes_on(reference, train, tmp_path):
    """It comes as step `n` begins, so the run stops with `n + 1` steps done; 3 is the last step.

    A second Ctrl-C stops at once: nothing is saved, and the run goes on from where it was.
    """
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for done, n, event in ((0, 0, terminate), (1, 1, interrupt_twice), (1, 2, interrupt), (3, 3, terminate)):
        status, state, error = train(tmp_path, {n: event})
        assert f"resumed at step {done} of 4" in error or not done
        assert status == (143 if event is terminate else 130) and state is None
        name = {terminate: "SIGTERM", interrupt: "Ctrl-C"}.get(event)
        line = f"video: {name} at step {n + 1}, saved; run the same command to continue" if name else "interrupted"
        assert f"pv-vae train: {line}" in error
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
        assert not (tmp_path / "video" / "model").exists()
    status, state, error = train(tmp_path)
    assert status == 0 and "resumed at step 4 of 4" in error
    assert_same_run(reference, tmp_path, state)


def test_a_kill_between_the_last_state_and_the_model(reference, train, tmp_path, monkeypatch):
    real = write_params

    def half(path, *arguments):
        digest = real(path, *arguments)
        if path.name == "discriminator.safetensors":
            return digest
        path.with_suffix(".tmp").write_bytes(path.read_bytes()[:100])
        raise PowerCut

    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr(params_io, "write_params", half)
        train(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model at"):
        load(tmp_path)  # tensors without the config that is written last
    status, state, error = train(tmp_path)
    assert status == 0 and "resumed at step 4 of 4" in error
    assert_same_run(reference, tmp_path, state)


def test_a_flipped_byte_in_a_discriminator_is_noticed_when_the_next_stage_takes_it(tmp_path):
    """Also in bytes of a tensor, which decode as well with it as without."""
    model, clip = Discriminator(DiscriminatorConfig(width=4, levels=1, kinds=("2d",))), (1, 1, 8, 8, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(clip, np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    run = Run(None, tmp_path, None)
    (tmp_path / "video").mkdir()
    vae_stage.save_discriminator(run, "video", params)
    path, record = tmp_path / "video" / "discriminator.safetensors", tmp_path / "video" / "discriminator.json"

    def read():
        return vae_stage.read_discriminator(run, "video", shapes)

    jax.tree.map(np.testing.assert_array_equal, params, read())
    whole = path.read_bytes()
    for place in (len(whole) - 1, len(whole) - 100, 20):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(
            WeightsError, match=f"discriminator of stage video .*: delete {path} to start with a fresh one"
        ):
            read()
    path.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(WeightsError, match="is damaged: its SHA-256 is not the one in discriminator.json"):
        read()
    written = record.read_text()
    for text in ("{", "[]", "{}", '{"sha256": 1}'):
        record.write_text(text)
        with pytest.raises(WeightsError, match="cannot start from the discriminator"):
            read()
    record.write_text(written)
    path.write_bytes(whole)
    record.unlink()  # of a version before there were any
    jax.tree.map(np.testing.assert_array_equal, params, read())
    path.unlink()
    assert read() is None and vae_stage.read_discriminator(run, None, shapes) is None


def test_a_run_on_several_sizes_goes_on_to_the_same_bits(train, tmp_path):
    """Images between clips, each batch of as many pixels; every size has its own terms in the curve."""
    changes = ("--config.video.sizes=((1,16),(5,8,2))", "--config.video.steps=6", "--config.video.objective.gan=0")
    changes += ("--config.image.steps=0", "--config.decoder.steps=0", "--config.log_every=1")
    status, state, error = train(tmp_path / "straight", changes=changes)
    assert status == 0, error
    rows = curve(tmp_path / "straight" / "video")
    sizes = [size for row in rows for size in ("1x16", "5x8") if f"loss/{size}" in row]
    assert sorted(sizes[:3]) == sorted(sizes[3:]) == ["1x16", "5x8", "5x8"]
    for row, size in zip(rows, sizes, strict=True):
        assert row["loss"] == row[f"loss/{size}"] and (row["motion"] == 0) == (size == "1x16")
    status, _, error = train(tmp_path / "stopped", {3: terminate}, changes=changes)
    assert status == 143, error
    status, resumed, error = train(tmp_path / "stopped", changes=changes)
    assert status == 0 and "resumed at step 4 of 6" in error
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert curve(tmp_path / "stopped" / "video") == rows


def test_batches_of_every_size_have_as_many_pixels_whatever_the_devices(tiny_experiment):  # noqa: F811
    changes = {"video.sizes": "((1,16),(5,16),(5,8,2))"}
    kinds = sized_batches(load_experiment(tiny_experiment, changes), "video")
    assert [kind.shape[:3] for kind in kinds] == [(20, 1, 16), (4, 5, 16), (16, 5, 8)]
    assert [kind.weight for kind in kinds] == [1, 1, 2] and [kind.images for kind in kinds] == [True, False, False]
    uneven = load_experiment(tiny_experiment, {"video.sizes": "((5,16),(5,12))"})
    assert [kind.batch_size for kind in sized_batches(uneven, "video")] == [4, 7]
    with pytest.raises(ConfigError, match="batches of 7 at 5x12, .* 4 devices .*video.batch_multiple=4 for a"):
        check_mesh(make_mesh(data=4), uneven, "video")
    even = load_experiment(tiny_experiment, {"video.sizes": "((5,16),(5,12))", "video.batch_multiple": "4"})
    assert [kind.batch_size for kind in sized_batches(even, "video")] == [4, 4]
    check_mesh(make_mesh(data=4), even, "video")
    with pytest.raises(ConfigError, match="mesh.space 4 does not divide the width of the latents, 3"):
        check_mesh(make_mesh(data=1, space=4), even, "video")


@pytest.mark.slow
def test_inspect_shows_a_step_of_every_size(tiny_experiment):  # noqa: F811
    sizes = "--config.image.sizes=((1,16),(1,8,3))"
    status, out, error = pv_vae("inspect", "--config", tiny_experiment, "--stage=image", sizes)
    assert status == 0, error
    assert "batches of 4 x 1 x 16 x 16, 1 in 4 steps:" in out and "batches of 16 x 1 x 8 x 8, 3 in 4 steps:" in out
    assert out.count("GFLOP") == out.count("peak memory a device") == 2
    work = [float(text.split()[0]) for text in out.split("one step: ")[1:]]
    assert abs(work[0] / work[1] - 1) < 0.25


def test_latent_caching_goes_on_where_a_shard_ended(reference, train, tmp_path, monkeypatch):
    """Shards of three do not end where batches of four do."""
    monkeypatch.setattr(latents, "SHARD", 3)
    workdir = reference["workdir"]
    assert train(workdir, stage="latents")[0] == 0
    expected = files(workdir / "latents")
    assert len([name for name in expected if name.endswith("array_record")]) == 4
    for kept in (1, 3, 4):  # a kill in the second, in the last shard, before the manifest
        for name in expected:
            if name == "manifest.json" or (name.endswith("array_record") and int(name[:5]) >= kept):
                (workdir / "latents" / name).unlink()
        (workdir / "latents" / f"{kept:05}.tmp").write_bytes(b"half a shard")
        assert train(workdir, stage="latents")[0] == 0
        (workdir / "latents" / f"{kept:05}.tmp").unlink(missing_ok=True)
        assert files(workdir / "latents") == expected


def test_reads_that_end_after_a_failed_one_are_silent_and_nothing_else_is(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(unraisable.exc_value))
    ignore_abandoned_reads()
    hook = sys.unraisablehook
    ignore_abandoned_reads()
    assert sys.unraisablehook is hook  # not one more for every read
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError) as closed:
        loop.call_soon_threadsafe(print)
    others = [RuntimeError("another"), ValueError("Event loop is closed")]
    for error in [closed.value, *others]:
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert heard == others


def test_a_state_saved_out_of_turn_does_not_take_the_place_of_one_saved_in_turn(tmp_path):
    state, left = jax.device_put({"w": np.zeros(4, np.float32)}), {}
    for steps in ((2, 4, 6, 8, 9), (2, 3, 4, 6, 7, 8, 9)):  # an uninterrupted stage, and one with two signals
        folder = tmp_path / str(len(steps))
        checkpoints = Checkpoints(folder, keep=3, every=2)
        for step in steps:
            checkpoints.save(step, state)
            assert checkpoints.latest() == step
        checkpoints.close()
        left[steps] = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    assert set(map(tuple, left.values())) == {(6, 8, 9)}


def test_a_damaged_state_is_set_aside_for_the_one_before(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, jax.device_put({"w": np.full(1 << 12, step, np.float32)}))
    checkpoints.close()
    for path in (tmp_path / "2").rglob("*"):
        if path.is_file() and path.name != "_CHECKPOINT_METADATA":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"w": jax.ShapeDtypeStruct((1 << 12,), np.float32, sharding=where)}
    checkpoints = Checkpoints(tmp_path)
    step, state = checkpoints.restore_newest(shapes)
    assert step == checkpoints.latest() == 1 and (np.asarray(state["w"]) == 1).all()
    assert "set aside as 2.damaged" in capsys.readouterr().err and (tmp_path / "2.damaged").is_dir()
    checkpoints.save(2, jax.device_put({"w": np.zeros(1 << 12, np.float32)}))
    checkpoints.close()
    (tmp_path / "2" / "checksums.json").write_text("{")  # once more, of a state of the same step
    assert Checkpoints(tmp_path).restore_newest(shapes)[0] == 1
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, jax.device_put({"w": np.zeros(1 << 12, np.float32)}))
    checkpoints.close()
    assert Checkpoints(tmp_path).latest() == 2
    for name in ("1", "2"):
        for path in (tmp_path / name).rglob("*"):
            if path.is_file() and path.name != "_CHECKPOINT_METADATA":
                path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no training state in .* can be read .*2: .*1: .*remove the folder"):
        Checkpoints(tmp_path).restore_newest(shapes)


def test_a_flipped_bit_in_a_state_is_noticed(tmp_path, capsys):
    """Also in bytes that decode as well with it as without."""
    state = {"w": np.random.default_rng(0).standard_normal(1 << 12).astype(np.float32)}
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, jax.device_put(state))
    checkpoints.close()
    listed = json.loads((tmp_path / "2" / "checksums.json").read_text())
    assert sum(size for size, _ in listed.values()) > 1 << 13
    assert find_damage(tmp_path / "2") == "" and not list(tmp_path.glob("*tmp*"))
    rng = np.random.default_rng(1)
    for name in listed:
        path = tmp_path / "2" / name
        whole = path.read_bytes()
        for bit in rng.integers(8 * len(whole), size=5):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            assert find_damage(tmp_path / "2") == f"the CRC-32 of {name} has changed"
        path.write_bytes(whole[:-1])
        assert find_damage(tmp_path / "2") == f"{name} has {len(whole) - 1} bytes of {len(whole)}"
        path.unlink()
        assert find_damage(tmp_path / "2") == f"{name} is missing"
        path.write_bytes(whole)
    path.write_bytes(data)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"w": jax.ShapeDtypeStruct(state["w"].shape, np.float32, sharding=where)}
    step, restored = Checkpoints(tmp_path).restore_newest(shapes)
    assert step == 1 and np.array_equal(restored["w"], state["w"])
    assert f"(the CRC-32 of {name} has changed): set aside as 2.damaged" in capsys.readouterr().err
    (tmp_path / "1" / "checksums.json").unlink()  # of a version before there were any
    assert Checkpoints(tmp_path).restore_newest(shapes)[0] == 1


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"null\n", b'{"loss": 1.0}\n', b'{"step": 2, "lo'])
def test_a_damaged_curve_costs_its_rows_and_no_training(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n' + damage)
    (tmp_path / "metrics.aside.json").write_bytes(damage)
    writer = JsonlWriter(tmp_path, 5)
    writer.write_scalars(6, {"loss": 1.0})
    writer.close()
    assert [row["step"] for row in read_metrics(writer.path)] == [1, 6] and not writer.unwritten


def test_a_full_disk_ends_with_a_clear_error_and_the_last_whole_state(tmp_path, capsys, caplog):
    """The limit on a file's size stands for the disk: writing fails in the middle of a state."""
    state = {"w": np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)}  # does not compress
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, jax.device_put(state))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, old[1]))
    try:
        with pytest.raises(
            CheckpointError, match="could not be written .*the state of step 1 is complete. .* larger files"
        ):
            checkpoints.save(2, jax.device_put(state))
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert capsys.readouterr().err == "" and not [r for r in caplog.records if r.exc_info], "Orbax tells it at length"
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() == 1
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = checkpoints.restore(1, {"w": jax.ShapeDtypeStruct(state["w"].shape, np.float32, sharding=where)})
    np.testing.assert_array_equal(restored["w"], state["w"])
    checkpoints.save(2, jax.device_put(state))  # there is room again
    checkpoints.close()
    assert Checkpoints(tmp_path).latest() == 2


def test_a_curve_takes_up_only_what_belongs_to_it(tmp_path):
    writer = JsonlWriter(tmp_path)
    writer.write_scalars(3, {"loss": 1.0})
    writer.save_pending([(4, {"loss": 2.0}), (5, {"loss": 3.0})])
    writer.close()
    for start, rows, unwritten in ((5, [3], [4, 5]), (4, [3], []), (2, [], []), (5, [], [4, 5])):
        writer = JsonlWriter(tmp_path, start)
        assert [row["step"] for row in read_metrics(writer.path)] == rows
        assert [step for step, _ in writer.unwritten] == unwritten
        writer.close()
    writer = JsonlWriter(tmp_path)
    writer.write_scalars(5, {"loss": 2.5})  # what was set aside has been written since
    writer.close()
    writer = JsonlWriter(tmp_path, 5)
    assert writer.unwritten == []
    writer.close()


# The real thing


def start_training(experiment: Path, changes: Sequence[str], workdir: object, output=subprocess.DEVNULL):
    """A process of its own that trains every stage."""
    command = [sys.executable, "-m", "pv_vae_jax", "train", f"--config={experiment}", f"--workdir={workdir}", *changes]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def wait_for(process: subprocess.Popen, patterns: Sequence[str], folder: Path, seconds: float = 240) -> bool:
    """Whether a path of one of these patterns appeared before the process ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if any(any(folder.glob(pattern)) for pattern in patterns):
            return True
        time.sleep(0.002)
    return False


# What to wait for; what shows that it passed unseen, so that the run is killed before it ends; the longest pause (s)
# before the kill: at once where a file is just being written.
MOMENTS = (
    ("config.json", "image/metrics.jsonl", 8.0),
    ("image/checkpoints/*tmp*", "video", 0.01),
    ("image/metrics.jsonl", "video", 3.0),
    ("video/checkpoints/*tmp*", "video/model", 0.05),
    ("video/checkpoints/9", "decoder", 2.0),
    ("video/model/*", "decoder", 0.01),
    ("decoder/checkpoints/*tmp*", "latents", 0.2),
    ("latents/*.tmp", "latents/*.array_record", 0.005),
    ("latents/00000.array_record", "latents/manifest.json", 0.5),
    ("diffusion/checkpoints/*tmp*", "diffusion/model", 0.05),
    ("diffusion/metrics.jsonl", "diffusion/model", 2.0),
    ("report", "report/*.html", 1.0),
)
KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_kill_9_at_any_moment(tiny_experiment, tmp_path):  # noqa: F811
    steps = {"image": 30, "video": 30, "decoder": 20, "diffusion": 30}
    changes = [f"--config.{stage}.steps={n}" for stage, n in steps.items()]
    changes += ["--config.latents.clips=700", "--config.checkpoint_every=3", "--config.log_every=5"]
    start = functools.partial(start_training, tiny_experiment, changes)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight).wait(timeout=900) == 0
    rng = np.random.default_rng(int(os.environ.get("PV_VAE_KILL_SEED", 0)))
    kills = 0
    extra = rng.choice(len(MOMENTS), KILLS - len(MOMENTS))  # in the order of a run, each moment at least once
    for i in sorted([*range(len(MOMENTS)), *extra]):
        *patterns, pause = MOMENTS[i]
        passed = any(killed.glob(patterns[1]))  # then any time from the start of the process will do
        process = start(killed)
        if wait_for(process, patterns, killed):
            time.sleep(rng.uniform(0, 8.0 if passed else pause))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 12  # the others came too late: the run had ended
    assert start(killed).wait(timeout=900) == 0
    for stage, n in steps.items():
        assert curve(killed / stage) == curve(straight / stage), stage
        assert curve(killed / stage)[-1]["step"] == n
    expected, found = files(straight), files(killed)
    results = [n for n in expected if n.endswith(("safetensors", "model/config.json", "array_record", "manifest.json"))]
    assert len(results) == 7 + 4 + 3 + 1
    for name in results:
        assert found[name] == expected[name], name

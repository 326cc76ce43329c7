"""Batches of prepared videos and of mixtures: (seed, step) decides them, whoever reads and whenever it starts."""

import dataclasses
import itertools
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grain.transforms import RandomMap

from pv_vae_jax.data import latents as latents_file
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.latents import LatentSource, StaleLatentsError, begin_cache
from pv_vae_jax.data.listing import video_folder
from pv_vae_jax.data.mixture import MixtureComponent, balanced_batch_sizes, mixed_batches
from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.data.prepare import ClipSettings, prepare_split
from pv_vae_jax.data.shards import BrokenRecordError
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import fingerprint, open_source
from pv_vae_jax.data.transforms import DropFutureFrames, clip_transforms
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.dropping import Dropping
from pv_vae_jax.model import Model, save
from pv_vae_jax.pixels import to_float
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import batch_sharding, put_batch
from pv_vae_jax.train import latents_stage
from pv_vae_jax.train.configs import DataConfig, Experiment, LatentsConfig
from pv_vae_jax.train.latents_stage import cache_key, encode_latents, encode_shards, open_latents
from pv_vae_jax.train.preemption import Preempted
from pv_vae_jax.train.run import Run
from tests.video_fixture import waves

AUGMENTED = dict(batch_size=4, seed=11)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same seven videos as files and as prepared records; one record of the latter is damaged."""
    files, records = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("records")
    for i in range(7):
        path = files / ("test" if i == 6 else "train") / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, waves(24, 20, 30, seed=i), fps=12)
    settings = ClipSettings(short_side=20, min_frames=9, gop=4)
    for split in ("train", "test"):
        prepare_split(video_folder(files, split), records / split, settings, files=4)
    path = records / "train" / "00001.array_record"
    data = bytearray(path.read_bytes())
    data[np.flatnonzero(np.frombuffer(bytes(data), np.uint8))[-1500]] ^= 1
    path.write_bytes(data)
    return {"files": files, "records": records}


def source_of(folders, kind, **arguments):
    settings = {"frames": 9, "size": 16, "crop": "random", "log": SkipLog(max_damaged_records=0.2), **arguments}
    return open_source(str(folders[kind]), split="train", **settings)


def transforms_of(size=16, frames=9, **arguments):
    return clip_transforms(FrameSize.of(size), frames, crop="random", **arguments)


def take(stream, steps):
    batches = [next(stream) for _ in range(steps)]
    stream.close()
    return batches


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("kind", ["files", "records"])
def test_hosts_restarts_and_threads_change_no_element(folders, kind):
    """Every host opens its own source, as on its own machine, and one of them starts in the middle."""
    straight = take(train_batches(source_of(folders, kind), transforms_of(flip=0.5, reverse=0.5), **AUGMENTED), 6)
    for hosts in (1, 2, 4):
        for start, threads in ((0, 1), (3, 3)):
            shares = [
                take(
                    train_batches(
                        source_of(folders, kind),
                        transforms_of(flip=0.5, reverse=0.5),
                        host_index=host,
                        host_count=hosts,
                        start_step=start,
                        threads=threads,
                        **AUGMENTED,
                    ),
                    6 - start,
                )
                for host in range(hosts)
            ]
            for step, parts in enumerate(zip(*shares, strict=True), start):
                for name in ("video", "label"):
                    np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), straight[step][name])


def test_a_damaged_record_is_met_and_survived(folders):
    source = source_of(folders, "records")
    take(train_batches(source, transforms_of(), **AUGMENTED), 6)
    assert len(source.skipped) == 1


def test_fingerprints_tell_contents_apart(folders, tmp_path):
    prints = {kind: fingerprint(str(folder)) for kind, folder in folders.items()}
    assert prints["files"] != prints["records"] and all(prints.values()) and not fingerprint("synthetic")
    for i in range(2):
        write_video(tmp_path / f"{i}.mp4", waves(9, seed=i))
    first = fingerprint(str(tmp_path))
    assert first == fingerprint(str(tmp_path))
    write_video(next(iter(video_folder(tmp_path, "train").items)).path, waves(12, seed=5))
    assert fingerprint(str(tmp_path)) != first


# Mixtures


class Numbers:
    """A source whose clips are its own name and their index."""

    def __init__(self, name, clips):
        self.name, self.clips = name, clips

    def __len__(self):
        return self.clips

    def __getitem__(self, index):
        frames = 1 if self.name else 9
        return {"name": self.name, "index": np.int64(index), "video": np.zeros((frames, 1, 1, 3), np.uint8)}


class Draw(RandomMap):
    def random_map(self, element, rng):
        return element | {"draw": rng.random()}


PARTS = [
    MixtureComponent(Numbers(0, 12), [Draw()], 4, weight=3),
    MixtureComponent(Numbers(1, 10), [Draw()], 2),
    MixtureComponent(Numbers(2, 8), [Draw()], 8, weight=2),
]
ALL = DropFutureFrames(ratio=1.0)


def kind_of(batch):
    (kind,) = set(batch["name"].tolist())
    return kind


def test_a_mixture_keeps_weights_and_walks_every_part_by_epochs():
    batches = take(mixed_batches(PARTS, ALL, seed=1), 60)
    kinds = [kind_of(batch) for batch in batches]
    for start in range(0, 60, 6):
        assert sorted(kinds[start : start + 6]) == [0, 0, 0, 1, 2, 2]
    for i, part in enumerate(PARTS):
        own = [batch for batch in batches if kind_of(batch) == i]
        assert all(len(b["index"]) == part.batch_size for b in own)
        index = np.concatenate([b["index"] for b in own])
        whole = len(index) // part.clips.clips * part.clips.clips
        assert all(
            sorted(epoch) == list(range(part.clips.clips)) for epoch in index[:whole].reshape(-1, part.clips.clips)
        )
    assert {int(b["dropped"]) for b in batches if kind_of(b) == 0} == {0, 1, 2}
    assert {int(b["dropped"]) for b in batches if kind_of(b)} == {0}


@pytest.mark.parametrize("start", [0, 4, 6, 17])
def test_a_mixture_depends_on_seed_and_step_alone(start):
    straight = take(mixed_batches(PARTS, ALL, seed=1), 24)
    later = take(mixed_batches(PARTS, ALL, seed=1, start_step=start, threads=1), 24 - start)
    halves = [
        take(mixed_batches(PARTS, ALL, seed=1, start_step=start, host_index=h, host_count=2), 24 - start)
        for h in (0, 1)
    ]
    for expected, batch, a, b in zip(straight[start:], later, *halves, strict=True):
        assert_same(batch, expected)
        for name in ("name", "draw"):
            np.testing.assert_array_equal(np.concatenate([a[name], b[name]]), expected[name])
        assert a["dropped"] == b["dropped"] == expected["dropped"]
    with pytest.raises(ValueError, match="every part a weight of at least 1"):
        mixed_batches([dataclasses.replace(PARTS[0], weight=0)], ALL, seed=1)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("per_example", [False, True], ids=["shared", "per example"])
def test_k_depends_on_seed_and_step_alone(schedule, per_example):
    """Neither restarts nor hosts change it; hosts that share one `k` run one program, others hold their examples'."""
    dropping = DropFutureFrames(1.0, per_example=per_example, schedule=schedule, ramp_steps=12.0)
    draw = lambda start, **host: [  # noqa: E731
        batch["dropped"] for batch in take(mixed_batches(PARTS, dropping, seed=1, start_step=start, **host), 24 - start)
    ]
    straight = draw(0)
    for start in (0, 7):
        halves = [draw(start, host_index=h, host_count=2) for h in (0, 1)]
        for expected, again, *both in zip(straight[start:], draw(start), *halves, strict=True):
            np.testing.assert_array_equal(again, expected)
            assert expected.dtype == np.int32 and expected.ndim == int(per_example)
            found = np.concatenate(both) if per_example else np.asarray(both[0])
            assert per_example or both[0] == both[1]
            np.testing.assert_array_equal(found, expected)
    highest = [int(np.max(k)) for k in straight]
    assert max(highest) == 2 and (schedule == "constant" or max(highest[:6]) == 0)


def test_k_is_uniform_over_its_range():
    for per_example in (False, True):
        dropping = Dropping(1.0, per_example=per_example)
        k = np.array([dropping.draw(4, 4, 5, step) for step in range(400)])
        counts = np.bincount(k.ravel(), minlength=4)
        assert len(counts) == 4 and (np.abs(counts / k.size - 0.25) < 0.075).all(), counts
        assert not per_example or any(len(set(row)) > 1 for row in k.tolist())


def test_kinds_of_batches_cost_the_same():
    shapes = [(17, 256, 256), (17, 128, 128), (1, 256, 256), (33, 96, 160)]
    sizes = balanced_batch_sizes(shapes, 8, multiple=4)
    assert sizes[0] == 8 and all(size % 4 == 0 for size in sizes)
    pixels = [b * t * h * w for b, (t, h, w) in zip(sizes, shapes, strict=True)]
    assert max(pixels) == pixels[0] and min(pixels) > 0.85 * pixels[0]
    with pytest.raises(ValueError, match="the batch size must be a multiple of 4, got 6"):
        balanced_batch_sizes(shapes, 6, multiple=4)


def test_images_and_two_resolutions_in_one_stream(folders):
    videos = [source_of(folders, "records", size=size) for size in (16, 8)]
    parts = [
        MixtureComponent(videos[0], transforms_of(), 2),
        MixtureComponent(videos[1], transforms_of(8), 8),
        MixtureComponent(source_of(folders, "records", images=True), transforms_of(frames=1), 18),
    ]
    shapes = {batch["video"].shape for batch in take(mixed_batches(parts, ALL, seed=0), 3)}
    assert shapes == {(2, 9, 16, 16, 3), (8, 9, 8, 8, 3), (18, 1, 16, 16, 3)}


# Latents: cached, or encoded on the way


@pytest.fixture
def run(tiny, folders, tmp_path):
    """`run(**latents)`: a run whose VAE is trained, on the prepared videos."""
    model, params, _ = tiny
    save(tmp_path / "video" / "model", Model(model, params))

    def make(data=None, **latents):
        config = LatentsConfig(**{"clips": 20, "batch_size": 1, **latents})
        data = data or DataConfig(source=str(folders["records"]), frames=7, size=16)
        experiment = Experiment(vae=model.config, data=data, latents=config)
        return Run(experiment, tmp_path, make_mesh(1, 1), skips=SkipLog(max_damaged_records=0.2))

    return make


def test_online_latents_are_those_of_their_clips(run, tiny):
    model, params, _ = tiny
    online = run(online=True, flip=0.5, batch_size=2)
    encode_latents(online, "video")
    latents = open_latents(online, "video")
    assert not list(online.folder("latents").glob("*.array_record")) and online.finished("latents")
    source = online.source("train", random=True)
    assert len(latents.source) == len(source) and latents.class_names == source.class_names
    encode = jax.jit(lambda video: model.apply({"params": params}, to_float(video), method="encode"))
    batch = take(train_batches(latents.source, latents.transforms, batch_size=4, seed=0), 1)[0]
    encoded = latents.encode({name: jnp.asarray(value) for name, value in batch.items()})  # two at once
    assert encoded.keys() == {"mean", "logvar", "label"} and encoded["mean"].shape == (4, *latents.shape)
    for i in range(4):
        expected = encode(batch["video"][i : i + 1])
        np.testing.assert_allclose(encoded["mean"][i], expected.mean[0], atol=1e-5)
        np.testing.assert_allclose(encoded["logvar"][i], expected.logvar[0], atol=1e-5)
        assert encoded["label"][i] == batch["label"][i]
    assert [type(t).__name__ for t in latents.transforms][2] == "RandomFlip" and latents.transforms[
        2
    ].probability == 0.5
    with pytest.raises(StaleLatentsError, match="online: cached True, now None"):
        open_latents(run(flip=0.5), "video")


def test_the_devices_of_a_mesh_encode_as_one(run):
    online = run(online=True, batch_size=4)
    encode_latents(online, "video")
    alone, mesh = open_latents(online, "video"), make_mesh(2, 2)
    batch = take(train_batches(alone.source, alone.transforms, batch_size=8, seed=0), 1)[0]
    shared = open_latents(dataclasses.replace(online, mesh=mesh), "video")
    with jax.set_mesh(mesh):
        found = shared.encode(put_batch(mesh, batch))
    expected = alone.encode(put_batch(make_mesh(1, 1), batch))
    for name in expected:
        assert found[name].sharding == batch_sharding(mesh, found[name].shape)
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_processes_and_devices_share_the_work_of_a_cache(run, monkeypatch):
    monkeypatch.setattr(latents_file, "SHARD", 4)  # five files
    cached = run(batch_size=3)
    source, folder = cached.source("train", random=True), cached.folder("latents")
    encode_latents(cached, "video")
    expected = {p.name: p.read_bytes() for p in folder.iterdir()}
    shutil.rmtree(folder)
    begin_cache(folder, cache_key(cached, "video"))
    encode_shards(cached, "video", source, 1, 2)
    assert sorted(p.stem for p in folder.glob("*.array_record")) == ["00001", "00003"]
    encode_shards(cached, "video", source, 0, 3)  # the run goes on with three
    assert sorted(p.stem for p in folder.glob("*.array_record")) == ["00000", "00001", "00003"]
    encode_latents(cached, "video")  # and ends with one
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == expected
    alone = [open_latents(cached, "video")[i] for i in range(20)]
    shutil.rmtree(folder)
    shared = dataclasses.replace(cached, mesh=make_mesh(2, 2))
    encode_latents(shared, "video")
    for i, record in enumerate(alone):
        found = open_latents(shared, "video")[i]
        assert found["label"] == record["label"]
        for name in ("mean", "logvar"):
            np.testing.assert_allclose(found[name], record[name], atol=1e-5)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_whole_files_of_a_cache(run, monkeypatch, number, status):
    """It comes while the second of five files is encoded, and then as the statistics of an online run are."""
    monkeypatch.setattr(latents_file, "SHARD", 4)
    real = latents_stage.batch_sharding

    def second(*arguments):  # of five files: the seventh clip is put on the devices
        if next(batches) == 6:
            os.kill(os.getpid(), number)
        return real(*arguments)

    for config, there in ((run(), ["00000"]), (run(online=True), [])):
        folder, batches = config.folder("latents"), itertools.count()
        monkeypatch.setattr(latents_stage, "batch_sharding", second)
        with pytest.raises(Preempted, match="latents: .*; run the same command to continue") as stopped:
            encode_latents(config, "video")
        assert stopped.value.status == status and not config.finished("latents")
        assert [p.stem for p in folder.iterdir() if p.suffix != ".json"] == there
        monkeypatch.setattr(latents_stage, "batch_sharding", real)
        encode_latents(config, "video")
        assert config.finished("latents")
        shutil.rmtree(folder)


def test_a_cache_holds_several_clips_of_a_video_and_refuses_other_data(run, folders):
    cached = run(flip=0.25)
    encode_latents(cached, "video")
    latents = open_latents(cached, "video")
    assert isinstance(latents, LatentSource) and len(latents) == 20 > len(cached.source("train", random=True)) == 18
    assert not np.array_equal(latents[0]["mean"], latents[18]["mean"]), "the same video at another place"
    online = run(flip=0.25, online=True)
    np.testing.assert_allclose(
        latents.statistics[0],
        np.mean([latents[i]["mean"] for i in range(20)], axis=(0, 1, 2, 3)),
        rtol=1e-5,
    )
    shape = dict(frames=7, size=16)
    changed = {
        "online: cached None, now True": online,
        "flip: cached 0.25, now 0.5": run(flip=0.5),
        "crop: cached 'centre', now 'random'": run(
            DataConfig(str(folders["records"]), crop="random", **shape), flip=0.25
        ),
        "content: cached .*; source: cached": run(DataConfig(str(folders["files"]), **shape), flip=0.25),
    }
    for message, other in changed.items():
        with pytest.raises(StaleLatentsError, match=message):
            open_latents(other, "video")
    (path,) = cached.folder("latents").glob("*.array_record")
    data = bytearray(path.read_bytes())
    data[np.flatnonzero(np.frombuffer(bytes(data), np.uint8))[len(data) // 100]] ^= 1
    path.write_bytes(data)
    damaged = open_latents(cached, "video")
    again = f"pv-vae encode --workdir {cached.workdir} encodes missing and short files again"
    with pytest.raises(BrokenRecordError, match=f"record .* of {path}: .*remove this file; {again}"):
        [damaged[i] for i in range(20)]


@pytest.mark.parametrize("kept", [0.99, None], ids=["short", "gone"])
def test_a_cache_that_lost_records_is_refused_and_encoded_again(run, monkeypatch, kept):
    """Of five files the second is lost: no clip stands in for those, and encoding goes on with that file alone."""
    monkeypatch.setattr(latents_file, "SHARD", 4)
    cached = run()
    encode_latents(cached, "video")
    whole = [item["mean"] for item in map(open_latents(cached, "video").__getitem__, range(20))]
    files = {path: path.read_bytes() for path in cached.folder("latents").iterdir()}
    lost = cached.folder("latents") / "00001.array_record"
    lost.unlink() if kept is None else lost.write_bytes(files[lost][: int(kept * len(files[lost]))])
    with pytest.raises(BrokenRecordError, match="1 files of .* incomplete .*00001.array_record: 0 of 4 .*vae encode"):
        open_latents(cached, "video")
    encoded, real = [], latents_stage._batches
    counted = lambda *given: encoded.extend(given[-1]) or real(*given)  # noqa: E731
    monkeypatch.setattr(latents_stage, "_batches", counted)
    encode_latents(cached, "video")
    assert encoded == [range(4, 8)]
    again = open_latents(cached, "video")
    for i in range(20):
        np.testing.assert_allclose(again[i]["mean"], whole[i], atol=1e-6)

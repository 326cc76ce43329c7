"""The synthetic world, batches by global step, the latent cache: the same question has the same answer, always."""

import json
import pickle

import numpy as np
import pytest
from grain.transforms import RandomMap

from pv_vae_jax.data import latents
from pv_vae_jax.data.latents import LatentSource, StaleLatentsError, completed_records, incomplete_shards, write_latents
from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.data.shards import BrokenRecordError
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import NoVideosError, open_source
from pv_vae_jax.data.synthetic import FAMILIES, SyntheticVideos, _paint, render
from pv_vae_jax.data.transforms import RandomFlip, RandomReverse, RandomWindow

WORLD = SyntheticVideos(clips=24, frames=9, size=24, seed=3)


class Numbers:
    """A source whose clips are their own indices."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return self.clips

    def __getitem__(self, index):
        return {"index": np.int64(index)}


class Draw(RandomMap):
    def random_map(self, element, rng):
        return element | {"draw": rng.random()}


class Broken(Numbers):
    def __getitem__(self, index):
        raise NoVideosError("nothing can be read")


def take(steps, source, transforms=(), flip=0.0, reverse=0.0, **arguments):
    """The first batches of a stream."""
    if source is WORLD:
        transforms = [RandomFlip(flip), RandomReverse(reverse)]
    stream = train_batches(source, transforms, **{"batch_size": 4, "seed": 5, **arguments})
    batches = [next(stream) for _ in range(steps)]
    stream.close()
    return batches


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


# The synthetic world


def test_a_synthetic_clip_depends_on_seed_and_index_alone():
    again = SyntheticVideos(clips=24, frames=9, size=24, seed=3)
    other = SyntheticVideos(clips=24, frames=9, size=24, seed=4)
    for index in (0, 7, 23):
        video = WORLD[index]["video"]
        assert video.shape == (9, 24, 24, 3) and video.dtype == np.uint8
        np.testing.assert_array_equal(video, again[index]["video"])
        assert not np.array_equal(video, other[index]["video"])
        assert (video[1:] != video[:-1]).any((1, 2, 3)).all(), "something moves in every frame"
    for index in (-1, 24):
        with pytest.raises(IndexError):
            WORLD[index]


def test_rendered_clips_are_kept_as_far_as_memory_was_given(monkeypatch):
    from pv_vae_jax.data import synthetic

    drawn = []
    draw = synthetic.render
    monkeypatch.setattr(synthetic, "render", lambda *given: drawn.append(given) or draw(*given))
    source = SyntheticVideos(clips=24, frames=9, size=24, seed=3, cache_bytes=2 * 9 * 24 * 24 * 3 + 1)
    for index in (0, 1, 5, 0, 1, 5, 5):
        found = source[index]
        np.testing.assert_array_equal(found["video"], draw(WORLD.scene(index), 24))
        assert found["label"] == WORLD.scene(index).label
    assert len(drawn) == 5, "two clips are kept, the third is drawn each time"
    with pytest.raises(ValueError):
        source[0]["video"][:] = 0


def test_an_image_is_a_frame_of_its_clip():
    """The lazy world renders the frames that are read alone, and they are those of the clip."""
    seen, images = set(), SyntheticVideos(clips=24, frames=9, size=24, seed=3, lazy=True)
    for index in range(12):
        image = RandomWindow(1).random_map(images[index], np.random.default_rng(index))
        whole = RandomWindow(1).random_map(WORLD[index], np.random.default_rng(index))
        np.testing.assert_array_equal(image["video"], whole["video"])
        assert image["video"].shape == (1, 24, 24, 3) and image["label"] == WORLD[index]["label"]
        (t,) = (t for t in range(9) if np.array_equal(image["video"][0], WORLD[index]["video"][t]))
        seen.add(t)
    assert len(seen) > 3
    np.testing.assert_array_equal(images[3]["video"].read(1, 4, 2), WORLD[3]["video"][1:8:2])


def test_every_family_of_motion_comes_equally_often_and_moves_as_it_is_called():
    labels = [int(WORLD[i]["label"]) for i in range(24)]
    assert WORLD.class_names == FAMILIES
    assert [labels.count(c) for c in range(4)] == [6] * 4
    for index, label in enumerate(labels):
        for sprite in WORLD.scene(index).sprites:
            path, steps = sprite.position, np.diff(sprite.position, axis=0)
            if FAMILIES[label] == "bounce":
                speed = np.abs(steps)
                assert (path >= sprite.radius - 1e-9).all() and (path <= 1 - sprite.radius + 1e-9).all()
                assert (speed <= speed.max(0) + 1e-12).all() and np.isclose(speed, speed.max(0)).mean() > 0.6
            elif FAMILIES[label] == "orbit":  # equal steps that turn by an equal angle
                turn = np.arctan2(steps[:, 0], steps[:, 1])
                np.testing.assert_allclose(np.hypot(*steps.T), np.hypot(*steps[0]))
                np.testing.assert_allclose(np.angle(np.exp(1j * np.diff(turn, 2))), 0, atol=1e-9)
            elif FAMILIES[label] == "fall":
                assert np.ptp(path[:, 1]) == 0 and path[0, 0] == path[:, 0].min() and np.ptp(path[:, 0]) > 0.05
            else:
                assert np.linalg.matrix_rank(path - path[0], tol=1e-9) == 1, "a swing stays on a line"


def test_sprites_in_front_hide_those_behind():
    axis = (np.arange(24) + 0.5) / 24
    y, x = np.meshgrid(axis, axis, indexing="ij")
    overlaps = 0
    for index in range(24):
        scene = WORLD.scene(index)
        back, front = scene.sprites
        both = render(scene, 24)
        front_alone = render(type(scene)(scene.background, (front,), scene.label), 24)
        back_alone = render(type(scene)(scene.background, (back,), scene.label), 24)
        cover, behind = _paint(front, y, x, 24)[0], _paint(back, y, x, 24)[0]
        np.testing.assert_array_equal(both[cover == 1], front_alone[cover == 1])
        np.testing.assert_array_equal(both[cover == 0], back_alone[cover == 0])
        hidden = (cover == 1) & (behind == 1)
        overlaps += bool(hidden.any() and (both[hidden] != back_alone[hidden]).any())
    assert overlaps >= 5


def test_test_clips_are_not_training_clips():
    arguments = dict(frames=3, size=16, clips=40)
    splits = [open_source("synthetic", split=s, seed=seed, **arguments) for seed in (0, 1) for s in ("train", "test")]
    clips = [source[i]["video"].tobytes() for source in splits for i in range(40)]
    assert len(set(clips)) == len(clips)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        open_source("synthetic", split="valid", **arguments)


# Batches


def test_a_batch_does_not_depend_on_hosts():
    arguments = dict(flip=0.5, reverse=0.5)
    alone = take(4, WORLD, **arguments)
    for hosts in (2, 4):
        shares = [take(4, WORLD, host_index=h, host_count=hosts, **arguments) for h in range(hosts)]
        for step, whole in enumerate(alone):
            for name, value in whole.items():
                np.testing.assert_array_equal(np.concatenate([s[step][name] for s in shares]), value)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 parts that hosts read, got 4"):
        take(1, WORLD, host_count=3)


def test_a_batch_does_not_depend_on_restarts_or_threads():
    arguments = dict(flip=0.5, reverse=0.5)
    straight = take(8, WORLD, threads=1, **arguments)
    assert_same(straight, take(8, WORLD, threads=3, **arguments))
    assert_same(straight[5:], take(3, WORLD, start_step=5, **arguments))
    assert not np.array_equal(straight[0]["video"], take(1, WORLD, seed=6, **arguments)[0]["video"])


def test_every_epoch_walks_all_clips_in_a_new_order():
    batches = take(9, Numbers(6), [Draw()])
    index = np.concatenate([b["index"] for b in batches]).reshape(6, 6)
    assert all(sorted(epoch) == list(range(6)) for epoch in index.tolist())
    assert len({tuple(epoch) for epoch in index.tolist()}) > 3
    draws = np.concatenate([b["draw"] for b in batches])
    assert len(set(draws)) == len(draws), "a clip is cut differently every time it comes"


def test_flip_mirrors_and_reverse_plays_backwards():
    plain, flipped, reversed_, half = (take(6, WORLD, **a) for a in ({}, {"flip": 1}, {"reverse": 1}, {"flip": 0.5}))
    mixed = set()
    for a, b, c, d in zip(plain, flipped, reversed_, half, strict=True):
        np.testing.assert_array_equal(b["video"], a["video"][:, :, :, ::-1])
        np.testing.assert_array_equal(c["video"], a["video"][:, ::-1])
        mixed |= {np.array_equal(x, y) for x, y in zip(d["video"], a["video"], strict=True)}
    assert mixed == {True, False}
    both = take(6, WORLD, flip=0.5, reverse=1)
    for a, b in zip(both, half, strict=True):  # turning one on leaves the other's draws alone
        np.testing.assert_array_equal(a["video"], b["video"][:, ::-1])


def test_any_seed_will_do():
    assert_same(take(2, Numbers(9), [Draw()], seed=20_261_231_000), take(2, Numbers(9), [Draw()], seed=20_261_231_000))


def test_an_error_of_the_source_comes_out_of_the_stream_as_it_is():
    with pytest.raises(NoVideosError, match="nothing can be read"):
        take(1, Broken(4))


def test_a_broken_file_is_named_once_by_all_processes(capsys):
    """A worker process has a copy of the log, made by pickling."""
    log = SkipLog()
    log.skip("a.mp4", "torn")
    workers = [pickle.loads(pickle.dumps(log)) for _ in range(2)]
    for each in (*workers, log):
        each.skip("a.mp4", "torn")
        each.skip("b.mp4", "empty")
    assert capsys.readouterr().err.splitlines() == ["skipped a.mp4: torn (1 so far)", "skipped b.mp4: empty (2 so far)"]


# The latent cache

KEY = {"encoder": "abc", "clips": 10}


@pytest.fixture
def posteriors(monkeypatch):
    """Ten records; shards of four, so that ten records make three of them."""
    monkeypatch.setattr(latents, "SHARD", 4)
    rng = np.random.default_rng(0)
    shape = (3, 2, 2, 5)
    return [
        {
            "mean": rng.normal(2, 3, shape).astype(np.float32),
            "logvar": rng.normal(-1, 0.5, shape).astype(np.float32),
            "label": np.int32(i % 3),
        }
        for i in range(10)
    ]


def write(folder, records, key=KEY):
    write_latents(folder, records, key=key, total=10, class_names=("a", "b", "c"))


def shards(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.array_record")}


def test_latents_come_back_as_they_were_written(tmp_path, posteriors):
    write(tmp_path / "latents", posteriors)
    source = LatentSource(tmp_path / "latents", KEY)
    assert len(source) == 10 and source.class_names == ("a", "b", "c")
    assert sorted(shards(tmp_path / "latents")) == [f"0000{i}.array_record" for i in range(3)]
    assert_same([source[i] for i in range(10)], posteriors)


def test_statistics_are_those_of_posterior_samples(tmp_path, posteriors):
    write(tmp_path, posteriors)
    mean, std = LatentSource(tmp_path).statistics
    means, logvars = (np.stack([p[name] for p in posteriors]).astype(np.float64) for name in ("mean", "logvar"))
    noise = np.random.default_rng(1).normal(size=(2_000, *means.shape))
    samples = (means + np.exp(0.5 * logvars) * noise).reshape(-1, 5)
    np.testing.assert_allclose(mean, means.mean((0, 1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, samples.std(0), rtol=2e-3)


def test_an_interrupted_cache_goes_on_to_the_same_bytes(tmp_path, posteriors):
    def dying(records):
        yield from records
        raise KeyboardInterrupt

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    write(straight, posteriors)
    for first, last in ((0, 6), (4, 7), (4, 9)):  # dies in the second shard, in the same again, in the third
        assert completed_records(stopped, KEY) == first
        with pytest.raises(KeyboardInterrupt):
            write(stopped, dying(posteriors[first:last]))
        with pytest.raises(FileNotFoundError, match="no finished latent cache in .*stopped: run pv-vae encode"):
            LatentSource(stopped)
    write(stopped, posteriors[completed_records(stopped, KEY) :])
    assert shards(stopped) == shards(straight)
    assert (stopped / "manifest.json").read_bytes() == (straight / "manifest.json").read_bytes()
    (stopped / "manifest.json").unlink()  # died between the last shard and the manifest
    write(stopped, [])
    assert (stopped / "manifest.json").read_bytes() == (straight / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="expected 10 records, got 7"):
        write(tmp_path / "short", posteriors[:7])


def test_a_file_of_another_cache_is_no_part_of_a_finished_one(tmp_path, posteriors):
    write(tmp_path, posteriors)
    first, second = (tmp_path / f"0000{i}.array_record" for i in range(2))
    before = first.read_bytes()
    for content in (second.read_bytes(), before[: len(before) // 2], b""):
        first.write_bytes(content)
        assert list(incomplete_shards(tmp_path, 10)) == [first]
        with pytest.raises(BrokenRecordError, match=r"1 files of .* are incomplete \(00000.array_record: "):
            LatentSource(tmp_path)
    first.write_bytes(before)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["first_records"]  # as of earlier versions
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert_same([LatentSource(tmp_path)[0]], posteriors[:1])


def test_a_stale_cache_is_refused_with_the_differences(tmp_path, posteriors):
    write(tmp_path, posteriors)
    before = shards(tmp_path)
    other = {"encoder": "xyz", "clips": 10, "flip": True}
    for use in (lambda: LatentSource(tmp_path, other), lambda: write(tmp_path, posteriors, other)):
        with pytest.raises(StaleLatentsError, match="encoder: cached 'abc', now 'xyz'; flip: cached None, now True"):
            use()
    with pytest.raises(StaleLatentsError, match="remove the folder"):
        completed_records(tmp_path, other)
    assert shards(tmp_path) == before and json.loads((tmp_path / "key.json").read_text()) == KEY
    for name, use in (("manifest.json", lambda: LatentSource(tmp_path)), ("key.json", lambda: write(tmp_path, []))):
        (tmp_path / name).write_text("{")
        with pytest.raises(StaleLatentsError, match=f"{name} is damaged .*: remove its folder"):
            use()

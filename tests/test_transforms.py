"""The grain transforms, each alone and together as a user without our sources would chain them."""

import collections
import dataclasses

import grain
import numpy as np
import pytest

from pv_vae_jax.data.clips import LazyClip
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.pipeline import batched, examples, mixed, stack, train_batches
from pv_vae_jax.data.transforms import (
    DropFutureFrames,
    RandomFlip,
    RandomReverse,
    RandomWindow,
    ResizeCrop,
    TransformError,
    clip_transforms,
)
from pv_vae_jax.data.video_container import BrokenVideoError
from pv_vae_jax.dropping import Dropping

ELEMENT = {"video": np.random.default_rng(0).integers(0, 256, (20, 8, 12, 3), np.uint8), "label": 3, "name": "a"}


def rng(seed=0):
    return np.random.default_rng(seed)


def lazy(video, **more):
    """An element whose frames are read on demand, and the list of what was read."""
    asked = []

    def read(start, count, stride):
        asked.append((start, count, stride))
        return video[start : start + (count - 1) * stride + 1 : stride]

    return ELEMENT | {"video": LazyClip(len(video), 24.0, read, **more)}, asked


def test_a_window_starts_anywhere_and_is_all_that_is_read():
    window, video = RandomWindow(5, stride=3), ELEMENT["video"]
    starts = collections.Counter()
    element, asked = lazy(video)
    for seed in range(400):
        found = window.random_map(ELEMENT, rng(seed))
        assert found["video"].shape == (5, 8, 12, 3) and (found["label"], found["name"]) == (3, "a")
        (start,) = (s for s in range(8) if np.array_equal(video[s : s + 13 : 3], found["video"]))
        starts[start] += 1
        np.testing.assert_array_equal(window.random_map(element, rng(seed))["video"], found["video"])
        assert asked[-1] == (start, 5, 3) and len(asked) == seed + 1
    assert sorted(starts) == list(range(8)) and min(starts.values()) > 25, "20 - 12 starts, all alike"


def test_what_cannot_be_read_is_replaced_with_its_label_and_the_same_draw():
    def fails(**_):
        raise BrokenVideoError("torn")

    good = ELEMENT["video"][::-1]
    last, asked = lazy(good)
    seen = []
    short = LazyClip(4, None, fails, instead=lambda error: seen.append(str(error)) or last | {"label": 7})
    broken = LazyClip(30, None, fails, instead=lambda error: seen.append(str(error)) or {"video": short, "label": 1})
    for seed in range(10):
        found = RandomWindow(5).random_map({"video": broken, "label": 0}, rng(seed))
        expected = RandomWindow(5).random_map({"video": good, "label": 7}, rng(seed))
        np.testing.assert_array_equal(found["video"], expected["video"])
        assert found["label"] == 7
    assert seen[:2] == ["torn", "4 frames, but a clip spans 5"]
    with pytest.raises(BrokenVideoError, match="torn"):
        RandomWindow(5).random_map({"video": LazyClip(30, None, fails)}, rng())


def test_crops_are_places_of_the_picture():
    centre, places = ResizeCrop(8, 8), set()
    np.testing.assert_array_equal(centre.random_map(ELEMENT, rng())["video"], ELEMENT["video"][:, :, 2:10])
    for seed in range(50):
        found = ResizeCrop(8, 8, random=True).random_map(ELEMENT, rng(seed))["video"]
        (place,) = (x for x in range(5) if np.array_equal(ELEMENT["video"][:, :, x : x + 8], found))
        places.add(place)
    assert places == set(range(5))
    padded = ResizeCrop(16, 12, fit="pad").random_map(ELEMENT, rng())["video"]
    np.testing.assert_array_equal(padded[:, 4:12], ELEMENT["video"])
    assert padded.shape == (20, 16, 12, 3) and not padded[:, :4].any() and not padded[:, 12:].any()


def test_another_size_is_resized_by_area():
    pytest.importorskip("av", reason="resizing needs PyAV: pip install -e '.[video]'")
    even = np.repeat(np.repeat(ELEMENT["video"], 2, 1), 2, 2)  # every 2 x 2 block is of one colour
    for fit in ("crop", "resize", "pad"):
        found = ResizeCrop(8, 12, fit).random_map({"video": even}, rng())["video"]
        assert np.abs(found.astype(int) - ELEMENT["video"]).max() <= 2
    assert ResizeCrop(6, 6).random_map(ELEMENT, rng())["video"].shape == (20, 6, 6, 3)


@pytest.mark.parametrize(("transform", "axis"), [(RandomFlip, 2), (RandomReverse, 0)])
def test_mirrors_and_reversals_come_as_often_as_asked(transform, axis):
    other = np.flip(ELEMENT["video"], axis)
    for probability, low, high in ((0.0, 0, 0), (1.0, 400, 400), (0.25, 70, 130)):
        found = [transform(probability).random_map(ELEMENT, rng(seed))["video"] for seed in range(400)]
        turned = [np.array_equal(video, other) for video in found]
        assert all(t or np.array_equal(v, ELEMENT["video"]) for t, v in zip(turned, found, strict=True))
        assert low <= sum(turned) <= high


def test_k_is_drawn_by_the_arithmetic_of_the_house():
    batch = {"video": np.zeros((6, 17, 2, 2, 3), np.uint8), "label": np.arange(6)}
    shared, each = DropFutureFrames(0.5, seed=4), DropFutureFrames(seed=4, per_example=True)
    drawn = [shared.map_with_index(step, batch)["dropped"] for step in range(200)]
    assert {k.shape for k in drawn} == {()} and drawn[0].dtype == np.int32
    assert collections.Counter(map(int, drawn)).keys() == {0, 1, 2}  # floor(4 * 0.5)
    assert [int(k) for k in drawn] == [int(Dropping(0.5).draw(5, 6, 4, step)) for step in range(200)]
    found = each.map_with_index(9, batch)
    np.testing.assert_array_equal(found["dropped"], Dropping(1.0, per_example=True).draw(5, 6, 4, 9))
    assert found["video"] is batch["video"] and len(set(found["dropped"].tolist())) > 1
    shares = [
        dataclasses.replace(each, host_index=h, host_count=2).map_with_index(9, {"video": batch["video"][:3]})
        for h in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate([share["dropped"] for share in shares]), found["dropped"])
    ramp = DropFutureFrames(schedule="linear", ramp_steps=100.0)
    first, last = ([int(ramp.map_with_index(s, batch)["dropped"]) for s in range(a, a + 20)] for a in (0, 100))
    assert max(first) == 0 and max(last) == 4
    image = shared.map_with_index(0, {"video": np.zeros((6, 1, 2, 2, 3), np.uint8)})
    assert image["dropped"] == 0


def test_a_list_of_arrays_becomes_training_batches():
    clips = [{"video": rng(i).integers(0, 256, (12 + i, 8, 12, 3), np.uint8), "label": i} for i in range(7)]
    ds = grain.MapDataset.source(clips).seed(0).shuffle().repeat()
    ds = ds.random_map(RandomWindow(9)).random_map(ResizeCrop(8, 8, random=True)).random_map(RandomFlip())
    ds = ds.batch(4, drop_remainder=True).map_with_index(DropFutureFrames(time_factor=4, seed=0))
    batches = [ds[step] for step in range(8)]
    assert {batch["video"].shape for batch in batches} == {(4, 9, 8, 8, 3)}
    assert {int(batch["dropped"]) for batch in batches} == {0, 1, 2}
    again = iter(ds[5:].to_iter_dataset())
    for name in ("video", "label", "dropped"):
        np.testing.assert_array_equal(next(again)[name] if name == "video" else ds[5][name], batches[5][name])


def test_adding_a_transform_changes_no_other_draw():
    clips = [ELEMENT] * 3
    short = examples(clips, [RandomWindow(5), ResizeCrop(8, 8, random=True), RandomFlip(0.5)], seed=3)
    more = [RandomReverse(0.0), RandomWindow(5), RandomReverse(0.0), ResizeCrop(8, 8, random=True), RandomFlip(0.5)]
    for i in range(12):
        np.testing.assert_array_equal(examples(clips, more, seed=3)[i]["video"], short[i]["video"])
    other = examples(clips, [RandomWindow(5), RandomWindow(3)], seed=3)
    starts = {
        next(s for s in range(3) if np.array_equal(other[i]["video"], v[s : s + 3]))
        for i in range(12)
        for v in [examples(clips, [RandomWindow(5)], seed=3)[i]["video"]]
    }
    assert len(starts) > 1, "two of one class draw apart"


def test_a_mixture_spreads_its_parts_evenly():
    parts = [examples([{"n": np.int32(i)}], seed=0).batch(1, drop_remainder=True) for i in range(3)]
    order = [int(batch["n"][0]) for batch in (mixed(parts, [3, 1, 2])[i] for i in range(60))]
    for start in range(0, 60, 6):
        assert sorted(order[start : start + 6]) == [0, 0, 0, 1, 2, 2]
    assert max(len(run) for run in "".join(map(str, order)).replace("1", " ").replace("2", " ").split()) <= 2


PICTURE = {"video": np.zeros((9, 8, 8, 3), np.float32)}
BATCH = {"video": np.zeros((2, 9, 8, 8, 3), np.uint8)}
TOLD = ELEMENT | {"features": np.zeros((20, 2), np.float32)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomWindow(0), "RandomWindow: frames and stride must be at least 1, got 0 and 1"),
        (lambda: RandomFlip(2), r"RandomFlip: the probability must be in \[0, 1\], got 2"),
        (lambda: ResizeCrop(8, 8, "pad", random=True), "ResizeCrop: random=True needs fit='crop', got 'pad'"),
        (lambda: ResizeCrop(0, 8), "height and width must be at least 1"),
        (lambda: DropFutureFrames(1.5).map_with_index(0, BATCH), r"dropping ratio must be in \[0, 1\], got 1.5"),
        (lambda: RandomWindow(21).random_map(ELEMENT, rng()), "RandomWindow: expected at least 21 frames, got 20"),
        (lambda: RandomWindow(3).random_map(np.zeros(3), rng()), "RandomWindow: expected an element with the entry"),
        (
            lambda: RandomFlip().random_map({"label": 1}, rng()),
            "RandomFlip: expected .* 'video', got the entries label",
        ),
        (lambda: RandomFlip().random_map(TOLD, rng()), "RandomFlip: features are not mirrored: set .* to 0"),
        (
            lambda: ResizeCrop(8, 8, random=True).random_map(TOLD, rng()),
            "ResizeCrop: features do not follow a crop: set random=False",
        ),
        (
            lambda: RandomWindow(5).random_map(TOLD | {"features": np.zeros((3, 2))}, rng()),
            "RandomWindow: expected features of 20 frames, got 3",
        ),
        (lambda: RandomFlip().random_map(PICTURE, rng()), r"RandomFlip: .* uint8, got \(9, 8, 8, 3\) float32"),
        (lambda: RandomFlip().random_map(BATCH, rng()), "RandomFlip: .*: put it before batch"),
        (lambda: RandomReverse().random_map(lazy(ELEMENT["video"])[0], rng()), "RandomReverse: .* put RandomWindow"),
        (lambda: stack([lazy(ELEMENT["video"])[0]] * 2), "batch: .* got a LazyClip as 'video': put RandomWindow"),
        (lambda: stack([ELEMENT, {"video": 1}]), "batch: expected the entries video, label, name, got video"),
        (
            lambda: stack([{"video": np.zeros((n, 8, 8, 3))} for n in (9, 5)]),
            r"batch: expected 'video' of one shape, got \(9, 8, 8, 3\) and \(5, 8, 8, 3\): put RandomWindow",
        ),
        (
            lambda: DropFutureFrames().map_with_index(0, {"video": np.zeros((9, 8, 8, 3))}),
            r"DropFutureFrames: expected a batch \(b, 1 \+ n \* 4, H, W, 3\), got \(9, 8, 8, 3\): put it after batch",
        ),
        (lambda: DropFutureFrames(time_factor=5).map_with_index(0, BATCH), r"1 \+ n \* 5, .* let RandomWindow give"),
        (lambda: examples((x for x in [ELEMENT]), seed=0), "expected a grain.MapDataset or a sequence .* generator"),
        (lambda: examples([], seed=0), "expected clips that end, got none"),
        (lambda: examples(grain.MapDataset.range(3).repeat(), seed=0), "expected clips that end, got a data set that"),
        (lambda: batched(examples([ELEMENT], seed=0), 4, host_count=3), "multiple of the 3 parts"),
    ],
)
def test_a_mistake_names_the_transform_and_what_it_expected(call, message):
    with pytest.raises((TransformError, ValueError, TypeError), match=message):
        call()


def test_a_clip_that_is_no_video_ends_the_stream_with_its_reason():
    with pytest.raises(TransformError, match="RandomWindow: expected at least 21 frames"):
        next(train_batches([ELEMENT], clip_transforms(FrameSize(8, 8), 21), batch_size=1, seed=0))


@pytest.mark.slow  # processes are started anew and import everything: 10 s each
def test_worker_processes_give_the_same_batches():
    clips = [{"video": rng(i).integers(0, 256, (12, 8, 8, 3), np.uint8), "label": i} for i in range(5)]
    transforms = clip_transforms(FrameSize(8, 8), 9, flip=0.5, reverse=0.5)
    settings = dict(batch_size=4, seed=2, start_step=3)
    inside = train_batches(clips, transforms, threads=1, **settings)
    expected = [next(inside) for _ in range(5)]
    for workers in (1, 2):
        outside = train_batches(clips, transforms, workers=workers, **settings)
        for batch in expected:
            found = next(outside)
            for name in batch:
                np.testing.assert_array_equal(found[name], batch[name])
        outside.close()

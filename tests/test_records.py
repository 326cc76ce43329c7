"""Prepared shards: what is in them comes back, and what is damaged in them costs nothing else."""

import json
import shutil

import numpy as np
import pytest

from pv_vae_jax.data.clips import DamagedDataError
from pv_vae_jax.data.listing import NoVideosError, video_folder
from pv_vae_jax.data.prepare import ClipSettings, prepare_split
from pv_vae_jax.data.readers.records import RecordReader, pack, read_manifest, unpack
from pv_vae_jax.data.shards import BrokenRecordError, Shards, write_shard
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import class_names, open_source
from pv_vae_jax.data.video_container import EncodedVideo
from pv_vae_jax.data.video_reading import read_video
from pv_vae_jax.data.video_writing import encode_video, write_video
from tests.clips import clip_of
from tests.video_fixture import waves

SHAPE = dict(frames=9, size=16)
SETTINGS = ClipSettings(short_side=24, frames=20, min_frames=9, gop=4)


def rng(i=0):
    return np.random.default_rng(i)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`(folder, source)`: eight files of 45 frames in two classes for training, two for testing; 24 px clips of 20."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("prepared")
    for name in [f"train/{c}/{i}" for c in "ab" for i in range(4)] + ["test/a/8", "test/b/9"]:
        path = source / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, waves(45, 36, 48, seed=int(path.stem) + 10 * ord(path.parent.name)), fps=12)
    for split in ("train", "test"):
        prepare_split(video_folder(source, split), out / split, SETTINGS, files=3)
    return out, source


def copy(folder, target):
    for path in folder.rglob("*.*"):
        (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (target / path.relative_to(folder)).write_bytes(path.read_bytes())
    return target


def damage(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x5A
    path.write_bytes(data)


# Shards


def test_records_of_several_shards_have_one_index(tmp_path):
    records = [rng(i).bytes(50 * i + 1) for i in range(11)]
    paths = [tmp_path / f"{i}.array_record" for i in range(3)]
    parts = [records[:5], [], records[5:]]
    assert [write_shard(path, part) for path, part in zip(paths, parts, strict=True)] == [5, 0, 6]
    shards = Shards(paths, [5, 0, 6])
    assert len(shards) == 11 and [shards[i] for i in range(11)] == records
    for index in (-1, 11):
        with pytest.raises(IndexError):
            shards[index]
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in paths], "no temporary file stays"


def test_a_flipped_bit_never_comes_back_as_data(tmp_path):
    """Wherever the bit is, every record either equals what was written or raises; at most one record is lost."""
    records = [rng(i).bytes(900) for i in range(6)]
    write_shard(tmp_path / "a.array_record", records)
    whole, lost = (tmp_path / "a.array_record").read_bytes(), []
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    for trial, place in enumerate(rng().choice(used, 60, replace=False)):
        data = bytearray(whole)
        data[place] ^= 1 << (trial % 8)
        path = tmp_path / f"{trial}.array_record"
        path.write_bytes(data)
        shards, bad = Shards([path], [6]), 0
        for i in range(6):
            try:
                assert shards[i] == records[i]
            except BrokenRecordError as error:
                assert path.name in str(error)
                bad += 1
        lost.append(bad)
    assert sum(n > 0 for n in lost) > 40 and np.mean([n <= 1 for n in lost]) > 0.9


def test_a_cut_or_missing_shard_loses_its_own_records_only(tmp_path):
    for i in range(3):
        write_shard(tmp_path / f"{i}.array_record", [bytes([i, j]) for j in range(4)])
    (tmp_path / "1.array_record").write_bytes((tmp_path / "1.array_record").read_bytes()[:70_000])
    (tmp_path / "2.array_record").unlink()
    shards = Shards([tmp_path / f"{i}.array_record" for i in range(3)], [4, 4, 4])
    assert [shards[j] for j in range(4)] == [bytes([0, j]) for j in range(4)]
    for index in range(4, 12):
        with pytest.raises(BrokenRecordError, match=f"record {index % 4} of .*{index // 4}.array_record"):
            shards[index]


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    def dying():
        yield b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.array_record", dying())
    assert not (tmp_path / "a.array_record").exists()


def test_a_record_that_is_none_says_so():
    assert unpack(pack(b"video", 7)) == (b"video", 7)
    for record in (b"", b"x" * 40, pack(b"v", 1)[:-2]):
        with pytest.raises(BrokenRecordError, match="not a record of a clip"):
            unpack(record)


# Encoded clips


def test_an_encoded_clip_reads_from_any_frame(tmp_path):
    video = waves(30)
    data = encode_video(video, fps=12, gop=8, crf=10)
    assert data == encode_video(video, fps=12, gop=8, crf=10), "equal frames give equal bytes"
    clip = EncodedVideo("a record", data)
    whole = read_video(clip)
    assert np.abs(whole.astype(int) - video).mean() < 2.5
    for start in (1, 7, 8, 9, 20):
        np.testing.assert_array_equal(read_video(clip, start=start, count=3, stride=3), whole[start : start + 7 : 3])
    with pytest.raises(ValueError, match="a record: 2 of 5 frames"):
        read_video(clip, start=28, count=5)


# The source


def test_clips_are_windows_of_the_records(prepared):
    folder, source = prepared
    train, test = (open_source(str(folder), split=s, random=s == "train", **SHAPE) for s in ("train", "test"))
    assert isinstance(train.reader, RecordReader) and train.class_names == test.class_names == class_names(str(folder))
    assert read_manifest(folder / "train")["clips"] == 8 * 2, (
        "45 frames are two clips of 20; the five that are left are dropped"
    )
    assert len(train) == 16 * 2 and len(test) == 4 * 2, "windows of 9 in clips of 20"
    originals = {}
    for path in sorted(source.rglob("*.mp4")):
        video = read_video(path, short_side=16)
        originals[path] = video[:, :, (video.shape[2] - 16) // 2 :][:, :, :16].astype(int)
    starts = set()
    for i in range(len(train)):
        clip = clip_of(train, i, rng(i))
        assert clip["video"].shape == (9, 16, 16, 3) and clip["video"].dtype == np.uint8
        np.testing.assert_array_equal(clip_of(train, i, rng(i))["video"], clip["video"])
        assert clip_of(train, i, rng(i), frames=1)["video"].shape == (1, 16, 16, 3)
        errors = {
            (path, s): np.abs(video[s : s + 9] - clip["video"]).mean()
            for path, video in originals.items()
            for s in range(37)
        }
        path, start = min(errors, key=errors.get)
        assert errors[path, start] < 6 and path.parents[1].name == "train"
        assert clip["label"] == "ab".index(path.parent.name)
        assert start % 20 <= 11, "windows do not reach across clips"
        starts.add(start)
    assert len(starts) > 8
    np.testing.assert_array_equal(clip_of(test, 0, rng(0))["video"], clip_of(test, 0, rng(1))["video"])


def test_random_crops_are_places_of_the_picture(prepared):
    folder, _ = prepared
    wide = open_source(folder, frames=9, size=16, random=True, crop="random")
    centre = open_source(folder, frames=9, size=16, random=True)
    assert (clip_of(wide, 0, rng(1), crop="random")["video"] != clip_of(centre, 0, rng(1))["video"]).any()
    places = set()
    for draw in range(12):
        place, corner = rng(draw).random(), rng(draw).random(3)[1:]
        video = clip_of(wide, 0, rng(draw), crop="random")["video"]
        data, _ = unpack(wide.reader.shards[wide.windows[0][1]])
        start = int(place * 12)
        whole = read_video(EncodedVideo("", data), short_side=16, start=start, count=9)
        left = int(corner[1] * (whole.shape[2] - 15))
        np.testing.assert_array_equal(video, whole[:, :, left : left + 16])
        places.add(left)
    assert len(places) > 3
    still = open_source(folder, frames=9, size=16, split="test", random=False, crop="random")
    np.testing.assert_array_equal(clip_of(still, 0, rng(0))["video"], clip_of(still, 0, rng(5))["video"])


def test_broken_records_are_named_and_replaced(prepared, tmp_path, capsys):
    folder = copy(prepared[0], tmp_path / "copy")
    good = open_source(prepared[0], **SHAPE)
    path = folder / "train" / "00001.array_record"
    used = np.flatnonzero(np.frombuffer(path.read_bytes(), np.uint8))
    damage(path, used[len(used) // 3])  # inside a record
    with pytest.raises(DamagedDataError, match="1 of the 16 clips .* data.max_damaged_records=0 .*_records=0.07$"):
        strict = open_source(folder, **SHAPE)
        [clip_of(strict, i, rng(i)) for i in range(len(strict))]
    capsys.readouterr()
    log = SkipLog(max_damaged_records=0.07)
    source = open_source(folder, **SHAPE, log=log)
    clips = [clip_of(source, i, rng(i)) for i in range(len(source))]
    same = [np.array_equal(a["video"], clip_of(good, i, rng(i))["video"]) for i, a in enumerate(clips)]
    assert len(source.skipped) >= 1 and 0.8 < np.mean(same) < 1
    assert "00001.array_record" in "".join(source.skipped.values())
    assert capsys.readouterr().err.count("skipped") == len(source.skipped), "told once"
    again = open_source(folder, **SHAPE, log=log)
    for i in reversed(range(len(source))):
        np.testing.assert_array_equal(clip_of(again, i, rng(i))["video"], clips[i]["video"])
    assert again.skipped.keys() == source.skipped.keys() and not capsys.readouterr().err, "nor by another of its run"


def test_a_shard_that_is_gone_is_missed_unless_asked_for_otherwise(prepared, tmp_path):
    folder = copy(prepared[0], tmp_path / "copy")
    (folder / "train" / "00000.array_record").unlink()
    damaged = folder / "train" / "00001.array_record"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    both = "12 of the 16 clips .*00000.array_record: the file is missing; 00001.array_record: .* bytes instead of"
    with pytest.raises(DamagedDataError, match=f"{both} .*: run the same pv-vae prepare again, which makes missing"):
        open_source(folder, **SHAPE)
    source = open_source(folder, **SHAPE, log=SkipLog(max_damaged_records=0.75))
    assert set(source.skipped) == {"00000.array_record", "00001.array_record"} and 0 < len(source) < 32
    assert all(clip_of(source, i, rng(i))["video"].shape == (9, 16, 16, 3) for i in range(len(source)))
    (folder / "train" / "00002.array_record").unlink()
    with pytest.raises(NoVideosError, match="no clip of .*00000.array_record: the file is missing"):
        open_source(folder, **SHAPE, log=SkipLog(max_damaged_records=1))


def test_a_folder_that_is_not_finished_says_what_to_do(prepared, tmp_path):
    folder = copy(prepared[0], tmp_path / "copy")
    with pytest.raises(NoVideosError, match="no clip of .* has the required 25 frames, the longest has 20"):
        open_source(str(folder), split="train", frames=25, size=16)
    told = json.loads((folder / "train" / "manifest.json").read_text())
    told["shards"][0]["lengths"].pop()  # all that come after would have the length of another
    (folder / "train" / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(NoVideosError, match="manifest.json is damaged .*lengths"):
        open_source(str(folder), split="train", **SHAPE)
    (folder / "train" / "manifest.json").write_text("{")
    with pytest.raises(NoVideosError, match="manifest.json is damaged .* run the same pv-vae prepare again"):
        open_source(str(folder), split="train", **SHAPE)
    (folder / "train" / "manifest.json").write_text('{"format": "pv_vae_jax clips 9"}')
    with pytest.raises(NoVideosError, match="has format 'pv_vae_jax clips 9', this version reads"):
        open_source(str(folder), split="train", **SHAPE)
    (folder / "train" / "manifest.json").unlink()
    with pytest.raises(NoVideosError, match="is unfinished: run the same pv-vae prepare again"):
        open_source(str(folder), split="train", **SHAPE)
    for path in (folder / "test").iterdir():
        path.unlink()
    (folder / "test").rmdir()
    with pytest.raises(NoVideosError, match="was prepared without the split test"):
        open_source(str(folder), split="test", **SHAPE)
    only = copy(prepared[0], tmp_path / "only")
    shutil.rmtree(only / "train")
    for look in (lambda: open_source(str(only), split="train", **SHAPE), lambda: class_names(str(only))):
        with pytest.raises(NoVideosError, match="was prepared without the split train: add it with --split=train"):
            look()

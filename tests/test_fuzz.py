"""Five hundred damaged files: none stops anything, none gives anything but a clip, every one is accounted for."""

import json

import numpy as np
import pytest

from pv_vae_jax.data import video_container
from pv_vae_jax.data.listing import SplitIndex, VideoEntry
from pv_vae_jax.data.prepare import ClipSettings
from pv_vae_jax.data.prepare.tasks import plan, run_task
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import open_source
from pv_vae_jax.data.video_container import BrokenVideoError, EncodedVideo, probe
from pv_vae_jax.data.video_reading import read_video
from pv_vae_jax.data.video_writing import encode_video, write_video
from tests.clips import clip_of
from tests.video_fixture import encode, encode_sound, waves

FILES = 500
SHAPE = dict(frames=9, size=16)
KINDS = {
    "a.mp4": dict(g=8),
    "b.mov": dict(g=12, bf=2),
    "c.mkv": dict(g=8),
    "d.avi": dict(codec="mpeg4", g=12),
    "e.mpg": dict(codec="mpeg1video", rate=25, g=12),
    "f.gif": dict(codec="gif", pixels="rgb8", rate=10),
    "g.webm": dict(codec="libvpx", g=8),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the ways in which files break."""
    data, n = bytearray(data), len(data)
    at = int(rng.integers(0, n))
    kind = rng.integers(0, 8)
    if kind == 0:  # a download that stopped
        return bytes(data[:at])
    if kind == 1:  # bit rot
        for place in rng.integers(0, n, rng.integers(1, 40)):
            data[place] ^= 1 << rng.integers(0, 8)
    elif kind == 2:  # bit rot in the header
        for place in rng.integers(0, min(n, 600), rng.integers(1, 12)):
            data[place] ^= 1 << rng.integers(0, 8)
    elif kind == 3:  # a hole
        data[at : at + 700] = bytes(len(data[at : at + 700]))
    elif kind == 4:  # a lost block
        del data[at : at + int(rng.integers(1, 2_000))]
    elif kind == 5:  # a block of something else
        data[at : at + 500] = rng.bytes(500)
    elif kind == 6:  # a block twice
        data[at:at] = data[max(0, at - 800) : at]
    else:  # no video at all
        return rng.bytes(int(rng.integers(0, 3_000)))
    return bytes(data)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A folder of damaged files, ten whole ones, and one of every kind that is whole but of no use."""
    folder, whole = tmp_path_factory.mktemp("fuzzed"), tmp_path_factory.mktemp("whole")
    for i, (name, options) in enumerate(KINDS.items()):
        encode(whole / name, waves(20, seed=i), **options)
    originals = {path.name: path.read_bytes() for path in whole.iterdir()}
    for i in range(FILES):
        rng = np.random.default_rng(i)
        name = sorted(originals)[i % len(originals)]
        suffix = name[1:] if i % 5 else sorted(originals)[(i + 3) % len(originals)][1:]  # a wrong extension
        (folder / f"{i:03}{suffix}").write_bytes(damaged(originals[name], rng))
    for i in range(10):
        (folder / f"good{i}.mp4").write_bytes(originals["a.mp4"])
    (folder / "empty.mp4").touch()
    encode_sound(folder / "sound.mp4")
    write_video(folder / "one.mp4", waves(1))
    encode(folder / "odd.mkv", waves(30, 31, 47), codec="ffv1", pixels="yuv444p")
    encode(folder / "phone.mp4", waves(30), g=8, times=np.cumsum(np.random.default_rng(0).integers(20, 90, 30)))
    return folder


def test_training_meets_every_file_and_goes_on(fuzzed, capsys):
    seen = 0
    for split in ("train", "test"):
        source = open_source(fuzzed, split=split, **SHAPE, log=SkipLog(max_damaged_files=1))
        for i, (_, file) in enumerate(source.windows):
            clip = clip_of(source, i, np.random.default_rng(i))
            assert clip["video"].shape == (9, 16, 16, 3) and clip["video"].dtype == np.uint8
            assert clip_of(source, i, np.random.default_rng(i), frames=1)["video"].shape == (1, 16, 16, 3)
            if source.reader.paths[file] not in source.skipped and source.reader.paths[file].name.startswith("good"):
                assert clip["video"].std() > 10
        used = set(source.reader.paths) - set(source.skipped)
        assert len(source.windows) < 20 * len(source.reader.paths), "a damaged header does not promise endless windows"
        assert all(source.skipped.values()), "a reason for each"
        names = {p.name for p in used}
        good = {p.name for p in source.reader.paths if p.name.startswith("good")}
        assert {n for n in names if n.startswith("good")} == good
        assert not names & {"empty.mp4", "sound.mp4", "one.mp4"}
        seen += len(used) + len(source.skipped)
    assert seen == FILES + 15
    assert capsys.readouterr().err.count("skipped /") > 200


def test_preparing_accounts_for_every_file(fuzzed, tmp_path):
    items = tuple(VideoEntry(path, path.name) for path in sorted(fuzzed.iterdir()))
    settings = ClipSettings(short_side=16, frames=20, min_frames=9, gop=8, fps=12)
    clips, skipped = {}, {}
    for task in plan(SplitIndex("folder", ("all",), items), tmp_path, settings, files=200):
        run_task(task)
        shard = json.loads(task.path.with_suffix(".json").read_text())
        skipped |= shard["skipped"]
        for name, length in zip(shard["names"], shard["lengths"], strict=True):
            assert 9 <= length <= 20
            clips.setdefault(name.split("#")[0], []).append(length)
    assert clips.keys() | skipped.keys() == {item.name for item in items} and not clips.keys() & skipped.keys()
    assert all(f"good{i}.mp4" in clips for i in range(10)) and {"odd.mkv", "phone.mp4"} <= clips.keys()
    assert {"empty.mp4", "sound.mp4", "one.mp4"} <= skipped.keys() and all(skipped.values())
    assert max(map(len, clips.values())) < 50, "times that were damaged make no endless clips"


def test_pictures_too_large_to_decode_are_refused(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", waves(12))
    monkeypatch.setattr(video_container, "MAX_PIXELS", 32 * 48 - 1)
    for read in (probe, read_video):
        with pytest.raises(BrokenVideoError, match="a.mp4: frames of 32 x 48, more than 1535 pixels"):
            read(tmp_path / "a.mp4")


def test_records_with_flipped_bytes_give_clips_or_reasons():
    data = encode_video(waves(20), fps=12, gop=8, crf=18)
    outcomes = set()
    for i in range(200):
        try:
            video = read_video(EncodedVideo(f"record {i}", damaged(data, np.random.default_rng(i))), start=3, count=9)
            assert video.shape[0] == 9 and video.dtype == np.uint8
            outcomes.add("clip")
        except BrokenVideoError as error:
            assert f"record {i}" in str(error)
            outcomes.add("reason")
    assert outcomes == {"clip", "reason"}


def test_a_source_of_fuzz_alone_says_so(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.mp4").write_bytes(np.random.default_rng(i).bytes(400))
    with pytest.raises(ValueError, match="none of the .* can be used: .*not readable as video.*; and .* more"):
        open_source(str(tmp_path), split="train", **SHAPE)

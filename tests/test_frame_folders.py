"""Folders of frames as clips: which folders are taken for what, which pixels are read, and what every command sees."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from pv_vae_jax.data.clips import ClipSource
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError, frame_folders_below, list_frames
from pv_vae_jax.data.prepare import ClipSettings, prepare_dataset, prepare_split
from pv_vae_jax.data.readers.frame_folders import FrameFolders, probe_frames, read_frames
from pv_vae_jax.data.readers.image_files import read_image
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import (
    class_names,
    describe,
    detect_format,
    fingerprint,
    list_clips,
    list_dataset,
    open_source,
)
from pv_vae_jax.data.video_container import BrokenVideoError, VideoInfo
from pv_vae_jax.evaluation.clip_sets import FolderClips, Window
from pv_vae_jax.evaluation.features import FeatureError
from tests.clips import clip_of
from tests.video_fixture import waves

SUNDRY = ("n01440764_10026", "n01440764_9971", "n01440764_31", "n01440764_4471")  # of one class of ImageNet


def rng(i=0):
    return np.random.default_rng(i)


def write(folder, video, name="{:05d}.png", first=0):
    """The frames of a clip as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(video):
        Image.fromarray(frame).save(folder / name.format(first + i))
    return folder


def fake(folder, names):
    """Empty files, where names alone count."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def numbered(count, name="{:05d}.jpg", first=0):
    return [name.format(first + i) for i in range(count)]


def names(index):
    return [entry.name for entry in index.items]


def both(folder):
    return [list_dataset(folder, split) for split in ("train", "test")]


def test_frames_are_read_exactly(tmp_path):
    video = waves(12)
    folder = write(tmp_path / "a", video, "frame_{}.png", first=1)  # frame_10 comes before frame_2 in the alphabet
    (folder / ".frame_3.png").write_text("hidden")
    (folder / "notes.txt").write_text("no frame")
    assert list_frames(folder) == [f"frame_{i}.png" for i in range(1, 13)]
    np.testing.assert_array_equal(read_frames(folder), video)
    np.testing.assert_array_equal(read_frames(folder, start=2, count=4, stride=3), video[2:12:3])
    small = [read_image(folder / name, short_side=16) for name in list_frames(folder)[4:6]]
    np.testing.assert_array_equal(read_frames(folder, resize=FrameSize(16, 16), start=4, count=2), small)
    assert probe_frames(folder) == VideoInfo(12, 25.0, 32, 48)
    with pytest.raises(BrokenVideoError, match="a: 2 of 3 frames from frame 10 on exist"):
        read_frames(folder, start=10, count=3)


def test_only_the_window_is_decoded(tmp_path, monkeypatch):
    folder, read = write(tmp_path / "a", waves(12)), []
    monkeypatch.setattr(
        "pv_vae_jax.data.readers.frame_folders.read_image",
        lambda path, **_: read.append(path.name) or np.zeros((1, 1, 3)),
    )
    reader = FrameFolders(tmp_path, "train", list_clips(tmp_path), size=FrameSize(16, 16))
    assert len(reader) == 1 and list(reader.lengths) == [12] and not read, "lengths come from names"
    read_frames(folder, start=3, count=3, stride=2)
    assert read == ["00003.png", "00005.png", "00007.png"]


@pytest.mark.parametrize(
    "files, reason",
    [
        ([f"{name}.JPEG" for name in SUNDRY], "4 images are numbered from 31 to 10026"),
        (["a_1.jpg", "b_2.jpg"], "a_1.jpg and b_2.jpg differ in more than their numbers"),
        (["1.jpg", "2.png"], "1.jpg and 2.png differ in more"),
        (["1.jpg", "01.jpg"], "have the same number"),
        (["1.jpg", "cover.jpg"], "cover.jpg does not end in a number"),
        (["1.txt"], "no images"),
    ],
)
def test_what_is_not_a_sequence_says_why(tmp_path, files, reason):
    fake(tmp_path / "clip", files)
    with pytest.raises(BrokenVideoError, match=f"clip: .*{reason}"):
        list_frames(tmp_path / "clip")


def test_frames_may_be_thinned_out_or_miss_a_few(tmp_path):
    for i, numbers in enumerate(([0, 5, 10, 15], [7, 8, 10, 11, 12], [3], [46, 47])):
        fake(tmp_path / str(i), [f"vid-1_frames_{n:08d}.JPG" for n in numbers])
        assert len(list_frames(tmp_path / str(i))) == len(numbers)


# Layouts


def test_plain_layouts(tmp_path):
    for clip in "abcd":
        fake(tmp_path / "plain" / clip, numbered(3))
        for c in ("run", "walk"):
            fake(tmp_path / "classes" / c / clip, numbered(3))
        fake(tmp_path / "split" / ("test" if clip == "d" else "train") / clip, numbered(3, "{:04d}.png", 1))
        fake(tmp_path / "both" / ("test" if clip == "d" else "train") / "run" / clip, numbered(3))
    fake(tmp_path / "both" / "train" / "walk" / "e", numbered(3))
    for c in ("run", "walk"):
        fake(tmp_path / "classes" / c, ["cover.jpg"])  # is no clip and makes none of the class
    for name, classes, clips in (
        ("plain", ("plain",), [f"{c}" for c in "abcd"]),
        ("classes", ("run", "walk"), [f"{k}/{c}" for k in ("run", "walk") for c in "abcd"]),
        ("split", ("split",), ["test/d", "train/a", "train/b", "train/c"]),
        ("both", ("run", "walk"), ["test/run/d", "train/run/a", "train/run/b", "train/run/c", "train/walk/e"]),
    ):
        folder = tmp_path / name
        assert detect_format(folder) == "frames" and class_names(str(folder)) == classes
        train, test = both(folder)
        assert train.kind == test.kind == "frames" and train.items and test.items
        assert sorted(names(train) + names(test)) == clips == names(list_clips(folder))
        assert all(entry.path == folder / entry.name for entry in train.items + test.items)
        if name in ("split", "both"):
            assert names(test) == [clip for clip in clips if clip.startswith("test")]
        if name in ("classes", "both"):
            assert all(classes[e.label] in e.name.split("/") for e in train.items + test.items)


def test_the_hold_out_does_not_depend_on_other_clips(tmp_path):
    for i in range(60):
        fake(tmp_path / f"c{i}", numbered(2))
    before = {name for name in names(list_dataset(tmp_path, "test"))}
    assert 1 <= len(before) < 20
    for i in range(60, 80):
        fake(tmp_path / f"c{i}", numbered(2))
    assert {n for n in names(list_dataset(tmp_path, "test")) if int(n[1:]) < 60} == before


def test_davis(tmp_path):
    for size in ("480p", "Full-Resolution"):
        for clip in ("bear", "bus", "camel"):
            fake(tmp_path / "JPEGImages" / size / clip, numbered(3))
            fake(tmp_path / "Annotations" / size / clip, numbered(3, "{:05d}.png"))
    assert detect_format(tmp_path) == "davis"
    with pytest.raises(NoVideosError, match="ImageSets/2017/train.txt is missing: it is part of DAVIS"):
        list_dataset(tmp_path, "train")
    lists = tmp_path / "ImageSets" / "2016"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("bear\nbus\ndog\n")
    (lists / "val.txt").write_text("camel\n")
    train, test = both(tmp_path)
    assert names(train) == ["JPEGImages/480p/bear", "JPEGImages/480p/bus"] and names(test) == ["JPEGImages/480p/camel"]
    assert train.dataset == "DAVIS 2016 480p" and list(train.absent) == ["JPEGImages/480p/dog"]
    assert names(list_clips(tmp_path)) == [f"JPEGImages/480p/{c}" for c in ("bear", "bus", "camel")], "no annotations"
    (tmp_path / "ImageSets" / "2017").mkdir()
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("camel\n")
    shutil.rmtree(tmp_path / "JPEGImages" / "480p")
    assert names(list_dataset(tmp_path, "train")) == ["JPEGImages/Full-Resolution/camel"]
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("cow\n")
    with pytest.raises(NoVideosError, match=r"none of the 1 videos of DAVIS 2017 .*CLIP/00000.jpg \(.jpeg"):
        list_dataset(tmp_path, "train")


def test_sky_timelapse(tmp_path):
    sky = tmp_path / "sky_timelapse"
    for split, clips in (("train", ("07U_-1/07U_-1_1", "07U_-1/07U_-1_2", "a9/a9_1")), ("test", ("z/z_1",))):
        for clip in clips:
            video = clip.split("/")[0]
            fake(sky / f"sky_{split}" / clip, numbered(4, video + "_frames_{:08d}.jpg", 46))
    (sky / "readme").touch()
    train, test = both(sky)
    assert detect_format(sky) == "sky_timelapse" and train.class_names == test.class_names == ("sky",)
    assert len(train.items) == 3 and names(test) == ["sky_test/z/z_1"]
    assert list_frames(train.items[0].path)[0] == "07U_-1_frames_00000046.jpg"
    assert names(list_clips(sky / "sky_test")) == ["z/z_1"], "a split alone can be compared"
    with pytest.raises(NoVideosError, match=f"one split of Sky Timelapse, .*: use {sky}$"):
        list_dataset(sky / "sky_train", "train")
    shutil.rmtree(sky / "sky_test")
    with pytest.raises(NoVideosError, match="sky_test is missing or holds no images"):
        list_dataset(sky, "test")


def test_images_of_classes_are_not_clips(tmp_path):
    for split in ("train", "val"):
        for c in ("n01440764", "n02102040"):
            fake(tmp_path / "imagenet" / split / c, [f"{name.replace('n01440764', c)}.JPEG" for name in SUNDRY])
            fake(tmp_path / "numbered" / split / c, numbered(9))  # by the name of its splits alone
    assert detect_format(tmp_path / "imagenet") == detect_format(tmp_path / "numbered") == "imagenet"
    shutil.rmtree(tmp_path / "imagenet" / "val")
    assert detect_format(tmp_path / "imagenet") == "imagenet"
    (tmp_path / "imagenet" / "train").rename(tmp_path / "imagenet" / "all")
    assert detect_format(tmp_path / "imagenet") == "folder"
    with pytest.raises(
        NoVideosError, match="its images are not the frames of clips: .*n01440764: 4 images are numbered"
    ):
        list_dataset(tmp_path / "imagenet", "train")
    with pytest.raises(FeatureError, match="expected video files or folders of frames in .*, got the format imagenet"):
        FolderClips(tmp_path / "numbered", Window(2))


def test_nothing_is_lost_in_silence(tmp_path):
    fake(tmp_path / "run" / "a", numbered(3))
    fake(tmp_path / "run" / "b", numbered(3))
    fake(tmp_path / "c", numbered(3))
    with pytest.raises(NoVideosError, match="c belongs to no class, and 0 more: expected every folder of frames"):
        list_dataset(tmp_path, "train")
    shutil.rmtree(tmp_path / "c")
    fake(tmp_path / "walk", ["a.mp4"])
    mixed = r"holds video files \(.*walk/a.mp4\) and folders of frames \(.*run/a\), and only one kind can be read"
    for call in (list_dataset, lambda folder, _: list_clips(folder), lambda *a: list_dataset(*a, "folder")):
        with pytest.raises(NoVideosError, match=mixed):
            call(tmp_path, "train")
    with pytest.raises(FeatureError, match=mixed):
        FolderClips(tmp_path, Window(2))
    shutil.rmtree(tmp_path / "run")
    fake(tmp_path / "walk", numbered(3))  # thumbnails, in the folder of the video
    fake(tmp_path / "covers", ["walk.jpg", "run.jpg"])
    assert names(list_clips(tmp_path)) == ["walk/a.mp4"] and detect_format(tmp_path) == "folder"
    (tmp_path / "ffs.zip").touch()
    with pytest.raises(NoVideosError, match="ffs.zip is a ZIP archive: unzip it"):
        open_source(tmp_path / "ffs.zip", split="train", frames=5, size=16)
    fake(tmp_path / "valid" / "train" / "a", numbered(3))
    fake(tmp_path / "valid" / "valid" / "b", numbered(3))
    with pytest.raises(NoVideosError, match="holds train, valid, which are splits, .*the held-out part is called test"):
        list_dataset(tmp_path / "valid", "train")


# Training, preparing, evaluating


@pytest.fixture
def clips(tmp_path):
    """Five clips of 12 frames in two splits."""
    for i in range(5):
        write(tmp_path / "clips" / ("train" if i < 4 else "test") / f"c{i}", waves(12, seed=i))
    return tmp_path / "clips"


def test_clips_are_trained_on(clips):
    source = open_source(clips, split="train", frames=3, stride=2, size=16, random=False)
    assert isinstance(source, ClipSource) and isinstance(source.reader, FrameFolders) and len(source) == 4 * 2
    for cache_bytes in (0, 1 << 28):
        source = open_source(clips, split="train", frames=3, stride=2, size=32, random=False, cache_bytes=cache_bytes)
        for i in range(8):  # window 0 of every clip, then window 1
            clip = clip_of(source, i, rng(i))
            window = waves(12, seed=i % 4)[i // 4 * 5 :][:5:2]
            np.testing.assert_array_equal(clip["video"], window[:, :, 8:40])
    assert "4 for training (8 windows of 3 frames)" in describe(source, "clips")
    images = open_source(clips, split="train", frames=1, size=16, images=True)
    assert clip_of(images, 0, rng())["video"].shape == (1, 16, 16, 3)


def test_a_damaged_frame_is_replaced_and_named_once(clips, capsys):
    bad = clips / "train" / "c1" / "00007.png"
    bad.write_bytes(bad.read_bytes()[:60])
    write(clips / "train" / "c2", waves(1, 40, 40), first=3)
    write(clips / "train" / "c9", waves(3))
    log = SkipLog(max_damaged_files=0.5)
    for size, cache_bytes in ((16, 0), (16, 1 << 28), (32, 0)):
        settings = dict(frames=6, size=size, random=False, log=log, cache_bytes=cache_bytes)
        source = open_source(clips, split="train", **settings)
        found = [clip_of(source, i, rng(i))["video"] for i in range(8)]  # windows 0 of c0..c3, then 1
        whole = {c: read_frames(clips / "train" / c, resize=FrameSize.of(size)) for c in ("c0", "c3")}
        left = round(size * 1.5 - size) // 2
        np.testing.assert_array_equal(found[5], found[2 + 4 + 0])  # c1 from frame 6 on: that of c2 replaces it
        np.testing.assert_array_equal(found[2], whole["c3"][:6, :, left : left + size])  # c2's sizes differ
        assert source.replaced == {2, 5}
    printed = capsys.readouterr().err
    assert printed.count("skipped") - printed.count("folders of frames skipped") == 3
    assert "c1: frame 00007.png: not readable as image" in printed
    assert "c2: expected frames of 16 x 24, got 16 x 16 in 00003.png" in printed
    assert "c9: 3 frames, but a clip spans 6" in printed
    with pytest.raises(BrokenVideoError, match="clips/train/c1: frame 00007.png: not readable"):
        read_frames(clips / "train" / "c1")


def test_every_command_lists_the_same_clips(clips, tmp_path):
    write(clips / "train" / ".hidden", waves(3))
    seen = FolderClips(clips, Window(5))
    train, test = (open_source(clips, split=s, frames=5, size=16) for s in ("train", "test"))
    assert sorted(seen.files) == sorted(train.reader.paths + test.reader.paths) == frame_folders_below(clips)
    np.testing.assert_array_equal(seen.clip(1), waves(12, seed=0)[:5])  # test/c4 is the first
    assert seen.clip(0).shape == (5, 32, 48, 3) and seen.describe()["pixels"].startswith("decoded frames")
    assert FolderClips(clips, Window(5), size=16).clip(0).shape == (5, 16, 16, 3)
    assert len(FolderClips(clips / "train" / "c1", Window(5))) == 1, "the folder of one clip"
    settings = ClipSettings(short_side=16, frames=12, min_frames=2, crf=0)
    run = lambda listing, folder: prepare_split(listing, folder, settings)  # noqa: E731
    manifests = prepare_dataset(clips, tmp_path / "shards", run)
    assert [(m["dataset"], m["files"], m["clips"], m["frames"]) for m in manifests.values()] == [
        *(("frames", 4, 4, 48), ("frames", 1, 1, 12))
    ]
    shards = open_source(tmp_path / "shards", split="test", frames=12, size=16, random=False)
    pixels = read_frames(clips / "test" / "c4", resize=FrameSize(16, 16))[:, :, 4:20].astype(int)
    assert np.abs(clip_of(shards, 0, rng())["video"] - pixels).mean() < 4
    with pytest.raises(NoVideosError, match="holds frames without times: leave fps at 0"):
        prepare_split(list_dataset(clips, "train"), tmp_path / "other", dataclasses.replace(settings, fps=8.0))


def test_a_damaged_frame_is_named_by_prepare(clips, tmp_path):
    (clips / "train" / "c1" / "00007.png").write_text("no image")
    settings = ClipSettings(short_side=16, frames=12, min_frames=2)
    manifest = prepare_split(list_dataset(clips, "train"), tmp_path / "train", settings)
    assert manifest["clips"] == 3 and list(manifest["skipped"]) == ["train/c1"]
    assert manifest["skipped"]["train/c1"].startswith("frame 00007.png: not readable as image")


def test_the_fingerprint_follows_names_and_sizes(clips, monkeypatch):
    monkeypatch.setattr("pv_vae_jax.data.readers.frame_folders.read_image", None)
    folder, before = clips / "train" / "c0", fingerprint(str(clips))
    assert fingerprint(str(clips)) == before
    (folder / ".DS_Store").touch()
    (clips / "test" / "c4" / "00000.png").touch()
    assert fingerprint(str(clips)) == before, "hidden files and other splits do not count"
    (folder / "00011.png").rename(folder / "00012.png")
    renamed = fingerprint(str(clips))
    (folder / "00012.png").write_bytes(b"x")
    assert len({before, renamed, fingerprint(str(clips))}) == 3

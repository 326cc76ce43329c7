"""Published data sets, on files laid out as they are published: splits, labels, and words for what is missing."""

import dataclasses
import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pv_vae_jax.convert.pickles import UnsafePickleError
from pv_vae_jax.data import datasets
from pv_vae_jax.data.datasets import imagenet, kinetics400, read_cameras, realestate10k, ucf101
from pv_vae_jax.data.listing import NoVideosError, video_folder
from pv_vae_jax.data.prepare import ClipSettings, prepare_split
from pv_vae_jax.data.readers.image_files import ImageFiles, read_image
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import class_names, describe, detect_format, fingerprint, list_dataset, open_source
from pv_vae_jax.data.video_container import BrokenVideoError
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.stages import build_stage
from studies.probes import published as probes
from studies.probes.pickled_arrays import read_pickle
from tests.clips import clip_of
from tests.video_fixture import encode, waves

image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install -e '.[video]'")


def rng(i=0):
    return np.random.default_rng(i)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(listing):
    return [item.name for item in listing.items]


# UCF101


@pytest.fixture
def ucf(tmp_path):
    """Two classes, windows line ends and all, as UCF101TrainTestSplits-RecognitionTask.zip has them."""
    classes, lists = ("ApplyEyeMakeup", "HandstandPushups"), tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "".join(f"{i} {c}\r\n" for i, c in enumerate(classes, 1)) + "\r\n")
    for fold in (1, 2, 3):
        train, test = [], []
        for label, c in enumerate(classes, 1):
            for group in (1, 2, 3, 4):
                # The one class whose files are spelt otherwise than their folder.
                name = f"{c}/v_{c.replace('Handstand', 'HandStand')}_g{group:02}_c01.avi"
                touch(tmp_path / "UCF-101" / name)
                (test.append(name) if group == fold else train.append(f"{name} {label}"))
        write(lists / f"trainlist0{fold}.txt", "\n".join(train) + "\n")
        write(lists / f"testlist0{fold}.txt", "\n".join(test) + "\n")
    return tmp_path


def test_ucf101_has_its_three_splits(ucf):
    assert detect_format(ucf) == "ucf101" and class_names(str(ucf)) == ("ApplyEyeMakeup", "HandstandPushups")
    for fold in (1, 2, 3):
        train, test = (ucf101(ucf, split, fold=fold) for split in ("train", "test"))
        assert len(train.items) == 6 and len(test.items) == 2 and not set(names(train)) & set(names(test))
        assert {n.split("_g")[1][:2] for n in names(test)} == {f"0{fold}"}
        assert train.dataset == test.dataset == ("UCF101", "UCF101 split 2", "UCF101 split 3")[fold - 1]
        for item in train.items + test.items:
            assert item.path == ucf / "UCF-101" / item.name and item.path.is_file()
            assert item.label == train.class_names.index(item.name.split("/")[0])
    with pytest.raises(NoVideosError, match="splits 1, 2 and 3, got 4"):
        ucf101(ucf, "train", fold=4)


def test_ucf101_says_what_is_missing(ucf):
    gone = ucf101(ucf, "train").items[2]
    gone.path.unlink()
    listing = ucf101(ucf, "train")
    assert len(listing.items) == 5 and listing.absent == {gone.name: f"expected at {gone.path}"}
    gone.path.symlink_to("nowhere")
    assert gone.name in ucf101(ucf, "train").absent
    (ucf / "ucfTrainTestlist" / "testlist01.txt").unlink()
    with pytest.raises(NoVideosError, match="testlist01.txt is missing: it is part of UCF101"):
        ucf101(ucf, "test")
    (ucf / "UCF-101").rename(ucf / "videos")
    with pytest.raises(NoVideosError, match="none of the 6 videos .*expected at .*UCF-101.*v_CLASS_gXX_cYY.avi"):
        ucf101(ucf, "train")
    write(ucf / "ucfTrainTestlist" / "classInd.txt", "1 A\n3 B\n")
    with pytest.raises(NoVideosError, match="classInd.txt, line 2: expected '2 CLASS', got '3 B'"):
        ucf101(ucf, "train")


def test_ucf101_may_have_been_encoded_anew(ucf):
    before = ucf101(ucf, "train")
    for item in before.items[:4]:
        item.path.rename(item.path.with_suffix(".mp4"))
    after = ucf101(ucf, "train")
    assert names(after) == names(before) and not after.absent
    assert [item.path.suffix for item in after.items] == [".mp4"] * 4 + [".avi"] * 2
    touch(before.items[0].path)  # beside the other: the list's own name wins
    assert ucf101(ucf, "train").items[0].path.suffix == ".avi"


def test_ucf101_trains_as_it_lies(ucf):
    for item in ucf101(ucf, "train").items:
        encode(item.path, waves(12), codec="mpeg4", rate=25, g=12)
    source = open_source(str(ucf), split="train", frames=9, size=16)
    assert len(source) == 6 and source.class_names == class_names(str(ucf))
    assert {int(clip_of(source, i, rng(i))["label"]) for i in range(6)} == {0, 1}
    with pytest.raises(NoVideosError, match="none of the 2 files .*not readable"):
        open_source(str(ucf), split="test", frames=9, size=16)


def test_the_fold_of_ucf101_is_a_setting(ucf, tmp_path_factory):
    for path in (ucf / "UCF-101").rglob("*.avi"):
        encode(path, waves(12), codec="mpeg4", rate=25, g=12)
    clip = dict(split="test", frames=9, size=16, random=False)
    files = {fold: open_source(str(ucf), fold=fold, **clip).reader.paths for fold in (1, 2, 3)}
    assert all({path.stem[-6:-4] for path in files[fold]} == {f"0{fold}"} for fold in files)
    assert len({fingerprint(str(ucf), fold) for fold in files}) == 3
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "a.mp4", waves(12))
    for call in (
        lambda: open_source(str(folder), fold=2, **clip),
        lambda: fingerprint(str(folder), 2),
        lambda: class_names(str(folder), 2),
    ):
        with pytest.raises(NoVideosError, match="fold 2 applies to UCF101 .* is of the format folder: set data.fold=1"):
            call()
    for path in (ucf / "ucfTrainTestlist").glob("t*list0[13].txt"):
        path.unlink()
    assert class_names(str(ucf), 2) == open_source(str(ucf), fold=2, **clip).class_names
    with pytest.raises(NoVideosError, match="trainlist01.txt is missing"):
        class_names(str(ucf))


def test_inspect_looks_at_the_fold_that_training_has(ucf):
    for path in (ucf / "ucfTrainTestlist").glob("t*list0[13].txt"):
        path.unlink()
    demo = Path(__file__).parents[1] / "experiments" / "demo.py"
    step = build_stage(load_experiment(demo, {"data.source": str(ucf), "data.fold": "2"}), "diffusion").step
    assert step.model.config.classes == 2


# Kinetics-400


@pytest.mark.parametrize("flat", [True, False])
def test_kinetics_in_both_layouts(tmp_path, flat):
    rows = {
        "train": [("riding a bike", "-abc_DEF123", 5, 15), ("abseiling", "0wR5jVB-WPk", 417, 427)],
        "val": [("abseiling", "3E7Jib8Yq5M", 118, 128), ("riding a bike", "gone0000000", 0, 10)],
    }
    for split, clips in rows.items():
        table = "label,youtube_id,time_start,time_end,split\n"
        for label, identity, start, end in clips:
            table += f'"{label}",{identity},{start},{end},{split}\n'
            if not identity.startswith("gone"):
                folder = tmp_path / split if flat else tmp_path / split / label
                touch(folder / f"{identity}_{start:06d}_{end:06d}.mp4")
        write(tmp_path / "annotations" / f"{split}.csv", table)
    assert detect_format(tmp_path) == "kinetics400"
    train, test = (kinetics400(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("abseiling", "riding a bike")
    assert [item.label for item in train.items] == [1, 0] and not train.absent
    assert names(test) == ["val/3E7Jib8Yq5M_000118_000128"] and test.items[0].path.is_file()
    assert list(test.absent) == ["val/gone0000000_000000_000010"]
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    assert list_dataset(tmp_path, "train") == train
    with pytest.raises(NoVideosError, match="none of the 2 videos .*keeps its videos in val/YOUTUBEID_START_END.mp4"):
        list_dataset(tmp_path, "test")


def test_kinetics_says_what_is_missing(tmp_path):
    write(tmp_path / "annotations" / "train.csv", "label,youtube_id,time_start,time_end,split\na,b,1,11,train\n")
    with pytest.raises(NoVideosError, match="none of the 1 videos .*b_000001_000011.mp4.*CLASS/YOUTUBEID_START"):
        kinetics400(tmp_path, "train")
    with pytest.raises(NoVideosError, match="val.csv is missing"):
        kinetics400(tmp_path, "test")
    datasets._kinetics_rows.cache_clear()
    write(tmp_path / "annotations" / "train.csv", "youtube_id,time_start\nb,1\n")
    with pytest.raises(NoVideosError, match="line 2: expected columns label, youtube_id"):
        kinetics400(tmp_path, "train")
    datasets._kinetics_rows.cache_clear()
    write(tmp_path / "annotations" / "train.csv", "label,youtube_id,time_start,time_end,split\na,b,59.0,69.0,train\n")
    with pytest.raises(NoVideosError, match="line 2: time_start is 59.0, but names of videos have whole seconds"):
        kinetics400(tmp_path, "train")


def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path):
    mark = "\ufeff"
    write(
        tmp_path / "k/annotations/train.csv", f"{mark}label,youtube_id,time_start,time_end,split\ncafé,b,1,11,train\n"
    )
    touch(tmp_path / "k/train/b_000001_000011.mp4")
    assert list_dataset(tmp_path / "k", "train").class_names == ("café",)
    write(tmp_path / "u/ucfTrainTestlist/classInd.txt", f"{mark}1 A\n")
    write(tmp_path / "u/ucfTrainTestlist/trainlist01.txt", f"{mark}A/v_A_g01_c01.avi 1\n")
    touch(tmp_path / "u/UCF-101/A/v_A_g01_c01.avi")
    assert names(list_dataset(tmp_path / "u", "train")) == ["A/v_A_g01_c01.avi"]
    write(tmp_path / "r/train/0.txt", mark + camera_file([0]))
    touch(tmp_path / "r/videos/9vpGX5_LMoo.mp4")
    assert read_cameras(tmp_path / "r/train/0.txt")[0].startswith("https:")
    assert names(list_dataset(tmp_path / "r", "train")) == ["train/0"]


# RealEstate10K


def camera_file(times):
    rows = [f"{t} 0.47 0.84 0.5 0.5 0.0 0.0 " + " ".join(f"{x:.9f}" for x in np.eye(3, 4).ravel() + t) for t in times]
    return "https://www.youtube.com/watch?v=9vpGX5_LMoo\n" + "\n".join(rows) + "\n"


def test_realestate10k_knows_a_video_by_any_of_its_addresses(tmp_path):
    touch(tmp_path / "videos" / "9vpGX5_LMoo.mp4")
    plain = "https://www.youtube.com/watch?v=9vpGX5_LMoo"
    forms = [plain, f"{plain}&t=4s", "https://youtube.com/watch?t=4s&v=9vpGX5_LMoo&list=x"]
    forms += [f"https://{form}" for form in ("youtu.be/9vpGX5_LMoo?t=3", "www.youtube.com/embed/9vpGX5_LMoo/#a")]
    for i, form in enumerate(forms):
        write(tmp_path / "train" / f"{i}.txt", camera_file([0]).replace(plain, form))
    listing = realestate10k(tmp_path, "train")
    assert len(listing.items) == len(forms) and not listing.absent


def test_realestate10k_cuts_its_sequences_from_whole_videos(tmp_path):
    write(tmp_path / "train" / "0000cc6d8b108390.txt", camera_file([500_000, 600_000, 1_000_000]))
    write(tmp_path / "train" / "bad.txt", "https://www.youtube.com/watch?v=9vpGX5_LMoo\n1 2 3\n")
    write(tmp_path / "test" / "ffff.txt", camera_file([0]).replace("9vpGX5_LMoo", "missing0000"))
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "9vpGX5_LMoo.mp4", waves(40), fps=20)
    url, times, intrinsics, poses = read_cameras(tmp_path / "train" / "0000cc6d8b108390.txt")
    assert url.endswith("9vpGX5_LMoo") and times.tolist() == [500_000, 600_000, 1_000_000]
    np.testing.assert_allclose(intrinsics, [[0.47, 0.84, 0.5, 0.5]] * 3)
    np.testing.assert_allclose(poses, np.eye(3, 4) + times[:, None, None])
    assert detect_format(tmp_path) == "realestate10k"
    train = realestate10k(tmp_path, "train")
    assert names(train) == ["train/0000cc6d8b108390"] and "19 numbers" in train.absent["train/bad"]
    with pytest.raises(NoVideosError, match="put complete YouTube videos into videos/YOUTUBEID.mp4"):
        realestate10k(tmp_path, "test")
    with pytest.raises(NoVideosError, match="cut them first with pv-vae prepare"):
        open_source(str(tmp_path), split="train", frames=9, size=16)
    manifest = prepare_split(train, tmp_path / "out" / "train", ClipSettings(short_side=16, min_frames=9))
    assert manifest["frames"] == 11 and manifest["skipped"] == train.absent, "0.5 s to 1 s at 20 frames a second"
    assert clip_of(open_source(tmp_path / "out", frames=9, size=16), 0, rng())["video"].shape == (9, 16, 16, 3)
    with pytest.raises(NoVideosError, match="holds no camera files"):
        realestate10k(tmp_path / "out", "train")


# Images


@pytest.fixture
def pictures(tmp_path):
    """An ImageNet-style folder: colour, grey, palette, transparent, CMYK and turned pictures."""
    for split in ("train", "val"):
        for c in ("n01440764", "n02102040"):
            (tmp_path / split / c).mkdir(parents=True)
    picture = image.fromarray(waves(1, 60, 90)[0])
    for i, mode in enumerate(("RGB", "L", "P", "RGBA", "CMYK")):
        suffix = "png" if mode in ("P", "RGBA") else "JPEG"
        picture.convert(mode).save(tmp_path / "train" / ("n01440764", "n02102040")[i % 2] / f"{i}.{suffix}")
    exif = image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "val" / "n01440764" / "turned.JPEG", exif=exif)
    return tmp_path


def test_images_are_clips_of_one_frame(pictures):
    assert detect_format(pictures) == "imagenet"
    for name in ("a.TIF", "b.tif", ".hidden.tif", "c"):
        touch(pictures / "train" / "n01440764" / name)
    source = open_source(str(pictures), split="train", frames=17, size=16, images=True)
    assert isinstance(source.reader, ImageFiles) and len(source) == 5
    assert describe(source, "all").endswith(", 3 other files passed over (2 .tif, 1 without suffix)")
    assert source.class_names == class_names(str(pictures)) == ("n01440764", "n02102040")
    for i, item in enumerate(source.reader.entries):
        clip = clip_of(source, i, rng(i), frames=1)
        assert clip["video"].shape == (1, 16, 16, 3) and clip["video"].dtype == np.uint8
        assert clip["label"] == source.class_names.index(item.path.parent.name)
    assert read_image(pictures / "val" / "n01440764" / "turned.JPEG").shape == (90, 60, 3)
    assert read_image(pictures / "val" / "n01440764" / "turned.JPEG", short_side=16).shape == (24, 16, 3)
    with pytest.raises(NoVideosError, match="this stage trains on clips"):
        open_source(str(pictures), split="train", frames=17, size=16)


def test_broken_images_are_named_and_replaced(pictures, capsys, monkeypatch):
    folder = pictures / "train" / "n01440764"
    whole = (folder / "0.JPEG").read_bytes()
    (folder / "0.JPEG").write_bytes(whole[: len(whole) // 3])
    (folder / "9.JPEG").touch()
    write(folder / "8.png", "no picture")
    log = SkipLog(max_damaged_files=0.5)
    for size in (16, 8):
        source = open_source(str(pictures), split="train", frames=1, size=size, log=log)
        images = [clip_of(source, i, rng(i))["video"].shape for i in range(len(source))]
        assert len(source) == 7 and set(images) == {(1, size, size, 3)}
        assert {p.name for p in source.skipped} == {"0.JPEG", "8.png", "9.JPEG"}
    assert capsys.readouterr().err.count("not readable as image") == 3, "once for both sizes"
    with monkeypatch.context() as patch:
        patch.setattr(image, "open", lambda *_, **__: os.stat("/nowhere"))
        with pytest.raises(FileNotFoundError):  # the system's own errors stay
            read_image(folder / "2.png")
    image.new("1", (9_000, 9_000)).save(folder / "huge.png")
    with pytest.raises(BrokenVideoError, match="9000 x 9000 pixels, more than"):
        read_image(folder / "huge.png")


def test_a_picture_starts_no_other_program(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "gs").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n')
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # what it found before
    write(tmp_path / "x.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(BrokenVideoError, match="not readable as image"):
        read_image(tmp_path / "x.jpg", short_side=32)
    assert not (tmp_path / "ran").exists()
    for suffix in ("jpg", "png", "bmp", "webp"):
        image.fromarray(waves(1)[0]).save(tmp_path / f"y.{suffix}")
        assert read_image(tmp_path / f"y.{suffix}").shape == (32, 48, 3)


def test_an_image_folder_says_what_is_missing(pictures):
    for path in (pictures / "val" / "n01440764").iterdir():
        path.rename(pictures / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(NoVideosError, match="val holds no images"):
        imagenet(pictures, "test")
    for c in ("n01440764", "n02102040"):
        (pictures / "val" / c).rmdir()
    with pytest.raises(NoVideosError, match="val holds 1 images directly: sort them into CLASS/"):
        imagenet(pictures, "test")
    (pictures / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    (pictures / "val").rmdir()
    with pytest.raises(NoVideosError, match="has no folder val: images are expected in train/CLASS/"):
        imagenet(pictures, "test")
    with pytest.raises(ValueError, match="dataset must be one of tfds, ucf101"):
        list_dataset(pictures, "train", "cifar")


def test_what_is_no_image_does_not_decide_what_a_folder_is(pictures):
    # Each before and after what lies beside it, whatever order the file system has.
    for split in ("train", "val"):
        touch(*(pictures / split / "n01440764" / name for name in ("Thumbs.db", ".DS_Store", "0.txt", "zz")))
        touch(
            pictures / split / "Thumbs.db", pictures / split / ".cache" / "a.mp4", pictures / split / "a" / "Thumbs.db"
        )
    assert detect_format(pictures) == "imagenet"
    touch(*(pictures / "train" / "n01440764" / f"{i}.mp4" for i in range(4)))
    assert detect_format(pictures) == "folder", "thumbnails beside videos"


# Halves of published layouts


HALVES = {  # files -> what is said, of training unless the key says test
    "Kinetics, no lists": (["train/a/b_000001_000011.mp4", "val/a/c_000001_000011.mp4"], "{}/annotations/train.csv"),
    "Kinetics, flat": (["train/b_000001_000011.mp4", "val/c_000001_000011.mp4"], "{}/annotations/train.csv and val"),
    "Kinetics, all splits": (
        ["train/a/b.mp4", "val/a/c.mp4", "test/d.mp4"],
        "holds test, train, val, which are splits",
    ),
    "Kinetics, other csv": (
        ["train/a/b.mp4", "val/a/c.mp4", "annotations/a.json"],
        "{}/annotations/train.csv is missing",
    ),
    "Kinetics, train alone": (["train/a/b.mp4", "annotations/a.json"], "{}/annotations/train.csv is missing"),
    "Kinetics, no train.csv": (["train/a.mp4", "val/a.mp4", "annotations/val.csv"], "annotations/train.csv is missing"),
    "own, beside others": (
        ["train/a/b.mp4", "test/a/c.mp4", "more/d.mp4"],
        "test, train beside more, which .* only sub",
    ),
    "own, validation": (["train/a/b.mp4", "validation/a/c.mp4"], "the held-out part is called test"),
    "UCF101, no lists": (["UCF-101/A/v_A_g01_c01.avi"], "{}/ucfTrainTestlist/classInd.txt is missing"),
    "UCF101, no videos": (
        ["ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt"],
        "none of the 1 videos",
    ),
    "RealEstate10K, no cameras": (
        ["videos/9vpGX5_LMoo.mp4", "videos/0abcdefghi-.mp4"],
        "{}/train holds no camera files",
    ),
    "RealEstate10K, empty train": (["videos/a.mp4", "train/.keep"], "{}/train holds no camera files"),
    "RealEstate10K, no videos": (
        ["train/README.txt", "train/0.txt", "test/0.txt"],
        "put complete YouTube videos into videos/",
    ),
    "images, no val": (["train/a/b.JPEG"], "test: {} has no folder val: images are expected"),
    "images, no train": (["val/a/b.JPEG"], "{} has no folder train: images are expected"),
    "images, flat": (["train/b.JPEG", "val/b.JPEG"], "images are expected in train/CLASS/ and val/CLASS/"),
}


@pytest.mark.parametrize("half", HALVES)
def test_half_of_a_published_layout_says_what_is_missing(tmp_path, half):
    files, message = HALVES[half]
    text = {"classInd.txt": "1 A\n", "trainlist01.txt": "A/v_A_g01_c01.avi 1\n", "0.txt": camera_file([0])}
    for name in files:
        write(tmp_path / name, text.get(name.split("/")[-1], "x"))
    split = "test" if message.startswith("test: ") else "train"
    with pytest.raises(NoVideosError, match=message.removeprefix("test: ").format(tmp_path)):
        list_dataset(tmp_path, split)


@pytest.mark.parametrize(
    "files, classes",
    [
        (["train/a/1.mp4", "train/b/1.mp4", "test/a/2.mp4"], ("a", "b")),
        (["train/1.mp4", "train/1.txt", "test/2.mp4", "test/2.txt"], None),  # captions
        (["videos/clip_000001.mp4", "videos/clip_000002.mp4"], ("videos",)),
        (["videos/9vpGX5_LMoo.mp4", "photos/0abcdefghiJ.mp4"], ("photos", "videos")),
        (["bus/1.mp4", "train/1.mp4", "tram/1.mp4"], ("bus", "train", "tram")),
        (["train/express/1.mp4", "bus/city/1.mp4"], ("bus", "train")),
        (["bus/1.mp4", "tram/1.mp4", "annotations/val.csv"], ("bus", "tram")),
    ],
)
def test_a_plain_folder_is_not_taken_for_half_of_anything(tmp_path, files, classes):
    for name in files:
        write(tmp_path / name, "https://www.youtube.com/watch?v=9vpGX5_LMoo\n7 trains\n")
    assert detect_format(tmp_path) == "folder"
    assert list_dataset(tmp_path, "train").class_names == (classes or (tmp_path.name,))


# TensorFlow datasets


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tfds, about protobuf
def test_a_prepared_tensorflow_dataset(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="tfds is not installed: pip install -e '.[tfds]'")
    videos = [waves(12 if i else 4, 20, 28, seed=i) for i in range(5)]

    class Waves(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "video": tfds.features.Tensor(shape=(None, 20, 28, 3), dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=["still", "wave"]),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            for i, video in enumerate(videos):
                yield i, {"video": video, "label": i % 2}

    builder = Waves(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    folder = str(builder.data_path)
    source = open_source(folder, split="train", frames=9, size=16)
    assert len(source) == 5 and source.class_names == class_names(folder) == ("still", "wave")
    clips = [clip_of(source, i, rng(i)) for i in range(5)]
    assert {c["video"].shape for c in clips} == {(9, 16, 16, 3)} and {int(c["label"]) for c in clips} == {0, 1}
    assert list(source.skipped.values()) == ["4 frames, but a clip spans 9"]
    assert clip_of(source, 0, rng(), frames=1)["video"].shape == (1, 16, 16, 3)
    assert len(open_source(folder, split="test", frames=9, size=16, random=False, clips=2)) == 2

    listing = list_dataset(folder, "train")
    settings = ClipSettings(short_side=20, frames=10, min_frames=9, gop=4, crf=1)
    manifest = prepare_split(listing, tmp_path / "shards" / "train", settings, files=2)
    assert (manifest["clips"], manifest["frames"], manifest["dataset"]) == (4, 40, "TFDS waves 1.0.0")
    assert list(manifest["skipped"].values()) == ["4 frames, at least 9 make a clip"]
    records = open_source(tmp_path / "shards", frames=9, size=20, random=False)
    assert records.class_names == ("still", "wave")
    for i in range(4):
        found = clip_of(records, i, rng())
        match = [np.abs(found["video"].astype(int) - video[:9, :, 4:24]).mean() for video in videos[1:]]
        assert min(match) < 2 and found["label"] == (1 + np.argmin(match)) % 2
    with pytest.raises(NoVideosError, match="TFDS waves 1.0.0 holds frames without times: leave fps 0"):
        prepare_split(listing, tmp_path / "other", dataclasses.replace(settings, fps=5.0))
    assert list_dataset(folder, "test").items[0].name == "validation/0000000"


def test_a_prepared_tensorflow_dataset_needs_random_access(tmp_path):
    write(tmp_path / "features.json", "{}")
    write(tmp_path / "dataset_info.json", '{"name": "a", "fileFormat": "tfrecord"}')
    assert detect_format(tmp_path) == "tfds"
    with pytest.raises(
        (NoVideosError, ImportError), match="--file_format=array_record|pip install tensorflow-datasets"
    ):
        open_source(str(tmp_path), split="train", frames=9, size=16)


# Probes


@pytest.fixture
def sintel(tmp_path):
    base = tmp_path / "training"
    for scene, frames in (("alley_1", 3), ("cave_2", 2)):
        for i in range(1, frames + 1):
            for kind in ("clean", "final", "invalid", "occlusions"):
                (base / kind / scene).mkdir(parents=True, exist_ok=True)
                image.fromarray(waves(1, 6, 10, seed=i)[0]).save(base / kind / scene / f"frame_{i:04d}.png")
            for kind, channels, suffix in (("flow", 2, "flo"), ("depth", 1, "dpt")):
                values = np.arange(60 * channels, dtype="<f4") + i
                (base / kind / scene).mkdir(parents=True, exist_ok=True)
                data = struct.pack("<fii", 202021.25, 10, 6) + values.tobytes()
                if kind == "depth" or i < frames:
                    (base / kind / scene / f"frame_{i:04d}.{suffix}").write_bytes(data)
    return tmp_path


def test_sintel_gives_frames_and_truth(sintel):
    data = probes.Sintel(sintel)
    assert data.scenes == ("alley_1", "cave_2")
    frames, flow, depth = data.frames("alley_1"), data.flow("alley_1"), data.depth("alley_1")
    np.testing.assert_array_equal(frames, np.concatenate([waves(1, 6, 10, seed=i) for i in (1, 2, 3)]))
    assert flow.shape == (2, 6, 10, 2) and depth.shape == (3, 6, 10)
    np.testing.assert_array_equal(flow[1, 2, 3], [2 * 23 + 2, 2 * 23 + 3])
    assert depth[2, 1, 4] == 14 + 3
    assert data.occluded("alley_1").shape == (2, 6, 10) and data.invalid("cave_2").dtype == bool
    path = sintel / "training" / "flow" / "cave_2" / "frame_0001.flo"
    path.write_bytes(path.read_bytes()[:12] + np.full(120, 2e9, "<f4").tobytes())
    assert np.isnan(data.flow("cave_2")).all()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(NoVideosError, match="frame_0001.flo is damaged: tag 202021.25, 10 x 6"):
        data.flow("cave_2")


def test_sintel_says_what_is_missing(sintel):
    (sintel / "training" / "depth" / "cave_2" / "frame_0002.dpt").unlink()
    with pytest.raises(NoVideosError, match=r"frame_0002.dpt is missing \(the depth archive"):
        probes.Sintel(sintel).depth("cave_2")
    with pytest.raises(NoVideosError, match="albedo is missing: MPI-Sintel has pictures in training/albedo/SCENE"):
        probes.Sintel(sintel, render="albedo")
    (sintel / "training" / "final" / "alley_1" / "frame_0002.png").unlink()
    with pytest.raises(NoVideosError, match="alley_1/frame_0002.png is missing"):
        probes.Sintel(sintel)


def davis():
    return {
        name: {
            "video": waves(t, 8, 12, seed=t),
            "points": rng(t).random((n, t, 2)).astype(np.float32),
            "occluded": rng(t).random((n, t)) < 0.3,
        }
        for name, t, n in (("goat", 5, 3), ("car-shadow", 4, 2))
    }


@pytest.mark.parametrize("protocol", range(6))
def test_tapvid_davis_is_read_from_any_protocol(tmp_path, protocol):
    with (tmp_path / "tapvid_davis.pkl").open("wb") as file:
        pickle.dump(davis(), file, protocol=protocol)
    read = probes.read_tapvid_davis(tmp_path)
    assert read.keys() == davis().keys()
    for name, expected in davis().items():
        for part, value in expected.items():
            np.testing.assert_array_equal(getattr(read[name], part), value)
            assert getattr(read[name], part).dtype == value.dtype


def test_tapvid_davis_says_what_is_wrong(tmp_path):
    with pytest.raises(NoVideosError, match="tapvid_davis.pkl is missing: it is what tapvid_davis.zip unpacks to"):
        probes.read_tapvid_davis(tmp_path)
    path = tmp_path / "tapvid_davis.pkl"
    for change, message in (
        (lambda v: v.pop("points"), "expected video, points and occluded"),
        (lambda v: v.update(video=v["video"][:3]), r"video \(3, 8, 12, 3\) uint8, .* do not fit together"),
        (lambda v: v.update(points=v["points"][:1]), r".*points \(1, 5, 2\), .* do not fit together"),
    ):
        tree = davis()
        change(tree["goat"])
        path.write_bytes(pickle.dumps(tree))
        with pytest.raises(NoVideosError, match=f"tapvid_davis.pkl, goat: {message}"):
            probes.read_tapvid_davis(tmp_path)


class Run:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_pickle_runs_nothing(tmp_path):
    path, mark = tmp_path / "a.pkl", tmp_path / "ran"
    attacks = [
        Run(subprocess.call, ["touch", str(mark)]),
        Run(eval, f"open({str(mark)!r}, 'w')"),
        Run(getattr, "", "join"),
        Run(np.load, str(mark)),
        Run(np.memmap, str(mark)),
        np.array([Run(eval, f"open({str(mark)!r}, 'w')")], object),
        np.array([{}], object),
        Run(np.ndarray, (1 << 40,)),
        {1, 2},
        type("Other", (), {}),
    ]
    for protocol in range(6):
        for attack in attacks:
            try:
                data = pickle.dumps({"goat": attack}, protocol=protocol)
            except (pickle.PicklingError, AttributeError):
                continue  # a local class
            path.write_bytes(data)
            with pytest.raises(UnsafePickleError, match="cannot read .*a.pkl: its pickle"):
                read_pickle(path)
    assert not mark.exists()
    # BUILD sets attributes: of what a pickle was given, too.
    path.write_bytes(b"cnumpy.core.multiarray\n_reconstruct\n}S'__defaults__'\n(I1\ntsb.")
    with pytest.raises(UnsafePickleError, match="its pickle changes what it is read with"):
        read_pickle(path)


def test_a_damaged_pickle_says_so_or_reads_values(tmp_path):
    data, path = pickle.dumps(davis()), tmp_path / "a.pkl"
    for trial in range(150):
        damaged = bytearray(data)
        if trial % 3:
            damaged[rng(trial).integers(0, 400)] ^= 1 << trial % 8
        else:
            del damaged[rng(trial).integers(0, len(data)) :]
        path.write_bytes(damaged)
        try:
            read_pickle(path)
        except UnsafePickleError as error:
            assert "a.pkl" in str(error)


def test_videos_that_belong_to_no_class_are_not_passed_over(tmp_path):
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "again").symlink_to(tmp_path)
    assert video_folder(tmp_path, "train").class_names == ("a", "b"), "a link to the whole is no class"
    (tmp_path / "beside.mp4").touch()
    with pytest.raises(NoVideosError, match="beside.mp4 belongs to no class, and 0 more.* a, b"):
        video_folder(tmp_path, "train")
    for name in ("split/train/a/1.mp4", "split/test/c/1.mp4", "split/test/a/3.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert len(video_folder(tmp_path / "split", "train").items) == 1
    with pytest.raises(NoVideosError, match="test/c/1.mp4 belongs to no class"):
        video_folder(tmp_path / "split", "test")


def test_what_is_hidden_is_no_video(tmp_path):
    """macOS leaves `._x.mp4` beside `x.mp4`, and desktops what was deleted in `.Trash`."""
    touch(*(tmp_path / "a" / name for name in ("x.mp4", "y.mp4", "._x.mp4", ".Trash/old.mp4", "b/z.mp4", "b/.w.mp4")))
    found = names(video_folder(tmp_path, "train")) + names(video_folder(tmp_path, "test"))
    assert sorted(found) == ["a/b/z.mp4", "a/x.mp4", "a/y.mp4"]
    for split in ("train", "val"):
        touch(tmp_path / "images" / split / "c" / "x.png", tmp_path / "images" / split / "c" / "._x.png")
    assert names(imagenet(tmp_path / "images", "train")) == ["train/c/x.png"]


def test_links_to_folders_are_followed_and_end(tmp_path):
    clips, disk = tmp_path / "clips", tmp_path / "disk"
    touch(clips / "a" / "1.mp4", clips / "a" / "deep" / "2.mp4", clips / "b" / "1.mp4")
    touch(disk / "more" / "3.mp4", disk / "more" / "deeper" / "4.mp4", tmp_path / "linked" / "5.mp4")
    (clips / "c").symlink_to(tmp_path / "linked")  # a class
    (clips / "a" / "m").symlink_to(disk / "more")
    (clips / "a" / "n").symlink_to(disk / "more")  # again
    for link, target in (
        (clips / "a" / "0", clips / "a" / "deep"),  # what is there without it
        (clips / "a" / "here", clips / "a"),
        (clips / "a" / "up", clips),
        (clips / "a" / "further", tmp_path),
        (clips / "a" / "nowhere", tmp_path / "gone"),
        (clips / "a" / "round.mp4", "round.mp4"),
        (disk / "more" / "deeper" / "loop", disk / "more"),
        (disk / "more" / "back", clips / "a"),
    ):
        link.symlink_to(target)
    train, test = (video_folder(clips, split) for split in ("train", "test"))
    assert train.class_names == ("a", "b", "c")
    assert sorted(names(train) + names(test)) == [
        *("a/1.mp4", "a/deep/2.mp4", "a/m/3.mp4", "a/m/deeper/4.mp4", "b/1.mp4", "c/5.mp4")
    ]
    assert all(item.path == clips / item.name for item in train.items + test.items)


def test_a_name_that_is_no_text_is_a_name(tmp_path):
    path = os.fsencode(tmp_path / "clips")
    os.mkdir(path)
    for name in (b"caf\xe9.mp4", b"b.mp4"):
        open(os.path.join(path, name), "w").close()
    splits = [video_folder(tmp_path / "clips", split).items for split in ("train", "test")]
    assert sorted(len(items) for items in splits) == [1, 1]

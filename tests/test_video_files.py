"""Video files and folders of them: exact frames whatever the container; files that cannot be read cost nothing else."""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pv_vae_jax.cli.main import main
from pv_vae_jax.data import video_writing
from pv_vae_jax.data.clips import ClipSource
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import video_folder
from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.data.prepare import ClipSettings, prepare_dataset, prepare_split
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.sources import NoVideosError, open_source
from pv_vae_jax.data.transforms import RandomWindow
from pv_vae_jax.data.video_container import BrokenVideoError, EncodedVideo, damage, probe
from pv_vae_jax.data.video_reading import count_frames, frame_times, iterate_video, read_video
from pv_vae_jax.data.video_writing import NoEncoderError, check_encoder, write_video
from pv_vae_jax.report.figures import Media
from pv_vae_jax.report.run_report import left_out, read_every_clip
from pv_vae_jax.train.configs import DataConfig, Experiment
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.sizes import SizedBatch
from tests.clips import clip_of
from tests.video_fixture import av, encode, encode_sound, waves


def assert_seeks(path, starts, counts=(1, 5), strides=(1, 3)):
    """Reading a part equals the part of reading all."""
    whole = read_video(path)
    for start in starts:
        for count in counts:
            for stride in strides:
                part = read_video(path, start=start, count=count, stride=stride)
                expected = whole[start : start + (count - 1) * stride + 1 : stride]
                np.testing.assert_array_equal(part, expected, err_msg=f"{path.name} {start} {count} {stride}")
    return whole


# Files


@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 47), (16, 16)])
def test_what_is_written_is_read(tmp_path, height, width):
    video, path = waves(12, height, width), tmp_path / "a.mp4"
    write_video(path, video, fps=12.5)
    info = probe(path)
    assert (info.frames, info.fps) == (12, 12.5)
    assert (info.height, info.width) == (height + height % 2, width + width % 2), "sides are even in the file"
    read = read_video(path)[:, :height, :width]
    assert read.dtype == np.uint8 and read.shape == video.shape
    assert np.abs(read.astype(int) - video).mean() < 2.5
    assert np.abs(read[5].astype(int) - video[6]).mean() > 5, "the frames are told apart"
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"


def test_frames_come_one_at_a_time(tmp_path):
    """The same frames as at once; a file of which too little decodes says so when that is reached, not before."""
    path = tmp_path / "a.mp4"
    write_video(path, iter(waves(12)), fps=12)
    whole = read_video(path, short_side=16)
    assert count_frames(path) == 12
    np.testing.assert_array_equal(list(iterate_video(path, short_side=16)), whole)
    np.testing.assert_array_equal(list(iterate_video(path, short_side=16, count=5)), whole[:5])
    frames = iterate_video(path, count=13)
    assert len([next(frames) for _ in range(12)]) == 12
    with pytest.raises(BrokenVideoError, match="12 of 13 frames"):
        next(frames)


def test_frames_are_written_at_their_times_in_tagged_colours(tmp_path):
    """A player finds each frame when it was shown, and need not guess the matrix, as it would from 720 lines on."""
    path, times = tmp_path / "a.mp4", np.array([0, 0.5, 0.52, 0.5200001, 1.9])
    write_video(path, waves(5), fps=3, times=times)
    np.testing.assert_allclose(frame_times(path), times, atol=3e-5)
    write_video(tmp_path / "even.mp4", waves(5), fps=24, times=np.round(np.arange(5) / 24, 3))  # as of Matroska
    assert probe(tmp_path / "even.mp4").fps == 24 and len(read_video(path)) == 5
    colours = np.zeros((2, 720, 64, 3), np.uint8)
    colours[:, :360], colours[:, 360:] = (200, 40, 40), (30, 180, 60)
    write_video(path, colours)
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        y, u, v = (float(np.frombuffer(plane, np.uint8)[8]) for plane in frame.planes)
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (6, 1, 1, 1)
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = y + 2 * (1 - 0.299) * v, y + 2 * (1 - 0.114) * u  # by the matrix of the tag, BT.601
    np.testing.assert_allclose(
        [255 * red, 255 * (y - 0.299 * red - 0.114 * blue) / 0.587, 255 * blue], (200, 40, 40), atol=4
    )


def test_a_damaged_file_is_named_once(tmp_path):
    with pytest.raises(BrokenVideoError) as caught, damage(tmp_path / "a.mp4"):
        raise BrokenVideoError(f"{tmp_path / 'a.mp4'}: the frame size changes within the video")
    assert str(caught.value) == f"{tmp_path / 'a.mp4'}: the frame size changes within the video"


def test_pages_leave_out_clips_that_cannot_be_encoded(monkeypatch):
    monkeypatch.setattr(video_writing, "ENCODER", "none of this build")
    assert "no encoder for H.264" in Media(1 << 20).video(waves(3), "a clip")["missing"]


def test_what_refuses_to_encode_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video_writing, "ENCODER", "none of this build")
    for write in (check_encoder, lambda: write_video(tmp_path / "a.mp4", waves(2))):
        with pytest.raises(NoEncoderError, match="no encoder for H.264 .*pip install"):
            write()
    (tmp_path / "clips").mkdir()
    for name in "ab":
        (tmp_path / "clips" / f"{name}.mp4").write_bytes(b"not looked at")
    with pytest.raises(NoEncoderError, match="no encoder"):
        prepare_dataset(tmp_path / "clips", tmp_path / "out", lambda listing, folder: pytest.fail("work began"))
    (tmp_path / "clips" / "c.OGV").touch()
    (tmp_path / "clips" / "d.mp4").symlink_to("nowhere")
    assert main(["pv-vae", "prepare", str(tmp_path / "clips"), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{tmp_path / 'clips'}: 2 other files passed over (1 broken links, 1 .ogv)" and len(told) == 2
    assert "no encoder for H.264" in told[1]
    monkeypatch.undo()
    with pytest.raises(BrokenVideoError, match="a.mp4 cannot be encoded"):
        write_video(tmp_path / "a.mp4", waves(2), crf="fine")
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_nothing_half_written_stays(tmp_path):
    def breaking():
        yield from waves(3)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_video(tmp_path / "a.mp4", breaking())
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [])
    assert not list(tmp_path.iterdir())


def test_scale_makes_squares_of_pixels(tmp_path):
    video = np.repeat(np.repeat(waves(3, 4, 6), 4, 1), 4, 2)  # blocks, so that halved colour loses little
    write_video(tmp_path / "a.mp4", video, scale=2, crf=0)
    read = read_video(tmp_path / "a.mp4")
    assert read.shape == (3, 32, 48, 3)
    assert np.abs(read[:, ::2, ::2].astype(int) - video).mean() < 4


def test_short_side_keeps_the_aspect(tmp_path):
    write_video(tmp_path / "wide.mp4", waves(3, 32, 48))
    write_video(tmp_path / "tall.mp4", waves(3, 48, 32))
    assert read_video(tmp_path / "wide.mp4", short_side=16).shape == (3, 16, 24, 3)
    assert read_video(tmp_path / "tall.mp4", short_side=16).shape == (3, 24, 16, 3)
    whole, half = read_video(tmp_path / "wide.mp4").astype(float), read_video(tmp_path / "wide.mp4", short_side=16)
    area = whole.reshape(3, 16, 2, 24, 2, 3).mean((2, 4))
    assert np.abs(area - half).mean() < 2, "averages of areas"


CODINGS = {
    "key frames everywhere.mp4": dict(g=4, bf=0),
    "b frames.mp4": dict(g=48, bf=3, b_strategy=0),
    "open groups.mp4": {"g": 12, "bf": 3, "x264-params": "open-gop=1:scenecut=0"},
    "one group.mkv": dict(g=500),
    "a.avi": dict(codec="mpeg4", g=12, bf=2),
    "h264.avi": dict(g=12, bf=2),
    "a.mpg": dict(codec="mpeg1video", rate=25, g=12, bf=2),
    "a.gif": dict(codec="gif", pixels="rgb8", rate=10),
}


@pytest.mark.parametrize("name", CODINGS)
def test_a_part_equals_the_part_of_the_whole(tmp_path, name):
    encode(tmp_path / name, waves(60), **CODINGS[name])
    whole = assert_seeks(tmp_path / name, (1, 11, 12, 13, 22, 37, 47))
    assert len(whole) == 60
    np.testing.assert_array_equal(read_video(tmp_path / name, start=50), whole[50:])
    with pytest.raises(BrokenVideoError, match="2 of 5 frames from frame 58 on decode"):
        read_video(tmp_path / name, start=58, count=5)
    with pytest.raises(BrokenVideoError, match="no frame decodes from frame 60 on"):
        read_video(tmp_path / name, start=60)


def test_a_part_equals_the_part_of_the_whole_at_a_varying_rate(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(15, 90, 60))
    encode(tmp_path / "phone.mp4", waves(60), g=8, times=times)
    assert_seeks(tmp_path / "phone.mp4", range(1, 46, 4))


def test_real_files_seek_exactly(shared_data):
    files = [*shared_data.glob("originals/*/*.*")] + [*shared_data.glob("clips128/train/*.mp4")][::150]
    for path in (p for p in files if p.suffix in (".avi", ".mp4", ".gif")):
        length = probe(path).frames
        assert len(assert_seeks(path, (1, length // 2, length - 9), counts=(4,), strides=(1, 2))) == length


def test_a_phone_held_upright_is_turned(tmp_path):
    video = waves(3)
    write_video(tmp_path / "a.mp4", video)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44  # turn by a quarter clockwise
    one = 1 << 16
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big") for v in (0, one, 0, 2**32 - one, 0, 0, 0, 0, 1 << 30))
    (tmp_path / "b.mp4").write_bytes(data)
    read = read_video(tmp_path / "b.mp4")
    np.testing.assert_array_equal(read, np.rot90(read_video(tmp_path / "a.mp4"), -1, axes=(1, 2)))
    assert read_video(tmp_path / "b.mp4", short_side=16).shape == (3, 24, 16, 3)


def broken_files(folder: Path) -> dict[str, str]:
    """Write one file of every kind that cannot be used in clips of 9 frames: name -> a word of the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    write_video(folder / "short.mp4", waves(5))
    encode(folder / "cut.mp4", waves(40))  # its index is at the end, which is missing
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[:-2_000])
    encode_sound(folder / "sound.mp4")
    return {
        "empty.mp4": "the file is empty",
        "text.mp4": "not readable as video",
        "short.mp4": "5 frames, but a clip spans 9",
        "cut.mp4": "not readable as video",
        "sound.mp4": "no video stream",
    }


def lying_file(path: Path, frames: int = 40, keep: float = 0.5) -> None:
    """A download that broke off: the header promises all frames, the data end early."""
    encode(path, waves(frames), g=10, crf=5, container={"movflags": "+faststart"})
    data = path.read_bytes()
    pictures = data.index(b"mdat")
    path.write_bytes(data[: pictures + int((len(data) - pictures) * keep)])
    assert probe(path).frames == frames


def test_a_broken_file_says_why(tmp_path):
    for name, why in broken_files(tmp_path).items():
        if name != "short.mp4":
            with pytest.raises(BrokenVideoError, match=f"{name}: .*{why}"):
                probe(tmp_path / name)
    lying_file(tmp_path / "lying.mp4")
    with pytest.raises(BrokenVideoError, match=r"lying.mp4: decoding stops at frame [1-9]\d? "):
        read_video(tmp_path / "lying.mp4")
    sizes = b""
    for i, width in enumerate((48, 64)):
        encode(tmp_path / f"{i}.mpg", waves(12, width=width), codec="mpeg1video", rate=25)
        sizes += (tmp_path / f"{i}.mpg").read_bytes()
    (tmp_path / "sizes.mpg").write_bytes(sizes)
    with pytest.raises(BrokenVideoError, match="frame size changes"):
        read_video(tmp_path / "sizes.mpg")
    with pytest.raises(FileNotFoundError, match="no video file .*absent.mp4"):
        probe(tmp_path / "absent.mp4")
    with pytest.raises(FileNotFoundError, match="no video file .*absent.mp4"):
        read_video(tmp_path / "absent.mp4", start=3)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EIO])
def test_a_system_that_fails_is_no_broken_file(tmp_path, monkeypatch, number):
    """But for EIO, which FFmpeg says of a file that was cut, too."""
    write_video(tmp_path / "a.mp4", waves(5))

    def fail(*_, **__):
        raise av.error.OSError(number, os.strerror(number))

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(BrokenVideoError if number == errno.EIO else OSError, match=os.strerror(number)):
        read_video(tmp_path / "a.mp4")


def test_a_recording_without_length_is_counted(tmp_path):
    encode(tmp_path / "live.webm", waves(20), codec="libvpx", container={"live": "1"})
    assert probe(tmp_path / "live.webm").frames == 20


# Folders

SHAPE = dict(frames=9, size=16)


def rng(i=0):
    return np.random.default_rng(i)


@pytest.fixture(scope="module")
def one_video(tmp_path_factory) -> bytes:
    """Bytes of a file of 20 frames, for folders of many equal files."""
    path = tmp_path_factory.mktemp("one") / "a.mp4"
    write_video(path, waves(20))
    return path.read_bytes()


def fill(folder: Path, names, data: bytes) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def names_of(source: ClipSource) -> list[str]:
    return [p.relative_to(source.reader.folder).as_posix() for p in source.reader.paths]


def test_clips_are_windows_of_the_files(tmp_path):
    for name, frames in {"train/a.mp4": 20, "train/b.mp4": 45, "test/c.mp4": 30}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, waves(frames, seed=frames))
    train, test = (open_source(str(tmp_path), split=s, random=s == "train", **SHAPE) for s in ("train", "test"))
    assert train.class_names == (tmp_path.name,) and len(train) == 2 + 5 and len(test) == 3
    whole = {p: read_video(p, short_side=16)[:, :, 4:20] for p in train.reader.paths + test.reader.paths}
    starts = set()
    for i in range(len(train)):
        for draw in range(8 * i, 8 * i + 8):
            clip = clip_of(train, i, rng(draw))
            video = clip["video"]
            assert video.shape == (9, 16, 16, 3) and clip["label"] == 0 and clip["label"].dtype == np.int32
            found = [(p, s) for p, v in whole.items() for s in range(len(v) - 8) if (v[s : s + 9] == video).all()]
            assert len(found) == 1 and found[0][0] in train.reader.paths
            starts |= set(found)
            image = clip_of(train, i, rng(draw), frames=1)["video"]
            assert any((image[0] == frame).all() for p in train.reader.paths for frame in whole[p])
            np.testing.assert_array_equal(clip_of(train, i, rng(draw))["video"], video)
    assert len(starts) > 25, "windows start anywhere"
    (path,) = test.reader.paths
    for i in range(3):
        np.testing.assert_array_equal(clip_of(test, i, rng(i))["video"], whole[path][9 * i : 9 * i + 9])
    assert len(open_source(str(tmp_path), split="test", random=False, clips=2, **SHAPE)) == 2
    clip = clip_of(open_source(str(tmp_path), split="test", random=False, stride=3, **SHAPE), 0, rng())["video"]
    np.testing.assert_array_equal(clip, whole[path][:25:3])


def test_changing_a_clip_changes_no_other(tmp_path, one_video):
    fill(tmp_path, ["a.mp4"], one_video)
    source = open_source(tmp_path, random=False, **SHAPE)
    before = clip_of(source, 0, rng())["video"].copy()
    clip_of(source, 0, rng())["video"][:] = 0
    np.testing.assert_array_equal(clip_of(source, 0, rng())["video"], before)


def test_sub_folders_are_classes_and_a_class_of_one_clip_goes_to_training(tmp_path, one_video):
    fill(tmp_path, [f"run/{i}.mp4" for i in range(5)] + ["jump/deep/0.mp4", "jump/1.MP4", "walk/only.mp4"], one_video)
    (tmp_path / "nothing").mkdir()
    fill(tmp_path, [".hidden/x.mp4", "run/notes.txt"], one_video)
    train, test = (open_source(tmp_path, split=s, **SHAPE) for s in ("train", "test"))
    assert train.class_names == test.class_names == ("jump", "run", "walk")
    assert "walk/only.mp4" in names_of(train)
    both = names_of(train) + names_of(test)
    assert sorted(both) == sorted(
        [f"run/{i}.mp4" for i in range(5)] + ["jump/deep/0.mp4", "jump/1.MP4", "walk/only.mp4"]
    )
    assert {n.split("/")[0] for n in names_of(test)} == {"run", "jump"}, "every class of two has a test clip"
    for source in (train, test):
        for i, (_, file) in enumerate(source.windows):
            expected = source.class_names.index(names_of(source)[file].split("/")[0])
            assert clip_of(source, i, rng())["label"] == expected


def test_folders_train_and_test_are_taken_as_they_are(tmp_path, one_video):
    fill(tmp_path, ["train/a/1.mp4", "train/b/2.mp4", "train/c/3.mp4", "test/b/4.mp4", "test/c/5.mp4"], one_video)
    train, test = (open_source(tmp_path, split=s, **SHAPE) for s in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert names_of(train) == ["train/a/1.mp4", "train/b/2.mp4", "train/c/3.mp4"]
    assert names_of(test) == ["test/b/4.mp4", "test/c/5.mp4"] and clip_of(test, 0, rng())["label"] == 1


def test_the_hold_out_is_a_tenth_and_stays_when_files_are_added(tmp_path, one_video):
    def held_out():
        return set(names_of(open_source(tmp_path, split="test", **SHAPE)))

    fill(tmp_path, [f"a/{i:03}.mp4" for i in range(60)], one_video)
    first = held_out()
    assert first == held_out() and 3 <= len(first) <= 12
    assert not first & set(names_of(open_source(tmp_path, split="train", **SHAPE)))
    fill(tmp_path, [f"a/new {i:03}.mp4" for i in range(30)], one_video)
    assert {n for n in held_out() if "new" not in n} == first and len(held_out()) > len(first)


def test_broken_files_are_skipped_by_name_and_counted(tmp_path, one_video, capsys):
    reasons, good = broken_files(tmp_path), {f"clip {i}.mp4" for i in range(20)}
    fill(tmp_path, good, one_video)
    seen, skipped = set(), set()
    for split in ("train", "test"):
        source = open_source(tmp_path, split=split, log=SkipLog(0.6), **SHAPE)
        error = capsys.readouterr().err
        for path, why in source.skipped.items():
            assert reasons[path.name] in why and f"skipped {path}: {why}" in error
        if source.skipped:
            assert f"{len(source.skipped)} of {len(source.skipped) + len(source.reader.paths)} files skipped" in error
        assert all(clip_of(source, i, rng(i))["video"].shape == (9, 16, 16, 3) for i in range(len(source)))
        seen |= set(names_of(source))
        skipped |= {path.name for path in source.skipped}
    assert seen == good and skipped == set(reasons)


def test_a_run_names_a_broken_file_once_whatever_sizes_and_stages_open_it(tmp_path, one_video, capsys):
    reasons = broken_files(tmp_path / "clips" / "train")
    fill(tmp_path / "clips" / "train", ["a.mp4", "b.mp4"], one_video)
    lying_file(tmp_path / "clips" / "train" / "lying.mp4")
    (tmp_path / "clips" / "test").mkdir()
    data = DataConfig(source=str(tmp_path / "clips"), frames=9, size=16)
    run = Run(Experiment(data=data), tmp_path, None, skips=SkipLog(0.9))
    small, large = FrameSize(8, 8), FrameSize(16, 16)
    kinds = [SizedBatch(2, 9, large), SizedBatch(2, 9, small), SizedBatch(8, 1, large, images=True)]
    kinds += [SizedBatch(2, 13, large)]
    sources = [run.source("train", random=True, kind=kind, sources=len(kinds)) for kind in kinds]
    for source, kind in zip(sources, kinds, strict=True):
        for i in range(len(source)):
            assert clip_of(source, i, rng(i), frames=kind.frames)["video"].shape == kind.shape[1:]
    error = capsys.readouterr().err
    for name in (*reasons, "lying.mp4"):
        assert error.count(f"train/{name}: ") == 1, name
    assert error.count("5 of 8 files skipped") == 1 and "(6 so far)" in error and "(7 so far)" not in error
    assert all(len(s.skipped) == 6 for s in sources), "each knows all of them"
    Run(run.experiment, tmp_path, None, skips=SkipLog(0.9)).source("train", random=True)
    assert capsys.readouterr().err.count("skipped /") == 5, "another run tells them anew"


def test_a_folder_without_a_single_clip_says_what_is_wrong(tmp_path):
    reasons = broken_files(tmp_path / "bad" / "train")
    (tmp_path / "bad" / "test").mkdir()
    with pytest.raises(NoVideosError) as error:
        open_source(tmp_path / "bad", **SHAPE)
    assert "none of the 5 files" in str(error.value)
    assert all(f"{name}: " in str(error.value) and why in str(error.value) for name, why in reasons.items())
    (tmp_path / "clips").mkdir()
    with pytest.raises(NoVideosError, match=r"clips holds no video files \(.mp4, "):
        open_source(tmp_path / "clips", **SHAPE)
    with pytest.raises(NoVideosError, match="no folder .*clisp; did you mean .*clips"):
        open_source(tmp_path / "clisp", **SHAPE)
    with pytest.raises(NoVideosError, match="no folder .*neither/here.* 'synthetic' or a folder"):
        open_source(tmp_path / "neither" / "here", **SHAPE)
    with pytest.raises(NoVideosError, match="empty.mp4 is a file"):
        open_source(tmp_path / "bad" / "train" / "empty.mp4", **SHAPE)
    write_video(tmp_path / "clips" / "only.mp4", waves(20))
    with pytest.raises(NoVideosError, match="no clip for testing: add a second video"):
        open_source(tmp_path / "clips", split="test", **SHAPE)


def test_a_file_that_breaks_off_is_replaced_while_reading(tmp_path, one_video, capsys):
    fill(tmp_path / "train", ["b.mp4", "c.mp4"], one_video)
    fill(tmp_path / "test", ["t.mp4"], one_video)
    lying_file(tmp_path / "train" / "a.mp4")
    source = open_source(tmp_path, log=SkipLog(1), **SHAPE)
    assert len(source.reader.paths) == 3 and not source.skipped
    lying = [i for i, (_, file) in enumerate(source.windows) if file == 0]
    other = clip_of(open_source(tmp_path, log=SkipLog(1), **SHAPE), source.windows.index((0, 1)), rng(4))
    np.testing.assert_array_equal(clip_of(source, lying[0], rng(4))["video"], other["video"])
    for i in range(len(source)):
        assert clip_of(source, i, rng(i))["video"].shape == (9, 16, 16, 3)
        assert clip_of(source, i, rng(i), frames=1)["video"].shape == (1, 16, 16, 3)
    (skipped,) = source.skipped
    assert skipped == source.reader.paths[0] == tmp_path / "train" / "a.mp4"
    assert "no frame decodes" in source.skipped[skipped]
    assert capsys.readouterr().err.count("skipped ") == 1, "told once"
    (tmp_path / "train" / "b.mp4").unlink()  # while training runs
    fresh = open_source(tmp_path, log=SkipLog(1), **SHAPE)
    (tmp_path / "train" / "c.mp4").unlink()
    with pytest.raises(NoVideosError, match="none of the 2 files .* a.mp4: no frame decodes.*; c.mp4: no video file"):
        clip_of(fresh, 0, rng())
    stream = train_batches(fresh, [RandomWindow(9)], batch_size=2, seed=0)
    with pytest.raises(NoVideosError, match="none of the 2 files"):
        next(stream)
    stream.close()


def test_an_evaluation_leaves_out_what_it_cannot_read(tmp_path):
    """Clips that stand in for others would count twice; a shorter file that stands in is no broken one."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name, frames in (("a", 30), ("b", 12), ("c", 30)):
            write_video(tmp_path / split / f"{name}.mp4", waves(frames, 32, 32, seed=ord(name)))
    path = tmp_path / "test" / "a.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    whole = open_source(tmp_path, split="test", random=False, log=SkipLog(0.5), **SHAPE)
    video, _ = read_every_clip(whole, 64)
    assert len(whole) == 7 and whole.replaced and len(video) == 7 - len(whole.replaced)
    assert len({clip.tobytes() for clip in video}) == len(video) >= 4
    assert list(whole.skipped) == [path]
    (line,) = left_out(whole)
    assert f"{len(whole.replaced)} clips that cannot be read; skipped: 1 files (a.mp4: " in line
    intact = open_source(tmp_path, random=False, **SHAPE)
    assert len(read_every_clip(intact, 64)[0]) == 7 and not left_out(intact) and not intact.replaced


def test_enlarging_is_told_once(tmp_path, capsys):
    for name, side in (("a", 32), ("b", 48), ("c", 48)):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "test").mkdir(exist_ok=True)
        write_video(tmp_path / "train" / f"{name}.mp4", waves(12, side, 64))
    log = SkipLog()
    for size in (32, 40, 40):
        open_source(tmp_path, frames=9, size=size, log=log)
    assert capsys.readouterr().err == f"{tmp_path}: 1 of 3 files are enlarged to data.size 40\n"
    settings = ClipSettings(short_side=32, min_frames=9)
    prepare_split(video_folder(tmp_path, "train"), tmp_path / "out" / "train", settings)
    for size in (32, 40, 40):
        open_source(tmp_path / "out", frames=9, size=size, log=log)
    told = f"{tmp_path / 'out' / 'train'}: clips prepared with --short_side=32 are enlarged to data.size 40\n"
    assert capsys.readouterr().err == told


def test_the_cache_stays_within_its_bytes(tmp_path, one_video):
    fill(tmp_path / "train", [f"{i}.mp4" for i in range(12)], one_video)
    fill(tmp_path / "test", ["t.mp4"], one_video)
    one = 20 * 16 * 16 * 3
    source = open_source(tmp_path, cache_bytes=9 * one, **SHAPE)
    unbounded = open_source(tmp_path, **SHAPE)
    for i in [*range(len(source)), *range(len(source))]:
        np.testing.assert_array_equal(clip_of(source, i, rng(i))["video"], clip_of(unbounded, i, rng(i))["video"])
        assert source.cache.used == sum(v.nbytes for v in source.cache._videos.values()) <= 9 * one
    assert len(source.cache) == 9


def test_a_long_video_gives_the_same_clips_without_the_cache(tmp_path):
    for name in ("train/a.mp4", "train/b.mp4", "test/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, waves(70, seed=ord(name[-5])))
    for split, random in (("train", True), ("test", False)):
        for stride in (1, 2):
            cached = open_source(tmp_path, split=split, random=random, stride=stride, **SHAPE)
            apart = open_source(tmp_path, split=split, random=random, stride=stride, cache_bytes=1_000, **SHAPE)
            assert len(cached) == len(apart)
            for i in range(len(cached)):
                assert_equal = np.testing.assert_array_equal
                assert_equal(clip_of(apart, i, rng(i))["video"], clip_of(cached, i, rng(i))["video"])
                images = (clip_of(source, i, rng(i), frames=1)["video"] for source in (apart, cached))
                assert_equal(*images)
            assert cached.cache.used > 0 and apart.cache.used == 0


def test_a_long_video_that_breaks_off_gives_the_same_clips_whatever_was_read_before(tmp_path, one_video):
    fill(tmp_path / "train", ["b.mp4"], one_video)
    fill(tmp_path / "test", ["t.mp4"], one_video)
    lying_file(tmp_path / "train" / "a.mp4", frames=80)
    arguments = dict(cache_bytes=1_000, log=SkipLog(1), **SHAPE)
    source = open_source(tmp_path, **arguments)
    asked = [(i, seed) for i in range(len(source)) for seed in range(3)]
    first = [clip_of(source, i, rng(3 * i + seed))["video"] for i, seed in asked]
    fresh = open_source(tmp_path, **arguments)
    for (i, seed), video in reversed(list(zip(asked, first, strict=True))):
        np.testing.assert_array_equal(clip_of(fresh, i, rng(3 * i + seed))["video"], video)
    assert list(source.skipped) == list(fresh.skipped) == [tmp_path / "train" / "a.mp4"]
    readable = read_video(tmp_path / "train" / "a.mp4", short_side=16, count=15)[:, :, 4:20]
    windows = [readable[s : s + 9] for s in range(7)]
    assert any((video == window).all() for video in first for window in windows), "what can be read is used"


LEFT_EARLY = """
import ctypes, gc, sys
from pathlib import Path
from pv_vae_jax.data.video_container import EncodedVideo
from pv_vae_jax.data.video_reading import iterate_video, read_video

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "a b c d e f g used h i".split()]

info = ctypes.CDLL("libc.so.6").mallinfo2
info.restype = Info
video = EncodedVideo("clip", Path(sys.argv[1]).read_bytes())

def window():
    assert len(read_video(video, start=3, count=2)) == 2
    next(iterate_video(sys.argv[1]))

for _ in range(50):
    window()
gc.collect()
before = info().used
for _ in range(200):
    window()
gc.collect()
print((info().used - before) / 200)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not tell what it holds")
def test_windows_hold_no_memory_after_they_are_read(tmp_path):
    """PyAV loses 150 bytes with every generator that is left unclosed: 15 MB in ten thousand batches of ten."""
    path = tmp_path / "clip.mp4"
    write_video(path, waves(12, 32, 32), fps=8)
    command = [sys.executable, "-c", LEFT_EARLY, str(path)]
    env = os.environ | {"MALLOC_ARENA_MAX": "1"}  # what is told is of the first arena
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 75, "bytes a window; 300 are lost where both generators are left open"


def damaged(data: bytes, seed: int, size: int) -> bytes:
    """Bytes of a file of which `size` are others, somewhere behind the first tenth."""
    draw, changed = np.random.default_rng(seed), bytearray(data)
    place = int(draw.integers(len(data) // 10, len(data) * 9 // 10))
    changed[place : place + size] = draw.integers(0, 256, size, dtype=np.uint8).tobytes()
    return bytes(changed)


def test_pictures_that_were_guessed_are_not_handed_out(tmp_path):
    """Decoders draw what is damaged from what surrounds it, and say so; few flips go by without a sign."""
    path, silent = tmp_path / "clip.mp4", 0
    write_video(path, waves(24, 128, 160), fps=8)
    data, expected = path.read_bytes(), read_video(path)
    for seed in range(20):
        try:
            found = read_video(EncodedVideo("clip", damaged(data, seed, 20)), count=24)
        except BrokenVideoError:
            continue
        silent += not np.array_equal(found, expected)
    assert silent <= 4, "of 20; 18 go by if the sign is not read"


def test_a_list_of_files_is_no_video(tmp_path):
    encode(tmp_path / "a.flv", waves(2), codec="flv")
    write_video(tmp_path / "a.mp4", waves(5, 32, 32), fps=8)
    (tmp_path / "both.mp4").write_text("ffconcat version 1.0\nfile a.mp4\nfile a.mp4\n")
    with pytest.raises(BrokenVideoError, match="neither a video container .*: make it MP4"):
        read_video(tmp_path / "both.mp4")
    with pytest.raises(BrokenVideoError, match="of the kinds that are read: make it MP4"):
        read_video(tmp_path / "a.flv")


def test_clips_of_a_damaged_file_do_not_depend_on_memory(tmp_path, one_video):
    """What of it can be read is read, whether the whole file would be kept or not."""
    fill(tmp_path / "train", ["b.mp4", "c.mp4"], one_video)
    fill(tmp_path / "test", ["t.mp4"], one_video)
    path = tmp_path / "train" / "a.mp4"
    write_video(path, waves(90, 32, 32), fps=8)
    data = path.read_bytes()
    path.write_bytes(damaged(data, 3, len(data) // 5))
    kept, read = (open_source(tmp_path, **SHAPE, cache_bytes=n, log=SkipLog(0.5)) for n in (1 << 30, 0))
    for seed in range(3):
        for i in range(len(kept)):
            np.testing.assert_array_equal(clip_of(kept, i, rng(seed))["video"], clip_of(read, i, rng(seed))["video"])
    assert path in kept.skipped and kept.skipped.keys() == read.skipped.keys()

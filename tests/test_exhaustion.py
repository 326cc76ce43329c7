"""A machine that lacks threads, memory or open files ends a command; it never makes a good clip count as damaged."""

import errno
import os

import numpy as np
import pytest

from pv_vae_jax.data import exhaustion
from pv_vae_jax.data.exhaustion import ExhaustedError, raise_if_exhausted
from pv_vae_jax.data.listing import VideoEntry
from pv_vae_jax.data.prepare.encoding import ClipSettings, encode_clips
from pv_vae_jax.data.shards import Shards, write_shard
from pv_vae_jax.data.sources import open_source
from pv_vae_jax.data.video_writing import write_video
from tests.clips import clip_of
from tests.video_fixture import av, waves


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_no_clip_is_dropped_in_training_or_by_prepare(tmp_path, monkeypatch, number):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_video(tmp_path / split / "a.mp4", waves(9))
    source = open_source(tmp_path, frames=9, size=16, cache_bytes=0)
    original, threads_used, fails = av.video.reformatter.VideoReformatter, [], False

    class Scaler:
        def reformat(self, *arguments, **named):
            threads_used.append(named["threads"])
            if fails:
                raise av.error.classes.get(number, av.error.OSError)(number, os.strerror(number))
            return original().reformat(*arguments, **named)

    monkeypatch.setattr(av.video.reformatter, "VideoReformatter", Scaler)
    monkeypatch.setattr(exhaustion, "_lacks_memory", lambda: True)
    intact = clip_of(source, 0, np.random.default_rng(0))["video"]
    assert set(threads_used) == {1}
    fails = True
    entry = VideoEntry(source.reader.paths[0], "a.mp4")
    for read in (
        lambda: clip_of(source, 0, np.random.default_rng(0)),
        lambda: encode_clips(entry, ClipSettings(min_frames=1)),
    ):
        with pytest.raises(ExhaustedError, match=f"{os.strerror(number)} while reading .*a.mp4: raise the limits"):
            read()
    fails = False
    assert not source.skipped
    np.testing.assert_array_equal(clip_of(source, 0, np.random.default_rng(0))["video"], intact)


def test_a_damaged_file_may_ask_for_too_much_memory():
    raise_if_exhausted(av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"), "a.mp4")  # this machine has memory
    raise_if_exhausted(av.error.InvalidDataError(1, "damaged"), "a.mp4")


def test_a_folder_that_is_opened_without_file_handles_skips_nothing(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", waves(9))
    write_video(tmp_path / "b.mp4", waves(9))

    def fail(*_, **__):
        raise av.error.OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(ExhaustedError, match="Too many open files while reading .*.mp4"):
        open_source(tmp_path, frames=9, size=16)


def test_an_encoder_without_threads_leaves_no_clip_out(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", waves(9))

    def fail(*_, **__):
        raise av.error.BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("pv_vae_jax.data.video_writing._encode", fail)
    with pytest.raises(ExhaustedError, match="raise the limits"):
        encode_clips(VideoEntry(tmp_path / "a.mp4", "a.mp4"), ClipSettings(min_frames=1))


def test_a_record_is_not_damaged_because_its_file_cannot_be_opened(tmp_path, monkeypatch):
    write_shard(tmp_path / "a", iter([b"x"]))
    records = Shards([tmp_path / "a"], [1])

    def fail(*_):
        raise RuntimeError(f"open() failed: {os.strerror(errno.EMFILE)}; opening a")  # ArrayRecord gives the text alone

    with (
        monkeypatch.context() as patch,
        pytest.raises(ExhaustedError, match="Too many open files while reading .*a: raise"),
    ):
        patch.setattr("array_record.python.array_record_module.ArrayRecordReader", fail)
        records[0]
    assert records[0] == b"x"

"""Small videos for the tests of data: moving waves, any codec and container, sound alone."""

import os
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")


def waves(frames, height=32, width=48, seed=0):
    """Moving smooth waves: every frame differs, and the codec loses little."""
    rng = np.random.default_rng(seed)
    fy, fx, speed = *rng.uniform(0.06, 0.15, 2), rng.uniform(0.15, 0.3)
    y, x, t = np.arange(height)[:, None], np.arange(width), np.arange(frames)[:, None, None]
    wave = np.sin(fy * y + fx * x + speed * t)[..., None]
    return (rng.uniform(110, 150, 3) + rng.uniform(60, 80, 3) * wave).round().astype(np.uint8)


def encode(path, video, codec="libx264", rate=24, times=None, pixels="yuv420p", container=None, aspect=None, **options):
    """Write a file with any codec, options, width of a pixel and, in milliseconds, times."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pixels
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1_000)
        for i, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[i]), Fraction(1, 1_000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def encode_sound(path):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


def add_sound(source, target):
    """Copy a video, with a second of silence beside it."""
    with av.open(os.path.abspath(source)) as old, av.open(os.path.abspath(target), "w") as new:
        video = new.add_stream_from_template(old.streams.video[0])
        sound = new.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        new.mux([*sound.encode(frame), *sound.encode()])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = video
                new.mux(packet)

"""What the commands that take video files share: load a model, read clips, write clips."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.data.clips import centre_crop
from pv_vae_jax.data.video_reading import count_frames, iterate_video, probe
from pv_vae_jax.model import Pretrained
from pv_vae_jax.typing import ConfigError, check_clip_shape


def define_model_flags(values: flags.FlagValues) -> None:
    """`--model`, `--out`, `--size`, `--frames`."""
    model = "shipped name, model folder, work directory, or a stage in one, finished or not"
    flags.DEFINE_string("model", "tiny-synthetic", model, flag_values=values)
    flags.DEFINE_string("out", "out", "folder for the results", flag_values=values)
    size, frames = (
        "resize the short side to this, crop the centre square; 0 keeps it",
        "read of each video; 0 reads all",
    )
    flags.DEFINE_integer("size", 0, size, lower_bound=0, upper_bound=8192, flag_values=values)
    flags.DEFINE_integer("frames", 0, frames, lower_bound=0, flag_values=values)


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A video file whose length and size fit the model.

    Attributes:
      path: of the file.
      frames, height, width: their number, `1 + n p_t`, and size, after `--size`.
      pictures: `(h, w, 3)` uint8 each, decoded as they are asked for.
      fps: frames per second.
    """

    path: Path
    frames: int
    height: int
    width: int
    pictures: Iterator[np.ndarray]
    fps: float


def open_clips(paths: Sequence[str], values: flags.FlagValues, model: Pretrained) -> Iterator[VideoFile]:
    """Yield each file, ready to be read.

    Raises:
      ConfigError: no path, or two files of one name, whose results would take each other's place.
      BrokenVideoError: a file that is no video; with fewer frames than `--frames`, as its `pictures` come to an end.
      ShapeError: length or size does not fit the model; the message names the nearest that do. Nothing is cut silently.
    """
    if not paths:
        raise ConfigError("name at least one video file")
    stems = [Path(path).stem for path in paths]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ConfigError(f"several files are called {', '.join(sorted(twice))}: give them in calls of their own")
    config = model.vae.config
    for path in paths:
        info = probe(path)
        # A header may be wrong about the length. Counting costs little beside the network, and says early what is.
        frames = values.frames or count_frames(path)
        pictures = iterate_video(path, short_side=values.size or None, count=frames)
        if values.size:
            pictures = (centre_crop(picture[None], values.size)[0] for picture in pictures)
        first = next(pictures)
        shape = (frames, *first.shape[:2])
        try:
            check_clip_shape(*shape, config.time_factor, config.space_factor)
        except ValueError as error:
            hint = "--frames sets the length, --size resizes and crops a square"
            raise type(error)(f"{path}: {error} ({hint})") from error
        yield VideoFile(Path(path), *shape, itertools.chain([first], pictures), info.fps)


def result_path(values: flags.FlagValues, path: Path, kind: str, inputs: Sequence[str]) -> Path:
    """Where the result of `path` goes: `--out/<name>_<kind>.mp4`. The result of an earlier call is replaced.

    Raises:
      ConfigError: that is one of the files of this call.
    """
    target = Path(values.out) / f"{path.stem}_{kind}.mp4"
    if target.resolve() in {Path(name).resolve() for name in inputs}:
        raise ConfigError(f"the result of {path} would replace {target}, which is to be read: choose another --out")
    return target


def scale_for(side: int) -> int:
    """By which whole factor to enlarge clips `side` pixels high, so that a player shows them at 128 or more."""
    return max(1, 128 // side)


def read_clips(
    paths: Sequence[str], values: flags.FlagValues, model: Pretrained
) -> Iterator[tuple[Path, np.ndarray, float]]:
    """Yield `(path, (t, h, w, 3) uint8, frames per second)` for each file; raises as `open_clips`."""
    for file in open_clips(paths, values, model):
        yield file.path, np.stack(list(file.pictures)), file.fps

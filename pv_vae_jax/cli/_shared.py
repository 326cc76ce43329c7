"""What several commands share: flags, and videos from files with the paths of their results."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.convert.lpips import HEAD_NAMES
from pv_vae_jax.data.clips import centre_crop
from pv_vae_jax.data.video_reading import count_frames, iterate_video, probe
from pv_vae_jax.model import Model
from pv_vae_jax.typing import ConfigError, check_clip_shape

CONFIG = "experiment file, or the name of a shipped one, such as demo"
MODEL = "shipped name, model folder, work directory, or a stage in one, finished or not"


def define_model_flags(values: flags.FlagValues) -> None:
    """Define `--model` and `--out`."""
    flags.DEFINE_string("model", "tiny-synthetic", MODEL, flag_values=values)
    flags.DEFINE_string("out", "out", "folder for the results", flag_values=values)


def define_video_flags(values: flags.FlagValues) -> None:
    """Define `--model`, `--out`, `--size` and `--frames`, for commands that take video files."""
    define_model_flags(values)
    size = "resize the short side to this and crop the centre square; 0 keeps the size"
    flags.DEFINE_integer("size", 0, size, lower_bound=0, upper_bound=8192, flag_values=values)
    flags.DEFINE_integer("frames", 0, "frames of each video; 0 takes all", lower_bound=0, flag_values=values)


def define_lpips_flags(values: flags.FlagValues) -> None:
    """Define `--lpips`, `--lpips_weights` and `--lpips_heads`."""
    flags.DEFINE_enum("lpips", None, sorted(HEAD_NAMES), "perceptual distance of pairs", flag_values=values)
    flags.DEFINE_string("lpips_weights", None, "torchvision's weights of that network", flag_values=values)
    flags.DEFINE_string("lpips_heads", None, "LPIPS's linear heads, .pth or .npz", flag_values=values)


def lpips_files(values: flags.FlagValues) -> tuple[str, Path, Path] | None:
    """Backbone, weights and heads of LPIPS; None if it is not asked for.

    Raises:
      ConfigError: some of the flags are given without the others.
    """
    if values.lpips and not (values.lpips_weights and values.lpips_heads):
        raise ConfigError("--lpips needs --lpips_weights and --lpips_heads: add both")
    if (values.lpips_weights or values.lpips_heads) and not values.lpips:
        raise ConfigError(f"--lpips_weights and --lpips_heads need --lpips: add {' or '.join(sorted(HEAD_NAMES))}")
    return (values.lpips, Path(values.lpips_weights), Path(values.lpips_heads)) if values.lpips else None


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A video file whose length and size fit the model.

    Attributes:
      path: path of the file.
      frames, height, width: number of frames, `1 + n p_t`, and their size, after `--size`.
      pictures: `(h, w, 3)` uint8 each, decoded as they are asked for.
      fps: frames per second.
    """

    path: Path
    frames: int
    height: int
    width: int
    pictures: Iterator[np.ndarray]
    fps: float


def open_videos(paths: Sequence[str], values: flags.FlagValues, model: Model) -> Iterator[VideoFile]:
    """Yield each file, ready to be read, and make the folder of the results.

    Raises:
      ConfigError: no file is named, or two have the same name, so that one result would replace the other.
      BrokenVideoError: a file is not a video; or it has fewer frames than `--frames`, raised as its `pictures` end.
      ShapeError: length or size does not fit the model; the message names the nearest that do. Nothing is cut silently.
    """
    if not paths:
        raise ConfigError("name at least one video file")
    stems = [Path(path).stem for path in paths]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ConfigError(f"several files are called {', '.join(sorted(twice))}: give them in separate calls")
    Path(values.out).mkdir(parents=True, exist_ok=True)
    config = model.vae.config
    for path in paths:
        info = probe(path)
        # A header may be wrong about the length. Counting costs little beside the network, and finds out early.
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
      ConfigError: that is one of the input files of this call.
    """
    target = Path(values.out) / f"{path.stem}_{kind}.mp4"
    if target.resolve() in {Path(name).resolve() for name in inputs}:
        raise ConfigError(f"the result of {path} would replace the input {target}: choose another --out")
    return target


def scale_for(side: int) -> int:
    """The factor that enlarges clips `side` pixels high to 128 or more, so that a player shows them well."""
    return max(1, 128 // side)

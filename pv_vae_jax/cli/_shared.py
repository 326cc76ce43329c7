"""What several commands share: flags, and videos from files with the paths of their results."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.convert.lpips import HEAD_NAMES
from pv_vae_jax.data.frame_size import FITS, FrameSize, nearest
from pv_vae_jax.data.video_container import probe
from pv_vae_jax.data.video_reading import frame_times, iterate_video
from pv_vae_jax.data.video_writing import check_encoder
from pv_vae_jax.model import Model
from pv_vae_jax.storage import as_path, make_writable
from pv_vae_jax.typing import ConfigError, ShapeError, check_clip_shape

CONFIG = "experiment file, or the name of a shipped one, such as demo"
LARGEST = 8192  # side in pixels
MODEL = "shipped name, model folder, work directory or a stage in one, finished or not, or hf://OWNER/NAME"


def define_model_flags(values: flags.FlagValues) -> None:
    """Define `--model` and `--out`."""
    flags.DEFINE_string("model", "tiny-synthetic", MODEL, flag_values=values)
    flags.DEFINE_string("out", "out", "folder for the results", flag_values=values)


def define_video_flags(values: flags.FlagValues) -> None:
    """Define `--model`, `--out`, `--size`, `--fit`, `--frames` and `--stride`, for commands that take video files."""
    define_model_flags(values)
    define_size_flags(values, "0", "0 keeps the size, or takes the nearest that the model accepts")
    flags.DEFINE_integer("frames", 0, "frames of each video; 0 takes all", lower_bound=0, flag_values=values)
    stride = "from one frame to the next in the file; a model predicts best at the stride of its training"
    flags.DEFINE_integer("stride", 1, stride, lower_bound=1, flag_values=values)


def define_size_flags(values: flags.FlagValues, default: str | None, note: str) -> None:
    """Define `--size` and `--fit`; `note` ends the help of the former."""
    flags.DEFINE_string("size", default, f"side of a square, or height,width of frames; {note}", flag_values=values)
    fit = "to that size: crop what is left over, pad with black, or stretch"
    flags.DEFINE_enum("fit", "crop", FITS, fit, flag_values=values)


def frame_size(values: flags.FlagValues) -> FrameSize | None:
    """The size of `--size` and `--fit`; None for 0, or if it is not given.

    Raises:
      ConfigError: the size is neither one nor two numbers from 1 to `LARGEST`.
    """
    sides = (values.size or "0").split(",")
    if sides == ["0"]:
        return None
    if len(sides) > 2 or not all(side.strip().isdecimal() and 1 <= int(side) <= LARGEST for side in sides):
        raise ConfigError(
            f"--size must be a side, as 256, or height,width, as 480,848, of 1 to {LARGEST} pixels; got {values.size}"
        )
    return FrameSize(int(sides[0]), int(sides[-1]), values.fit)


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
      frames: number of frames, `1 + n p_t`.
      size: size of the frames that the model sees, after `--size` and `--fit`.
      height, width: size of the results: that of the frames without the bars of `--fit=pad`.
      pictures: `(h, w, 3)` uint8 each, decoded as they are asked for.
      fps: frames per second.
      times: `(frames,)` seconds from the first frame at which each is shown.
    """

    path: Path
    frames: int
    size: FrameSize
    height: int
    width: int
    pictures: Iterator[np.ndarray]
    fps: float
    times: np.ndarray

    def uncut(self, video: np.ndarray) -> np.ndarray:
        """Frames `(t, h, w, 3)` as the model sees or draws them, without bars."""
        return self.size.uncut(video, self.height, self.width)


def open_videos(paths: Sequence[str], values: flags.FlagValues, model: Model) -> Iterator[VideoFile]:
    """Yield each file, ready to be read, and make the folder of the results.

    Frames whose size does not fit the model are brought to the nearest that does; a line says so. Another says that a
    file has sound, since results have none.

    Raises:
      ConfigError: no file is named, or two have the same name, so that one result would replace the other; or `--size`
        is malformed.
      ImportError: the encoder for the results is missing.
      BrokenVideoError: a file is not a video, or is damaged.
      ShapeError: the length or `--size` does not fit the model or the file, and the message names one that does; or
        frames are too small for the model.
    """
    if not paths:
        raise ConfigError("name at least one video file")
    stems = [Path(path).stem for path in paths]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ConfigError(f"several files are called {', '.join(sorted(twice))}: give them in separate calls")
    check_encoder()
    make_writable(as_path(values.out, "--out"))
    config, wanted, stride = model.vae.config, frame_size(values), values.stride

    def spanned(frames: int) -> int:
        return 1 + (frames - 1) * stride

    for path in paths:
        info = probe(path)
        # A header may be wrong about the length. Decoding costs little beside the network, and finds out early.
        times = frame_times(path, spanned(values.frames) if values.frames else None)[::stride]
        frames, found, group = values.frames or len(times), len(times), config.time_factor
        longest = 1 + (found - 1) // group * group
        if found and (frames > found or not values.frames and found > longest):  # none at all is said below
            why = f"fewer than --frames={frames}" if values.frames else f"which do not fit 1 + {group} n"
            strided = f" at --stride={stride}" if stride > 1 else ""
            raise ShapeError(f"{path} has {found} frames{strided}, {why}: --frames={longest} takes as many as fit")
        own = next(iterate_video(path, count=1)).shape[:2]  # as it is shown: the header's may be rotated
        try:
            size = wanted or nearest(own[0], own[1], config.space_factor, values.fit)
            check_clip_shape(frames, size.height, size.width, config.time_factor, config.space_factor)
        except ValueError as error:
            raise ShapeError(f"{path}: {error} (--frames sets the length, --size and --fit the size)") from error
        scaled = size.scaled(*own) if wanted or size.fit == "resize" else own
        final = (size.height, size.width)
        steps = [f"resized to {scaled[0]} x {scaled[1]}"] if scaled != own else []
        steps += (
            [f"{'padded' if size.fit == 'pad' else 'cropped'} to {final[0]} x {final[1]}"] if scaled != final else []
        )
        if steps:
            print(f"{path}: {own[0]} x {own[1]} {' and '.join(steps)}")
        if info.sound:
            print(f"{path}: its sound is left out of the result")
        pictures = iterate_video(path, resize=size if scaled != own else None, count=spanned(frames))
        pictures = (size.cut(picture[None])[0] for picture in itertools.islice(pictures, 0, None, stride))
        height, width = scaled if size.fit == "pad" else final
        yield VideoFile(Path(path), frames, size, height, width, pictures, info.fps / stride, times)


def result_path(values: flags.FlagValues, path: Path, kind: str, inputs: Sequence[str]) -> Path:
    """Where the result of `path` goes: `--out/<name>_<kind>.mp4`. The result of an earlier call is replaced.

    Raises:
      ConfigError: that is one of the input files of this call.
    """
    target = as_path(values.out, "--out") / f"{path.stem}_{kind}.mp4"
    if target.resolve() in {Path(name).resolve() for name in inputs}:
        raise ConfigError(f"the result of {path} would replace the input {target}: choose another --out")
    return target


def scale_for(side: int) -> int:
    """The factor that enlarges clips `side` pixels high to 128 or more, so that a player shows them well."""
    return max(1, 128 // side)

"""See the first frames of a video and draw the rest, beside the truth and beside copying the last frame seen.

pv-vae predict --model tiny-synthetic --observe=9 --frames=17 --size=32 --out out clip.mp4

The results have the frames' own times, and no sound.
"""

from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from pv_vae_jax.cli._shared import define_video_flags, open_videos, result_path, scale_for
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.model import load
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.typing import ConfigError, ShapeError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae predict`."""
    define_video_flags(values)
    observe = "frames the encoder sees, 1 + n p_t; 0 takes about the first half"
    flags.DEFINE_integer("observe", 0, observe, lower_bound=0, flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Write `<name>_prediction.mp4`: truth, prediction, copy of the last frame seen."""
    model = load(values.model)
    p_t = model.vae.config.time_factor
    key = jax.random.key(0) if model.vae.config.pad == "gaussian" else None
    for file in open_videos(positional, values, model):
        observe = values.observe or 1 + (file.frames - 1) // p_t // 2 * p_t
        if observe >= file.frames:
            raise ConfigError(f"--observe must leave at least one of {file.path}'s {file.frames} frames to predict")
        video = np.stack(list(file.pictures))
        try:
            result = np.asarray(to_uint8(model.predict(video[None], observe, key))[0])
        except ShapeError as error:
            raise ShapeError(f"--observe: {error}") from error
        target = result_path(values, file.path, "prediction", positional)
        video, result = file.uncut(video), file.uncut(result)
        copy = video.copy()
        copy[observe:] = video[observe - 1]
        panels = np.concatenate([video, result, copy], axis=2)
        write_video(target, panels, fps=file.fps, times=file.times, scale=scale_for(file.height))
        truth = to_float(video[observe:])
        error = np.mean((to_float(result[observe:]) - truth) ** 2)
        copied = np.mean((to_float(video[observe - 1]) - truth) ** 2)
        print(
            f"{target} (truth | prediction | copy): saw {observe} frames, drew {file.frames - observe}; "
            f"squared error {error:.4f}, copying the last frame {copied:.4f} (range [-1, 1])"
        )

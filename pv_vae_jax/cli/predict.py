"""See the first frames of a video and draw the rest, beside the truth and beside copying the last frame seen.

pv-vae predict --model tiny-synthetic --observe=9 --frames=17 --size=32 --out out clip.mp4
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from pv_vae_jax.cli.clips import define_model_flags, read_clips, result_path, scale_for
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.model import load
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.predictive import predict_clip
from pv_vae_jax.typing import ConfigError, ShapeError, check_clip_shape


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae predict`."""
    define_model_flags(values)
    observe = "frames the encoder sees, 1 + n p_t; 0 takes about the first half"
    flags.DEFINE_integer("observe", 0, observe, lower_bound=0, flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Write `<name>_prediction.mp4`: truth, prediction, copy of the last frame seen."""
    if overrides:
        raise ConfigError("pv-vae predict takes no --config overrides: the configuration is the model's own")
    model = load(values.model)
    p_t = model.vae.config.time_factor

    def draw(params, video, observe):
        return predict_clip(model.vae, params, to_float(video[None]), observe, jax.random.key(0))[0]

    predict = jax.jit(draw, static_argnums=2)
    Path(values.out).mkdir(parents=True, exist_ok=True)
    for path, video, fps in read_clips(positional, values, model):
        observe = values.observe or 1 + (len(video) - 1) // p_t // 2 * p_t
        if not 1 <= observe < len(video):
            raise ConfigError(f"{path} gives {len(video)} frames: --observe must leave at least one of them to predict")
        try:
            check_clip_shape(observe, video.shape[1], video.shape[2], p_t, model.vae.config.space_factor)
        except ShapeError as error:
            raise ShapeError(f"--observe: {error}") from error
        result = np.asarray(to_uint8(predict(model.vae_params, video, observe)))
        target = result_path(values, path, "prediction", positional)
        copy = video.copy()
        copy[observe:] = video[observe - 1]
        panels = np.concatenate([video, result, copy], axis=2)
        write_video(target, panels, fps=fps, scale=scale_for(video.shape[1]))
        truth = to_float(video[observe:])
        error = np.mean((to_float(result[observe:]) - truth) ** 2)
        copied = np.mean((to_float(video[observe - 1]) - truth) ** 2)
        print(
            f"{target} (truth | prediction | copy): saw {observe} frames, drew {len(video) - observe}; "
            f"squared error {error:.4f}, copying the last frame {copied:.4f} (range [-1, 1])"
        )

"""Encode and decode video files, and print how close the result is.

  pv-vae reconstruct --model tiny-synthetic --frames=17 --size=32 --out out clip.mp4

`python -m pv_vae_jax.cli.reconstruct` takes the same flags.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from pv_vae_jax.cli.clips import define_model_flags, load_model, read_clips
from pv_vae_jax.config import ConfigError
from pv_vae_jax.data.video_files import write_video
from pv_vae_jax.evaluation.image_metrics import psnr
from pv_vae_jax.pixels import to_float, to_uint8


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae reconstruct`."""
    define_model_flags(values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Write `<name>_reconstruction.mp4`, original on the left, for every file."""
    if overrides:
        raise ConfigError("pv-vae reconstruct takes no --config overrides: the configuration is the model's own")
    model = load_model(values)
    apply = jax.jit(lambda params, video: model.vae.apply({"params": params}, to_float(video[None]))[0][0])
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    for path, video, fps in read_clips(positional, values, model):
        result = np.asarray(to_uint8(apply(model.vae_params, video)))
        target = out / f"{path.stem}_reconstruction.mp4"
        write_video(target, np.concatenate([video, result], axis=2), fps=fps)
        score = psnr(video[None] / np.float32(255), result[None] / np.float32(255), 1.0)
        t, h, w, _ = video.shape
        print(f"{target}: {t}x{h}x{w}, latents {model.vae.config.name}, PSNR {score:.2f} dB")


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_command

    sys.exit(run_command("reconstruct", sys.argv[1:]))

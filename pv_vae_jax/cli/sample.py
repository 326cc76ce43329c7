"""Generate clips with the latent diffusion transformer of a run or a shipped model.

  pv-vae sample --model tiny-synthetic --clips=16 --guidance=2 --out out
  pv-vae sample --model runs/demo --class_name=orbit --out out

Writes `samples_<class>.mp4`, the clips of a class side by side, and `samples.npz` (uint8 video, label).
"""

import math
import sys

import numpy as np
from absl import flags

from pv_vae_jax.cli._shared import define_model_flags, scale_for
from pv_vae_jax.data.video_writing import NoEncoderError, check_encoder, write_video
from pv_vae_jax.messages import counted, did_you_mean
from pv_vae_jax.model import load
from pv_vae_jax.sampling import sample_clips
from pv_vae_jax.storage import as_path, atomic, make_writable
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae sample`."""
    define_model_flags(values)
    flags.DEFINE_integer("clips", 16, "number of clips", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 16, "clips at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", 100, "Euler steps", lower_bound=1, upper_bound=100_000, flag_values=values)
    flags.DEFINE_float("guidance", None, "guidance scale; 1 is none; by default 1.5 with classes", flag_values=values)
    flags.DEFINE_string("class_name", "", "draw this class only", flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of the noise", lower_bound=0, upper_bound=2**31 - 1, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Sample and write."""
    model = load(values.model)
    if model.diffusion is None:
        raise ConfigError(
            f"{values.model} has no diffusion transformer: take a run whose stage diffusion is finished, "
            "or tiny-synthetic"
        )
    conditional = model.diffusion.model.config.classes > 0
    if not conditional and (values.class_name or values.guidance not in (None, 1)):
        raise ConfigError(f"{values.model} was trained without classes: leave out --class_name and --guidance")
    names = model.diffusion.class_names if conditional else ("all",)
    if values.class_name and values.class_name not in names:
        raise ConfigError(f"no class {values.class_name!r}; {did_you_mean(values.class_name, names)}")
    guidance = (1.5 if conditional else 1.0) if values.guidance is None else values.guidance
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ConfigError(f"--guidance must be a finite number of at least 0, got {guidance}")
    wanted = [names.index(values.class_name)] if values.class_name else range(len(names))
    labels = np.resize(wanted, values.clips)
    out = make_writable(as_path(values.out, "--out"))
    try:
        check_encoder()
    except (ImportError, NoEncoderError) as error:
        no_video = True
        print(f"pv-vae sample: samples.npz only, {error}", file=sys.stderr)
    else:
        no_video = False
    video = sample_clips(
        model, labels, steps=values.steps, guidance=guidance, seed=values.seed, batch_size=values.batch_size
    )
    with atomic(out / "samples.npz") as temporary:
        np.savez_compressed(temporary, video=video, label=labels)
    print(f"{out / 'samples.npz'}: {counted(len(video), 'clip')}")
    if no_video:
        return
    for label in np.unique(labels):
        target = out / f"samples_{names[label].replace('/', '%2F')}.mp4"
        clips = video[labels == label]
        write_video(target, np.concatenate(list(clips), axis=2), fps=8, scale=scale_for(video.shape[2]))
        print(f"{target}: {counted(len(clips), 'clip')}{' side by side' if len(clips) > 1 else ''}")

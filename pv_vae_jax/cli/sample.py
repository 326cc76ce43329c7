"""Generate clips with the latent diffusion transformer of a run or a shipped model.

  pv-vae sample --model tiny-synthetic --clips=16 --guidance=2 --out out
  pv-vae sample --model runs/demo --class_name=orbit --out out

Writes one `samples_<class>.mp4` grid a class, and `samples.npz` (uint8 video, label). `python -m pv_vae_jax.cli.sample`
takes the same flags.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.cli.clips import scale_for
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.model import load
from pv_vae_jax.sampling import sample_clips
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae sample`."""
    flags.DEFINE_string("model", "tiny-synthetic", "shipped name, model folder or work directory", flag_values=values)
    flags.DEFINE_string("out", "out", "folder for the results", flag_values=values)
    flags.DEFINE_integer("clips", 16, "clips in all", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 16, "clips at once", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", 100, "Euler steps", lower_bound=1, upper_bound=100_000, flag_values=values)
    flags.DEFINE_float("guidance", None, "guidance scale; 1 is none; by default 1.5 with classes", flag_values=values)
    flags.DEFINE_string("class_name", "", "draw this class only", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, upper_bound=2**31 - 1, flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Sample and write."""
    if positional or overrides:
        raise ConfigError("pv-vae sample takes flags only; --model names the model")
    model = load(values.model)
    if model.diffusion is None:
        raise ConfigError(f"{values.model} has no diffusion transformer yet: train stage diffusion first")
    conditional = model.diffusion.model.config.classes > 0
    names = model.diffusion.class_names if conditional else ("all",)
    if values.class_name and not conditional:
        raise ConfigError(f"{values.model} was trained without classes: leave --class_name out")
    guidance = (1.5 if conditional else 1.0) if values.guidance is None else values.guidance
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ConfigError(f"--guidance is a finite number of at least 0, got {guidance}")
    if guidance != 1 and not conditional:
        raise ConfigError(f"{values.model} was trained without classes, so there is no guidance: leave --guidance out")
    if values.class_name and values.class_name not in names:
        near = difflib.get_close_matches(values.class_name, names, 1)
        known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"no class {values.class_name!r}; {known}")
    first = names.index(values.class_name) if values.class_name else 0
    labels = np.full(values.clips, first) if values.class_name else np.arange(values.clips) % len(names)
    video = sample_clips(
        model, labels, steps=values.steps, guidance=guidance, seed=values.seed, batch_size=values.batch_size
    )
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "samples.npz.tmp").open("wb") as file:
        np.savez_compressed(file, video=video, label=labels)
    os.replace(out / "samples.npz.tmp", out / "samples.npz")
    for label in np.unique(labels):
        target = out / f"samples_{names[label]}.mp4"
        write_video(
            target, np.concatenate(list(video[labels == label]), axis=2), fps=8, scale=scale_for(video.shape[2])
        )
        print(f"{target}: {np.sum(labels == label)} clips side by side")

"""Train the small feature network by which `pv-vae evaluate` compares clips when no published weights are given.

  python -m studies.features --config experiments/feature_net.py --out runs/features --videos=folder \\
    --credit='Big Buck Bunny (c) 2008 Blender Foundation, CC BY 3.0'
  python -m studies.features --measure=clips.npy         # distances by grade of damage, of the shipped network

It learns from the synthetic world and, with --videos, from the texture of real clips. Writes `features.safetensors` and
`config.json` (sizes, hash, settings, held-out scores). Settings are those of --config, a file whose `get_config()`
returns a `FeatureTraining`, and flags, `--config.steps=1000`. On one machine a repetition gives the same weights.
"""

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from pv_vae_jax.data.sources import open_source
from pv_vae_jax.evaluation.clip_sets import open_clips, read_clips
from pv_vae_jax.evaluation.networks.extract import own_network
from pv_vae_jax.evaluation.networks.feature_net import save_features
from pv_vae_jax.evaluation.protocol import PROTOCOLS
from pv_vae_jax.train.config_files import override, run_config
from pv_vae_jax.typing import ConfigError
from studies.features.sensitivity import measure_sensitivity, sensitivity_table
from studies.features.training import FeatureTraining, train_features


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m studies.features`."""
    for name, text in (
        ("config", "file of settings; default those of the shipped network"),
        ("out", "folder for the network"),
        ("videos", "folder of videos for texture; default the synthetic world alone"),
        ("credit", "author and licence of the videos, written to config.json"),
        ("measure", "train nothing; measure how --out (default the shipped network) reacts to damage of these clips"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_integer("clips", 128, "largest number of clips to measure on", lower_bound=4, flag_values=values)
    flags.DEFINE_integer("size", None, "side to which measured videos are cropped", lower_bound=1, flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Train, save, print the held-out scores."""
    if positional:
        raise ConfigError(f"python -m studies.features takes flags only, got {' '.join(positional)}")
    if values.measure:
        _measure(values, overrides)
        return
    if not values.out:
        raise ConfigError("set --out, the folder for the network, or --measure, clips to measure the shipped one on")
    if values.videos and not values.credit:
        raise ConfigError("weights trained on --videos must name their author and licence: set --credit")
    settings = run_config(values.config, FeatureTraining) if values.config else FeatureTraining()
    config: FeatureTraining = override(settings, overrides)
    real = _real_clips(values.videos, config) if values.videos else None
    params, scores = train_features(config, real)
    meta = {"training": dataclasses.asdict(config), "held out": scores}
    if real is not None:
        meta |= {"real clips": len(real), "credit": values.credit}
    save_features(values.out, config.network, params, meta)
    print("\n".join(f"{name:28}{value:.3f}" for name, value in scores.items()))
    print(f"feature network: {values.out}, hash {own_network(values.out).hash}")


def _measure(values: flags.FlagValues, overrides: dict[str, str]) -> None:
    if values.videos or overrides or values.config:
        raise ConfigError("--measure trains nothing: leave out --videos and --config")
    network = own_network(values.out)
    clips = open_clips(values.measure, PROTOCOLS["paper"].fake_window(), size=values.size)
    video = np.stack(list(read_clips(clips, np.arange(min(values.clips, len(clips))))))
    print(f"network {network.hash}, clips of {values.measure}")
    print("\n".join(sensitivity_table(measure_sensitivity(network, video))))


def _real_clips(folder: str, config: FeatureTraining) -> np.ndarray:
    """Training windows of a folder of videos, `(n, frames, side, side, 3)` uint8."""
    source = open_source(folder, frames=config.frames, size=config.network.side, random=False, clips=None)
    index = tqdm(range(len(source)), desc="videos", unit="clip", disable=not sys.stderr.isatty())
    return np.stack([source[i]["video"] for i in index])


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_module

    run_module("python -m studies.features")

"""The part of `pv-vae evaluate` that compares two sets of clips, whoever made them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.cli._shared import define_lpips_flags, lpips_files
from pv_vae_jax.evaluation.clip_sets import open_clips
from pv_vae_jax.evaluation.comparison import compare_pairs, compare_sets, score_inception
from pv_vae_jax.evaluation.networks.extract import FeatureNetwork, c3d_network, i3d_network, own_network
from pv_vae_jax.evaluation.perceptual import lpips_distance
from pv_vae_jax.evaluation.protocol import PROTOCOLS, MetricProtocol, Score
from pv_vae_jax.storage import make_writable, write_json
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of the comparison."""
    text = lambda name, default, told: flags.DEFINE_string(name, default, told, flag_values=values)  # noqa: E731
    whole = lambda name, told, least: flags.DEFINE_integer(  # noqa: E731
        name, None, told, lower_bound=least, flag_values=values
    )
    text("real", None, "folder of videos, or .npy or .npz of clips (n, t, h, w, 3)")
    text("fake", None, "the same, of the clips to judge")
    flags.DEFINE_enum("protocol", "paper", sorted(PROTOCOLS), "how sets are compared", flag_values=values)
    flags.DEFINE_enum("features", "own", ("own", "i3d"), "network that compares", flag_values=values)
    text("weights", None, "file of I3D, or folder of another `python -m studies.features`; own ships with the library")
    whole("frames", "of a clip; default the protocol's", 1)
    whole("size", "videos: short side to this, centre square", 1)
    whole("seed", "of the choice of clips, random starts and intervals; default 0", 0)
    whole("batch_size", "clips at once; default 8", 1)
    text("value_range", None, "of float arrays: 0,1 or -1,1")
    flags.DEFINE_bool("paired", False, "clip i of fake is a reconstruction of clip i of real", flag_values=values)
    flags.DEFINE_bool("intervals", True, "bootstrap intervals", flag_values=values)
    define_lpips_flags(values)
    text("c3d", None, "weights of C3D, .npz, for the inception score")
    text("c3d_mean", None, "its mean cube, .npz or .npy")
    whole("splits", "of the inception score; default 10", 1)
    text("out", None, "JSON file for the scores and their cards")


def flag_names() -> list[str]:
    """Names of these flags."""
    values = flags.FlagValues()
    define_flags(values)
    return sorted(values)


def run(values: flags.FlagValues) -> list[Score]:
    """Compare `--real` and `--fake`, print a table, write the cards."""
    if not (values.real and values.fake):
        raise ConfigError("comparing sets takes both --real and --fake")
    if values.features == "i3d" and not values.weights:
        raise ConfigError(
            "I3D's weights are not part of this library: name their file with --weights, or leave --features=own"
        )
    if bool(values.c3d) != bool(values.c3d_mean):
        raise ConfigError("the inception score takes both --c3d and --c3d_mean")
    lpips = lpips_files(values)
    if lpips and not values.paired:
        raise ConfigError("--lpips compares pairs: it takes --paired")
    if values.splits and not values.c3d:
        raise ConfigError("--splits is of the inception score: it takes --c3d and --c3d_mean")
    if values.out:
        make_writable(Path(values.out).parent)
    protocol, seed = _protocol(values), values.seed or 0
    network = _network(values, protocol)
    read = {"size": values.size, "value_range": _range(values.value_range)}
    real_window = protocol.fake_window() if values.paired else protocol.real_window(seed)
    real = open_clips(values.real, real_window, **read)
    fake = open_clips(values.fake, protocol.fake_window(), **read)
    scores = []
    if values.paired:
        perceptual, network_of = lpips_distance(*lpips) if lpips else (None, None)
        scores += compare_pairs(real, fake, protocol, perceptual=perceptual, perceptual_network=network_of, seed=seed)
    batch = values.batch_size or 8
    resamples = 40 if values.intervals else 0
    scores += compare_sets(
        real, fake, network, protocol, paired=values.paired, seed=seed, batch_size=batch, resamples=resamples
    )
    if values.c3d:
        classifier = c3d_network(values.c3d, values.c3d_mean)
        splits = values.splits or 10
        scores.append(score_inception(fake, classifier, protocol, splits=splits, seed=seed, batch_size=batch))
    print("\n".join(_table(scores)))
    if values.out:
        write_json(Path(values.out), [s.to_json() for s in scores])
        print(f"scores and protocol cards: {values.out}")
    return scores


def _protocol(values: flags.FlagValues) -> MetricProtocol:
    """The protocol named, with what the flags change of it in its name: then it is another."""
    chosen = PROTOCOLS[values.protocol]
    given = {"frames": values.frames, "clips": values.clips}
    changed = {key: n for key, n in given.items() if n is not None and n != getattr(chosen, key)}
    told = {}
    if changed:
        told["name"] = f"{chosen.name} with {' and '.join(f'{n} {key}' for key, n in changed.items())}"
        told["note"] = f"unchanged it is: {chosen.note}"
    as_pairs = {"start": "first", "stride": 1} if values.paired else {}  # a reconstruction has its clip's own frames
    return dataclasses.replace(chosen, **changed, **told, **as_pairs)


def _network(values: flags.FlagValues, protocol: MetricProtocol) -> FeatureNetwork:
    if values.features == "own":
        return own_network(values.weights)
    return i3d_network(values.weights, resize_rule=protocol.resize, crop=protocol.crop)


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not (low < high and np.isfinite([low, high]).all()):
        raise ConfigError(f"--value_range takes two numbers, low,high; got {text}")
    return low, high


def _table(scores: list[Score]) -> list[str]:
    first = scores[0].card
    real, protocol = first["real"], first["protocol"]
    sets = {"real": real, "fake": first["fake"]}
    lines = [
        *(f"{name}: {part['scored']} of {part['available']} clips of {part['set']}" for name, part in sets.items()),
        f"protocol {protocol['name']}: {protocol['frames']} x {real['size'][0]} x {real['size'][1]}",
    ]
    width = max(len(s.name) for s in scores) + 2
    for s in scores:
        spread = (
            "" if s.interval is None else f"   {s.interval.level:.0%} [{s.interval.low:.4g}, {s.interval.high:.4g}]"
        )
        lines.append(f"{s.name:{width}}{s.value:12.5g}{spread}")
    return lines

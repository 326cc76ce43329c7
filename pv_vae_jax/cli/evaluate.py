"""Measure a run and write its report, compare several runs, or compare two sets of clips from any model.

  pv-vae evaluate --workdir runs/demo
  pv-vae evaluate runs/a runs/b --out comparison.html
  pv-vae evaluate --real folder --fake samples.npz --size=32 --clips=256 --out scores.json
  pv-vae evaluate --real originals.npy --fake reconstructions.npy --paired --clips=64

One run: writes `WORKDIR/report/report.html` (one self-contained page), `metrics.json` (the numbers with their protocol)
and, with a finished diffusion stage, `samples.npz` (uint8 video, label). Stages that are not finished are listed and
left out. PSNR, SSIM and, with --lpips, LPIPS are scored frame by frame.

Several runs, or a folder of them, such as that of a study: each must have been evaluated, which `pv-vae train` does at
its end, and all must be of the same data. The page shows their scores beside the paper's, convergence and the same
clips of all; its numbers go beside it as `.json`. Generated clips are compared with the first run's test clips,
equally many of each. Scores that were written with `--real --fake --out RUN/report/NAME.json` are included.

Two sets: distances of the sets by a feature network, and with --paired PSNR and SSIM. A number is called FVD, IS or
LPIPS only if the published weights made it; any other carries the name and hash of its features. Each comes with its
protocol, see docs/evaluation.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from pv_vae_jax.cli._shared import define_lpips_flags, define_size_flags, frame_size, lpips_files
from pv_vae_jax.evaluation.clip_sets import open_clips
from pv_vae_jax.evaluation.comparison import check_network, compare_pairs, compare_sets, score_inception
from pv_vae_jax.evaluation.networks.extract import c3d_network, i3d_network, own_network
from pv_vae_jax.evaluation.perceptual import lpips_distance
from pv_vae_jax.evaluation.protocol import PROTOCOLS, Score
from pv_vae_jax.report.page import aligned
from pv_vae_jax.report.run_comparison import compare_runs, runs_in
from pv_vae_jax.report.run_report import evaluate_run
from pv_vae_jax.storage import as_path, make_writable, write_json
from pv_vae_jax.train.run import reopen_run
from pv_vae_jax.typing import ConfigError

OF_ONE_RUN = {"workdir", "clips", "sample_clips", "lpips", "lpips_weights", "lpips_heads"}
OF_SEVERAL_RUNS = {"workdir", "out"}
TEXTS = {
    "workdir": "folder of a run with a finished stage",
    "out": "several runs: the page, default comparison.html; sets: JSON file for the scores and their protocol",
    "real": "sets: folder of videos or of folders of frames, or .npy or .npz of clips (n, t, h, w, 3)",
    "fake": "sets: the clips to judge, in the same forms",
    "weights": "sets: file of I3D, or folder made by `python -m studies.features`; own ships with the library",
    "value_range": "sets: range of float arrays, 0,1 or -1,1",
    "c3d": "sets: weights of C3D, .npz, for the inception score",
    "c3d_mean": "sets: mean cube of C3D, .npz or .npy",
}
INTEGERS = {  # name -> lower bound, help
    "clips": (1, "run: test clips to score at most, default data.test_clips; sets: number, default the protocol's"),
    "sample_clips": (0, "run: clips to generate, 0 for none; default sampling.clips"),
    "frames": (1, "sets: frames per clip; default the protocol's"),
    "seed": (0, "sets: seed of the choice of clips, random starts and intervals; default 0"),
    "batch_size": (1, "sets: clips per step; default 8"),
    "splits": (1, "sets: splits of the inception score; default 10"),
}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae evaluate`."""
    for name, help in TEXTS.items():
        flags.DEFINE_string(name, None, help, flag_values=values)
    for name, (least, help) in INTEGERS.items():
        flags.DEFINE_integer(name, None, help, lower_bound=least, flag_values=values)
    define_size_flags(values, None, "sets of videos alone, which otherwise keep their size")
    flags.DEFINE_enum("protocol", "paper", sorted(PROTOCOLS), "sets: how they are compared", flag_values=values)
    flags.DEFINE_enum("features", "own", ("own", "i3d"), "sets: feature network", flag_values=values)
    flags.DEFINE_bool("paired", False, "sets: clip i of fake reconstructs clip i of real", flag_values=values)
    flags.DEFINE_bool("intervals", True, "sets: bootstrap intervals", flag_values=values)
    define_lpips_flags(values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Evaluate one run, compare several, or compare the sets of `--real` and `--fake`."""
    if overrides:
        raise ConfigError("pv-vae evaluate takes no --config overrides: each run keeps its own configuration")
    runs = [*([values.workdir] if values.workdir else []), *runs_in(positional)]
    given = {name for name in values if values[name].present}
    if bool(runs) == bool(values.real or values.fake):
        raise ConfigError(
            "expected either one run, --workdir, or two sets of clips, --real and --fake, or several work directories"
        )
    foreign = given - (OF_ONE_RUN if len(runs) == 1 else OF_SEVERAL_RUNS) if runs else given & {"sample_clips"}
    if foreign:
        why = "these compare sets, with --real and --fake"
        if not runs:
            why = "this belongs to --workdir; sets are compared as they are"
        elif foreign <= OF_ONE_RUN:
            why = "these measure one run; several are compared by the reports they have"
        raise ConfigError(f"{', '.join(f'--{name}' for name in sorted(foreign))}: {why}")
    if not runs:
        _compare_sets(values)
    elif len(runs) == 1:
        evaluate_run(reopen_run(runs[0]), values.clips, values.sample_clips, lpips_files(values))
    else:
        compare_runs(runs, as_path(values.out or "comparison.html", "--out"))


def _compare_sets(values: flags.FlagValues) -> None:
    """Compare `--real` and `--fake`, print a table, write the scores with their protocol."""
    lpips, size = lpips_files(values), frame_size(values)
    if not (values.real and values.fake):
        raise ConfigError("comparing sets needs both --real and --fake")
    if values.features == "i3d" and not values.weights:
        raise ConfigError("I3D's weights are not included: name their file with --weights, or leave --features=own")
    if bool(values.c3d) != bool(values.c3d_mean):
        raise ConfigError("the inception score needs both --c3d and --c3d_mean")
    if lpips and not values.paired:
        raise ConfigError("--lpips compares pairs: add --paired")
    if values["fit"].present and not size:
        raise ConfigError("--fit says how videos are brought to --size: add it")
    if values.splits and not values.c3d:
        raise ConfigError("--splits applies to the inception score, and it takes --c3d and --c3d_mean: add them")
    if values.out:
        make_writable(as_path(values.out, "--out").parent)
    protocol = PROTOCOLS[values.protocol].changed(frames=values.frames, clips=values.clips, paired=values.paired)
    seeded = {"seed": values.seed or 0}
    batched: Any = {"batch_size": values.batch_size or 8, **seeded}
    if values.features == "own":
        network = own_network(values.weights)
    else:
        network = i3d_network(values.weights, resize_rule=protocol.resize, crop=protocol.crop)
    classifier, splits = c3d_network(values.c3d, values.c3d_mean) if values.c3d else None, values.splits or 10
    # All that can be told beforehand, so that no score is lost to the last one.
    check_network(network, protocol)
    if classifier:
        check_network(classifier, protocol, splits)
    reading = {"size": size, "value_range": _range(values.value_range)}
    real_window = protocol.fake_window() if values.paired else protocol.real_window(**seeded)
    real = open_clips(values.real, real_window, **reading)
    fake = open_clips(values.fake, protocol.fake_window(), **reading)
    scores = []
    if values.paired:
        distance, named = lpips_distance(*lpips) if lpips else (None, None)
        scores += compare_pairs(real, fake, protocol, perceptual=distance, perceptual_network=named, **seeded)
    resamples = 40 if values.intervals else 0
    scores += compare_sets(real, fake, network, protocol, paired=values.paired, resamples=resamples, **batched)
    if classifier:
        scores.append(score_inception(fake, classifier, protocol, splits=splits, **batched))
    print("\n".join(_table(scores)))
    if values.out:
        write_json(as_path(values.out, "--out"), [s.to_json() for s in scores])
        print(f"scores and protocol cards: {values.out}")


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not (low < high and np.isfinite([low, high]).all()):
        raise ConfigError(f"--value_range must be two numbers, low,high; got {text}")
    return low, high


def _table(scores: list[Score]) -> list[str]:
    card = scores[0].card
    protocol, size = card["protocol"], card["real"]["size"]
    lines = [
        f"{name}: {card[name]['scored']} of {card[name]['available']} clips of {card[name]['set']}"
        for name in ("real", "fake")
    ]
    lines.append(f"protocol {protocol['name']}: {protocol['frames']} x {size[0]} x {size[1]}")
    spans = [s.interval and f"{s.interval.level:.0%} [{s.interval.low:.4g}, {s.interval.high:.4g}]" for s in scores]
    lines += aligned([(s.name, f"{s.value:.5g}", span or "") for s, span in zip(scores, spans, strict=True)])
    by_frame = {s.name: s.card["by_frame"] for s in scores if "by_frame" in s.card}
    ends = [f"{name} {curve[0]:.4g}, {curve[-1]:.4g}" for name, curve in by_frame.items()]
    return lines + ([f"first frame, last frame: {'; '.join(ends)}"] if ends else [])

"""Probe what a model's features know about motion: a layer of the diffusion transformer, and the VAE's latents.

  python -m studies.probes tiny-synthetic
  python -m studies.probes runs/demo --layer=4 --out probes.json
  python -m studies.probes runs/large --sintel=MPI-Sintel-complete --davis=tapvid_davis.pkl

MODEL is a shipped name, a model folder or a work directory. Small heads learn to read optical flow, the next frame and
the paths of points out of frozen features, and a linear classifier the kind of motion, all on the synthetic world,
which knows the truth exactly. The table has two controls, features that are the truth and features that are noise, and
the guess that nothing moves. --sintel adds flow and next frames of MPI-Sintel (trained and tested on different scenes),
--davis the points of TAP-Vid-DAVIS, tracked by the readout that the synthetic world taught.

The features of all `--clips` clips are held in memory.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pv_vae_jax.model import Model, load
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.storage import make_writable, write_json
from pv_vae_jax.typing import ConfigError, check_clip_shape
from studies.probes.features import FeatureReader
from studies.probes.heads import ProbeTraining
from studies.probes.published import Sintel, read_tapvid_davis
from studies.probes.tables import Grid, Scores, probe_davis, probe_sintel, probe_synthetic, synthetic_known

TRAIN_SEED, TEST_SEED = 30_000, 40_000  # of the synthetic clips: no run trains, tests or is analysed on these
COLUMNS = {
    "flow_epe": "flow EPE, px",
    "next_frame_mse": "next frame MSE",
    "tracking_auc": "tracking AUC",
    "tracking_auc_by_similarity": "by similarity",
    "class_accuracy": "class accuracy",
}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m studies.probes`."""
    for name, default, least, text in (
        ("layer", None, 2, "blocks of the transformer to pass, even; default half of them, as the paper's 14 of 28"),
        ("clips", 512, 2, "synthetic clips to train heads on"),
        ("test_clips", 128, 2, "synthetic clips to score heads on"),
        ("frames", None, 1, "frames of a clip; default what the transformer was trained on, or 17"),
        ("size", None, 1, "side of the picture; default what the transformer was trained on, or 32"),
        ("steps", 800, 1, "training steps of each head"),
        ("batch_size", 8, 1, "clips per batch"),
        ("seed", 0, 0, "seed of heads, noise and the choice of scenes"),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    for name, text in (
        ("sintel", "folder of MPI-Sintel"),
        ("davis", "tapvid_davis.pkl or its folder"),
        ("out", "JSON file for the scores"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    noise = "noise in the latents, from 0 (none) to 1"
    flags.DEFINE_float("time", 0.1, noise, lower_bound=0, upper_bound=1, flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Train and score all heads, print a table, write the scores."""
    if overrides:
        raise ConfigError("python -m studies.probes takes no --config overrides: the model's configuration is its own")
    if len(positional) != 1:
        raise ConfigError("name one model: a shipped name, a model folder or a work directory")
    if values.out:
        make_writable(Path(values.out).parent)
    reader = _reader(load(positional[0]), values)
    sintel = Sintel(values.sintel) if values.sintel else None  # a wrong path is an error before anything is computed
    davis = read_tapvid_davis(values.davis) if values.davis else None
    grid = _grid(reader)
    training = ProbeTraining(steps=values.steps, batch_size=min(values.batch_size, values.clips), seed=values.seed)
    known = [
        synthetic_known(count, reader.frames, reader.size, seed)
        for count, seed in ((values.clips, TRAIN_SEED), (values.test_clips, TEST_SEED))
    ]
    train, test = ((clips, reader(clips.video)) for clips in known)
    rows, readouts = probe_synthetic(train, test, grid, training)
    facts = {
        "model": positional[0],
        "vae_weights": weights_hash(reader.model.vae_params),
        "transformer_weights": weights_hash(reader.model.diffusion.params) if reader.model.diffusion else None,
        "layer": reader.layer if reader.model.diffusion else None,
        "time": reader.time,
        "frames": reader.frames,
        "size": reader.size,
        "training": dataclasses.asdict(training),
    }
    found = {"synthetic": {"clips": values.clips, "test_clips": values.test_clips, "rows": rows}}
    if sintel:
        found["sintel"] = probe_sintel(reader, sintel, grid, training)
    if davis:
        found["davis"] = probe_davis(reader, davis, readouts)
    for name, part in found.items():
        print("\n".join(_table(f"{name}, {reader.frames} x {reader.size} x {reader.size}", part["rows"])))
    if values.out:
        write_json(Path(values.out), facts | found)
        print(f"scores: {values.out}")


def _reader(model: Model, values: flags.FlagValues) -> FeatureReader:
    config, d = model.vae.config, model.diffusion
    frames, size, layer = values.frames or 17, values.size or 32, 0
    if d is None:
        if values.layer:
            raise ConfigError("this model has no diffusion transformer, so no layer: leave out --layer")
    else:
        groups, height, width, _ = d.latent_shape
        if height != width:
            raise ConfigError(f"probes need a model of square clips, got latents of {height} x {width}")
        frames = values.frames or 1 + (groups - 1) * config.time_factor
        size = values.size or height * config.space_factor
        depth = d.model.config.depth
        layer = values.layer or max(depth // 4 * 2, 2)
        if layer % 2 or layer > depth:
            raise ConfigError(f"--layer must be an even number up to the transformer's depth {depth}, got {layer}")
        if d.model.config.patch != 1 and (size // config.space_factor) % d.model.config.patch:
            raise ConfigError(f"--size={size} makes latents that the transformer's patch does not divide: set another")
    check_clip_shape(frames, size, size, config.time_factor, config.space_factor)
    if config.latent_frames(frames) < 2:
        raise ConfigError(f"a clip of {frames} frames is one latent frame, without motion: set --frames higher")
    return FeatureReader(model, frames, size, layer, values.time, values.seed, values.batch_size)


def _grid(reader: FeatureReader) -> Grid:
    config, d = reader.model.vae.config, reader.model.diffusion
    return Grid(config.time_factor, config.space_factor * (d.model.config.patch if d else 1))


def _table(title: str, rows: Scores) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    heads = [COLUMNS.get(key, key.replace("average_", "").replace("_", " ")) for key in keys]
    width = max(map(len, rows)) + 2
    lines = [f"{title}", " " * width + "".join(f"{head:>{len(head) + 3}}" for head in heads)]
    for name, row in rows.items():
        cells = ["-" if row.get(key) is None else f"{row[key]:.4f}" for key in keys]
        lines.append(f"{name:{width}}" + "".join(f"{c:>{len(head) + 3}}" for c, head in zip(cells, heads, strict=True)))
    return lines


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_module

    run_module("python -m studies.probes")

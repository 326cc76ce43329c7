"""What a model's features know about motion: probes of the diffusion transformer's layer and of the VAE's latents.

  python -m studies.probes tiny-synthetic
  python -m studies.probes runs/demo --layer=4 --out probes.json
  python -m studies.probes runs/large --sintel=MPI-Sintel-complete --davis=tapvid_davis.pkl

MODEL is a shipped name, a model folder or a work directory. Small heads learn to read optical flow, the next frame and
the paths of points out of frozen features, and a linear classifier the kind of motion, all on the synthetic world,
which knows the truth exactly. Beside them stand two controls, features that are the truth and features that are noise,
and the guess that nothing moves. --sintel adds flow and next frames of MPI-Sintel (trained and tested on different
scenes), --davis the points of TAP-Vid-DAVIS, with the readout that the synthetic world taught.

Heads see the model through features of `--clips` clips held in memory.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.model import Model, load
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.storage import make_writable, write_json
from pv_vae_jax.typing import ConfigError, check_clip_shape
from studies.probes.datasets import Sintel, read_tapvid_davis
from studies.probes.probe_metrics import tapvid
from studies.probes.probe_sets import davis_clips, full_flow_error, read_windows, sintel_windows, small_flow
from studies.probes.probes import Probe, ProbeTraining
from studies.probes.probing import (
    LATENTS,
    NOISE,
    RASTER,
    Grid,
    concat_first_frame,
    follow,
    mean_auc,
    model_features,
    noise_like,
    pad_channels,
    probe_flow,
    probe_next_frame,
    probe_synthetic,
    synthetic_known,
    truth_rows,
)

TRAIN_SEED, TEST_SEED = 30_000, 40_000  # of the synthetic clips: none that a run trains, tests or is analysed on
HEADS = {
    "flow_epe": "flow EPE, px",
    "next_frame_mse": "next frame MSE",
    "tracking_auc": "tracking AUC",
    "tracking_auc_by_likeness": "by likeness",
    "class_accuracy": "class accuracy",
}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m studies.probes`."""
    whole = lambda name, default, told, least=1: flags.DEFINE_integer(  # noqa: E731
        name, default, told, lower_bound=least, flag_values=values
    )
    whole("layer", None, "blocks of the transformer to pass, even; default half of them, as the paper's 14 of 28", 2)
    flags.DEFINE_float(
        "time", 0.1, "noise in the latents, 0 none to 1", lower_bound=0, upper_bound=1, flag_values=values
    )
    whole("clips", 512, "synthetic clips to train heads on", 2)
    whole("test_clips", 128, "synthetic clips to score heads on", 2)
    whole("frames", None, "of a clip; default what the transformer was trained on, or 17")
    whole("size", None, "side of the picture; default what the transformer was trained on, or 32")
    whole("steps", 800, "training steps of each head")
    whole("batch_size", 8, "clips at once")
    whole("seed", 0, "of heads, noise and the choice of scenes", 0)
    flags.DEFINE_string("sintel", None, "folder of MPI-Sintel", flag_values=values)
    flags.DEFINE_string("davis", None, "tapvid_davis.pkl or its folder", flag_values=values)
    flags.DEFINE_string("out", None, "JSON file for the scores", flag_values=values)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """A model with all that says how features are made of it."""

    model: Model
    frames: int
    size: int
    layer: int
    time: float
    seed: int
    batch_size: int

    def __call__(self, video: np.ndarray):
        return model_features(
            self.model, video, layer=self.layer, time=self.time, seed=self.seed, batch_size=self.batch_size
        )


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Train and score all heads, print a table, write the scores."""
    if overrides:
        raise ConfigError("python -m studies.probes takes no --config overrides: the model's configuration is its own")
    if len(positional) != 1:
        raise ConfigError("name one model: a shipped name, a model folder or a work directory")
    if values.out:
        make_writable(Path(values.out).parent)
    reader = _reader(load(positional[0]), values)
    sintel = Sintel(values.sintel) if values.sintel else None  # a wrong path is told before anything is computed
    davis = read_tapvid_davis(values.davis) if values.davis else None
    grid = _grid(reader)
    training = ProbeTraining(steps=values.steps, batch_size=min(values.batch_size, values.clips), seed=values.seed)
    known = [
        synthetic_known(count, reader.frames, reader.size, seed)
        for count, seed in ((values.clips, TRAIN_SEED), (values.test_clips, TEST_SEED))
    ]
    train, test = ((clips, reader(clips.video)) for clips in known)
    rows, guesses, readouts = probe_synthetic(train, test, grid, training)
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
    found = {"synthetic": {"clips": values.clips, "test_clips": values.test_clips, "rows": rows | guesses}}
    if sintel:
        found["sintel"] = _sintel(reader, sintel, grid, training)
    if davis:
        found["davis"] = _davis(reader, davis, readouts)
    for name, part in found.items():
        print("\n".join(_table(f"{name}, {reader.frames} x {reader.size} x {reader.size}", part["rows"])))
    if values.out:
        write_json(Path(values.out), facts | found)
        print(f"scores: {values.out}")


def _reader(model: Model, values: flags.FlagValues) -> _Reader:
    config, d = model.vae.config, model.diffusion
    frames, size, layer = values.frames or 17, values.size or 32, 0
    if d is None:
        if values.layer:
            raise ConfigError("this model has no diffusion transformer, so no layer: leave out --layer")
    else:
        groups, height, width, _ = d.latent_shape
        if height != width:
            raise ConfigError(f"probes take models of squares; this one makes latents of {height} x {width}")
        frames = values.frames or 1 + (groups - 1) * config.time_factor
        size = values.size or height * config.space_factor
        depth = d.model.config.depth
        layer = values.layer or max(depth // 4 * 2, 2)
        if layer % 2 or layer > depth:
            raise ConfigError(f"--layer is an even number up to the transformer's depth {depth}, got {layer}")
        if d.model.config.patch != 1 and (size // config.space_factor) % d.model.config.patch:
            raise ConfigError(f"the transformer's patch {d.model.config.patch} does not divide latents of this size")
    check_clip_shape(frames, size, size, config.time_factor, config.space_factor)
    if config.latent_frames(frames) < 2:
        raise ConfigError(f"a clip of {frames} frames is one latent frame, without motion: give --frames more")
    return _Reader(model, frames, size, layer, values.time, values.seed, values.batch_size)


def _grid(reader: _Reader) -> Grid:
    config, d = reader.model.vae.config, reader.model.diffusion
    return Grid(config.time_factor, config.space_factor * (d.model.config.patch if d else 1))


def _sintel(reader: _Reader, data: Sintel, grid: Grid, training: ProbeTraining) -> dict:
    size = (reader.size, reader.size)
    windows = sintel_windows(data, reader.frames, reader.seed)
    (seen, seen_flow), (held, held_flow) = (read_windows(data, part, reader.frames, size) for part in windows)
    train, test = reader(seen), reader(held)
    train[NOISE], test[NOISE] = (noise_like(next(iter(maps.values())), i) for i, maps in enumerate((train, test)))
    small_seen, small_held = (np.stack([small_flow(f, size) for f in part]) for part in (seen_flow, held_flow))
    score = lambda drawn: full_flow_error(drawn, held_flow, windows[1])  # noqa: E731
    whole = {name: (train[name].whole, test[name].whole) for name in train}
    past = {name: (train[name].past, test[name].past) for name in train}
    training = dataclasses.replace(training, batch_size=min(training.batch_size, len(seen)))
    flow = probe_flow(whole | truth_rows(small_seen, small_held, grid), small_seen, grid, training, score)
    target_seen, target_held = (video[:, -grid.time] for video in (seen, held))
    drawn = probe_next_frame(past, target_seen, target_held, grid, training)
    before = (held[:, -grid.time - 1].astype(np.float32) - target_held.astype(np.float32)) / 127.5
    rows = {name: {"flow_epe": flow[name], "next_frame_mse": drawn.get(name)} for name in flow}
    rows["nothing moves"] = {
        "flow_epe": score(np.zeros_like(small_held)),
        "next_frame_mse": float(np.mean(np.square(before))),
    }
    return {
        "render": data.render,
        "test_scenes": sorted({window.scene for window in windows[1]}),
        "windows": [len(part) for part in windows],
        "flow": "pixels at full resolution; clips are stretched to the model's size",
        "rows": rows,
    }


def _davis(reader: _Reader, videos: dict, readouts: dict[str, Probe]) -> dict:
    clips, left_out = davis_clips(videos, reader.frames, (reader.size, reader.size))
    maps = reader(np.stack([clip.video for clip in clips]))
    maps[NOISE] = noise_like(maps[LATENTS], 3)
    # Readouts were taught on features as wide as the truth.
    width = len(next(iter(readouts.values())).mean)
    pad = np.zeros((1, *maps[LATENTS].whole.shape[1:4], width), np.float32)
    points = [(clip.path, clip.occluded) for clip in clips]
    rows = {}
    for name, features in maps.items():
        whole = pad_channels({name: (pad, concat_first_frame(features.whole))})[name][1]
        found = [follow(p, path[:, 0]) for p, (path, _) in zip(readouts[name](whole), points, strict=True)]
        rows[name] = {"tracking_auc": mean_auc([path for path, _ in found], points, reader.size)}
        rows[name] |= _tapvid(found, points, reader.size)
    resting = [(np.repeat(path[:, :1], path.shape[1], axis=1), np.zeros_like(occluded)) for path, occluded in points]
    rows["nothing moves"] = {"tracking_auc": mean_auc([path for path, _ in resting], points, reader.size)}
    rows["nothing moves"] |= _tapvid(resting, points, reader.size)
    return {
        "videos": len({clip.name for clip in clips}),
        "clips": len(clips),
        "points": sum(len(path) for path, _ in points),
        "points_left_out": left_out,
        "query": f"first sight, the {reader.frames} frames from there; raster {RASTER} x {RASTER}",
        "rows": rows,
    }


def _tapvid(found: list, points: list, size: int) -> dict[str, float]:
    """TAP-Vid's own numbers, mean over clips."""
    scale, values = RASTER / size, []
    for (path, hidden), (truth, occluded) in zip(found, points, strict=True):
        if not occluded[:, 1:].all():
            query = np.concatenate([np.zeros((len(truth), 1)), truth[:, 0, ::-1] * scale], axis=1)
            values.append(tapvid(query, occluded, truth * scale, hidden, path * scale))
    keys = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
    return {key: float(np.mean([v[key] for v in values])) for key in keys}


def _table(title: str, rows: dict[str, dict[str, float | None]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    heads = [HEADS.get(key, key.replace("average_", "").replace("_", " ")) for key in keys]
    width = max(map(len, rows)) + 2
    lines = [f"{title}", " " * width + "".join(f"{head:>{len(head) + 3}}" for head in heads)]
    for name, row in rows.items():
        cells = ["-" if row.get(key) is None else f"{row[key]:.4f}" for key in keys]
        lines.append(f"{name:{width}}" + "".join(f"{c:>{len(head) + 3}}" for c, head in zip(cells, heads, strict=True)))
    return lines


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_command

    sys.exit(run_command(sys.modules[__name__], "python -m studies.probes", sys.argv[1:]))

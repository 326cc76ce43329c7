"""The tables: every probe on every kind of features, on the synthetic world, on Sintel and on TAP-Vid-DAVIS.

Rows of a table are features: the diffusion transformer's layer, the same transformer untrained, the VAE's own latents,
and two controls. *The truth* is what a probe has to find, folded onto the grid of the features: a head that cannot read
it measures itself. *Noise* holds nothing: what it scores is chance. Guesses that look at nothing stand below.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pv_vae_jax.data.synthetic import FAMILIES, Scene, SyntheticVideos
from pv_vae_jax.data.synthetic_motion import exact_flow, pixel_centres, true_paths, visible_layer
from studies.linear_probe import class_accuracy
from studies.probes.features import (
    LATENTS,
    FeatureMaps,
    FeatureReader,
    concat_first_frame,
    noise_like,
    pad_channels,
)
from studies.probes.heads import (
    DenseHead,
    Probe,
    ProbeTraining,
    endpoint_loss,
    fold,
    path_error,
    squared,
    train_probe,
)
from studies.probes.metrics import endpoint_error
from studies.probes.published import (
    Sintel,
    Tracks,
    davis_clips,
    full_flow_error,
    read_windows,
    sintel_windows,
    small_flow,
)
from studies.probes.tracking import RASTER, Track, resting, track_by_similarity, track_points, track_scores

TRUTH, NOISE, STILL = "control: the truth", "control: noise", "nothing moves"
POINTS = 16  # a synthetic clip
Scores = dict[str, dict[str, float | None]]  # row -> score by name, None where it makes no sense
Split = dict[str, tuple[np.ndarray, np.ndarray]]  # row -> features to train on and to test on


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of the features: `time` frames and `space` pixels a side each; frame 0 alone is group 0."""

    time: int
    space: int


@dataclasses.dataclass(frozen=True)
class KnownClips:
    """Synthetic clips and the truth about them.

    Attributes:
      video: `(n, t, h, w, 3)` uint8.
      flow: `(n, t - 1, h, w, 2)` float32, pixels.
      paths: `(n, t, h, w, 3)` float32: (dx, dy) of each pixel of frame 0 since then, and 1 where it is hidden.
      points: the tracks of each clip.
      label: classes of motion, `(n,)`.
    """

    video: np.ndarray
    flow: np.ndarray
    paths: np.ndarray
    points: list[Track]
    label: np.ndarray


def synthetic_known(clips: int, frames: int, size: int, seed: int) -> KnownClips:
    """Clips of the synthetic world with all that it knows."""
    source = SyntheticVideos(clips, frames, size, seed)
    flow, paths, points = [], [], []
    for i in range(clips):
        scene = source.scene(i)
        flow.append(exact_flow(scene, size)[0].astype(np.float32))
        path, hidden = exact_paths(scene, size)
        paths.append(np.concatenate([path, hidden[..., None]], axis=-1).astype(np.float32))
        points.append(_points(scene, path, hidden, np.random.default_rng([seed, i])))
    video = np.stack([source[i]["video"] for i in range(clips)])
    return KnownClips(video, np.stack(flow), np.stack(paths), points, np.arange(clips) % len(FAMILIES))


def _points(scene: Scene, path: np.ndarray, hidden: np.ndarray, rng: np.random.Generator) -> Track:
    """Tracks of pixel centres of frame 0 that show a sprite: tracking what stands still is no test."""
    size = path.shape[1]
    axis = (np.arange(size) + 0.5) / size
    place = np.stack(np.meshgrid(axis, axis), axis=-1)
    rows, columns = np.nonzero(visible_layer(scene, 0, place) >= 0)
    chosen = rng.permutation(len(rows))[:POINTS]
    rows, columns = rows[chosen], columns[chosen]
    start = place[rows, columns] * size
    return start[:, None] + path[:, rows, columns].swapaxes(0, 1), hidden[:, rows, columns].T


def probe_synthetic(
    train: tuple[KnownClips, dict[str, FeatureMaps]],
    test: tuple[KnownClips, dict[str, FeatureMaps]],
    grid: Grid,
    training: ProbeTraining,
) -> tuple[Scores, dict[str, Probe]]:
    """All probes on the synthetic world.

    Args:
      train, test: clips and their features by name, see `FeatureReader`; controls are added here.
      grid: grid of the features.
      training: settings of every head.

    Returns:
      The rows, and the readouts of paths, for other data.
    """
    (seen, train_maps), (held, test_maps) = train, test
    size = held.video.shape[2]
    every, past = _split(train_maps, test_maps, seeds=(1, 2))
    groups = past[NOISE][0].shape[1]

    def last_frame(known: KnownClips) -> np.ndarray:  # the frame to predict, in every group of the past
        frame = known.video[:, -grid.time :][:, :1].astype(np.float32)
        return np.repeat(fold(frame, 1, grid.space), groups, axis=1)

    score = lambda drawn: endpoint_error(drawn, held.flow)  # noqa: E731
    flow = probe_flow(every | _flow_truth(seen.flow, held.flow, grid), seen.flow, grid, training, score)
    truth = {TRUTH: (last_frame(seen), last_frame(held))}
    next_frame = probe_next_frame(past | truth, seen.video, held.video, grid, training)
    accuracy = {name: class_accuracy(a, seen.label, b, held.label) for name, (a, b) in every.items()}
    one_hot = np.eye(len(FAMILIES))
    accuracy[TRUTH] = class_accuracy(one_hot[seen.label], seen.label, one_hot[held.label], held.label)

    queried = {name: (concat_first_frame(a), concat_first_frame(b)) for name, (a, b) in every.items()}
    queried[TRUTH] = fold(seen.paths, grid.time, grid.space), fold(held.paths, grid.time, grid.space)
    queried = pad_channels(queried)
    readouts = {name: train_paths(a, seen.paths, grid, training) for name, (a, _) in queried.items()}
    rows: Scores = {}
    for name in [*train_maps, TRUTH, NOISE]:
        drawn = readouts[name](queried[name][1])
        tracks = [track_points(paths, path[:, 0]) for paths, (path, _) in zip(drawn, held.points, strict=True)]
        similar = None
        if name != TRUTH:  # the truth does not describe a place
            features = every[name][1]
            per_frame = np.concatenate([features[:, :1], np.repeat(features[:, 1:], grid.time, axis=1)], axis=1)
            alike = [
                (track_by_similarity(frames, path[:, 0], size), np.zeros_like(hidden))
                for frames, (path, hidden) in zip(per_frame, held.points, strict=True)
            ]
            similar = track_scores(alike, held.points, size)["tracking_auc"]
        rows[name] = {
            "flow_epe": flow[name],
            "next_frame_mse": next_frame[name],
            **track_scores(tracks, held.points, size),
            "tracking_auc_by_similarity": similar,
            "class_accuracy": accuracy[name],
        }
    rows[STILL] = {
        "flow_epe": endpoint_error(np.zeros_like(held.flow), held.flow),
        "next_frame_mse": _repetition_error(held.video, grid),
        **track_scores(resting(held.points), held.points, size),
        "class_accuracy": float(np.bincount(held.label).max() / len(held.label)),
    }
    return rows, readouts


def probe_sintel(reader: FeatureReader, data: Sintel, grid: Grid, training: ProbeTraining) -> dict:
    """Flow and next frames of Sintel, trained and tested on different scenes."""
    size = reader.size, reader.size
    windows = sintel_windows(data, reader.frames, reader.seed)
    (seen, seen_flow), (held, held_flow) = (read_windows(data, part, reader.frames, size) for part in windows)
    every, past = _split(reader(seen), reader(held), seeds=(0, 1))
    small_seen, small_held = (np.stack([small_flow(f, size) for f in part]) for part in (seen_flow, held_flow))
    score = lambda drawn: full_flow_error(drawn, held_flow, windows[1])  # noqa: E731
    training = dataclasses.replace(training, batch_size=min(training.batch_size, len(seen)))
    flow = probe_flow(every | _flow_truth(small_seen, small_held, grid), small_seen, grid, training, score)
    next_frame = probe_next_frame(past, seen, held, grid, training)
    rows: Scores = {name: {"flow_epe": flow[name], "next_frame_mse": next_frame.get(name)} for name in flow}
    rows[STILL] = {"flow_epe": score(np.zeros_like(small_held)), "next_frame_mse": _repetition_error(held, grid)}
    return {
        "render": data.render,
        "test_scenes": sorted({window.scene for window in windows[1]}),
        "windows": [len(part) for part in windows],
        "flow": "pixels at full resolution; clips are stretched to the model's size",
        "rows": rows,
    }


def probe_davis(reader: FeatureReader, videos: dict[str, Tracks], readouts: dict[str, Probe]) -> dict:
    """Points of TAP-Vid-DAVIS, tracked by the readouts that the synthetic world taught."""
    clips, left_out = davis_clips(videos, reader.frames, (reader.size, reader.size))
    maps = reader(np.stack([clip.video for clip in clips]))
    maps[NOISE] = noise_like(maps[LATENTS], 3)
    # Readouts were taught on features as wide as the truth.
    width = len(next(iter(readouts.values())).mean)
    pad = np.zeros((1, *maps[LATENTS].all.shape[1:4], width), np.float32)
    points = [(clip.path, clip.occluded) for clip in clips]
    rows: Scores = {}
    for name, features in maps.items():
        wide = pad_channels({name: (pad, concat_first_frame(features.all))})[name][1]
        tracks = [track_points(p, path[:, 0]) for p, (path, _) in zip(readouts[name](wide), points, strict=True)]
        rows[name] = track_scores(tracks, points, reader.size, official=True)
    rows[STILL] = track_scores(resting(points), points, reader.size, official=True)
    return {
        "videos": len({clip.name for clip in clips}),
        "clips": len(clips),
        "points": sum(len(path) for path, _ in points),
        "points_left_out": left_out,
        "query": f"first sight, the {reader.frames} frames from there; raster {RASTER} x {RASTER}",
        "rows": rows,
    }


def probe_flow(
    rows: Split, train: np.ndarray, grid: Grid, training: ProbeTraining, score: Callable[[np.ndarray], float]
) -> dict[str, float]:
    """Flow `(n, t - 1, h, w, 2)` read out of features; `score` takes the flow of the test clips."""
    head = DenseHead(2, grid.time, grid.space)
    frames, found = train.shape[1], {}
    for name, (seen, held) in pad_channels(rows).items():
        probe = train_probe(head, seen, train, endpoint_loss, training)
        found[name] = score(probe(held)[:, :frames])
    return found


def probe_next_frame(
    rows: Split, train: np.ndarray, test: np.ndarray, grid: Grid, training: ProbeTraining
) -> dict[str, float]:
    """Mean squared error on [-1, 1] of the first frame of the last group, whose features the rows do not hold.

    Args:
      rows: features of the groups before.
      train, test: clips `(n, t, h, w, 3)` uint8.
      grid, training: see `probe_synthetic`.
    """
    head, found = DenseHead(3, grid.time, grid.space), {}
    targets, truth = (np.asarray(video[:, -grid.time], np.float32)[:, None] / 127.5 - 1 for video in (train, test))
    for name, (seen, held) in pad_channels(rows).items():
        probe = train_probe(head, seen, targets, squared, training, last=True)
        drawn = np.clip(probe(held)[:, -1:], -1, 1)
        found[name] = float(np.mean(np.square(drawn - truth)))
    return found


def train_paths(features: np.ndarray, paths: np.ndarray, grid: Grid, training: ProbeTraining) -> Probe:
    """A readout of paths `(n, t, h, w, 3)`: where each pixel of frame 0 is in every frame, and whether it is hidden."""
    std = max(float(paths[..., :2].std()), 1e-6)
    scale = np.array([std, std, 1], np.float32)
    return train_probe(DenseHead(3, grid.time, grid.space), features, paths, path_error, training, scale=scale)


def _split(train: dict[str, FeatureMaps], test: dict[str, FeatureMaps], seeds: tuple[int, int]) -> tuple[Split, Split]:
    """Features of all groups and of the past, with noise as a row; `seeds` are the noise's."""
    first = next(iter(train))
    maps = {name: (train[name], test[name]) for name in train}
    maps[NOISE] = noise_like(train[first], seeds[0]), noise_like(test[first], seeds[1])
    return {n: (a.all, b.all) for n, (a, b) in maps.items()}, {n: (a.past, b.past) for n, (a, b) in maps.items()}


def _flow_truth(train: np.ndarray, test: np.ndarray, grid: Grid) -> Split:
    """The control that flow `(n, t - 1, h, w, 2)` is read from: itself, on the grid of the features."""
    return {
        TRUTH: tuple(
            fold(np.pad(flow, [(0, 0), (0, 1)] + [(0, 0)] * 3), grid.time, grid.space) for flow in (train, test)
        )
    }


def _repetition_error(video: np.ndarray, grid: Grid) -> float:
    """Mean squared error on [-1, 1] of repeating the frame before the one to predict."""
    before, truth = (video[:, frame].astype(np.float32) for frame in (-grid.time - 1, -grid.time))
    return float(np.mean(np.square((before - truth) / 127.5)))


def exact_paths(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The motion of every pixel of frame 0 to each frame.

    Returns:
      `(t, size, size, 2)` float64 (dx, dy) in pixels since frame 0, and `(t, size, size)` bool: hidden or outside.
    """
    place = pixel_centres(size)
    path, hidden = true_paths(scene, place, 0, range(len(scene.sprites[0].angle)))
    return (path - place) * size, hidden

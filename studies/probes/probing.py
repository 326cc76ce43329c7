"""Every probe on every kind of features, beside its controls: the tables that `python -m studies.probes` prints.

Rows are features: of the diffusion transformer's layer, of the same transformer untrained, the VAE's own latents, and
two controls. *The truth* is what a probe has to find, folded onto the grid of the features: a head that cannot read
it measures itself. *Noise* holds nothing: what it scores is chance. Guesses that look at nothing stand below.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from einops import rearrange

from pv_vae_jax.data.synthetic import FAMILIES, Scene, SyntheticVideos
from pv_vae_jax.data.synthetic_motion import exact_flow, pixel_centres, true_paths, visible_layer
from pv_vae_jax.evaluation.reconstruction import batches
from pv_vae_jax.flow import normalize_latents
from pv_vae_jax.model import Model, init_latte
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float
from pv_vae_jax.typing import Array, Params
from studies.linear_probe import class_accuracy
from studies.probes.probe_metrics import endpoint_error, tracking_auc
from studies.probes.probes import (
    DenseHead,
    Probe,
    ProbeTraining,
    diffusion_features,
    fold,
    length,
    path_error,
    squared,
    track_by_likeness,
    train_probe,
)

TRUTH, NOISE = "control: the truth", "control: noise"
LATENTS, UNTRAINED = "VAE latents", "transformer, untrained"
RASTER = 256  # tracks are scored in pixels of a picture of this side, as in TAP-Vid
POINTS = 16  # a synthetic clip


@dataclasses.dataclass(frozen=True)
class Grid:
    """How features lie in a clip: `time` frames and `space` pixels each, frame 0 alone in group 0."""

    time: int
    space: int


@dataclasses.dataclass(frozen=True)
class KnownClips:
    """Clips and what is true of them; what a data set does not know is None, and no probe asks for it.

    Attributes:
      video: `(n, t, h, w, 3)` uint8.
      flow: `(n, t - 1, h, w, 2)` float32, pixels.
      paths: `(n, t, h, w, 3)` float32: (dx, dy) of each pixel of frame 0 since then, and 1 where it is hidden.
      points: for each clip `(m, t, 2)` (x, y) and `(m, t)` occluded.
      label: `(n,)` int.
    """

    video: np.ndarray
    flow: Any = None
    paths: Any = None
    points: Any = None
    label: Any = None


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
    video = np.stack([source.clip(i)["video"] for i in range(clips)])
    return KnownClips(video, np.stack(flow), np.stack(paths), points, np.arange(clips) % len(FAMILIES))


def exact_paths(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The motion of every pixel of frame 0 to each frame.

    Returns:
      `(t, size, size, 2)` float64 (dx, dy) in pixels since frame 0, and `(t, size, size)` bool: hidden or outside.
    """
    place = pixel_centres(size)
    path, hidden = true_paths(scene, place, 0, range(len(scene.sprites[0].angle)))
    return (path - place) * size, hidden


def _points(
    scene: Scene, path: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of pixels of frame 0 that show a sprite, followed: what stands still is no test of tracking."""
    size = path.shape[1]
    place = pixel_centres(size)
    rows, columns = np.nonzero(visible_layer(scene, 0, place) >= 0)
    chosen = rng.permutation(len(rows))[:POINTS]
    rows, columns = rows[chosen], columns[chosen]
    start = place[rows, columns] * size
    return start[:, None] + path[:, rows, columns].swapaxes(0, 1), hidden[:, rows, columns].T


@dataclasses.dataclass(frozen=True)
class FeatureMaps:
    """One kind of features of a set of clips.

    Attributes:
      whole: `(n, g, h, w, d)`, of all groups.
      past: `(n, g - 1, h, w, d)`, made without the last group, for the prediction of what it shows.
    """

    whole: np.ndarray
    past: np.ndarray


def model_features(
    model: Model, video: np.ndarray, *, layer: int, time: float, seed: int = 0, batch_size: int = 8
) -> dict[str, FeatureMaps]:
    """Features of clips by name: the VAE's latents, and where there is a transformer its layer, trained and untrained.

    Args:
      model: whose VAE encodes.
      video: `(n, t, h, w, 3)` uint8 that fits it.
      layer, time: see `diffusion_features`.
      seed: of the noise and of the untrained transformer.
      batch_size: clips at once.
    """
    means = np.concatenate(
        [np.asarray(_encode(model.vae, model.vae_params, b))[:n] for _, b, n in batches(video, batch_size, "latents")]
    )
    d = model.diffusion
    tokens = rearrange(
        means, "n g (h p) (w q) z -> n g h w (p q z)", **dict.fromkeys("pq", d.model.config.patch if d else 1)
    )
    # The encoder is causal: latents of the earlier groups never saw the last one.
    found = {LATENTS: FeatureMaps(tokens, tokens[:, :-1])}
    if d is None:
        return found
    normal = np.asarray(normalize_latents(means, d.mean, d.std), np.float32)
    fresh = jax.jit(lambda key: init_latte(d.model, d.latent_shape, key))(jax.random.key(seed + 1))
    for name, params in ((f"transformer, layer {layer}", d.params), (UNTRAINED, fresh)):
        parts = (
            np.concatenate(
                [
                    np.asarray(_tap(d.model, layer, params, batch, time, seed, start))[:count]
                    for start, batch, count in batches(latents, batch_size, name)
                ]
            )
            for latents in (normal, normal[:, :-1])
        )
        found[name] = FeatureMaps(*parts)
    return found


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: VAE, params: Params, video: Array) -> Array:
    return model.apply({"params": params}, to_float(video), method="encode").mean


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tap(model: Latte, layer: int, params: Params, latents: Array, time: float, seed: int, first: int) -> Array:
    return diffusion_features(model, params, latents, layer=layer, time=time, seed=seed, first=first)


def noise_like(maps: FeatureMaps, seed: int) -> FeatureMaps:
    """Features that hold nothing, of the same shape."""
    whole = np.random.default_rng(seed).normal(size=maps.whole.shape).astype(np.float32)
    return FeatureMaps(whole, whole[:, :-1])


def truth_rows(train: np.ndarray, test: np.ndarray, grid: Grid) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The control that flow `(n, t - 1, h, w, 2)` is read from: itself, on the grid of the features."""
    of_train, of_test = (
        fold(np.pad(flow, [(0, 0), (0, 1)] + [(0, 0)] * 3), grid.time, grid.space) for flow in (train, test)
    )
    return {TRUTH: (of_train, of_test)}


def probe_flow(
    rows: dict[str, tuple[np.ndarray, np.ndarray]],
    train: np.ndarray,
    grid: Grid,
    training: ProbeTraining,
    score: Callable[[np.ndarray], float],
) -> dict[str, float]:
    """Flow `(n, t - 1, h, w, 2)` read out of features; `rows` are name -> (training, test), `score` takes the flow."""
    head = DenseHead(2, grid.time, grid.space)
    frames, found = train.shape[1], {}
    for name, (seen, held) in pad_channels(rows).items():
        probe = train_probe(head, seen, train, length, training)
        found[name] = score(probe(held)[:, :frames])
    return found


def probe_next_frame(
    rows: dict[str, tuple[np.ndarray, np.ndarray]],
    train: np.ndarray,
    test: np.ndarray,
    grid: Grid,
    training: ProbeTraining,
) -> dict[str, float]:
    """Mean squared error on [-1, 1] of the frame after the last one that the features saw, `(n, h, w, 3)` uint8."""
    head, found = DenseHead(3, grid.time, grid.space), {}
    targets, truth = (np.asarray(frames, np.float32)[:, None] / 127.5 - 1 for frames in (train, test))
    for name, (seen, held) in pad_channels(rows).items():
        probe = train_probe(head, seen, targets, squared, training, last=True)
        drawn = np.clip(probe(held)[:, -1:], -1, 1)
        found[name] = float(np.mean(np.square(drawn - truth)))
    return found


def track_probes(
    rows: dict[str, tuple[np.ndarray, np.ndarray]], train: np.ndarray, grid: Grid, training: ProbeTraining
) -> dict[str, Probe]:
    """Readouts of paths `(n, t, h, w, 3)`: where each pixel of frame 0 is in every frame, and whether it is hidden."""
    head = DenseHead(3, grid.time, grid.space)
    deviation = max(float(train[..., :2].std()), 1e-6)
    scale = np.array([deviation, deviation, 1], np.float32)
    return {
        name: train_probe(head, seen, train, path_error, training, scale=scale)
        for name, (seen, _) in pad_channels(rows).items()
    }


def follow(paths: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points `(m, 2)` (x, y) of frame 0 through drawn paths `(t, h, w, 3)`, bilinear between pixels.

    Returns:
      `(m, t, 2)` pixels, frame 0 the query itself, and `(m, t)` bool, hidden.
    """
    height, width = paths.shape[1:3]
    x = np.clip(query[:, 0] - 0.5, 0, width - 1)
    y = np.clip(query[:, 1] - 0.5, 0, height - 1)
    left, top = (np.minimum(v.astype(int), side - 2) for v, side in ((x, width), (y, height)))
    dx, dy = (x - left)[:, None], (y - top)[:, None]
    at = lambda row, column: paths[:, row, column].astype(np.float64)  # noqa: E731
    above = at(top, left) * (1 - dx) + at(top, left + 1) * dx
    below = at(top + 1, left) * (1 - dx) + at(top + 1, left + 1) * dx
    found = np.swapaxes(above * (1 - dy) + below * dy, 0, 1)  # m t 3
    moved = query[:, None] + found[..., :2]
    moved[:, 0] = query
    return moved, found[..., 2] > 0


def mean_auc(found: Sequence[np.ndarray], points: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> float:
    """Mean over clips of the area under the curve; clips without a visible later point do not count."""
    scale, values = RASTER / size, []
    for path, (truth, occluded) in zip(found, points, strict=True):
        if not occluded[:, 1:].all():
            values.append(tracking_auc(path * scale, truth * scale, occluded))
    return float(np.mean(values))


def concat_first_frame(features: np.ndarray) -> np.ndarray:
    """Beside every group's features those of group 0, where points are asked for: `(n, g, h, w, 2 d)`."""
    return np.concatenate([features, np.broadcast_to(features[:, :1], features.shape)], axis=-1)


def pad_channels(rows: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Zeros behind the channels of narrow features, so that all rows share one compiled head."""
    most = max(seen.shape[-1] for seen, _ in rows.values())
    pad = lambda x: np.pad(x, [(0, 0)] * 4 + [(0, most - x.shape[-1])])  # noqa: E731
    return {name: (pad(seen), pad(held)) for name, (seen, held) in rows.items()}


def probe_synthetic(
    train: tuple[KnownClips, dict[str, FeatureMaps]],
    test: tuple[KnownClips, dict[str, FeatureMaps]],
    grid: Grid,
    training: ProbeTraining,
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, float]], dict[str, Probe]]:
    """All probes on the synthetic world.

    Args:
      train, test: clips and their features by name, see `model_features`; controls are added here.
      grid: of the features.
      training: of every head.

    Returns:
      Rows (features -> score by name, None where it makes no sense), guesses in the same form, and the readouts of
      paths, for other data.
    """
    seen, held = train[0], test[0]
    size = held.video.shape[2]
    names = [*train[1], NOISE]
    any_map = next(iter(train[1].values())), next(iter(test[1].values()))
    maps = {name: (train[1][name], test[1][name]) for name in train[1]}
    maps[NOISE] = (noise_like(any_map[0], 1), noise_like(any_map[1], 2))
    whole = {name: (a.whole, b.whole) for name, (a, b) in maps.items()}
    past = {name: (a.past, b.past) for name, (a, b) in maps.items()}
    next_seen, next_held = (known.video[:, -grid.time] for known in (seen, held))

    def truth(of: Callable[[KnownClips], np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {TRUTH: (of(seen), of(held))}

    def still(known: KnownClips) -> np.ndarray:  # the frame to draw, in every group of the past
        frame = known.video[:, -grid.time :][:, :1].astype(np.float32)
        one = fold(frame, 1, grid.space)
        return np.repeat(one, any_map[0].past.shape[1], axis=1)

    score = lambda drawn: endpoint_error(drawn, held.flow)  # noqa: E731
    flow = probe_flow(whole | truth_rows(seen.flow, held.flow, grid), seen.flow, grid, training, score)
    drawn = probe_next_frame(past | truth(still), next_seen, next_held, grid, training)
    rows = {name: (concat_first_frame(a), concat_first_frame(b)) for name, (a, b) in whole.items()}
    rows |= truth(lambda known: fold(known.paths, grid.time, grid.space))
    readouts = track_probes(rows, seen.paths, grid, training)
    queries = [path[:, 0] for path, _ in held.points]
    read, alike = {}, {}
    for name, (_, features) in pad_channels(rows).items():
        paths = readouts[name](features)
        read[name] = mean_auc([follow(p, q)[0] for p, q in zip(paths, queries, strict=True)], held.points, size)
        if name in maps:  # the truth is no description of a place
            features = whole[name][1]
            per_frame = np.concatenate([features[:, :1], np.repeat(features[:, 1:], grid.time, axis=1)], axis=1)
            found = [track_by_likeness(f, q, size) for f, q in zip(per_frame, queries, strict=True)]
            alike[name] = mean_auc(found, held.points, size)
    known = {name: class_accuracy(a, seen.label, b, held.label) for name, (a, b) in whole.items()}
    one_hot = np.eye(len(FAMILIES))
    known[TRUTH] = class_accuracy(one_hot[seen.label], seen.label, one_hot[held.label], held.label)
    scores = {
        name: {
            "flow_epe": flow[name],
            "next_frame_mse": drawn[name],
            "tracking_auc": read[name],
            "tracking_auc_by_likeness": alike.get(name),
            "class_accuracy": known[name],
        }
        for name in [*names[:-1], TRUTH, NOISE]
    }
    before = np.asarray(held.video[:, -grid.time - 1], np.float32) - np.asarray(next_held, np.float32)
    resting = [np.repeat(q[:, None], path.shape[1], axis=1) for q, (path, _) in zip(queries, held.points, strict=True)]
    guesses = {
        "nothing moves": {
            "flow_epe": endpoint_error(np.zeros_like(held.flow), held.flow),
            "next_frame_mse": float(np.mean(np.square(before / 127.5))),
            "tracking_auc": mean_auc(resting, held.points, size),
            "class_accuracy": float(np.bincount(held.label).max() / len(held.label)),
        }
    }
    return scores, guesses, readouts

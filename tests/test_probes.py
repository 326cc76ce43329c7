"""Probe scores against TAP-Vid's own function, heads that read motion where it is and cannot where it is not."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.data.synthetic import SyntheticVideos
from pv_vae_jax.data.synthetic_motion import exact_flow
from pv_vae_jax.models.latte import Latte, LatteConfig
from studies.probes.features import diffusion_features
from studies.probes.heads import DenseHead, ProbeTraining, endpoint_loss, fold, squared, train_probe, unfold
from studies.probes.metrics import endpoint_error, tapvid, tracking_auc
from studies.probes.tracking import track_by_similarity
from tests.motion_fixture import tracks

SIZE, FRAMES, CELL = 16, 5, 2


@pytest.fixture(scope="module")
def world():
    """Flow `(n, t - 1, s, s, 2)` and clips `(n, t, s, s, 3)` in [-1, 1] of 40 scenes."""
    source = SyntheticVideos(40, FRAMES, SIZE, seed=9)
    flow = np.stack([exact_flow(source.scene(i), SIZE)[0] for i in range(40)]).astype(np.float32)
    return flow, np.stack([source[i]["video"] for i in range(40)]).astype(np.float32) / 127.5 - 1


def flow_error(features, flow):
    head = DenseHead(2, 4, CELL, width=32)
    probe = train_probe(head, features[:32], flow[:32], endpoint_loss, ProbeTraining(steps=48))
    return endpoint_error(probe(features[32:])[:, : FRAMES - 1], flow[32:])


def test_flow_is_read_from_motion_and_not_from_noise(world):
    flow, _ = world
    still = endpoint_error(np.zeros_like(flow[32:]), flow[32:])
    features = fold(np.concatenate([flow, np.zeros_like(flow[:, :1])], axis=1), 4, CELL)
    known = flow_error(features, flow)
    noise = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    blind = flow_error(noise, flow)
    print(f"end-point error: true motion {known:.4f}, noise {blind:.4f}, no motion at all {still:.4f} pixels")
    assert known < 0.01 * still
    assert 0.9 * still < blind < 1.2 * still


@pytest.mark.slow
def test_the_head_reads_what_is_not_linear(world):
    """Of the square of flow its length is no linear function; the linear readout alone must do worse."""
    flow, _ = world
    speed = np.linalg.norm(flow, axis=-1, keepdims=True)
    features = fold(np.concatenate([flow, np.zeros_like(flow[:, :1])], axis=1), 4, CELL)
    head = DenseHead(1, 4, CELL, width=32)
    error = {}
    for steps in (1, 200):
        probe = train_probe(head, features[:32], speed[:32], squared, ProbeTraining(steps=steps, learning_rate=5e-3))
        error[steps] = np.mean(np.square(probe(features[32:])[:, : FRAMES - 1] - speed[32:]))
    assert error[200] < 0.7 * error[1]


def test_folding_turns_back():
    maps = np.random.default_rng(0).normal(size=(2, 9, 4, 6, 3)).astype(np.float32)
    cells = fold(maps, 4, 2)
    assert cells.shape == (2, 3, 2, 3, 4 * 2 * 2 * 3)
    np.testing.assert_array_equal(unfold(cells, 4, 2), maps)


def test_the_next_frame_is_read_from_features_that_hold_it(world):
    _, video = world
    head = DenseHead(3, 4, CELL, width=48)
    features = fold(video, 4, CELL)
    drawn = train_probe(head, features[:32], video[:32], squared, ProbeTraining(steps=8))(features[32:])
    assert drawn.shape == video[32:].shape
    mean = np.mean((video[32:] - video[:32].mean()) ** 2)
    assert np.mean((drawn - video[32:]) ** 2) < 0.01 * mean


def test_end_point_error_counts_pixels():
    truth = np.zeros((2, 3, 3, 2))
    off = truth + np.array([3.0, 4.0])
    valid = np.zeros((2, 3, 3), bool)
    valid[0, 0, 0] = True
    off[0, 0, 0] = 1.0
    assert endpoint_error(off, truth, valid) == pytest.approx(np.sqrt(2))
    assert endpoint_error(off, truth) == pytest.approx((17 * 5 + np.sqrt(2)) / 18)
    with pytest.raises(ValueError, match="no pixel"):
        endpoint_error(off, truth, ~np.ones((2, 3, 3), bool))
    with pytest.raises(ValueError, match="shape"):
        endpoint_error(off, truth[0])


def test_auc_is_the_area_under_accuracy():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 256, (20, 6, 2))
    predicted = truth + rng.normal(0, 5, truth.shape)
    occluded = rng.random((20, 6)) < 0.3
    errors = np.linalg.norm(predicted - truth, axis=-1)[:, 1:][~occluded[:, 1:]]
    thresholds = np.linspace(0, 10, 20_001)
    accuracy = np.array([(errors <= threshold).mean() for threshold in thresholds])
    assert tracking_auc(predicted, truth, occluded) == pytest.approx(np.trapezoid(accuracy, thresholds) / 10, abs=1e-4)
    assert tracking_auc(truth, truth, occluded) == 1
    later = tracking_auc(np.where(np.arange(6)[:, None] > 3, truth, 0), truth, occluded, first=np.full(20, 3))
    assert later == 1
    with pytest.raises(ValueError, match="no visible point"):
        tracking_auc(truth, truth, np.ones((20, 6), bool))


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tapvid_numbers_are_those_of_the_official_function(mode):
    root = Path(os.environ.get("PV_VAE_SHARED", Path(__file__).parents[2] / "shared")) / "reference" / "eval"
    if not root.is_dir():
        pytest.skip("no evaluation fixtures here: set PV_VAE_SHARED to a folder that holds reference/eval/")
    arrays = np.load(root / "tapvid_metrics_fixture.npz")
    names = ("query_points_tyx", "gt_occluded", "gt_tracks_xy", "pred_occluded", "pred_tracks_xy")
    found = tapvid(*(arrays[f"{mode}_{name}"][0] for name in names), mode)
    expected = json.loads((root / "tapvid_metrics_expected.json").read_text())[mode]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(np.ravel(value)[0], abs=1e-12), name


def test_similarity_follows_points_whose_features_are_their_own():
    """Features that name the material point are followed to half a cell; noise is not."""
    size, frames = 64, 5
    source = SyntheticVideos(4, frames, size, seed=3)
    known, blind, static = [], [], []
    for i in range(4):
        scene = source.scene(i)
        path, occluded = tracks(scene, size, 12, np.random.default_rng(i))
        features = np.random.default_rng(i).normal(size=(frames, 32, 32, 24))
        static.append(tracking_auc(np.repeat(path[:, :1], frames, axis=1) * 4, path * 4, occluded))
        blind.append(tracking_auc(track_by_similarity(features, path[:, 0], size) * 4, path * 4, occluded))
        mark = np.random.default_rng(99).normal(size=(len(path), 24))
        for t in range(frames):
            cell = np.clip((path[:, t] / 2).astype(int), 0, 31)
            for place, own, hidden in zip(cell, mark, occluded[:, t], strict=True):
                if not hidden:
                    features[t, place[1], place[0]] = own
        found = track_by_similarity(features, path[:, 0], size, radius=0)
        known.append(tracking_auc(found * 4, path * 4, occluded))
    print(f"AUC: known points {np.mean(known):.2f}, noise {np.mean(blind):.2f}, static {np.mean(static):.2f}")
    assert np.mean(known) > 0.5 and np.mean(blind) < 0.15 and np.mean(known) > np.mean(static)


def test_features_of_a_layer_are_those_of_the_deep_network():
    config = LatteConfig(latent_channels=4, depth=4, width=16, heads=2)
    model = Latte(config)
    latents = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 4))
    params = jax.jit(model.init)(jax.random.key(1), latents, jnp.zeros(2))["params"]
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape) for p in leaves])
    at_layer = {n: jax.jit(lambda p, x, n=n: diffusion_features(model, p, x, layer=n)) for n in (2, 4)}
    shallow, deep = (at_layer[n](params, latents) for n in (2, 4))
    assert shallow.shape == (2, 3, 2, 2, 16) and np.abs(shallow - deep).max() > 1e-2
    np.testing.assert_allclose(shallow.mean(axis=-1), 0, atol=1e-5)
    # What is behind the layer must not matter, what is before it must.
    cut = lambda at, scale: params | {"pairs": jax.tree.map(lambda x: x.at[at].multiply(scale), params["pairs"])}  # noqa: E731
    same, other = (at_layer[2](cut(at, 3.0), latents) for at in (1, 0))
    np.testing.assert_allclose(same, shallow, atol=1e-5)
    assert np.abs(other - shallow).max() > 1e-3
    with pytest.raises(ValueError, match="2, 4, .. 4"):
        diffusion_features(model, params, latents, layer=3)

"""Spectra and motion that one can work out, the exact motion of the synthetic world, and the analyze command."""

import json

import numpy as np
import pytest

from pv_vae_jax.cli.main import main
from pv_vae_jax.data.synthetic import FAMILIES, SyntheticVideos
from pv_vae_jax.data.synthetic_motion import exact_flow, visible_layer
from pv_vae_jax.evaluation.latent_analysis import (
    analyze_latents,
    channel_spectrum,
    motion_correlation,
    power_spectrum,
    rank_correlation,
)
from pv_vae_jax.model import Model, save
from pv_vae_jax.report.latents_page import write_analysis
from pv_vae_jax.report.page import chart
from tests.motion_fixture import tracks

RNG = np.random.default_rng(0)


# Spectra


def test_channel_spectrum_counts_directions():
    one = RNG.normal(size=(4, 5, 4, 4, 1)) * np.array([1.0, -2.0, 0.5])  # all channels along one line
    found = channel_spectrum(one)
    assert found.effective == pytest.approx(1) and found.shares[0] == pytest.approx(1)
    white = channel_spectrum(RNG.normal(size=(40, 9, 8, 8, 6)))
    assert white.effective == pytest.approx(6, rel=1e-2) and white.shares.sum() == pytest.approx(1)
    assert channel_spectrum(np.zeros((2, 3, 2, 2, 4))).effective == 0
    # Latent frame 0 is of its own kind, and must not count.
    odd = one.copy()
    odd[:, 0] = 100 * RNG.normal(size=odd[:, 0].shape)
    assert channel_spectrum(odd).effective == pytest.approx(1)


def test_power_lies_at_the_frequency_of_a_wave_and_adds_up():
    g, h, w = 9, 8, 8
    t, y, x = np.meshgrid(np.arange(g) - 1, np.arange(h), np.arange(w), indexing="ij")
    phase = RNG.uniform(0, 2 * np.pi, (50, 1, 1, 1, 1))
    wave = np.cos(2 * np.pi * (0.25 * t + 0.125 * x)[None, ..., None] + phase) * np.array([1.0, 30.0])
    found = power_spectrum(wave)
    assert found.by_space.sum() == pytest.approx(1) and found.by_time.sum() == pytest.approx(1)
    assert found.temporal[found.by_time.argmax()] == 0.25 and found.by_time.max() > 0.99
    assert found.spatial[found.by_space.argmax()] == 0.125 and found.by_space.max() > 0.99
    white = power_spectrum(RNG.normal(size=(200, 9, 8, 8, 2)))
    np.testing.assert_allclose(white.by_time, [1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], rtol=0.1)


def test_rank_correlation_ignores_scale_and_shares_ties():
    a = RNG.normal(size=50)
    assert rank_correlation(a, np.exp(3 * a)) == pytest.approx(1)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(a, np.ones(50)))
    assert rank_correlation([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
    assert rank_correlation([0, 1, 1, 2], [0, 1, 2, 3]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_latents_that_move_with_the_video_correlate_with_it():
    motion = RNG.uniform(size=(6, 8, 8, 8))
    motion *= RNG.uniform(size=(6, 1, 4, 4)).repeat(2, 2).repeat(2, 3) ** 3  # some places move more, all the time
    amount = motion.reshape(6, 4, 2, 4, 2, 4, 2).mean(axis=(2, 4, 6))
    means = np.concatenate([np.zeros((6, 1, 4, 4)), np.cumsum(amount, axis=1)], axis=1)[..., None]
    assert motion_correlation(means, motion) > 0.9
    assert abs(motion_correlation(RNG.normal(size=(6, 5, 4, 4, 3)), motion)) < 0.25
    with pytest.raises(ValueError, match="does not fit"):
        motion_correlation(means, motion[:, :7])


# Exact motion


@pytest.fixture(scope="module")
def world():
    return SyntheticVideos(2 * len(FAMILIES), frames=9, size=48, seed=5)


def sample(video, x, y):
    """Bilinear lookup in `(h, w, 3)`, at (x, y) in pixel indices."""
    h, w, _ = video.shape
    x0, y0 = np.clip(np.floor(x).astype(int), 0, w - 2), np.clip(np.floor(y).astype(int), 0, h - 2)
    a, b = (x - x0)[..., None], (y - y0)[..., None]
    top = (1 - a) * video[y0, x0] + a * video[y0, x0 + 1]
    return (1 - b) * top + b * ((1 - a) * video[y0 + 1, x0] + a * video[y0 + 1, x0 + 1])


def test_flow_leads_to_the_same_colour(world):
    yy, xx = np.mgrid[0:48, 0:48]
    for i in range(len(world)):
        flow, hidden = exact_flow(world.scene(i), 48)
        video = world[i]["video"] / 255.0
        errors, still = [], []
        for t in range(8):
            warped = sample(video[t + 1], xx + flow[t, ..., 0], yy + flow[t, ..., 1])
            errors.append(np.abs(warped - video[t])[~hidden[t]].mean())
            still.append(np.abs(video[t + 1] - video[t])[~hidden[t]].mean())
        assert np.mean(errors) < 0.01 and np.mean(errors) < 0.35 * np.mean(still)
        assert 0 < hidden.mean() < 0.15


def test_tracks_are_what_flow_adds_up_to(world):
    for i in range(len(world)):
        scene = world.scene(i)
        path, occluded = tracks(scene, 48, 16, np.random.default_rng(i))
        assert path.shape == (16, 9, 2) and not occluded[:, 0].any()
        moved = np.linalg.norm(path[:, -1] - path[:, 0], axis=-1)
        assert (moved > 0).any() and (moved == 0).any()  # sprites, and the background
        layer = visible_layer(scene, 0, path[:, 0] / 48)
        for t in range(9):  # a visible point still lies on its own layer, but for the rounding of a border
            same = visible_layer(scene, t, path[:, t] / 48) == layer
            assert same[~occluded[:, t]].mean() > 0.9
    # In steps along the flow field, sampled at pixel centres: start there and stay with a translating sprite.
    scene = world.scene(0)  # bounce: no rotation
    flow, _ = exact_flow(scene, 48)
    sprite = scene.sprites[-1]
    centre = (sprite.position[:, ::-1] * 48 - 0.5).round().astype(int)
    for t in range(8):
        step = (sprite.position[t + 1] - sprite.position[t])[::-1] * 48
        np.testing.assert_allclose(flow[t, centre[t, 1], centre[t, 0]], step, atol=1e-9)


# The analysis


def test_analysis_of_a_model(tiny, tmp_path):
    model, params, _ = tiny
    video = RNG.integers(0, 256, (3, 7, 16, 16, 3), dtype=np.uint8)
    motion = RNG.uniform(size=(3, 6, 16, 16))
    found = analyze_latents("<b>tiny", model, params, video, motion, batch_size=2)
    numbers = json.loads(json.dumps(found.numbers, allow_nan=False))
    assert numbers["config"] == model.config.name and len(numbers["channel_shares"]) == 4
    assert -1 <= numbers["motion_correlation"] <= 1 and numbers["ltd_over_chance"] > 0
    assert len(numbers["prediction_mse"]) == 4 and found.prediction.shape == video.shape and found.observed == 3
    write_analysis(
        tmp_path / "a.html", {"source": "noise", "clips": 3, "frames": 7, "size": [16, 16]}, [found, found], video
    )
    page = (tmp_path / "a.html").read_text()
    assert "&lt;b&gt;tiny" in page and "<b>tiny" not in page and page.count("<svg") >= 5
    assert "http" not in page.split("<body>")[0] and 'src="http' not in page and "NaN" not in page


def test_vaes_whose_groups_differ_share_a_chart():
    """Clips of 17 frames are five groups of one VAE and nine of another."""
    curves = [("four", [0.1] * 4), ("two", [0.1] * 8), ("copying", [0.1] * 4)]
    svg = chart("errors", curves, 1, x_label="k")["svg"]
    # A marker for each value, and one for each VAE in the legend.
    assert svg.count("<use") == 4 + 8 + 2 and "copying ends at 0.1" in svg


def test_images_have_no_time_to_analyse(tiny):
    model, params, _ = tiny
    video = RNG.integers(0, 256, (2, 1, 16, 16, 3), dtype=np.uint8)
    numbers = analyze_latents("a", model, params, video, np.zeros((2, 0, 16, 16)), batch_size=2).numbers
    for name in ("ltd_median", "motion_correlation", "energy_motion_correlation", "prediction_mse", "against_copying"):
        assert numbers[name] is None
    assert numbers["psnr_db"] > 0


def test_command_puts_models_side_by_side(tiny, tmp_path, capsys):
    model, params, _ = tiny
    for name in ("a", "b"):
        save(tmp_path / name, Model(model, params))
    out = tmp_path / "out"
    call = [str(tmp_path / "a"), str(tmp_path / "b"), "--clips=3", "--frames=7", "--size=16", "--batch_size=2"]
    assert main(["pv-vae", "analyze", *call, "--out", str(out)]) == 0
    tree = json.loads((out / "analysis.json").read_text())
    assert tree["models"]["a"] == tree["models"]["b"] and "exact flow" in tree["source"]
    assert sorted(p.name for p in out.iterdir()) == ["analysis.html", "analysis.json"]
    np.save(tmp_path / "clips.npy", RNG.integers(0, 256, (2, 7, 16, 16, 3), dtype=np.uint8))
    data = ["--data", str(tmp_path / "clips.npy"), "--out", str(tmp_path / "other")]
    assert main(["pv-vae", "analyze", call[0], "--frames=7", "--batch_size=2", *data]) == 0
    capsys.readouterr()
    for wrong, message in (
        ([], "name at least one model"),
        ([call[0], call[0]], "named twice"),
        ([call[0], "--frames=6"], "use 5 or 7 frames"),
        (["nothing-here"], "no model at"),
        ([call[0], *data], "--size applies to videos"),
    ):
        assert main(["pv-vae", "analyze", *wrong, "--size=16", "--clips=1"]) in (1, 2)
        assert message in capsys.readouterr().err

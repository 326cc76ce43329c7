"""Metrics against their definitions, predictions against guesses worked out by hand, and a report that stands alone."""

import base64
import dataclasses
import html
import io
import json
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

from pv_vae_jax.cli.main import main
from pv_vae_jax.data.clips import Reader, WindowSource
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.synthetic import FAMILIES
from pv_vae_jax.evaluation.image_metrics import psnr, score_frames, ssim, summarize_frames
from pv_vae_jax.evaluation.latent_analysis import principal_colours, temporal_distance
from pv_vae_jax.evaluation.networks.published import NetworkIdentity
from pv_vae_jax.evaluation.prediction import copy_last, extrapolate, predict, score_prediction
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.messages import counted
from pv_vae_jax.model import Diffusion, Model, init_latte, save
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.report import unavailable
from pv_vae_jax.report.ending import ending
from pv_vae_jax.report.figures import COLOURS, Media, Series, fit, line_chart, png_uri
from pv_vae_jax.report.page import cell, chart, environment
from pv_vae_jax.report.run_page import Pictures, curve_charts, write_report
from pv_vae_jax.report.run_report import _files, _titles, by_class, evaluate_run, read_test_clips
from pv_vae_jax.train.config_files import from_dict
from pv_vae_jax.train.configs import (
    DataConfig,
    DiffusionConfig,
    Experiment,
    LatentsConfig,
    SamplingConfig,
    VAEStageConfig,
)
from pv_vae_jax.train.run import open_run
from pv_vae_jax.typing import ConfigError

RNG = np.random.default_rng(0)
A = RNG.uniform(0, 1, (2, 3, 20, 17, 3))
B = np.clip(A + RNG.normal(0, 0.1, A.shape), 0, 1)
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def clips():
    """Three clips `(7, 16, 16, 3)` uint8."""
    return np.random.default_rng(1).integers(0, 256, (3, 7, 16, 16, 3), dtype=np.uint8)


def unit(video):
    return video.astype(np.float64) / 127.5 - 1


# Image metrics


def test_psnr_and_ssim_equal_scikit_image():
    measure = pytest.importorskip("skimage.metrics")
    frames = [(a, b) for x, y in zip(A, B, strict=True) for a, b in zip(x, y, strict=True)]
    similar = [
        measure.structural_similarity(
            a, b, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in frames
    ]
    ratio = [measure.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in frames]
    assert ssim(A, B, 1.0) == pytest.approx(np.mean(similar), abs=1e-9)
    assert psnr(A, B, 1.0) == pytest.approx(np.mean(ratio), abs=1e-9)
    # The same pictures on another range, and as float32 arrays of JAX.
    for metric in (psnr, ssim):
        assert metric(2 * A - 1, 2 * B - 1, (-1, 1)) == pytest.approx(metric(A, B, 1.0), abs=1e-9)
        assert metric(jax.numpy.asarray(A), jax.numpy.asarray(B), 1.0) == pytest.approx(metric(A, B, 1.0), abs=1e-5)


def test_psnr_is_capped_and_averages_decibels():
    assert psnr(A, A, 1.0) == 100.0
    assert ssim(A, A, 1.0) == pytest.approx(1.0)
    half = A.copy()
    half[:, 0] = B[:, 0]  # one frame of three differs
    assert psnr(A, half, 1.0) == pytest.approx((psnr(A[:, :1], B[:, :1], 1.0) + 200) / 3)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_refuse_data_that_cannot_be_meant(metric):
    with pytest.raises(ValueError, match="expected values in"):
        metric(2 * A - 1, 2 * B - 1, 1.0)
    with pytest.raises(ValueError, match="expected values in"):
        metric(np.where(A > 0.5, np.nan, A), B, 1.0)
    with pytest.raises(ValueError, match="expected two clips of one shape"):
        metric(A, B[:, :2], 1.0)
    with pytest.raises(ValueError, match=r"\(n, t, h, w, 3\)"):
        metric(A[0], B[0], 1.0)
    metric(A + 9e-4, B, 1.0001)  # rounding is no error


def test_ssim_says_that_pictures_are_too_small():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(A[:, :, :10], B[:, :, :10], 1.0)


# Scores by frame


def test_scores_by_frame_add_up_to_the_means():
    scores = score_frames(A, B, 1.0, lambda a, b: np.abs(a - b).mean(axis=(1, 2, 3)))
    assert {name: values.shape for name, values in scores.items()} == dict.fromkeys(
        ("psnr", "ssim", "perceptual"), (2, 3)
    )
    assert scores["psnr"].mean() == pytest.approx(psnr(A, B, 1.0))
    assert scores["ssim"][1, 2] == pytest.approx(ssim(A[1:, 2:], B[1:, 2:], 1.0))
    assert scores["perceptual"][0, 1] == pytest.approx(np.abs(A[0, 1] - B[0, 1]).mean())
    assert score_frames(A[:, :, :10], B[:, :, :10], 1.0).keys() == {"psnr"}  # too small for SSIM


def test_summary_names_the_frames_of_clips_and_groups():
    scores = {"psnr": np.array([[50.0, 30, 20, 31, 21, 32, 22], [50.0, 30, 20, 31, 21, 32, 22]])}
    found = summarize_frames(scores, time_factor=2, observed=5)["psnr"]
    assert found.pop("by_frame") == scores["psnr"][0].tolist()
    names = {"mean": 206 / 7, "first": 50, "last": 22, "withheld": 27, "group_first": 31, "group_last": 21}
    assert found == pytest.approx(names)
    whole = summarize_frames(scores)["psnr"]
    assert whole["withheld"] is None and whole["group_first"] is None and whole["last"] == 22
    assert summarize_frames({"psnr": np.ones((2, 1))}, 2)["psnr"]["group_last"] is None  # single pictures


# Reconstruction and prediction


def test_reconstruction_scores_every_clip_once(tiny, clips):
    model, params, _ = tiny
    score = score_reconstruction(model, params, clips, batch_size=2)  # the last batch is filled up
    decoded = reconstruct(model, params, clips, batch_size=2)
    assert decoded.shape == clips.shape and decoded.dtype == np.uint8
    assert score.psnr == pytest.approx(psnr(clips, decoded, 255.0))
    assert score.ssim == pytest.approx(ssim(clips, decoded, 255.0))
    assert score.means.shape == score.logvar.shape == (3, 4, 2, 2, 4)
    for name, values in score_frames(clips, decoded, 255.0).items():
        np.testing.assert_allclose(score.frames[name], values)


def test_guesses_by_hand():
    levels = np.array([-0.8, -0.5, -0.2, 0.1, 0.4, 0.7, 1.0])
    ramp = np.broadcast_to(levels[None, :, None, None, None], (2, 7, 4, 4, 3))
    np.testing.assert_allclose(copy_last(ramp, 5)[0, :, 0, 0, 0], [0.4, 0.4])
    np.testing.assert_allclose(extrapolate(ramp, 3), ramp[:, 3:], atol=1e-12)  # a straight line is what it assumes
    np.testing.assert_allclose(extrapolate(ramp, 1), copy_last(ramp, 1))  # no direction yet
    steep = np.broadcast_to(np.array([0.0, 0.6, 0.0])[None, :, None, None, None], (1, 3, 4, 4, 3))
    assert extrapolate(steep, 2).max() == 1.0


def test_prediction_errors_of_a_model_that_draws_grey(tiny, clips):
    """With a dead last convolution every frame is grey, so each error is a mean that one can work out."""
    model, params, _ = tiny
    grey = params | {"decoder": params["decoder"] | {"head": jax.tree.map(np.zeros_like, params["decoder"]["head"])}}
    errors = score_prediction(model, grey, clips, batch_size=2)
    truth, level = unit(clips), unit(np.full(1, 128, np.uint8))[0]  # 0 lies between two of 256 levels
    for k in range(4):
        n = 7 - 2 * k
        assert errors.seen[k] == pytest.approx(np.mean((truth[:, :n] - level) ** 2))
        if k:
            assert errors.predicted[k] == pytest.approx(np.mean((truth[:, n:] - level) ** 2))
            assert errors.copying[k] == pytest.approx(np.mean((truth[:, n - 1 : n] - truth[:, n:]) ** 2))
    assert errors.extrapolation[3] == errors.copying[3]
    assert np.isnan([errors.predicted[0], errors.copying[0], errors.extrapolation[0]]).all()
    ratio = np.mean(errors.predicted[1:]) / np.mean(errors.copying[1:])
    assert errors.against_copying == pytest.approx(ratio - 1)


def test_predictions_are_those_of_the_library_and_see_no_dropped_frame(tiny, clips):
    model, params, _ = tiny
    drawn = predict(model, params, clips[:2], 2, batch_size=2)
    expected = Model(model, params).predict(clips[:2], 3)
    assert np.abs(unit(drawn) - expected).max() < 1 / 127.5  # rounding to uint8
    other = clips[:2].copy()
    other[:, 3:] = 0
    np.testing.assert_array_equal(drawn, predict(model, params, other, 2, batch_size=2))
    with pytest.raises(ValueError, match="group 0 is always kept"):
        predict(model, params, clips, 4)
    with pytest.raises(ValueError, match="nothing can be dropped"):
        score_prediction(model, params, clips[:, :1])


def test_gaussian_padding_is_drawn_with_the_seed(gaussian, clips):
    model, params, _ = gaussian
    first, again, other = (predict(model, params, clips[:2], 2, seed=s, batch_size=2) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# Latents


def test_principal_colours_do_not_depend_on_the_solvers_sign():
    amount = RNG.normal(size=(5, 3, 4, 4, 1))
    means = 2.0 + amount * np.array([0.1, -0.9, 0.3, 0.2])
    for sign in (1, -1):
        found = principal_colours(sign * means)
        red = found.pictures[..., 0]
        assert found.pictures.shape == (5, 3, 4, 4, 3) and found.explained[0] == pytest.approx(1.0)
        assert red.min() == 0 and red.max() == 255
        # Channel 1 has the largest loading, so red rises with it.
        order = np.argsort(sign * means[..., 1].ravel())
        assert (np.diff(red.ravel()[order].astype(int)) >= 0).all()
    assert principal_colours(means[..., :2]).pictures[..., 2].max() == 0


def test_temporal_distance_of_steady_drift_frozen_and_short_clips():
    drift = np.arange(5.0)[None, :, None, None, None] * np.array([0.5, 0.9, 1.3])[:, None, None, None, None]
    found = temporal_distance(np.broadcast_to(drift, (3, 5, 2, 2, 4)))
    np.testing.assert_allclose(found.curve, [1 / 3, 2 / 3, 1])
    assert found.adjacent[0] < found.median < found.adjacent[2]
    frozen = temporal_distance(np.broadcast_to(RNG.normal(size=(3, 1, 2, 2, 4)), (3, 5, 2, 2, 4)))
    assert frozen.median == 0 and frozen.chance > 0
    assert temporal_distance(np.zeros((3, 2, 2, 2, 4))) is None


# Figures and report


def numbers_of(svg, attribute):
    return [float(value) for value in re.findall(rf'<use [^>]*{attribute}="([^"]*)"', svg)]


def test_axes_enclose_the_values():
    for low, high, log in (
        *((0.0, 60.0, False), (0.013, 0.0174, False), (-0.08, 1.0, False), (5.0, 5.0, False), (0.0, 0.0, False)),
        *((0.013, 0.17, True), (1e-6, 3.0, True), (2.0, 2.0, True)),
    ):
        svg = line_chart("t", [Series("a", [10, 20], [low, high])], x_label="x", log=log)
        ticks = re.findall(r'text-anchor: end;[^>]*y="([^"]*)">', svg)
        assert 2 <= len(ticks) <= 9, (low, high)
        height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', svg)[1])
        (*points, legend), x = numbers_of(svg, "y"), numbers_of(svg, "x")
        assert len(points) == 2 and all(30 < y < height - 60 for y in points), (low, high)
        assert x[0] < x[1] <= 400 and max(points) < legend < height and "e+" not in svg


def test_labels_of_an_axis_are_not_cut():
    """Drawn to the left from where they end; widths are those of DejaVu Sans, wider than the fonts of browsers."""
    textpath, fonts = pytest.importorskip("matplotlib.textpath"), pytest.importorskip("matplotlib.font_manager")
    font = fonts.FontProperties(family="DejaVu Sans")
    for low, high in ((1.1e-4, 1.6e-4), (2e-7, 9e-7), (0.012, 0.0174), (1e5, 1.6e5), (12.4, 12.65), (1.0e7, 1.4e7)):
        svg = line_chart("t", [Series("a", [10, 20], [low, high])], x_label="x")
        labels = re.findall(r'text-anchor: end;[^>]*x="([^"]*)"[^>]*>([^<]*)<', svg)
        assert len(labels) > 1
        for end, label in labels:
            assert textpath.TextPath((0, 0), label, size=12, prop=font).get_extents().width < float(end), label


def test_charts_survive_gaps_and_single_points():
    with pytest.raises(ValueError, match="no values"):
        line_chart("t", [Series("a", [1.0], [np.nan])], x_label="x")
    assert "no values" in chart("t", [Series("a", [1.0], [np.nan])], x_label="x")["missing"]
    assert "<use" in line_chart("t", [Series("a", [5.0], [2.0])], x_label="x")
    gap = line_chart("t", [Series("a", [1, 2, 3], [1.0, np.nan, 100.0])], x_label="x", log=True)
    assert "nan" not in gap and "logarithmic" in gap
    long = line_chart("t", [Series("a", np.arange(5_000), np.arange(5_000.0))], x_label="x")
    assert len(long) < 20_000


def test_charts_are_the_same_each_time_and_legible_light_and_dark():
    series = [
        Series("_a $x$ <b>", [1, 2], [1.0, 2.0], low=[0.5, 1], high=[1.5, 3]),
        Series("b", [1, 2], [3, 1], "dashed"),
    ]
    svg = line_chart(
        "a title that is so long that it takes a second line of the drawing", series, x_label="x", ends=True
    )
    assert svg == line_chart(
        "a title that is so long that it takes a second line of the drawing", series, x_label="x", ends=True
    )
    ElementTree.fromstring(svg)
    assert "_a $x$ &lt;b&gt; 2<" in svg and svg.count("font-weight: 700") == 2 and "stroke-dasharray" in svg
    assert svg.count("http") == 1 and "url(" not in svg  # its own namespace
    for light, dark in COLOURS[:2]:
        assert f",{light})" in svg and dark in svg.split("prefers-color-scheme:dark")[1].split("</style>")[0]
    drawn = svg.split("</style>")[1]
    assert all(f",{colour})" in drawn for colour in re.findall(r"#[0-9a-f]{6}", drawn)), "a colour without a dark mate"


def test_a_curve_that_would_hide_another_is_dashed():
    x, y = [1, 2, 3], np.array([1.0, 2.0, 10.0])
    draw = lambda *curves, **options: line_chart(  # noqa: E731
        "t", [Series(str(i), x, c) for i, c in enumerate(curves)], x_label="x", **options
    )
    dashes = lambda svg: svg.count("stroke-dasharray") // 2  # noqa: E731 - the curve, and its place in the legend
    assert dashes(draw(y, y + 0.01)) == 1 and dashes(draw(y, y + 0.01, y)) == 2
    starts = re.findall(r"stroke-dashoffset: ([\d.]+)", draw(y, y, y, y))
    assert len(starts) == 6 and len(set(starts)) == 3, "all three take turns"
    assert dashes(draw(y, y + 1)) == dashes(draw(y, [1, 2, 5], [np.nan, 1, 3])) == 0
    low = np.array([1e-3, 1e-2, 1.0])  # where an axis is logarithmic, a small difference of small values is seen
    assert dashes(draw(low, low + 0.002)) == 1 and dashes(draw(low, low + 0.002, log=True)) == 0


def test_a_new_loss_term_shows_up_by_itself():
    rows = [{"step": i, "loss": 2.0 / i, "mse": 1.0 / i, "motion": 0.0, "my_term": 0.5 / i, "odd": -1.0, "mfu": 0.4,
             "mse/5x16": 1.0} for i in (1, 2, 3)]  # fmt: skip
    titles = [re.search(r'aria-label="([^",:]*)', block["svg"])[1] for block in curve_charts(rows)]
    assert [title.split(",")[0] for title in titles] == [
        "Loss (weighted sum) and its unweighted terms", "Model FLOP utilisation", "mse", "odd",
    ]  # fmt: skip
    first = curve_charts(rows)[0]["svg"]
    assert ">my term 0.167<" in first and ">loss 0.667<" in first and "motion" not in first


def test_a_page_takes_sections_of_anyone():
    mine = environment().from_string(
        """{% extends "page.html" %}{% import "macros.html" as ui %}{% set title = heading %}{% set headline = "" %}
        {% set notes = [] %}{% set sections = {"a": "First"} %}
        {% block a %}<p>{{ text }}</p>{% for item in items %}{{ ui.show(item) }}{% endfor %}{% endblock %}"""
    )
    items = [chart("c", [Series("s", [1], [2])], x_label="x"), chart("<u>", [Series("s", [1], [np.nan])], x_label="x")]
    page = mine.render(heading="t <b>", text="<i>", items=items)
    assert '<p class="none">&lt;u&gt;: no values.</p>' in page
    assert "t &lt;b&gt;" in page and "&lt;i&gt;" in page and page.count("<svg") == 1 and 'href="#a"' in page
    assert_stands_alone(page)


def test_a_number_that_does_not_exist_is_a_dash():
    assert [cell(value) for value in (None, float("nan"), 0.12345, 12_345.6, 12_345, "a")] == [
        *("–", "–", "0.1235", "12,346", "12,345", "a")
    ]
    assert [counted(n, "clip") for n in (0, 1, 1_234)] == ["0 clips", "1 clip", "1,234 clips"]


def test_what_a_report_needs_is_named(monkeypatch):
    assert unavailable() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else name)
    assert unavailable() == "reports need jinja2: pip install jinja2 (the extra [report] holds them)"


def test_pictures_are_enlarged_and_shrunk_by_whole_factors():
    picture = RNG.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    assert fit(picture, 40).shape == (1, 40, 40, 3) and fit(picture, 4).shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(fit(picture, 40)[:, ::5, ::5], picture)
    uri = png_uri(picture[0])
    image = pytest.importorskip("PIL.Image")
    np.testing.assert_array_equal(image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), picture[0])


def test_media_say_what_is_left_out(clips, monkeypatch):
    assert Media(10_000).picture(clips[0, 0], "a")["uri"].startswith("data:image/png")
    assert "Left out" in Media(100).picture(clips[0, 0], "a")["missing"]
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install" in Media(10_000).video(clips[0], "a")["missing"]


class References(HTMLParser):
    """Everything that a page would load or lead to, and the elements it has."""

    def __init__(self, page):
        super().__init__()
        self.found, self.elements = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "data", "srcset", "poster")]


def assert_stands_alone(page):
    references = References(page)
    assert references.found and all(value.startswith(("data:", "#")) for value in references.found)
    assert not {"script", "link", "iframe", "object"} & set(references.elements)
    assert "http" not in page.split("<body>")[0] and "@import" not in page and "url(" not in page
    return references.elements


def test_report_escapes_what_comes_from_outside(tmp_path, clips):
    pytest.importorskip("av")
    prediction = {"dropped": [0, 1], "observed_frames": [7, 5], "seen": [0.1, 0.1], "average": 0.2}
    prediction |= {name: [None, 0.2] for name in ("predicted", "copying", "extrapolation")}
    prediction |= {"average_copying": 0.2, "average_extrapolation": 0.2, "against_copying": -0.43}
    stage = {"scored": "3 clips", "psnr_db": 20.0, "ssim": None, "steps": 10, "weights": "ab", "prediction": prediction}
    stage["by_frame"] = {"reconstruction": summarize_frames({"psnr": np.arange(21.0).reshape(3, 7)}, 2)}
    metrics = {
        "experiment": HOSTILE,
        "model": "t2s8c4",
        "date": "today",
        "devices": [HOSTILE],
        "versions": {"jax": "1"},
        "parameters": {"encoder": 12_345},
        "protocol": {"source": HOSTILE, "split": "test", "clips": 3, "frames": 7, "size": 16},
        "stages": {"video": stage},
        "latents": None,
        "samples": None,
        "command": f"pv-vae evaluate --workdir {HOSTILE}",
        "configuration": {"name": HOSTILE},
        "notes": [HOSTILE],
        "held_out": {"count": 3, "names": [HOSTILE]},
        "missing": [],
    }
    cells = [("Original", clips[0], None), ("Reconstruction", clips[1], 7), (HOSTILE, clips[2], 5)]
    pictures = Pictures(
        clips=[("jump", HOSTILE, cells)], clips_stage="video", curves={"video": [{"step": 1, HOSTILE: 2.0}]}
    )
    write_report(tmp_path / "report.html", metrics, pictures)
    page = (tmp_path / "report.html").read_text()
    assert assert_stands_alone(page).count("video") == 2  # at the top, and with all predictions
    assert "<script" not in page and "&lt;script&gt;" in page
    assert 'src="data:video/mp4;base64,' in page and "playsinline" in page and "43% below" in page and "12,345" in page
    assert "Held-out files: 3" in page and "And 2 more" in page
    assert "No samples" in page and "PSNR, dB, by frame" in page and "SSIM, by frame: no values" in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# The whole evaluation


def experiment_of(model, **data):
    return Experiment(
        name="tiny",
        data=DataConfig(test_clips=3, frames=7, size=16, **data),
        vae=model.config,
        image=VAEStageConfig(images=True, steps=0),
        video=VAEStageConfig(steps=1),
        decoder=VAEStageConfig(steps=1),
        latents=LatentsConfig(batch_size=2),
        latte=LatteConfig(latent_channels=4, depth=2, width=16, heads=2),
        diffusion=DiffusionConfig(steps=1),
        sampling=SamplingConfig(steps=1, guidance=1.5, clips=5, batch_size=5),
    )


def test_evaluation_of_a_run(tiny, tmp_path, capsys, monkeypatch):
    model, params, _ = tiny
    run = open_run(experiment_of(model), tmp_path / "run")
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate_run(run)
    latte = Latte(dataclasses.replace(run.experiment.latte, classes=4))
    shape = (4, 2, 2, 4)
    diffusion = Diffusion(latte, jax.jit(lambda: init_latte(latte, shape))(), np.zeros(4), np.ones(4), shape, FAMILIES)
    save(run.folder("video") / "model", Model(model, params, meta={"stage": "video", "steps": 1}))
    save(run.folder("diffusion") / "model", Model(model, params, diffusion, {"stage": "video"}))

    distance = lambda a, b: np.abs(a / 255 - b / 255).mean(axis=(1, 2, 3))  # noqa: E731
    network = NetworkIdentity("lpips-alexnet", "ab", None, "as they are", {})
    monkeypatch.setattr("pv_vae_jax.report.run_report.lpips_distance", lambda *files: (distance, network))
    report = evaluate_run(run, lpips=("alexnet", tmp_path, tmp_path))
    printed = capsys.readouterr().out.strip().splitlines()
    assert report == run.workdir / "report" / "report.html" and printed[-1] == f"report: {report}"
    assert any("Stage decoder is not finished" in line for line in printed)

    metrics = json.loads((report.parent / "metrics.json").read_text())
    expected = {"source": "synthetic", "split": "test", "clips": 3, "frames": 7, "size": 16, "stride": 1, "seed": 0}
    assert expected.items() <= metrics["protocol"].items()
    stage = metrics["stages"]["video"]
    assert stage["weights"] == weights_hash(params) and stage["psnr_db"] > 0 and 0 < stage["ssim"] < 1
    assert stage["prediction"]["observed_frames"] == [7, 5, 3, 1] and stage["prediction"]["predicted"][0] is None
    assert stage["by_frame"].keys() == {"reconstruction", "prediction from 3 frames"}
    whole, predicted = stage["by_frame"].values()
    assert whole["psnr"]["mean"] == pytest.approx(stage["psnr_db"]) and len(whole["ssim"]["by_frame"]) == 7
    assert whole["psnr"]["withheld"] is None
    assert predicted["psnr"]["withheld"] == pytest.approx(np.mean(predicted["psnr"]["by_frame"][3:]))
    assert predicted["psnr"]["first"] == pytest.approx(whole["psnr"]["first"], abs=0.1)  # seen by both
    assert 0 < whole["perceptual"]["group_last"] < 1 and "features = lpips-alexnet" in metrics["protocol"]["perceptual"]
    (row,) = [line for line in printed if line.startswith("stage video, prediction from 3 frames")]
    assert row.split()[-2:] == [f"{predicted['psnr'][key]:.2f}" for key in ("withheld", "mean")]
    assert metrics["samples"]["clips"] == 5 and metrics["latents"]["ltd_curve"][-1] == pytest.approx(1)
    assert metrics["parameters"]["pad"] == 4

    with np.load(report.parent / "samples.npz") as samples:
        assert samples["video"].shape == (5, 7, 16, 16, 3) and samples["label"].tolist() == [0, 1, 2, 3, 0]
    elements = assert_stands_alone(report.read_text())
    assert "svg" in elements and "img" in elements
    assert sorted(p.name for p in report.parent.iterdir()) == ["metrics.json", "report.html", "samples.npz"]
    page = html.unescape(report.read_text())
    assert "Distances need 16 test clips and 8 generated ones" in page and metrics["samples"]["distances"] == {}
    assert f"<code>pv-vae evaluate --workdir {run.workdir}</code>" in page
    assert from_dict(Experiment, json.loads(page.split("<pre>")[1].split("</pre>")[0])) == run.experiment

    shipped = run.folder("video") / "model"  # as if this model shipped: a rival to the run that made it
    monkeypatch.setattr("pv_vae_jax.report.run_report.shipped_models", lambda: [str(shipped)])
    page, printed = html.unescape(evaluate_run(run, clips=16, sampled=8).read_text()), capsys.readouterr().out
    metrics = json.loads((report.parent / "metrics.json").read_text())
    (rival,), same = metrics["baselines"].values(), metrics["stages"]["video"]
    assert {k: v for k, v in rival.items() if k != "steps"} == {k: v for k, v in same.items() if k != "steps"}
    assert rival["steps"] is None, "its last stage's steps are no measure of its training"
    for name in (f"shipped {shipped}", "copying"):  # set back in both tables
        assert page.count(f'<tr class="reference"><th scope="row">{name}</th>') == 2
    result, samples, _, after, last = printed.strip().splitlines()[-5:]
    assert result.startswith(f"result: stage video reconstructs at {same['psnr_db']:.2f} dB") and "8 clips" in samples
    assert after.startswith("next: Stage decoder is not finished") and last == f"report: {report}"
    worse = same | {"prediction": same["prediction"] | {"average": same["prediction"]["average_copying"]}}
    after = ending(run, metrics | {"stages": {"decoder": worse}, "missing": []}, report)[-2]
    assert f"--config.video.init_from={run.workdir}" in after, "tuning the decoder again does not change what it sees"
    found = json.loads((report.parent / "metrics.json").read_text())["samples"]
    assert found["scored"] == 8 and list(found["distances"]) == ["generated clips", "other test clips"]
    for score, value in found["distances"]["generated clips"].items():
        assert value > 2 * found["distances"]["other test clips"][score], "an untrained network is no match for clips"
        assert score in page and f"<td>{cell(value)}</td>" in page and f"{score} {cell(value)}" in printed


def test_evaluation_of_a_folder_without_test_clips_says_so(tiny, clips, tmp_path, capsys):
    pytest.importorskip("av")
    from pv_vae_jax.data.video_writing import write_video

    model, params, _ = tiny
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "only.mp4", np.concatenate([clips[0], clips[1]]))
    run = open_run(experiment_of(model, source=str(tmp_path / "films")), tmp_path / "run")
    save(run.folder("video") / "model", Model(model, params, meta={"stage": "video", "steps": 1}))
    assert main(["pv-vae", "evaluate", "--workdir", str(run.workdir), "--clips=2"]) == 0
    metrics = json.loads((run.workdir / "report" / "metrics.json").read_text())
    assert metrics["protocol"]["split"] == "train" and metrics["protocol"]["clips"] == 2 and metrics["samples"] is None
    page = (run.workdir / "report" / "report.html").read_text()
    printed = capsys.readouterr().out
    assert all("training clips" in place for place in (printed, page, metrics["notes"][0]))
    assert all("reconstructs clips it was trained on at" in place for place in (page, printed.split("result: ")[1]))
    assert (
        metrics["held_out"] == {"count": 1, "names": ["only.mp4"]}
        and "Training files, from which clips were scored: 1" in page
    )
    assert "<h4>only.mp4</h4>" in page and "<h4>only.mp4, from frame 7</h4>" in page


def test_clips_are_titled_by_what_tells_them_apart(tiny, clips, tmp_path):
    pytest.importorskip("av")
    from pv_vae_jax.data.video_writing import write_video

    for name in ("train/jump/a.mp4", "train/slide/a.mp4", "test/jump/b.mp4", "test/slide/c.mp4"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "films" / name, clips[0])
    scored = read_test_clips(open_run(experiment_of(tiny[0], source=str(tmp_path / "films")), tmp_path / "run"))
    assert scored.titles == scored.files["names"] == ["test/jump/b.mp4", "test/slide/c.mp4"]
    assert scored.names == ["jump", "slide"]

    drawn = read_test_clips(open_run(experiment_of(tiny[0]), tmp_path / "drawn"))
    assert drawn.titles[1] == f"{drawn.names[1]}: clip 2" and drawn.files["count"] == 0

    class Records(Reader):
        lengths = np.array([7, 14])

        def __len__(self):
            return 2

        def name(self, index):
            return f"record {index}"

    source = WindowSource(Records(tmp_path, ("jump", "slide"), FrameSize(16, 16)), frames=7)
    source.replaced.add(0)  # its video cannot be read, so another clip was dropped
    assert _titles(source, ["slide", "slide"]) == ["slide: record 1", "slide: record 1, from frame 7"]
    assert _files(source) == {"count": 0, "names": []}


def test_generated_clips_stand_beside_real_ones_of_their_class():
    video, real, labels = np.arange(6), 10 + np.arange(3), np.array([0, 1, 0, 1, 0, 1])
    pairs = by_class((video, labels), ("jump", "slide"), real, ["slide", "jump", "slide"], 2)
    assert {k: (a.tolist(), b.tolist()) for k, (a, b) in pairs.items()} == {
        "jump": ([0, 2], [11]), "slide": ([1, 3], [10, 12]),
    }  # fmt: skip
    assert list(by_class((video, 0 * labels), (), real, ["films"] * 3, 2)) == ["films"]
    assert list(by_class((video, 0 * labels), (), real, ["jump", "slide", "jump"], 2)) == ["all clips"]
    assert by_class((video[:0], labels[:0]), (), real, ["films"] * 3, 2) == {}

"""Distances and statistics against closed forms, fixtures of other implementations, and each other."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pv_vae_jax.evaluation.distances import (
    frechet_distance,
    frechet_interval,
    frechet_limit,
    gaussian_distance,
    inception_score,
    kernel_distance,
    kernel_interval,
    mean_interval,
    paired_squared_distance,
    score_interval,
)
from pv_vae_jax.evaluation.features import FeatureError

RNG = np.random.default_rng(0)
A = RNG.normal(size=(60, 8)) @ RNG.normal(size=(8, 8))
B = RNG.normal(size=(50, 8)) @ RNG.normal(size=(8, 8)) + 0.5


@pytest.fixture(scope="module")
def fixture():
    """Features of a fake and a real set with what other implementations made of them."""
    root = Path(os.environ.get("PV_VAE_SHARED", Path(__file__).parents[2] / "shared")) / "reference" / "eval"
    if not root.is_dir():
        pytest.skip("no evaluation fixtures here: set PV_VAE_SHARED to a folder that holds reference/eval/")
    arrays = np.load(root / "distribution_metrics_fixture.npz")
    return arrays, json.loads((root / "distribution_metrics_expected.json").read_text())


def test_gaussians_of_one_shape_orientation_differ_by_the_closed_form():
    """Covariances with common axes commute, and then the distance is that of means and of standard deviations."""
    axes, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    deviations = RNG.uniform(0, 2, (2, 5))
    deviations[0, 0] = 0  # singular
    means = RNG.normal(size=(2, 5))
    a, b = ((m, axes @ np.diag(d**2) @ axes.T) for m, d in zip(means, deviations, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert gaussian_distance(*a, *b) == pytest.approx(expected, rel=1e-7)


def test_the_root_of_a_product_that_does_not_commute():
    """Independent of eigenvectors: the trace of the root is the sum of singular values of the product of factors."""
    n, m = len(A), len(B)
    x, y = (A - A.mean(0)) / np.sqrt(n - 1), (B - B.mean(0)) / np.sqrt(m - 1)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = np.sum((A.mean(0) - B.mean(0)) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * cross
    assert frechet_distance(A, B) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(A, B) == pytest.approx(frechet_distance(B, A), rel=1e-9)


def test_one_set_is_at_no_distance_from_itself():
    assert abs(frechet_distance(A, A)) < 1e-6
    few = A[:5]  # fewer clips than dimensions: the covariance is singular
    assert abs(frechet_distance(few, few)) < 1e-6
    assert paired_squared_distance(A, A) == 0


def test_a_common_offset_costs_no_digits():
    far = frechet_distance(A + 1e6, B + 1e6)  # sums of squares would lose all of them here
    assert far == pytest.approx(frechet_distance(A, B), rel=1e-6)


def test_kernel_distance_by_hand_and_without_bias():
    kernel = lambda x, y: (x @ y / 2 + 1) ** 3  # noqa: E731
    x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    within = kernel(x[0], x[1]) + sum(kernel(y[i], y[j]) for i in range(3) for j in range(3) if i != j) / 6
    between = np.mean([[kernel(i, j) for j in y] for i in x])
    assert kernel_distance(x, y) == pytest.approx(within - 2 * between)
    draws = [kernel_distance(*np.random.default_rng(i).normal(size=(2, 20, 4))) for i in range(400)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 20 and np.min(draws) < 0


@pytest.mark.parametrize("n", [512, 128])  # 128 clips of 400 numbers: the covariances are singular
def test_other_implementations_agree(fixture, n):
    arrays, expected = fixture
    real, fake = arrays["real"][:n], arrays["fake"][:n]
    distance = frechet_distance(real, fake)
    assert distance == pytest.approx(expected[f"fvd_n{n}_nuclear"], rel=1e-6)
    assert distance == pytest.approx(expected[f"fvd_n{n}_scipy_ddof1"], rel=1e-6)
    assert frechet_distance(real, fake, ddof=0) == pytest.approx(expected[f"fvd_n{n}_scipy_ddof0"], rel=1e-6)
    assert kernel_distance(real, fake) == pytest.approx(expected[f"kvd_n{n}_poly3_unbiased"], abs=1e-9)


def test_inception_scores_of_the_fixture(fixture):
    arrays, expected = fixture
    logits = np.log(arrays["probs"].astype(np.float64))
    found = {
        "is_splits1": inception_score(logits, splits=1),
        "is_splits10_noshuffle": inception_score(logits, shuffle_seed=None),
        "is_splits10_shuffle42": inception_score(logits),
    }
    for name, score in found.items():
        assert (score.mean, score.std) == pytest.approx(expected[name], abs=1e-6), name


def test_inception_score_is_one_for_a_shrug_and_the_number_of_classes_for_certainty():
    assert inception_score(np.zeros((40, 7)), splits=2).mean == pytest.approx(1)
    certain = 1e4 * np.eye(5)[np.arange(50) % 5]  # its other probabilities underflow to zero
    assert inception_score(certain, splits=1).mean == pytest.approx(5)


def test_intervals_hold_the_number_and_narrow_with_more_clips():
    for interval, value in (
        (frechet_interval(A, B), frechet_distance(A, B)),
        (kernel_interval(A, B), kernel_distance(A, B)),
        (mean_interval(A[:, 0]), A[:, 0].mean()),
        (score_interval(A, lambda x: inception_score(x, splits=1).mean), None),
    ):
        assert interval.low < interval.high
        assert value is None or interval.low <= value <= interval.high
    wide, narrow = (mean_interval(RNG.normal(size=n)) for n in (50, 5000))
    assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)
    assert frechet_interval(A, B, seed=3) == frechet_interval(A, B, seed=3)


def test_kernel_interval_covers_the_truth_as_often_as_it_says():
    """Two sets of one distribution: the distance is 0, and about 95 % of the intervals should hold it."""
    hits = 0
    for i in range(60):
        x, y = np.random.default_rng(i).normal(size=(2, 40, 3))
        interval = kernel_interval(x, y, resamples=100, seed=i)
        hits += interval.low <= 0 <= interval.high
    assert hits >= 51


def test_extrapolation_removes_most_of_the_bias_of_few_clips():
    x, y = np.random.default_rng(0).normal(size=(2, 400, 20))  # one distribution: the truth is 0
    assert abs(frechet_limit(x, y)) < 0.2 * frechet_distance(x, y)


def test_features_that_cannot_be_scored_are_refused():
    broken = A.copy()
    broken[3, 2] = np.nan
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(FeatureError, match="1 of 60 clips .* clip 3"):
            distance(broken, B)
        with pytest.raises(FeatureError, match="at least 2 clips"):
            distance(A[:1], B)
        with pytest.raises(FeatureError, match="got 8 and 4"):
            distance(A, B[:, :4])
    with pytest.raises(FeatureError, match="10 splits need at least 20 clips"):
        inception_score(A[:19])
    with pytest.raises(FeatureError, match="one shape"):
        paired_squared_distance(A, B)
    with pytest.raises(FeatureError, match=r"\(n, d\)"):
        frechet_distance(A[0], B)

"""Predictive reconstruction: truncated = filled, nothing leaks, the pad token learns; patterns and schedules."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.dropping import SPATIAL, DropPattern, max_dropped, num_droppable, scheduled_ratio
from pv_vae_jax.evaluation.prediction import hold_observed, score_pattern, score_prediction
from pv_vae_jax.losses import kl_divergence
from pv_vae_jax.masking import sample_mask
from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.predictive import (
    mask_pixels,
    observed_frames,
    predict_filled,
    predict_masked,
    predict_truncated,
)
from tests.conftest import decoded

PATTERNS = typing.get_args(DropPattern)
GRID = (5, 4, 6)


@pytest.mark.parametrize(
    ("groups", "ratio", "expected"), [(5, 0.5, 2), (5, 0.75, 3), (5, 1.0, 4), (6, 0.6, 3), (1, 1.0, 0)]
)
def test_largest_number_of_dropped_groups(groups, ratio, expected):
    assert max_dropped(groups, ratio) == expected


def test_frame_zero_is_always_kept():
    assert observed_frames(17, 4, 4) == 1
    with pytest.raises(ValueError, match="group 0 is always kept"):
        observed_frames(17, 5, 4)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        max_dropped(5, 1.5)


@pytest.mark.parametrize("dropped", [0, 1, 3])
def test_truncated_equals_filled(tiny, dropped):
    model, params, video = tiny
    key = jax.random.key(5)
    a = predict_truncated(model, params, video, dropped, key)
    b = predict_filled(model, params, video, jnp.int32(dropped), key)
    np.testing.assert_allclose(a.latents, b.latents, atol=2e-5)
    np.testing.assert_allclose(decoded(model, params, a), decoded(model, params, b), atol=2e-5)
    np.testing.assert_allclose(
        kl_divergence(a.posterior, a.observed), kl_divergence(b.posterior, b.observed), rtol=1e-5
    )


def test_k_per_example_equals_each_alone(tiny):
    model, params, video = tiny
    both = predict_filled(model, params, video, jnp.array([1, 3]), None)
    for i, k in enumerate((1, 3)):
        alone = predict_filled(model, params, video[i : i + 1], jnp.int32(k), None)
        np.testing.assert_allclose(decoded(model, params, both)[i], decoded(model, params, alone)[0], atol=2e-5)


@pytest.mark.parametrize("form", ["truncated", "filled"])
def test_withheld_frames_never_reach_the_output(tiny, form):
    model, params, video = tiny
    other = video.at[:, 5:].set(-video[:, 5:])  # k = 1 withholds frames 5 and 6

    def run(video):
        if form == "truncated":
            return decoded(model, params, predict_truncated(model, params, video, 1, None))
        return decoded(model, params, predict_filled(model, params, video, jnp.int32(1), None))

    np.testing.assert_array_equal(run(video), run(other))


def test_dropping_does_not_touch_observed_frames(tiny):
    model, params, video = tiny
    full, dropped = (decoded(model, params, predict_filled(model, params, video, jnp.int32(k), None)) for k in (0, 2))
    np.testing.assert_array_equal(full[:, :3], dropped[:, :3])
    assert float(jnp.abs(full[:, 3:] - dropped[:, 3:]).max()) > 1e-4


def test_gradient_reaches_the_pad_token_only_when_frames_are_dropped(tiny):
    model, params, video = tiny

    @jax.jit
    def gradient(dropped):
        def energy(params):
            return jnp.mean(decoded(model, params, predict_filled(model, params, video, dropped, None)) ** 2)

        return jax.grad(energy)(params)

    assert float(jnp.abs(gradient(jnp.int32(0))["pad"]["token"]).max()) == 0.0
    assert float(jnp.abs(gradient(jnp.int32(2))["pad"]["token"]).min()) > 0.0


def test_gaussian_padding_needs_a_key_and_follows_it(gaussian):
    model, params, video = gaussian
    assert "pad" not in params
    one, two = (decoded(model, params, predict_truncated(model, params, video, 2, jax.random.key(i))) for i in (1, 2))
    assert float(jnp.abs(one - two).max()) > 1e-4
    with pytest.raises(ValueError, match="key must be given for gaussian padding"):
        predict_truncated(model, params, video, 2, None)


def test_kl_counts_observed_frames_only(tiny):
    model, params, video = tiny
    filled = predict_filled(model, params, video, jnp.int32(3), None)
    first = predict_truncated(model, params, video, 3, None)
    assert float(filled.observed.sum()) == 2.0  # two clips, one latent frame each
    np.testing.assert_allclose(
        kl_divergence(filled.posterior, filled.observed), kl_divergence(first.posterior, first.observed)
    )


def test_group_0_is_kept_whatever_is_to_be_dropped(tiny):
    model, params, video = tiny
    some, all_of_them = (predict_filled(model, params, video, jnp.array(k), None) for k in ([-1, 3], [-5, 9]))
    np.testing.assert_array_equal(some.observed, [[1, 1, 1, 1], [1, 0, 0, 0]])
    np.testing.assert_array_equal(some.observed, all_of_them.observed)


def test_a_traced_number_of_groups_says_what_to_do(tiny):
    model, params, video = tiny
    with pytest.raises(TypeError, match="static_argnames"):
        jax.eval_shape(lambda k: predict_truncated(model, params, video, k, None), 1)


def drawn(pattern, dropped, grid=GRID, count=64):
    """What stays, `(count, g, h, w)`, for one `k`."""
    return np.asarray(sample_mask(pattern, jax.random.key(3), jnp.full(count, dropped), grid))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_withholds_k_groups_worth_of_positions_and_never_frame_0(pattern):
    most = num_droppable(GRID[0], pattern)
    for k in range(most + 1):
        observed = drawn(pattern, k)
        assert observed.shape == (64, *GRID) and observed[:, 0].all()
        withheld = (~observed).sum((1, 2, 3)) / (GRID[1] * GRID[2])
        if k in (0, most):
            assert (withheld == k).all()
        elif pattern == "block":  # sides are rounded
            assert abs(withheld.mean() - k) < 0.25 and (np.abs(withheld - k) <= 1.0).all()
        else:
            np.testing.assert_allclose(withheld, k, atol=0.5 * (GRID[0] - 1) / (GRID[1] * GRID[2]))
        assert k in (0, most) or pattern == "future" or len(np.unique(observed, axis=0)) > 1  # drawn for each example


def test_future_is_the_end_of_the_clip_and_infill_leaves_it():
    for k in range(5):
        np.testing.assert_array_equal(drawn("future", k)[:, :, 0, 0], np.arange(5)[None] < 5 - k + np.zeros((64, 1)))
    for k in (1, 2, 3, 4):  # of 5 groups, 3 lie between the ends
        observed = drawn("infill", k)[:, :, 0, 0]
        assert observed[:, -1].all() and ((~observed).sum(1) == min(k, 3)).all()
        assert (np.abs(np.diff(observed.astype(int), axis=1)).sum(1) == 2).all()  # one gap
    starts = np.argmin(drawn("infill", 1, count=256)[:, :, 0, 0], axis=1)
    assert set(starts) == {1, 2, 3} and np.bincount(starts)[1:].min() > 60


def test_a_block_is_a_box_and_a_tube_the_same_in_every_group():
    for observed in drawn("block", 2):
        inside = np.argwhere(~observed)
        assert len(inside) == np.prod(np.ptp(inside, axis=0) + 1)
    tube = drawn("tube", 2)[:, 1:]
    assert (tube == tube[:, :1]).all() and not (drawn("random", 2)[:, 1:] == tube).all()
    assert drawn("tube", 0).all() and drawn("block", 0).all()


def test_what_stays_follows_the_key_alone():
    keys = jax.random.key(0), jax.random.key(1)
    for pattern in ("infill", *SPATIAL):
        one, other = (sample_mask(pattern, key, jnp.full(8, 2), GRID) for key in keys)
        np.testing.assert_array_equal(
            one, jax.jit(sample_mask, static_argnums=(0, 3))(pattern, keys[0], jnp.full(8, 2), GRID)
        )
        assert not np.array_equal(one, other)


@pytest.fixture(scope="module")
def masked(tiny):
    """`run(video, observed, drop_from)`: the clip that a masked pass draws, compiled once for each `drop_from`."""
    model, params, _ = tiny

    def run(video, observed, drop_from):
        return decoded(model, params, predict_masked(model, params, video, observed, None, drop_from=drop_from))

    return jax.jit(run, static_argnames="drop_from")


@pytest.fixture(scope="module")
def holes(tiny):
    """A grid of the tiny clip's latents, `(2, 4, 2, 2)`, for each pattern, with something withheld in each example."""
    observed = {}
    for pattern in PATTERNS:
        observed[pattern] = sample_mask(pattern, jax.random.key(5), jnp.array([1, 2]), (4, 2, 2))
        assert (~observed[pattern]).any((1, 2, 3)).all()
    return observed


def changed(video, observed):
    """Other pixels where the latents are not observed."""
    kept = mask_pixels(jnp.ones_like(video), observed, 2, 8)
    return jnp.where(kept == 1, video, -video), np.asarray(kept == 0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pixels_that_are_withheld_never_reach_the_output(tiny, masked, holes, pattern):
    video, observed = tiny[2], holes[pattern]
    other, where = changed(video, observed)
    assert where.any() and not np.array_equal(video, other)
    np.testing.assert_array_equal(masked(video, observed, "pixels"), masked(other, observed, "pixels"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_latent_masking_leaks_through_observed_latents(tiny, masked, holes, pattern):
    """What the documentation says: not for the end of a clip; after a gap, which cannot draw the gap; beside a hole."""
    video, observed = tiny[2], holes[pattern]
    other, where = changed(video, observed)
    difference = np.abs(masked(video, observed, "latents") - masked(other, observed, "latents"))
    inside, outside = difference[where].max(), difference[~where].max()
    assert (outside > 1e-4) == (pattern != "future")
    assert (inside > 1e-4) == (pattern in SPATIAL)
    if pattern in ("future", "infill"):
        assert inside == 0.0


def test_what_follows_a_gap_does_not_draw_it(tiny, masked):
    video = tiny[2]
    observed = jnp.array([[True, False, False, True]] * 2)
    drawn = [masked(v, observed, "pixels") for v in (video, video.at[:, 5:].set(-video[:, 5:]))]
    np.testing.assert_array_equal(drawn[0][:, :5], drawn[1][:, :5])
    assert float(jnp.abs(drawn[0][:, 5:] - drawn[1][:, 5:]).max()) > 1e-4


def test_masks_of_whole_frames_agree_with_the_filled_form(tiny):
    model, params, video = tiny
    key, observed = jax.random.key(5), sample_mask("future", jax.random.key(0), jnp.array([1, 3]), (4, 2, 2))
    filled = predict_filled(model, params, video, jnp.array([1, 3]), key)
    for drop_from in ("pixels", "latents"):
        found = predict_masked(model, params, video, observed, key, drop_from=drop_from)
        np.testing.assert_allclose(found.latents, filled.latents, atol=2e-5)
        np.testing.assert_allclose(decoded(model, params, found), decoded(model, params, filled), atol=2e-5)
        np.testing.assert_allclose(
            kl_divergence(found.posterior, found.observed), kl_divergence(filled.posterior, filled.observed), rtol=1e-5
        )


def test_blanking_covers_the_pixels_of_a_position():
    observed = jnp.ones((1, 3, 2, 2), bool).at[0, 1, 0, 1].set(False).at[0, 0, 1, 0].set(False)
    left = np.asarray(mask_pixels(jnp.ones((1, 9, 8, 8, 3)), observed, 4, 4))
    expected = np.ones((1, 9, 8, 8, 3))
    expected[:, 1:5, :4, 4:] = expected[:, :1, 4:, :4] = 0
    np.testing.assert_array_equal(left, expected)


def test_kl_counts_observed_positions_only():
    ones = jnp.ones((1, 2, 2, 2, 4))
    observed = jnp.ones((1, 2, 2, 2)).at[0, 1, 0, 0].set(0.0)
    hidden = Posterior(2 * ones.at[0, 1, 0, 0].set(100.0), 0 * ones)
    assert float(kl_divergence(hidden, observed)) == pytest.approx(2.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("first", "last"), [(0.0, 1.0), (0.8, 0.2)])
def test_a_schedule_goes_from_one_ratio_to_the_other_and_stays(schedule, first, last):
    ratios = [scheduled_ratio(schedule, n, 10, first, last) for n in range(21)]
    steps = np.diff(ratios)
    assert ratios[0] == first and ratios[10:] == [last] * 11
    assert (np.sign(steps[:10]) == np.sign(last - first)).all()
    assert ratios[5] == pytest.approx((first + last) / 2)
    assert (abs(steps[0]) < abs(steps[4]) / 3) == (schedule == "cosine")
    assert scheduled_ratio(schedule, 0, 0, first, last) == last  # no ramp
    assert scheduled_ratio("constant", 0, 10, first, last) == last


def test_infill_counts_the_groups_between_the_ends():
    assert [max_dropped(g, 1.0, "infill") for g in (1, 2, 3, 5)] == [0, 0, 1, 3]
    assert max_dropped(5, 0.5, "tube") == max_dropped(5, 0.5) == 2


def test_holding_shows_each_pixel_as_it_was_last_observed():
    video = np.arange(4.0).reshape(1, 4, 1, 1, 1) + np.array([0.0, 10.0]).reshape(1, 1, 1, 2, 1)
    observed = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], bool).T.reshape(1, 4, 1, 2)
    np.testing.assert_array_equal(hold_observed(video, observed)[0, :, 0, :, 0], [[0, 10], [0, 10], [2, 10], [2, 10]])


def test_a_pattern_is_scored_on_what_it_withholds(tiny):
    model, params, _ = tiny
    video = np.random.default_rng(1).integers(0, 256, (3, 7, 16, 16, 3), np.uint8)
    future, expected = (
        score_pattern(model, params, video, "future", batch_size=2),
        score_prediction(model, params, video),
    )
    for name in ("predicted", "seen", "copying"):
        np.testing.assert_allclose(getattr(future, name), getattr(expected, name), rtol=1e-3)
    found = score_pattern(model, params, video, "tube", batch_size=2)
    assert np.isnan(found.predicted[0]) and np.isfinite(found.predicted[1:]).all() and np.isfinite(found.seen).all()
    np.testing.assert_allclose(found.predicted[3], expected.predicted[3], rtol=1e-3)  # everything after frame 0
    np.testing.assert_allclose(found.copying[1:], 2 / 3, rtol=0.1)  # of uniform noise: twice its variance
    still = np.broadcast_to(video[:, :1], video.shape)
    assert not np.nansum(score_pattern(model, params, still, "infill", batch_size=2).copying)
    assert len(score_pattern(model, params, still, "infill", batch_size=2).seen) == 3
    with pytest.raises(ValueError, match="2 groups: 'infill' leaves nothing to drop"):
        score_pattern(model, params, video[:, :3], "infill")

"""The region of a plane: finds a planted best, claims nothing from noise, and knows when to say nothing."""

import dataclasses
import math

import numpy as np
import pytest
from hand_made import hand_made_plan, hand_made_table, planted_score

from analysis.plane import Plane, Ray, ScaleCheck, make_plane, unpooled
from analysis.region import best_region, difference_between, seed_spread
from train.metrics import METRICS

GROUP = ("tiny", "facts", ())


def plane_of(scores_YS, metric="validation_exact_answer"):
    """A plane of one column whose rays are its rows, prompt weights from 0 to 1."""
    scores = np.asarray(scores_YS, dtype=float)
    num = len(scores)
    weights = np.linspace(0, 1, num)
    rays = tuple(Ray(weight, 1.0, (weight, 1.0), ((y, 0),)) for y, weight in enumerate(weights.tolist()))
    return Plane(
        "m",
        "d",
        (),
        METRICS[metric],
        weights,
        np.array([1.0]),
        tuple(range(scores.shape[1])),
        scores[:, None, :],
        np.ones((num, 1), dtype=bool),
        np.arange(num)[:, None],
        rays,
        math.nan,
    )


def test_a_planted_best_is_found():
    table = hand_made_table(score=planted_score(noise=0.002, best_angle=math.atan2(0.5, 1.0)))
    region = best_region(plane := make_plane(table, GROUP, METRICS["validation_exact_answer"]))
    assert region.best == plane.ray_at(0.5, 1.0)
    assert region.members_Y is not None
    assert region.members_Y[plane.ray_at(0.25, 0.5)]  # an alias of the best is as good
    assert not region.members_Y[plane.ray_at(1.0, 0.0)]


def test_lower_is_better_where_it_is():
    table = hand_made_table(score=planted_score(noise=0.002, best_angle=math.atan2(0.5, 1.0)))
    exact, nll = (
        best_region(make_plane(table, GROUP, METRICS[f"validation_{name}"]))
        for name in ("exact_answer", "response_nll")
    )
    assert exact.best == nll.best
    assert exact.members_Y.tolist() == nll.members_Y.tolist()


def test_a_number_without_direction_has_no_best():
    with pytest.raises(ValueError, match="no direction"):
        best_region(make_plane(hand_made_table(), GROUP, METRICS["validation_mean_output_tokens"]))


def test_one_seed_gives_a_region_whose_noise_the_surface_infers():
    plan = hand_made_plan(seeds=(23,))
    region = best_region(make_plane(hand_made_table(plan), GROUP, METRICS["validation_exact_answer"]))
    assert region.members_Y is not None
    assert math.isnan(region.spread.seed)
    assert region.noise.seed_freedom == 0
    assert region.noise.inferred_low < region.noise.inferred < region.noise.inferred_high
    assert math.isnan(region.estimates[0].standard_error)


def test_the_spread_is_that_of_the_two_way_layout():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(6, 4)) + 10 * generator.normal(size=4)
    residual = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    spread = seed_spread(scores)
    assert spread.difference_freedom == 15
    assert spread.difference == pytest.approx(math.sqrt(2 * (residual**2).sum() / 15))
    assert spread.seed == pytest.approx(math.sqrt(scores.var(axis=1, ddof=1).mean()))


def test_the_spread_of_incomplete_scores_is_that_of_a_loop_over_pairs():
    scores = np.random.default_rng(2).normal(size=(5, 4))
    scores[0, 1] = scores[3, 2] = scores[3, 3] = np.nan
    squares, freedom = 0.0, 0
    for first in range(5):
        for second in range(first + 1, 5):
            difference = (scores[first] - scores[second])[np.isfinite(scores[first] - scores[second])]
            squares += ((difference - difference.mean()) ** 2).sum()
            freedom += difference.size - 1
    assert seed_spread(scores).difference == pytest.approx(math.sqrt(squares / freedom))


def test_a_shared_seed_effect_cancels_in_differences():
    generator = np.random.default_rng(3)
    scores = generator.normal(0, 0.01, size=(8, 3)) + generator.normal(0, 5.0, size=3)
    spread = seed_spread(scores)
    assert spread.seed > 1
    assert difference_between(scores[0], scores[1], spread).standard_error < 0.02


def test_equal_scores_have_exactly_no_spread():
    assert seed_spread(np.full((4, 3), 0.1)).difference == 0.0
    region = best_region(plane_of(np.full((4, 3), 0.1)))
    assert region.members_Y is None
    assert "all scores are equal" in region.why_none


def test_from_pure_noise_nothing_is_recommended_and_almost_nothing_claimed():
    generator, num_claims, num_planes = np.random.default_rng(11), 0, 12
    for _ in range(num_planes):
        shift = generator.normal(0, 0.1, size=3)
        region = best_region(plane_of(0.5 + generator.normal(0, 0.01, size=(7, 3)) + shift))
        num_claims += region.recommended != 0
        assert region.landscape.optimum.outer_Q.mean() > 0.5
    assert num_claims <= 2  # 2.5 % of 12 is 0.3: three would be 1 in 300


def test_a_change_of_unit_changes_nothing_but_the_unit():
    """Shares, ratings and points by their factor; nats/token by the spread of the scores themselves."""
    scores = (
        2 + np.random.default_rng(5).normal(0, 0.01, (6, 3)) + np.array([0, 0.05, 0.08, 0.05, 0, 0])[:, None]
    )
    plane = plane_of(scores, "validation_response_nll")
    other = dataclasses.replace(plane, scores_PRS=1000 * plane.scores_PRS)
    first, second = best_region(plane, epsilon=0.01), best_region(other, epsilon=10.0)
    assert first.best == second.best == 0 or first.best in (4, 5)
    assert second.noise.run == pytest.approx(1000 * first.noise.run, rel=1e-6)
    assert first.landscape.optimum.near_best_Q == pytest.approx(second.landscape.optimum.near_best_Q)


def test_a_conservative_rule_keeps_the_convention():
    scores = [[0.500, 0.502, 0.498], [0.501, 0.504, 0.499], [0.47, 0.471, 0.472], [0.45, 0.449, 0.451]]
    region = best_region(plane_of(scores))
    assert region.recommended == 0
    clear = best_region(
        plane_of([[0.4, 0.41, 0.39], [0.6, 0.61, 0.59], [0.61, 0.6, 0.6], [0.45, 0.46, 0.44]])
    )
    assert clear.recommended == clear.best in (1, 2)


def test_scale_checks_that_differ_stop_the_pooling():
    scores = 0.5 + np.random.default_rng(2).normal(0, 0.005, (6, 3))
    plane = plane_of(scores)
    agrees = ScaleCheck(0.0, 0.25, 0, 0, float(scores[0, 0]) + 0.004)
    differs = ScaleCheck(0.0, 0.25, 0, 0, float(scores[0, 0]) - 0.1)
    assert not best_region(dataclasses.replace(plane, checks=(agrees,))).invariance.is_broken
    assert best_region(dataclasses.replace(plane, checks=(differs,))).invariance.is_broken


def test_an_unpooled_plane_holds_what_was_trained_only():
    plan = hand_made_plan(checks=((0.25, 0.25),))
    plane = unpooled(make_plane(hand_made_table(plan), GROUP, METRICS["validation_exact_answer"]))
    assert len(plane.rays) == 13 + 1
    assert plane.asked_PR.sum() == 14
    alone = plane.ray_at(0.25, 0.25)
    assert np.isfinite(plane.scores_YS[alone]).tolist() == [True, False, False]
    assert plane.ray_at(0.5, 0.5) is None


def test_a_best_that_is_clear_is_never_excluded():
    generator = np.random.default_rng(12)
    for _ in range(4):
        truth = np.linspace(0.3, 0.6, 10)[:, None]
        region = best_region(plane_of(truth + generator.normal(0, 0.003, size=(10, 3))))
        assert region.best == 9
        assert region.members_Y[9]


def test_a_lucky_half_finished_setting_weighs_as_little_as_it_should():
    scores = [[0.50, 0.54, 0.45], [0.49, 0.51, 0.50], [np.nan, 0.56, np.nan], [0.1, 0.13, np.nan]]
    region = best_region(plane_of(scores))
    assert region.gain(2).mean < 100 * (0.56 - 0.4967), "shrunken towards its neighbours"
    assert region.recommended == 0
    assert [estimate.num_seeds for estimate in region.estimates] == [3, 3, 1, 2]


def test_settings_without_any_run_are_undecided():
    region = best_region(plane_of([[0.5, 0.6], [0.4, 0.55], [np.nan, np.nan]]))
    assert region.undecided_Y.tolist() == [False, False, True]
    assert not region.members_Y[2]


def test_without_shared_seeds_differences_are_unpaired():
    spread = seed_spread(np.array([[0.5, 0.6, np.nan, np.nan], [np.nan, np.nan, 0.4, 0.5]]))
    assert not spread.is_paired


def test_nothing_finished_is_no_best():
    region = best_region(plane_of([[np.nan, np.nan]]))
    assert region.best is None
    assert region.members_Y is None

"""The provisional region: finds a planted best, keeps its promise on noise, and knows when to say nothing."""

import math

import numpy as np
import pytest
from hand_made import hand_made_plan, hand_made_table, planted_score

from analysis.plane import Plane, Ray, make_plane
from analysis.region import best_region, difference_between, least_coverage, seed_spread
from train.metrics import METRICS

GROUP = ("tiny", "facts", ())


def plane_of(scores_YS, metric="validation_exact_answer"):
    """A plane of one column whose rays are its rows."""
    scores = np.asarray(scores_YS, dtype=float)
    num = len(scores)
    rays = tuple(Ray(float(y), 1.0, (float(y), 1.0), ((y, 0),)) for y in range(num))
    return Plane(
        "m",
        "d",
        (),
        METRICS[metric],
        np.arange(num, dtype=float),
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


def test_one_seed_gives_a_best_but_neither_region_nor_spread():
    plan = hand_made_plan(seeds=(23,))
    region = best_region(make_plane(hand_made_table(plan), GROUP, METRICS["validation_exact_answer"]))
    assert region.best is not None
    assert region.members_Y is None
    assert math.isnan(region.spread.seed)
    assert "one seed" in region.why_none
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
    assert region.members_Y.all()


def test_one_comparison_has_the_coverage_of_a_one_sided_interval():
    assert least_coverage(2, 60, 2.0) == pytest.approx(0.977, abs=0.015)


@pytest.mark.parametrize(("num_rays", "num_seeds"), [(2, 10), (13, 3)])
def test_on_pure_noise_the_region_keeps_the_best_as_often_as_promised(num_rays, num_seeds):
    """Every ray is truly best; watch one of them. The promise is `least_coverage`, from another generator."""
    generator, num_planes = np.random.default_rng(11), 400
    kept = 0
    for _ in range(num_planes):
        shift = generator.normal(0, 3.0, size=num_seeds)
        region = best_region(plane_of(0.5 + generator.normal(0, 0.1, size=(num_rays, num_seeds)) + shift))
        kept += bool(region.members_Y[0])
    promised = least_coverage(num_rays, num_seeds, 2.0)
    monte_carlo = math.sqrt(promised * (1 - promised) * (1 / num_planes + 1 / 1000))
    assert abs(kept / num_planes - promised) < 3.3 * monte_carlo


def test_a_best_that_is_clear_is_never_excluded():
    generator = np.random.default_rng(12)
    for _ in range(100):
        truth = np.linspace(0.3, 0.6, 10)[:, None]
        region = best_region(plane_of(truth + generator.normal(0, 0.003, size=(10, 3))))
        assert region.best == 9
        assert region.members_Y[9]


def test_a_lucky_half_finished_setting_cannot_be_best_but_may_be_a_member():
    scores = [[0.50, 0.51, 0.52], [0.49, 0.50, 0.51], [np.nan, 0.56, np.nan], [0.1, 0.1, np.nan]]
    region = best_region(plane_of(scores))
    assert region.best == 0
    assert region.members_Y[2]
    assert [estimate.num_seeds for estimate in region.estimates] == [3, 3, 1, 2]


def test_settings_without_any_run_are_undecided():
    region = best_region(plane_of([[0.5, 0.6], [0.4, 0.55], [np.nan, np.nan]]))
    assert region.undecided_Y.tolist() == [False, False, True]
    assert not region.members_Y[2]


def test_without_shared_seeds_differences_are_unpaired():
    spread = seed_spread(np.array([[0.5, 0.6, np.nan, np.nan], [np.nan, np.nan, 0.4, 0.5]]))
    assert not spread.is_paired
    region = best_region(plane_of([[0.5, 0.6, np.nan, np.nan], [np.nan, np.nan, 0.4, 0.5]]))
    assert "no two of them share two seeds" in region.method


def test_nothing_finished_is_no_best():
    region = best_region(plane_of([[np.nan, np.nan]]))
    assert region.best is None
    assert region.members_Y is None

"""The plane keeps its two silences apart, and aliases share their numbers."""

import math

import numpy as np
from hand_made import hand_made_plan, hand_made_table

from analysis.plane import make_plane, mean_over_seeds
from train.metrics import METRICS

EXACT = METRICS["validation_exact_answer"]
GROUP = ("tiny", "facts", ())


def test_never_asked_and_asked_but_absent_are_two_silences():
    plane = make_plane(hand_made_table(drop=("p1-r0.75-s1",)), GROUP, EXACT)
    assert not plane.asked_PR[0, 0]
    assert plane.ray_PR[0, 0] == -1
    assert plane.asked_PR.sum() == 24
    absent = plane.cell_at(1.0, 0.75)
    assert absent is not None
    assert plane.asked_PR[absent]
    assert np.isnan(plane.scores_PRS[absent]).tolist() == [False, True, False]


def test_aliases_hold_equal_numbers():
    plane = make_plane(hand_made_table(), GROUP, EXACT)
    assert len(plane.rays) == 13
    diagonal = [plane.scores_PRS[index, index] for index in range(1, 5)]
    assert all(np.array_equal(diagonal[0], other) for other in diagonal)
    assert plane.ray_at(0.25, 0.25) == plane.ray_at(1.0, 1.0)
    assert plane.ray_at(0.25, 0.5) != plane.ray_at(0.5, 0.25)


def test_an_absent_alias_run_is_absent_in_all_its_cells():
    plane = make_plane(hand_made_table(drop=("p1-r1-s0",)), GROUP, EXACT)
    assert all(math.isnan(plane.scores_PRS[index, index, 0]) for index in range(1, 5))


def test_without_merging_every_cell_is_a_ray():
    plane = make_plane(hand_made_table(hand_made_plan(aliases=False)), GROUP, EXACT)
    assert len(plane.rays) == 24
    assert all(len(ray.cells) == 1 for ray in plane.rays)


def test_rays_run_from_instruction_tuning_to_prompt_only():
    plane = make_plane(hand_made_table(), GROUP, EXACT)
    angles = [ray.angle for ray in plane.rays]
    assert angles == sorted(angles)
    assert (plane.rays[0].ratio, plane.rays[-1].ratio) == (0.0, math.inf)
    assert (plane.rays[0].prompt_weight, plane.rays[0].response_weight) == (0.0, 1.0)
    assert plane.rays[0].cells == ((0, 1), (0, 2), (0, 3), (0, 4))


def test_the_base_model_is_a_number_beside_the_plane():
    plane = make_plane(hand_made_table(), GROUP, EXACT)
    assert abs(plane.base_score - 0.08) < 0.1
    assert math.isnan(make_plane(hand_made_table(hand_made_plan(base=False)), GROUP, EXACT).base_score)


def test_scattered_cells_need_no_square():
    plan = hand_made_plan(pairs=[(0.0, 1.0), (0.1, 1.0), (0.3, 0.7)], aliases=False)
    plane = make_plane(hand_made_table(plan), GROUP, EXACT)
    assert plane.asked_PR.sum() == 3
    assert np.isfinite(plane.scores_PRS).sum() == 9


def test_the_mean_of_nothing_is_not_zero():
    means = mean_over_seeds(np.array([[1.0, np.nan], [np.nan, np.nan]]))
    assert means[0] == 1.0
    assert math.isnan(means[1])


def test_a_scale_check_stands_apart_from_the_run_it_checks():
    plan = hand_made_plan(seeds=(0, 1), checks=((0.25, 0.25),))
    table = hand_made_table(
        plan, score=lambda p, r, seed: {"validation_exact_answer": 0.9 if p == 0.25 == r else 0.5}
    )
    plane = make_plane(table, GROUP, METRICS["validation_exact_answer"])
    assert len(plane.rays) == 13, "the checked cell stays on its ray"
    assert np.nanmax(plane.scores_YS) == 0.5
    (check,) = plane.checks
    assert (check.prompt_weight, check.response_weight, check.seed, check.score) == (0.25, 0.25, 0, 0.9)
    assert check.ray == plane.ray_at(1.0, 1.0)


def test_a_scale_check_of_a_single_seed_joins_its_ray():
    plan = hand_made_plan(seeds=(23,), checks=((0.0, 0.25), (0.25, 0.25)))
    plane = make_plane(hand_made_table(plan), GROUP, METRICS["validation_exact_answer"])
    assert len(plane.rays) == 13
    assert [check.ray for check in plane.checks] == [plane.ray_at(0.0, 1.0), plane.ray_at(1.0, 1.0)]
    assert len(plane.rays[plane.checks[0].ray].cells) == 4

"""Noise from items, seeds and scale checks, against simulation and against the textbook; units; diagnostics."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.noise import (
    Noise,
    best_set,
    check_deviation,
    dunnett_least_p,
    paired_variances,
    two_way_deviation,
)
from analysis.units import scale_of
from train.metrics import METRICS, metric


def test_paired_variance_is_what_contrasts_between_runs_really_scatter_by():
    """Items of very different difficulty: the binomial error is far too wide, the paired one is right."""
    generator = np.random.default_rng(0)
    num_runs, num_items = 12, 400
    found, binomial, means = [], [], []
    for _ in range(60):
        difficulty = generator.normal(0, 1.5, num_items)
        p = 1 / (1 + np.exp(-(difficulty + 0.8 * generator.standard_normal((num_runs, num_items)))))
        values = (generator.random((num_runs, num_items)) < p).astype(float)
        found.append(paired_variances(values, np.arange(num_items)).mean())
        accuracy = values.mean(axis=1)
        binomial.append((accuracy * (1 - accuracy) / num_items).mean())
        means.append(accuracy - accuracy.mean())
    scatter = np.var(means) * num_runs / (num_runs - 1)
    assert np.mean(found) == pytest.approx(scatter, rel=0.15)
    assert np.mean(binomial) > 1.2 * scatter


def test_items_of_one_cluster_are_summed_before_they_are_squared():
    values = np.random.default_rng(1).normal(size=(3, 5))
    doubled = np.repeat(values, 2, axis=1)
    whole = paired_variances(values, np.arange(5))
    assert paired_variances(doubled, np.repeat(np.arange(5), 2)) == pytest.approx(whole)
    assert (paired_variances(doubled, np.arange(10)) < whole).all()


def test_two_runs_give_the_textbook_paired_error():
    values = np.random.default_rng(2).normal(size=(2, 50))
    difference = values[0] - values[1]
    expected = difference.var(ddof=1) / 50
    assert 2 * paired_variances(values, np.arange(50)) == pytest.approx(expected)


def test_absent_items_are_left_out_of_all_and_weights_make_ratios():
    values = np.random.default_rng(3).normal(size=(4, 6))
    holed = values.copy()
    holed[1, 2] = np.nan
    kept = [0, 1, 3, 4, 5]
    assert paired_variances(holed, np.arange(6)) == pytest.approx(
        paired_variances(values[:, kept], np.arange(5))
    )
    weighted = paired_variances(values, np.arange(6), [1, 1, 0, 1, 1, 1])
    assert weighted == pytest.approx(paired_variances(values[:, kept], np.arange(5)))
    assert np.isnan(paired_variances(values[:1], np.arange(6))).all()


def test_the_seed_deviation_takes_out_what_a_seed_shares():
    generator = np.random.default_rng(4)
    scores = generator.normal(0, 0.1, (40, 4)) + 5 * generator.normal(size=4) + generator.normal(size=(40, 1))
    deviation, freedom = two_way_deviation(scores)
    assert deviation == pytest.approx(0.1, rel=0.2)
    assert freedom == 39 * 3
    assert math.isnan(two_way_deviation(scores[:, :1])[0])
    assert check_deviation([0.2, -0.2, math.nan]) == (pytest.approx(0.2 / math.sqrt(2)), 2)


def test_seeds_needed_are_those_of_the_power_formula():
    noise = Noise(math.nan, 0.8, 10, math.nan, 0, 0.8, 0.6, 1.0, 0.8)
    assert [noise.seeds_needed(gain) for gain in (0.5, 1.0, 2.0, 3.0)] == [41, 11, 3, 2]
    assert noise.detected(11) <= 1.0 < noise.detected(10)
    assert noise.resolved(3) == pytest.approx(1.96 * 0.8 * math.sqrt(2 / 3), rel=1e-3)
    with pytest.raises(ValueError, match="no number of seeds"):
        noise.seeds_needed(0.0)


def test_the_best_set_keeps_the_best_of_equals_as_often_as_it_says():
    generator = np.random.default_rng(6)
    kept = 0
    counts = np.full(8, 3)
    for _ in range(40):
        scores = generator.standard_normal((8, 3))
        deviation = math.sqrt(scores.var(axis=1, ddof=1).mean())
        kept += bool(best_set(scores.mean(axis=1), counts, deviation, 16)[0])
    assert kept >= 34  # 95 % of 40 is 38; below 34 is 1 in 100
    clear = best_set(np.array([0.0, 10.0, 9.9]), np.array([3, 3, 3]), 0.1, 6)
    assert clear.tolist() == [False, True, True]


def test_dunnetts_comparison_is_scipys_and_needs_replicates():
    noisy = np.random.default_rng(8).normal(0, 1, (5, 3)) + np.array([0, 1.2, 0.5, 0, 0])[:, None]
    exact = stats.dunnett(*noisy[1:], control=noisy[0])
    assert dunnett_least_p(noisy, 0) == pytest.approx(exact.pvalue.min(), abs=0.015)
    scores = np.array([[1.0, 1.1, 0.9], [3.0, 3.1, 2.9], [1.0, 1.05, 1.1]])
    assert dunnett_least_p(scores, 0) < 0.001
    assert math.isnan(dunnett_least_p(scores[:, :1], 0))


@pytest.mark.parametrize(
    ("name", "factor", "epsilon"),
    [
        ("validation_exact_answer", 100.0, 0.01),
        ("validation_mt_bench.rating", 10.0, 0.1),
        ("validation_panel.mean", 100.0, 0.005),
    ],
)
def test_units_become_points(name, factor, epsilon):
    scale = scale_of(metric(name), np.array([0.1, 0.2]))
    assert scale.factor == pytest.approx(factor)
    assert scale.epsilon == pytest.approx(epsilon)


def test_a_unit_without_natural_size_takes_the_spread_of_its_scores():
    scores = 3 + 0.02 * np.random.default_rng(0).standard_normal(200)
    scale = scale_of(METRICS["validation_response_nll"], scores)
    assert scale.factor == pytest.approx(-100, rel=0.2), "2 points to 0.02 nats/token, and lower is better"
    assert scale.epsilon == 0.01
    assert scale.value(scale.points(np.array(0.5))) == pytest.approx(0.5)
    assert scale_of(METRICS["validation_response_nll"], np.full(3, 2.0)).factor == -2.0

"""The surface's posterior against the same formulas written out densely, and what it must find or leave alone."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.gaussian import Points, Setting, asked_of, grouped, solve
from analysis.kernels import AVERAGE, MODELS, hyper_names, hyper_parameters, kernel, places
from analysis.kernels import distances as distances_between
from analysis.optimum import difference, find_optimum
from analysis.surface import QUICK, fit_surface

GRID = [(p / 5, r / 5) for p in range(6) for r in range(6) if p + r]
PROMPT, RESPONSE = np.array(GRID).T


def noisy(truth, seed=0, deviation=0.5):
    return truth + deviation * np.random.default_rng(seed).standard_normal(len(truth))


def dense(model, hyper, points):
    """Covariance of the runs, of runs with places, and the noise: no grouping, no identities."""
    at = places(points.prompt_weights, points.response_weights)
    asked = places([0.3, 0.0, 1.0], [1.0, 0.5, 0.0])
    signal = kernel(model, hyper, distances_between(at, at))[0] + 900
    crossed = kernel(model, hyper, distances_between(at, asked))[0] + 900
    prior = kernel(model, hyper, distances_between(asked, asked))[0] + 900
    same_seed = points.seeds[:, None] == points.seeds
    whole = signal + same_seed * hyper["seed"][0] ** 2 + np.diag(points.variances + hyper["run"][0] ** 2)
    return whole, crossed, prior, asked


@pytest.mark.parametrize("model", MODELS)
def test_evidence_prediction_and_leave_one_out_are_those_of_the_dense_formulas(model):
    generator = np.random.default_rng(3)
    rows = generator.integers(0, 35, 40)
    points = Points.of(
        PROMPT[rows],
        RESPONSE[rows],
        generator.normal(50, 2, 40),
        generator.uniform(0.1, 1, 40),
        np.arange(40) % 3,
    )
    data = grouped(points, 160)
    assert data.num_seeds == 3
    assert data.places_L.prompt.size < 40
    z = generator.standard_normal((2, len(hyper_names(model, True)))) / 2
    hyper = hyper_parameters(model, z, AVERAGE, True)
    found = solve(model, hyper, data).log_likelihood(data)
    for row in range(2):
        one = {name: value[row : row + 1] for name, value in hyper.items()}
        whole, crossed, prior, asked = dense(model, one, points)
        y = points.scores - points.scores.mean()
        expected = stats.multivariate_normal.logpdf(y, np.zeros(40), whole)
        assert found[row] == pytest.approx(expected, abs=1e-3)
        setting = Setting(model, one, 1.0, solve(model, one, data))
        mean, covariance = setting.predict(asked_of(data, asked.prompt, asked.response))
        inverse = np.linalg.inv(whole)
        assert mean == pytest.approx(crossed.T @ inverse @ y, abs=2e-3)
        assert covariance == pytest.approx(prior - crossed.T @ inverse @ crossed, abs=5e-3)
        residual, variance = setting.leave_one_out(data)
        assert residual == pytest.approx(inverse @ y / np.diag(inverse), abs=2e-3)
        assert variance == pytest.approx(1 / np.diag(inverse), rel=1e-3)


def test_equal_input_gives_equal_draws_and_another_seed_nearly_the_same_answer():
    points = Points.of(PROMPT, RESPONSE, noisy(2 * (PROMPT < RESPONSE)))
    first, again, other = (fit_surface(points, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.draws(PROMPT, RESPONSE), again.draws(PROMPT, RESPONSE))
    assert first.model_weights == pytest.approx(other.model_weights, abs=0.05)
    mean, covariance = first.moments(PROMPT, RESPONSE)
    draws = first.draws(PROMPT, RESPONSE, 8192)
    assert draws.mean(0) == pytest.approx(mean, abs=0.05)
    assert draws.std(0) == pytest.approx(np.sqrt(np.diag(covariance)), abs=0.05)
    assert mean == pytest.approx(other.moments(PROMPT, RESPONSE)[0], abs=0.15)


def test_the_scale_of_the_weights_is_found_to_matter_where_it_does_and_not_where_it_does_not():
    angle = np.arctan2(PROMPT, RESPONSE)
    ray = 2 * np.exp(-((angle - 0.4) ** 2) / (2 * math.radians(12) ** 2))
    peak = 4 * np.exp(-((PROMPT - 0.3) ** 2 + (RESPONSE - 0.7) ** 2) / (2 * 0.25**2))
    invariant = fit_surface(Points.of(PROMPT, RESPONSE, noisy(ray, deviation=0.24)))
    local = fit_surface(Points.of(PROMPT, RESPONSE, noisy(peak, deviation=0.24)))
    assert invariant.model_weights["cartesian"] <= 0.05
    assert local.model_weights["cartesian"] >= 0.8
    assert invariant.effective_sample_size >= 50


def test_what_runs_of_a_seed_share_is_not_taken_for_noise():
    rows = np.repeat(np.arange(35), 3)
    seeds = np.tile([0, 1, 2], 35)
    shift = np.array([0.0, 3.0, -3.0])[seeds]
    scores = noisy(0.0 * rows, 4, 0.4) + shift
    posterior = fit_surface(Points.of(PROMPT[rows], RESPONSE[rows], scores, 0.0, seeds))
    assert posterior.run_deviation == pytest.approx(0.4, abs=0.1)
    assert posterior.seed_deviation > 1


def test_runs_at_many_places_are_merged_and_still_answer():
    generator = np.random.default_rng(0)
    angle = generator.uniform(0, math.pi / 2, 600)
    prompt, response = np.sin(angle), np.cos(angle)
    longest = np.maximum(prompt, response)
    truth = 3 * np.exp(-((angle - 0.5) ** 2) / 0.1)
    points = Points.of(prompt / longest, response / longest, noisy(truth, 1, 1.0))
    posterior = fit_surface(points, effort=QUICK)
    assert posterior.data.places_L.prompt.size <= QUICK.max_places
    asked = np.tan(np.array([0.1, 0.5, 1.2]))
    weights = np.maximum(asked, 1)
    draws = posterior.draws(asked / weights, 1 / weights)
    assert (draws[:, 1] > draws[:, [0, 2]].max(1)).mean() > 0.95


def test_the_sets_contain_each_other_and_hold_the_optimum():
    truth = np.where(RESPONSE > 0, 2 * (PROMPT > 0) - PROMPT, -9.0)
    draws = fit_surface(Points.of(PROMPT, RESPONSE, noisy(truth, 2))).draws(PROMPT, RESPONSE)
    found = find_optimum(draws, epsilon=0.5)
    assert not (found.inner_Q & ~found.outer_Q).any()
    assert found.optimum_Q[truth.argmax()]
    assert not found.outer_Q[RESPONSE == 0].any()
    assert found.is_best_Q.sum() == pytest.approx(1)
    gain = difference(draws, found.best, GRID.index((0.0, 1.0)), 0.5)
    assert gain.low < gain.mean < gain.high
    assert gain.positive > 0.975


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Points.of(PROMPT, RESPONSE, np.where(PROMPT > 0.5, np.nan, 1.0))

"""Forecasts from finished runs: totals, intervals, refusals."""

import random

import pytest
from toys import toy_spec

from sweep.budget import BudgetConfig, exceeds, forecast, forecast_lines, quantile
from sweep.ledger import RunState
from sweep.spec import Status

KIND = ("sft", "toy", "rows")


def asked(num_runs, history, gpus=1, minutes=60, num_finished=0):
    runs = [toy_spec(seed) for seed in range(num_runs)]
    states = {
        spec.fingerprint: RunState(status=Status.FINISHED if seed < num_finished else Status.PLANNED)
        for seed, spec in enumerate(runs)
    }
    return forecast(runs, states, history, lambda spec: (gpus, minutes))


def test_a_forecast_is_the_sum_over_devices():
    found = asked(10, {KIND: [1800.0, 1800.0, 1800.0]}, gpus=4)
    assert (found.hours, found.low, found.high, found.worst, found.unit) == (20.0, 20.0, 20.0, 40.0, "GPU")
    assert asked(10, {KIND: [1800.0, 1800.0]}, num_finished=8).hours == 1.0


def test_without_history_only_the_limits_are_known():
    found = asked(10, {})
    assert (found.hours, found.worst) == (None, 10.0)
    assert "unknown until" in forecast_lines(found, BudgetConfig())[0]
    assert exceeds(found, BudgetConfig(gpu_hours=5.0))
    assert not exceeds(found, BudgetConfig(gpu_hours=10.0))
    assert not exceeds(found, BudgetConfig())


def test_processors_are_counted_where_no_device_is_used():
    assert asked(6, {KIND: [600.0]}, gpus=0).unit == "CPU"
    assert asked(6, {KIND: [600.0]}, gpus=0).hours == pytest.approx(1.0)


def test_money_and_a_suggested_limit():
    lines = forecast_lines(
        asked(10, {KIND: [3500.0, 3600.0, 3700.0]}), BudgetConfig(price_per_hour=2.0, kg_co2e_per_hour=0.25)
    )
    assert "price 20.00, 2.5 kg CO2e" in lines[1]
    assert "at most 62 min" in lines[2]


def test_the_interval_holds_four_fifths_of_sweeps():
    chance = random.Random(0)
    num_inside = 0
    for _ in range(400):
        seen = sorted(chance.gauss(100, 15) for _ in range(20))
        found = asked(30, {KIND: seen})
        actual = sum(chance.gauss(100, 15) for _ in range(30)) / 3600
        assert found.low is not None
        assert found.high is not None
        num_inside += found.low <= actual <= found.high
    assert 0.75 <= num_inside / 400 <= 0.90


def test_quantiles():
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0], 0.95) == 1.0

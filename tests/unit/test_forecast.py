"""Forecasts from timesheets: calibrated intervals, start-up once a worker, other epochs scaled, honest ignorance."""

import dataclasses
import random

import pytest
from toys import toy_config, toy_plan, toy_spec

from sweep.attempts import Heartbeat
from sweep.budget import BudgetConfig, actual_line, exceeds, forecast_lines, spent_lines
from sweep.commands.piloting import pilots
from sweep.forecast import Room, forecast, like_runs, spent_hours
from sweep.ledger import RunState
from sweep.predict import exchangeable, interval, predict, student
from sweep.spec import RunSpec, Status
from sweep.timesheets import Entry, Shift
from sweep.workloads import scale, workload_of
from train.errors import ConfigError

ONE_GPU = Room(gpus=1, minutes=60)
SPECS = [toy_spec(seed) for seed in range(40)]
WORKLOAD = workload_of(SPECS[0])


def entry(seconds=100.0, spec=None, **changes):
    values = {
        "fingerprint": "f",
        "workload": workload_of(spec) if spec else WORKLOAD,
        "outcome": "finished",
        "seconds": seconds,
        "setup_s": 0.0,
        "training_s": seconds * 0.6,
        "evaluation_s": seconds * 0.4,
        "steps": 10,
        "num_steps": 10,
        "num_tokens": 6000,
        "is_first": False,
    }
    return Entry(**{**values, **changes})


def shift(*entries, ready_s=None, gpus=1, sweep="toys", started_at=0.0, seconds=0.0):
    return Shift(
        sweep=sweep,
        worker="w",
        started_at=started_at,
        seen_at=started_at + seconds,
        gpus=gpus,
        cores=1,
        gpus_used=gpus,
        ready_s=ready_s,
        entries=entries,
    )


def asked(num_runs, history, room=ONE_GPU, num_finished=0):
    runs = SPECS[:num_runs]
    states = {
        spec.fingerprint: RunState(status=Status.FINISHED if seed < num_finished else Status.PLANNED)
        for seed, spec in enumerate(runs)
    }
    return forecast(runs, states, history, lambda spec: room)


def test_a_forecast_is_the_sum_over_devices():
    history = [shift(*[entry(1800.0)] * 3)]
    found = asked(10, history, Room(gpus=4, minutes=60))
    assert (found.hours, found.worst, found.unit) == (pytest.approx(20.0), 40.0, "GPU")
    assert asked(10, history, num_finished=8).hours == pytest.approx(1.0)
    assert asked(6, [shift(entry(600.0), gpus=0)], Room(gpus=0, cores=4)).hours == pytest.approx(4.0)
    assert asked(6, [shift(entry(600.0), gpus=0)], Room(gpus=0)).unit == "CPU"


def test_start_and_loading_are_charged_to_workers_not_to_runs():
    first = entry(130.0, setup_s=30.0, is_first=True)  # 100 s its own
    history = [shift(first, entry(100.0), ready_s=20.0)]
    found = asked(40, history, Room(gpus=1, num_workers=4))
    assert found.hours == pytest.approx((40 * 100 + 4 * (20 + 30)) / 3600)
    assert (found.num_workers, found.start_s) == (4, pytest.approx(50.0))
    assert asked(2, history, Room(gpus=1, num_workers=4)).hours == pytest.approx((200 + 2 * 50) / 3600)
    few = asked(40, history, Room(gpus=1, num_workers=40, runs_per_worker=20))
    assert few.hours == pytest.approx((4000 + 2 * 50) / 3600)


def test_a_run_on_a_shared_device_costs_its_part_of_it():
    assert asked(1, [shift(entry(100.0, pack=4))]).hours == pytest.approx(25 / 3600)


def test_a_run_that_is_half_done_is_half_a_run():
    spec = toy_spec()
    beat = Heartbeat(step=5, num_steps=10, time=0.0)
    states = {spec.fingerprint: RunState(status=Status.RUNNING, heartbeat=beat)}
    assert forecast([spec], states, [shift(entry(100.0))], lambda _: ONE_GPU).hours == pytest.approx(
        50 / 3600
    )


def test_processors_say_nothing_of_devices():
    assert asked(3, [shift(entry(100.0), gpus=0)]).hours is None


def test_without_history_only_the_limits_are_known():
    found = asked(10, [])
    assert (found.hours, found.worst, found.unknown) == (None, 10.0, ("toy/rows",))
    line = forecast_lines(found, BudgetConfig())[0]
    assert line == "forecast: unknown, as nothing like toy/rows was measured under this root"
    assert exceeds(found, BudgetConfig(gpu_hours=5.0))
    assert not exceeds(found, BudgetConfig(gpu_hours=10.0))
    assert not exceeds(found, BudgetConfig())
    assert not exceeds(asked(10, [], Room(gpus=1)), BudgetConfig(gpu_hours=0.1)), "no limit, no worst case"


def other_recipe(**changes):
    config = toy_config()
    recipe = dataclasses.replace(config.train, **changes)
    return dataclasses.replace(toy_spec(), config=dataclasses.replace(config, train=recipe))


def test_weights_seeds_and_rates_are_one_workload_but_tokens_and_precision_are_not():
    one = workload_of(toy_spec(0, 0.25))
    assert one == workload_of(toy_spec(7, 1.0)) == workload_of(other_recipe(learning_rate=3e-3))
    assert one.shape == workload_of(other_recipe(epochs=5.0)).shape
    assert one.shape != workload_of(other_recipe(precision="bfloat16")).shape
    assert one.shape != workload_of(dataclasses.replace(toy_spec(), dataset_identity="other rows")).shape
    assert one.shape != workload_of(toy_spec(stage="base")).shape


def test_training_is_scaled_by_its_sequences_and_evaluation_is_not():
    seen = workload_of(toy_spec())  # 2 epochs of 64 sequences a step, here 10 steps
    assert scale(seen, 10, workload_of(other_recipe(epochs=4.0))) == pytest.approx(2.0)
    assert scale(seen, 10, workload_of(other_recipe(max_steps=5))) == pytest.approx(0.5)
    assert scale(seen, 10, workload_of(other_recipe(batch_size=32))) == pytest.approx(1.0)
    short = workload_of(other_recipe(max_steps=5))
    assert scale(short, 5, seen) is None, "it saw no whole epoch"
    assert scale(short, 5, workload_of(other_recipe(max_steps=20))) == pytest.approx(4.0)
    history = [shift(entry(100.0))]
    ((seconds, _, _),) = like_runs(history, workload_of(other_recipe(epochs=4.0)), 1)
    assert seconds == pytest.approx(2 * 60 + 40)


def test_a_pilot_that_was_stopped_counts_with_its_pace_and_the_bases_evaluation():
    base = entry(30.0, toy_spec(stage="base"), steps=0, num_steps=0, training_s=0.0, evaluation_s=30.0)
    cut = entry(50.0, outcome="interrupted", training_s=50.0, evaluation_s=0.0, steps=100, num_steps=1000)
    found = asked(2, [shift(base, cut)])
    assert found.hours == pytest.approx(2 * (0.5 * 1000 + 30) / 3600)
    assert asked(2, [shift(cut)]).hours is None, "nobody knows what its evaluation takes"


def test_money_carbon_and_a_suggested_limit():
    history = [shift(*(entry(seconds) for seconds in (3500.0, 3600.0, 3700.0)))]
    found = asked(10, history, Room(gpus=1, minutes=240, reserve_s=150.0))
    rates = BudgetConfig(price_per_gpu_hour=2.0, kg_co2_per_gpu_hour=0.25)
    lines = forecast_lines(found, rates)
    assert any(line.startswith("  price 20.00 (80 %: ") and ", 2.5 kg CO2 (80 %: " in line for line in lines)
    assert found.high_95_s > 3700
    assert 60 * found.suggested_min - 150.0 >= found.high_95_s
    assert f"model.timeout_min={found.suggested_min} would do" in lines[-1]
    assert not any("price" in line for line in forecast_lines(found, BudgetConfig(price_per_cpu_hour=9.0)))
    with pytest.raises(ConfigError, match=r"budget\.price_per_gpu_hour=-1"):
        BudgetConfig(price_per_gpu_hour=-1.0)


@pytest.mark.parametrize(
    ("num_sweeps", "num_seen", "spread", "drift"),
    [(1, 4, 0.06, 0.03), (1, 15, 0.06, 0.03), (3, 15, 0.06, 0.03), (4, 10, 0.15, 0.01), (1, 40, 0.15, 0.03)],
)
def test_four_fifths_of_runs_and_of_sweeps_lie_within(num_sweeps, num_seen, spread, drift):
    """Runs of a sweep that are alike, of sweeps that are not quite: each of those seen, then one that isn't."""
    chance = random.Random(num_seen)

    def sweep(num_runs):
        mood = 100 * chance.lognormvariate(0.0, drift)
        return [mood * chance.lognormvariate(0.0, spread) for _ in range(num_runs)]

    num_runs_inside = num_sweeps_inside = 0
    for _ in range(200):
        history = [shift(*map(entry, sweep(num_seen)), sweep=f"{number}") for number in range(num_sweeps)]
        found, draws = asked(30, history), sweep(30)
        one = found.shares[0].seconds
        num_runs_inside += sum(one.low <= value <= one.high for value in draws)
        num_sweeps_inside += found.low <= sum(draws) / 3600 <= found.high
    assert 0.75 <= num_runs_inside / (200 * 30) <= 0.90
    assert 0.75 <= num_sweeps_inside / 200 <= 0.95


def test_quantiles_of_few_values():
    assert exchangeable([1.0, 2.0, 3.0], 0.5) == 2.0
    assert exchangeable([1.0, 2.0, 3.0], 0.01) == 1.0
    assert [round(student(0.9, freedom), 3) for freedom in (1, 3, 5, 10, 100)] == [
        3.078, 1.638, 1.476, 1.372, 1.29
    ]  # fmt: skip
    assert [round(student(0.95, freedom), 2) for freedom in (2, 10, 30)] == [2.92, 1.81, 1.7]
    assert predict([]) is None
    assert interval(1.0, 100.0, 10.0)[0] == 0.0


def test_spent_is_what_workers_lived_their_pilots_and_idle_time_included():
    history = [
        shift(seconds=3600.0),
        shift(seconds=1800.0, sweep="toys.pilot"),
        shift(seconds=7200.0, sweep="others"),
        shift(seconds=3600.0, started_at=100.0, gpus=2),
    ]
    assert spent_hours(history, "toys", "GPU") == pytest.approx(3.5)
    assert spent_hours(history, "toys", "GPU", since=50.0) == pytest.approx(2.0)
    (line,) = spent_lines(3.5, None, "GPU", BudgetConfig(gpu_hours=10.0))
    assert line == "spent: 3.5 GPU-hours; budget: 10"
    assert (
        actual_line(2.0, 1.5, 2.5, 2.2, "GPU")
        == "took 2.2 GPU-hours, +10% of the forecast 2 (80 %: 1.5 to 2.5)"
    )


def weighted(plan, seed, prompt, response):
    config = toy_config(seed)
    objective = dataclasses.replace(config.objective, prompt_weight=prompt, response_weight=response)
    config = dataclasses.replace(config, objective=objective)
    name = f"{prompt}-{response}-{seed}"
    return RunSpec(name, name, config, "toy", "rows")


def test_pilots_are_spread_over_the_ratios():
    plan = toy_plan(1, has_base=True)
    pairs = [(0, 1), (0.25, 1), (0.5, 1), (0.75, 1), (1, 1), (1, 0.75), (1, 0.5), (1, 0)]
    runs = tuple(weighted(plan, seed, *pair) for seed in (0, 1) for pair in pairs)
    chosen = pilots(dataclasses.replace(plan, runs=(plan.runs[0], *runs)), 4)
    assert chosen[0].config.stage == "base"
    ratios = [
        (spec.config.objective.prompt_weight, spec.config.objective.response_weight) for spec in chosen[1:]
    ]
    assert ratios == [(0.25, 1), (0.75, 1), (1, 0.75), (1, 0)]
    assert len(pilots(plan, 9)) == 2, "no more than there are"

"""Successive halving pauses losers, keeps every cell's lowest rung, and doesn't depend on who was quicker."""

import contextlib
import dataclasses

import pytest
from toys import finished, toy_spec

from sweep.errors import GridError
from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.halving import check_stops, stops_of
from sweep.ledger import Ledger
from sweep.search_config import SearchConfig
from sweep.spec import Cell, Plan, PlannedCell, Status
from sweep.worker import Worker
from train.rungs import Paused

WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SEARCH = SearchConfig(rungs=(0.25, 0.5))


def plan_of(weights=WEIGHTS, seeds=(0, 1)):
    specs = {(weight, seed): toy_spec(seed, weight) for seed in seeds for weight in weights}
    cells = [
        PlannedCell(Cell("toy", "rows", weight, 1.0, seed), spec.fingerprint, False)
        for (weight, seed), spec in specs.items()
    ]
    return Plan("toys", tuple(cells), (), tuple(specs.values()), question="rungs")


PLAN = plan_of()


def names(*weights, seeds=(0, 1)):
    return {toy_spec(seed, weight).fingerprint for weight in weights for seed in seeds}


def measured(share, score_of, plan=PLAN, before=None):
    found = {name: dict(rungs) for name, rungs in (before or {}).items()}
    for planned in plan.cells:
        score = score_of(planned.cell.prompt_weight, planned.cell.seed)
        if score is not None:
            found.setdefault(planned.fingerprint, {})[share] = {"validation_exact_answer": score}
    return found


def test_everything_stops_at_the_lowest_rung_until_all_are_there():
    assert stops_of(PLAN, SEARCH, {}, {}) == dict.fromkeys(names(*WEIGHTS), 0.25)
    late = measured(0.25, lambda weight, seed: None if (weight, seed) == (1.0, 1) else weight)
    assert set(stops_of(PLAN, SEARCH, late, {}).values()) == {0.25}


def test_the_better_half_goes_on_with_all_its_seeds_and_so_does_the_convention():
    found = measured(0.25, lambda weight, seed: weight + 0.3 * seed)
    stops = stops_of(PLAN, SEARCH, found, {})
    assert {name for name, share in stops.items() if share == 0.5} == names(0.6, 0.8, 1.0, 0.0)
    assert {name for name, share in stops.items() if share == 0.25} == names(0.2, 0.4)
    found = measured(0.5, lambda weight, seed: weight if weight in (0, 0.6, 0.8, 1) else None, before=found)
    stops = stops_of(PLAN, SEARCH, found, {})
    assert names(*WEIGHTS) - set(stops) == names(1.0, 0.8, 0.0), "half of four, and (0, 1)"
    assert {stops[name] for name in names(0.6)} == {0.5}


def test_lower_is_better_for_a_likelihood():
    search = dataclasses.replace(SEARCH, metrics=("validation_response_nll",))
    found = {
        planned.fingerprint: {0.25: {"validation_response_nll": planned.cell.prompt_weight}}
        for planned in PLAN.cells
    }
    stops = stops_of(PLAN, search, found, {})
    assert {name for name, share in stops.items() if share == 0.5} == names(0.0, 0.2, 0.4)


def test_failed_runs_are_not_waited_for_and_finished_ones_need_no_rung():
    failed, done = toy_spec(0, 1.0).fingerprint, toy_spec(0, 0.8).fingerprint
    found = measured(0.25, lambda weight, seed: None if weight in (0.8, 1.0) and not seed else weight)
    statuses = {failed: Status.FAILED, done: Status.FINISHED}
    stops = stops_of(PLAN, SEARCH, found, statuses)
    assert {name for name, share in stops.items() if share == 0.5} >= names(1.0, 0.8, 0.6, seeds=(1,))


def test_without_rungs_or_exhaustive_nothing_stops():
    assert stops_of(PLAN, SearchConfig(), {}, {}) == {}
    assert stops_of(PLAN, dataclasses.replace(SEARCH, exhaustive=True), {}, {}) == {}


def test_planes_are_judged_apart():
    other = tuple(
        PlannedCell(dataclasses.replace(one.cell, dataset="others"), f"other-{one.fingerprint}", False)
        for one in PLAN.cells
    )
    both = dataclasses.replace(PLAN, cells=(*PLAN.cells, *other))
    stops = stops_of(both, SEARCH, measured(0.25, lambda weight, seed: weight), {})
    assert {stops[f"other-{name}"] for name in names(*WEIGHTS)} == {0.25}


def test_what_cant_pause_is_refused():
    config = dataclasses.replace(
        toy_spec().config, train=dataclasses.replace(toy_spec().config.train, distributed="ddp", num_ranks=2)
    )
    plan = dataclasses.replace(PLAN, runs=(dataclasses.replace(toy_spec(), config=config),))
    with pytest.raises(GridError, match="runs over several ranks; expected runs that can be paused"):
        check_stops(plan, SEARCH)
    check_stops(plan, SearchConfig())


@pytest.mark.parametrize("order", [1, -1])
def test_the_worker_pauses_and_goes_on_whatever_the_order(tmp_path, monkeypatch, order):
    """Real ledger, folder and worker; only the training is a sleepless stand-in, which counts what it did."""
    monkeypatch.setattr("os.fsync", lambda number: None)
    monkeypatch.setattr("sweep.worker.output_to", lambda path: contextlib.nullcontext())
    plan = plan_of(seeds=(0,))
    ledger, folder = Ledger(tmp_path), SweepFolder(tmp_path, plan.name)
    shares: dict[str, list[float]] = {}

    def run_one(spec, *, pause_at=None, **_):
        shares.setdefault(spec.fingerprint, []).append(pause_at or 1.0)
        weight = spec.config.objective.prompt_weight
        if pause_at:
            raise Paused(pause_at, {"validation_exact_answer": weight})
        return finished(spec)

    for _ in range(4):
        ledger.stops = {}
        statuses = {
            name: state.status for name, state in ledger.statuses(names(*WEIGHTS, seeds=(0,))).items()
        }
        stops = stops_of(plan, SEARCH, {name: ledger.rungs(name) for name in statuses}, statuses)
        folder.write_plan(dataclasses.replace(plan, runs=plan.runs[::order], stops=stops))
        worker = Worker(Ledger(tmp_path), folder, Flag(), name="w", make_run_one=lambda: run_one)
        assert worker.run() == 0
    assert {name for name, done in shares.items() if done[-1] == 1.0} == names(1.0, 0.8, 0.0, seeds=(0,))
    assert all(done == sorted(set(done)) for done in shares.values()), "no share is trained twice"
    assert {tuple(done) for done in shares.values()} == {
        (0.25,),
        (0.25, 0.5),
        (0.25, 0.5, 1.0),
    }

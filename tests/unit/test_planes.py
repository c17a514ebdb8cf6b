"""A worker takes runs together that can be trained at once, each with its own claim, and no more than its part."""

import dataclasses
import json
import math
import time

import pytest
from test_worker import Trainer, quick_disk, real_streams  # noqa: F401 - quick_disk is a fixture
from toys import failed, finished, toy_spec

from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.planes import Portion, fair_share
from sweep.spec import Cell, Plan, PlannedCell
from sweep.timesheets import shifts
from sweep.trainers import GivenBack
from sweep.worker import NODE_FAILURE, NOTHING_LEFT, SAME_FAILURE, Worker
from train.stacked.choice import decided, way_of
from train.stacked.company import trained_alone

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def plane_plan(*seeds, weights=WEIGHTS):
    """Cells (weight, 1) of each seed."""
    specs = [toy_spec(seed, weight) for seed in seeds or (0,) for weight in weights]
    cells = [
        PlannedCell(
            Cell("toy", "rows", spec.config.objective.prompt_weight, 1.0, spec.config.seed),
            spec.fingerprint,
            False,
        )
        for spec in specs
    ]
    return Plan("toys", tuple(cells), (), tuple(specs))


PLAN = plane_plan()


class Many(Trainer):
    """Trains all at once it is given; what is special for one is said by its place in the plan."""

    def __init__(self, size=100, **by_place):
        super().__init__()
        self.size, self.by_place = size, {int(name.removeprefix("run")): by_place[name] for name in by_place}
        self.stacks, self.asked = [], []

    def company(self, spec, num_alike, most):
        self.asked.append((num_alike, most))
        return min(self.size, most)

    def together(self, runs, *, should_stop, ended):
        self.stacks.append([one.spec.fingerprint for one in runs])
        print(f"{len(runs)} at once", flush=True)
        for one in runs:
            one.on_progress(1, 4)
        for index, one in enumerate(runs):
            what = self.by_place.get(index)
            if callable(what):
                what = what(one, should_stop)
            if isinstance(what, BaseException) and not isinstance(what, GivenBack):
                raise what
            ended(one.spec.fingerprint, what or finished(one.spec, attempt=one.attempt))


@pytest.fixture
def folder(tmp_path):
    folder = SweepFolder(tmp_path, PLAN.name)
    folder.write_plan(PLAN)
    return folder


def work(folder, trainer, stop=None, portion=Portion(math.ceil), **settings):  # noqa: B008
    made = Worker(
        Ledger(folder.root),
        folder,
        stop or Flag(),
        name="me",
        make_run_one=lambda: trainer,
        portion=portion,
        **settings,
    )
    with real_streams():
        return made.run()


def statuses(folder, plan=PLAN):
    states = Ledger(folder.root).statuses(spec.fingerprint for spec in plan.runs)
    return [str(state.status) for state in states.values()]


def names(plan=PLAN):
    return [spec.fingerprint for spec in plan.runs]


def test_what_can_share_a_stack_is_claimed_together(folder):
    trainer = Many()
    assert work(folder, trainer) == NOTHING_LEFT
    assert trainer.stacks == [names()]
    assert trainer.asked == [(5, 5)]
    assert trainer.trained == []
    assert statuses(folder) == ["finished"] * 5
    for spec in PLAN.runs:
        run = folder.path / "runs" / spec.run_id
        assert json.loads((run / "spec.json").read_text())["run_id"] == spec.run_id
        assert (run / "attempts" / "0001.log").read_text() == "5 at once\n", "one log, under each name"
        assert (run / "attempts" / "0001.heartbeat").exists()


def test_the_trainers_number_is_kept_to(folder):
    trainer = Many(size=2)
    work(folder, trainer)
    assert [len(stack) for stack in trainer.stacks] == [2, 2]
    assert len(trainer.trained) == 1, "the last one alone"
    assert statuses(folder) == ["finished"] * 5


def test_a_worker_takes_its_part_and_no_more(folder):
    trainer = Many()
    work(folder, trainer, portion=Portion(lambda number: fair_share(number, 2)))
    assert [len(stack) for stack in trainer.stacks] == [3], "of 5; then 1 of 2, and the last"
    assert len(trainer.trained) == 2
    assert [fair_share(number, 2) for number in (1, 2, 13, 14)] == [1, 1, 7, 7]
    assert [fair_share(number, 2) for number in (22.8, 23.0)] == [11, 12]
    assert fair_share(5, 0) == 5


def test_what_others_are_at_counts_as_far_as_it_is_left(folder):
    for name, step in zip(names()[:2], (0, 3), strict=True):
        Ledger(folder.root).claim(name).beat(step, 4, force=True)
    trainer = Many()
    work(folder, trainer, portion=Portion(lambda number: fair_share(number, 2)))
    # half of 3 that wait and 1.25 that are left of others; the third is trained alone afterwards
    assert [len(stack) for stack in trainer.stacks] == [2]


def test_a_whole_plane_is_claimed_whatever_is_trained_at_once(folder):
    trainer = Many(size=2)
    work(folder, trainer, portion=Portion(lambda number: 1, whole=True))
    assert trainer.stacks == [names()]


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        ({"train": {"plane": "off"}}, "train.plane=off"),
        ({"train": {"dropout": 0.1}}, "dropout, whose masks would be shared"),
        ({"train": {"lora_dropout": 0.1}}, "dropout, whose masks would be shared"),
        ({"train": {"compile": True}}, "train.compile"),
        ({"objective": {"kl_weight": 0.1}}, "objective.kl_weight"),
        ({"stage": "dpo"}, "stage=dpo is trained alone"),
        ({}, ""),
    ],
)
def test_who_is_trained_alone(change, alone):
    config = toy_spec().config
    for part, values in change.items():
        new = values if isinstance(values, str) else dataclasses.replace(getattr(config, part), **values)
        config = dataclasses.replace(config, **{part: new})
    assert trained_alone(config) == alone


def test_only_what_differs_in_weights_and_rates_goes_together(folder):
    other = toy_spec(0, 0.3)
    recipe = dataclasses.replace(other.config.train, batch_size=4)
    plan = plane_plan(0, 1)
    slow = toy_spec(0, 0.7)
    rates = dataclasses.replace(slow.config.train, learning_rate=1e-4, weight_decay=0.0)
    extra = (
        dataclasses.replace(other, config=dataclasses.replace(other.config, train=recipe)),
        dataclasses.replace(slow, config=dataclasses.replace(slow.config, train=rates)),
    )
    plan = dataclasses.replace(plan, runs=(*plan.runs, *extra))
    folder.write_plan(plan)
    trainer = Many()
    work(folder, trainer)
    first, second = trainer.stacks
    assert first == [*names(plan)[:5], slow.fingerprint]
    assert second == names(plan)[5:10], "another seed sees its rows in another order"
    assert trainer.asked[0] == (11, 6), "seeds are alike in what they cost"
    assert len(trainer.trained) == 1
    assert statuses(folder, plan) == ["finished"] * 12


def test_where_responses_weigh_nothing_rows_end_earlier(folder):
    prompts = toy_spec(0, 0.4)
    objective = dataclasses.replace(prompts.config.objective, response_weight=0.0)
    prompts = dataclasses.replace(prompts, config=dataclasses.replace(prompts.config, objective=objective))
    plan = dataclasses.replace(PLAN, runs=(prompts, *PLAN.runs))
    folder.write_plan(plan)
    trainer = Many()
    work(folder, trainer)
    assert trainer.stacks == [names()]
    assert len(trainer.trained) == 1


def test_a_run_that_fails_in_company_fails_alone(folder):
    trainer = Many(run1=lambda one, stop: failed(one.spec, kind="nan_loss"))
    assert work(folder, trainer) == NOTHING_LEFT
    assert statuses(folder) == ["finished", "failed", "finished", "finished", "finished"]
    assert Ledger(folder.root).status(names()[1]).failure.kind == "nan_loss"


def test_a_record_that_cannot_be_written_is_that_runs_failure(folder):
    bad = {"validation_response_nll": float("nan")}
    work(folder, Many(run1=lambda one, stop: finished(one.spec, metrics=bad)))
    assert statuses(folder) == ["finished", "failed", "finished", "finished", "finished"]


def test_asked_to_stop_it_gives_all_back_that_are_not_over(folder):
    stop = Flag()

    def be_stopped(one, should_stop):
        assert not should_stop()
        stop.set("cancelled: a test")
        assert should_stop()
        raise GivenBack("saved")

    assert work(folder, Many(run2=be_stopped), stop) == NOTHING_LEFT
    assert statuses(folder) == ["finished", "finished", "interrupted", "interrupted", "interrupted"]
    reasons = [
        json.loads(path.read_text())["reason"] for path in folder.root.glob(".runs/*/attempts/*.released")
    ]
    assert reasons == ["cancelled: a test"] * 3
    trainer = Many()
    work(folder, trainer)
    assert trainer.stacks == [names()[2:]]
    assert statuses(folder) == ["finished"] * 5


def test_a_run_that_is_cancelled_or_taken_over_leaves_the_others(folder, monkeypatch):
    monkeypatch.setattr("sweep.holding.BEAT_EVERY_S", 0.02)
    ledger = Ledger(folder.root)

    def be_called_away(one, should_stop):
        deadline = time.monotonic() + 10
        while not one.should_stop() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not should_stop()
        return GivenBack("saved")

    def cancel(one, should_stop):
        ledger.attempt_path(one.spec.fingerprint, 1, "cancel.json").write_text('{"message": "not wanted"}')
        return be_called_away(one, should_stop)

    def take_over(one, should_stop):
        claimed = ledger.attempt_path(one.spec.fingerprint, 1, "json")
        claimed.with_name("0002.json").write_text(claimed.read_text())
        return be_called_away(one, should_stop)

    work(folder, Many(run1=cancel, run3=take_over))
    assert statuses(folder) == ["finished", "failed", "finished", "running", "finished"]
    assert ledger.status(names()[1]).failure.kind == "cancelled"


@pytest.mark.parametrize(
    ("error", "code", "left"),
    [
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), NODE_FAILURE, "lost"),
        (RuntimeError("a bug"), SAME_FAILURE, "failed"),
    ],
)
def test_what_breaks_them_all_is_written_down_for_each(folder, error, code, left):
    def broken(one, should_stop):
        raise error

    assert work(folder, Many(run0=broken)) == code
    assert statuses(folder) == [left] * 5


def test_a_full_disk_ends_the_worker_and_no_run(folder):
    def full(one, should_stop):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        work(folder, Many(run2=full))
    assert statuses(folder) == ["finished", "finished", "lost", "lost", "lost"]
    assert Ledger(folder.root).losses(names()[4]) == ["disk_full"]


def test_every_death_halves_what_goes_together(folder):
    ledger = Ledger(folder.root)

    def die(num_times):
        for _ in range(num_times):
            for name in names():
                claim = ledger.claim(name)
                claim.lose("killed", "a test")

    die(1)
    trainer = Many()
    work(folder, trainer)
    assert [len(stack) for stack in trainer.stacks] == [2], "of 5; then 1 of 3, one after another"
    assert len(trainer.trained) == 3


def test_who_ran_out_of_memory_is_trained_alone(folder):
    ledger = Ledger(folder.root)
    ledger.claim(names()[1]).lose("cuda_oom", "a test")
    trainer = Many()
    work(folder, trainer)
    assert trainer.stacks == [[names()[0], *names()[2:]]]
    assert len(trainer.trained) == 1


def test_a_pilot_and_runs_that_stop_at_a_rung_are_trained_alone(folder):
    folder.write_plan(dataclasses.replace(PLAN, question="a search", stops={names()[2]: 0.5}))

    class Pausing(Many):
        def __call__(self, spec, *, pause_at=None, **how):
            assert (pause_at == 0.5) == (spec.fingerprint == names()[2])
            return super().__call__(spec, **how)

    trainer = Pausing()
    work(folder, trainer)
    assert trainer.stacks == [[*names()[:2], *names()[3:]]]
    pilot = SweepFolder(folder.root, "pilot")
    pilot.write_plan(plane_plan(1))
    (pilot.path / "pilot.json").write_text('{"run_s": 60}')
    trainer = Many()
    work(pilot, trainer)
    assert trainer.stacks == []
    assert len(trainer.trained) == 5


def test_a_trainer_that_can_only_one_is_asked_for_one(folder):
    trainer = Trainer()
    work(folder, trainer)
    assert len(trainer.trained) == 5
    assert statuses(folder) == ["finished"] * 5


def test_a_trainer_that_cannot_choose_trains_one_and_lets_that_tell(folder):
    class Lost(Many):
        def company(self, spec, num_alike, most):
            raise RuntimeError("no such model")

        def __call__(self, spec, **how):
            raise RuntimeError("no such model")

    assert work(folder, Lost()) == SAME_FAILURE
    assert statuses(folder) == ["failed"] * 3 + ["planned"] * 2


def test_the_timesheet_has_a_line_for_each_and_leaves_no_second_out(folder):
    class Slow(Many):
        def together(self, runs, **how):
            time.sleep(0.2)
            for step in (1, 2, 3):
                time.sleep(0.05)
                for one in runs:
                    one.on_progress(step, 3)
            for one in runs:
                how["ended"](one.spec.fingerprint, finished(one.spec))

    work(folder, Slow())
    (shift,) = shifts(folder.root)
    assert [entry.fingerprint for entry in shift.entries] == names()
    assert {entry.outcome for entry in shift.entries} == {"finished"}
    assert [entry.is_first for entry in shift.entries] == [True, False, False, False, False]
    first, *others = shift.entries
    assert first.setup_s > 0.1
    assert {entry.setup_s for entry in others} == {0.0}
    assert sum(entry.seconds for entry in shift.entries) > 0.35
    assert sum(entry.training_s for entry in shift.entries) == pytest.approx(0.15, abs=0.1)


def turns(**seconds):
    """of13x512: 13 runs, each in micro-batches of 512 tokens."""
    return {way_of(name.removeprefix("of")): values for name, values in seconds.items()}


@pytest.mark.parametrize(
    ("measured", "most", "size"),
    [
        (turns(of1=[10, 11], of6=[5, 5], of13=[4, 4]), 13, 13),
        (turns(of1=[10, 11], of6=[5, 5], of13=[6, 6]), 13, 6),
        (turns(of1=[10, 11], of6=[5, 5], of13=[4, 4]), 9, 9),
        (turns(of1=[10, 11], of6=[5, 5], of13=[4, 4]), 3, 3),
        (turns(of1=[10, 11], of6=[10, 10.5], of13=[4, 4]), 9, 1),
        (turns(of1=[10, 11], of6=[5, 12], of13=[9.9, 10.9]), 13, 1),
        (turns(of1=[10, 11], of6=[5, 5], of13=[]), 13, 6),
        (turns(of1=[10, 11]), 13, 1),
    ],
    ids=["largest", "middle", "between", "fewer", "not_clear_below", "noise", "no_memory", "nothing"],
)
def test_the_size_that_won_every_turn_is_taken(measured, most, size):
    choice = decided(measured, most)
    assert choice.size == size
    assert choice.why.startswith("measured: ")
    assert set(choice.seconds) == {str(key) for key, values in measured.items() if values}

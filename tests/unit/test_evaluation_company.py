"""A worker takes the evaluations of one plane together, once their runs are finished, and no more than its part."""

import dataclasses

import pytest
from test_planes import Many, plane_plan, work
from test_worker import quick_disk  # noqa: F401 - a fixture
from toys import failed, finished

from sweep.evaluations import evaluations_by_run, is_evaluation, is_training, with_evaluations
from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.planes import Portion, fair_share, units
from sweep.timesheets import shifts
from sweep.trainers import GivenBack
from train.kept import ABOUT, FOLDER, has_weights


def evaluated_plan(*seeds, method="lora"):
    """Five cells of each seed, each followed by its evaluation; their weights are kept until that is done."""
    plan = plane_plan(*seeds)
    runs = [
        dataclasses.replace(
            spec,
            config=dataclasses.replace(
                spec.config, keep="until_dpo", train=dataclasses.replace(spec.config.train, method=method)
            ),
        )
        for spec in plan.runs
    ]
    asked = {spec.fingerprint: {"quiz": "p"} for spec in runs}
    return dataclasses.replace(plan, runs=tuple(with_evaluations(runs, asked)))


PLAN = evaluated_plan()


@pytest.fixture
def folder(tmp_path):
    return prepared(tmp_path, PLAN)


def prepared(root, plan, but=()):
    """A folder with this plan, its runs finished but for some, with weights."""
    folder, ledger = SweepFolder(root, plan.name), Ledger(root)
    folder.write_plan(plan)
    for spec in plan.runs:
        if not is_evaluation(spec) and spec.fingerprint not in but:
            claim = ledger.claim(spec.fingerprint)
            about = ledger.folder(spec.fingerprint) / FOLDER / ABOUT
            about.parent.mkdir()
            about.write_text("{}")
            claim.commit(finished(spec))
    return folder


def names(plan=PLAN):
    return [spec.fingerprint for spec in plan.runs if is_evaluation(spec)]


def states(folder, plan=PLAN):
    found = Ledger(folder.root).statuses(names(plan))
    return [str(state.status) for state in found.values()]


def kept(folder, plan=PLAN):
    ledger = Ledger(folder.root)
    return [has_weights(ledger.folder(spec.fingerprint)) for spec in plan.runs if is_training(spec)]


def test_a_planes_evaluations_are_claimed_together_and_each_gives_its_runs_weights_up(folder):
    trainer = Many()
    work(folder, trainer)
    assert trainer.stacks == [names()]
    assert trainer.trained == []
    assert states(folder) == ["finished"] * 5
    assert kept(folder) == [False] * 5


def test_whole_models_are_evaluated_one_after_another(tmp_path):
    plan = evaluated_plan(method="full")
    trainer = Many()
    work(prepared(tmp_path, plan), trainer)
    assert trainer.stacks == []
    assert len(trainer.trained) == 5


def test_only_those_whose_run_is_finished_go_together(tmp_path):
    unfinished = PLAN.runs[2].fingerprint
    folder = prepared(tmp_path, PLAN, but=[unfinished])
    trainer = Many()
    work(folder, trainer)
    late = evaluations_by_run(PLAN)[unfinished].fingerprint
    assert trainer.stacks == [[name for name in names() if name != late]]
    assert len(trainer.trained) == 2, "the run, and then its evaluation"
    assert states(folder) == ["finished"] * 5


def test_planes_and_protocols_are_kept_apart(tmp_path):
    plan = evaluated_plan(0, 1)
    other = dataclasses.replace(plan.runs[-1].config.eval, limit=3)
    last = dataclasses.replace(plan.runs[-1], config=dataclasses.replace(plan.runs[-1].config, eval=other))
    plan = dataclasses.replace(plan, runs=(*plan.runs[:-1], last))
    trainer = Many()
    work(prepared(tmp_path, plan), trainer)
    assert [len(stack) for stack in trainer.stacks] == [5, 4]
    assert len(trainer.trained) == 1


def test_a_worker_takes_its_part_unless_the_unit_is_a_plane(tmp_path, folder):
    trainer = Many()
    work(folder, trainer, portion=Portion(lambda number: fair_share(number, 2)))
    assert [len(stack) for stack in trainer.stacks] == [3], "of 5; then 1 of 2, and the last"
    whole = prepared(tmp_path / "whole", PLAN)
    trainer = Many(size=2)
    work(whole, trainer, portion=Portion(lambda number: 1, whole=True))
    assert trainer.stacks == [names()]


def test_what_is_sent_to_a_cluster_is_counted_by_planes():
    plan = evaluated_plan(0, 1)
    evaluations = [spec for spec in plan.runs if is_evaluation(spec)]
    found = Ledger("nowhere").statuses(spec.fingerprint for spec in evaluations)
    assert len(units(evaluations, found)) == 2


def test_one_that_fails_fails_alone_and_keeps_its_runs_weights(folder):
    work(folder, Many(run1=lambda one, stop: failed(one.spec, kind="data")))
    assert states(folder) == ["finished", "failed", "finished", "finished", "finished"]
    assert kept(folder) == [False, True, False, False, False]


def test_asked_to_stop_what_is_over_stays_and_the_rest_is_given_back(folder):
    stop = Flag()

    def be_stopped(one, should_stop):
        stop.set("cancelled: a test")
        raise GivenBack("saved")

    work(folder, Many(run2=be_stopped), stop)
    assert states(folder) == ["finished", "finished", "interrupted", "interrupted", "interrupted"]
    trainer = Many()
    work(folder, trainer)
    assert trainer.stacks == [names()[2:]]


def test_after_a_death_half_go_together(folder):
    for name in names():
        Ledger(folder.root).claim(name).lose("killed", "a test")
    trainer = Many()
    work(folder, trainer)
    assert [len(stack) for stack in trainer.stacks] == [2]
    assert len(trainer.trained) == 3


def test_the_timesheet_has_what_the_records_say(folder):
    class Measuring(Many):
        def together(self, runs, *, should_stop, ended):
            for one in runs:
                one.on_progress(256, 512)  # outputs, which are no steps
                record = dataclasses.replace(finished(one.spec), setup_s=0.1, evaluation_s=2.0, num_steps=0)
                ended(one.spec.fingerprint, record)

    work(folder, Measuring())
    (shift,) = shifts(folder.root)
    assert [entry.fingerprint for entry in shift.entries] == names()
    assert {(entry.outcome, entry.steps, entry.workload.stage) for entry in shift.entries} == {
        ("finished", 0, "evaluate")
    }
    assert [entry.setup_s for entry in shift.entries] == pytest.approx([0.5, 0, 0, 0, 0])
    assert [entry.evaluation_s for entry in shift.entries] == pytest.approx([2.0] * 5)

"""What workers write down of their time, and what is read of it afterwards."""

import json
import time

import pytest
from toys import finished, toy_plan, toy_spec

from sweep.flag import Flag
from sweep.folder import PILOT_FILE, SweepFolder
from sweep.ledger import Ledger
from sweep.spec import Status
from sweep.timesheets import Timesheet, process_started_at, shifts
from sweep.trainers import GivenBack
from sweep.worker import Worker
from train.files import write_json_atomic


def only_sheet(root):
    (path,) = (root / ".timesheets").iterdir()
    return path


def test_every_second_of_a_worker_is_somebodys(tmp_path):
    sheet = Timesheet(tmp_path, "toys", "w", gpus=1, cores=2)
    begun = time.time()
    for seed in (0, 1):
        sheet.begin(toy_spec(seed))
        time.sleep(0.02)
        sheet.ready()
        for step in (1, 2, 3):
            time.sleep(0.01)
            sheet.progress(step, 3)
        time.sleep(0.02)
        sheet.end("finished", finished(toy_spec(seed), seconds=0.03))
    took = time.time() - begun
    (shift,) = shifts(tmp_path)
    assert (shift.sweep, shift.gpus, shift.cores, shift.gpus_used) == ("toys", 1, 2, 1)
    assert shift.ready_s == pytest.approx(begun + 0.02 - shift.started_at, abs=0.1)
    first, second = shift.entries
    assert (first.is_first, second.is_first) == (True, False)
    assert (first.steps, first.num_steps) == (3, 3)
    assert first.evaluation_s >= 0.02
    assert first.seconds + second.seconds == pytest.approx(took - 0.02, abs=0.02)
    assert second.own_s == second.seconds
    assert first.memory_gb > 0.01


def test_a_sheet_ends_when_its_worker_was_last_seen(tmp_path):
    Timesheet(tmp_path, "toys", "w", gpus=1, cores=1).beat()
    (shift,) = shifts(tmp_path)
    assert 0 < shift.seconds == pytest.approx(time.time() - process_started_at(), abs=5.0)
    assert shift.entries == ()


def test_half_a_line_and_strangers_are_left_out(tmp_path):
    sheet = Timesheet(tmp_path, "toys", "w", gpus=1, cores=1)
    sheet.begin(toy_spec())
    sheet.ready()
    sheet.end("failed", None)
    path = only_sheet(tmp_path)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write('{"fingerprint": "half')
    path.with_name("other.jsonl").write_text("nonsense\n")
    path.with_name("later.jsonl").write_text(json.dumps({"another": "version"}) + "\n")
    (shift,) = shifts(tmp_path)
    assert [entry.outcome for entry in shift.entries] == ["failed"]
    assert shifts(tmp_path / "nowhere") == []


def test_a_worker_writes_one_and_loses_no_run_where_it_cannot(tmp_path):
    folder = SweepFolder(tmp_path, "toys")
    folder.write_plan(toy_plan(3))

    def train(spec, **_):
        if spec.config.seed == 1:
            raise RuntimeError("broken")
        return finished(spec)

    def work(plan_root):
        return Worker(
            Ledger(plan_root), SweepFolder(plan_root, "toys"), Flag(), name="w", make_run_one=lambda: train
        )

    work(tmp_path).run()
    (shift,) = shifts(tmp_path)
    assert [entry.outcome for entry in shift.entries] == ["finished", "failed", "finished"]
    other = tmp_path / "other"
    SweepFolder(other, "toys").write_plan(toy_plan(1))
    (other / ".timesheets").write_text("no folder")
    work(other).run()
    assert Ledger(other).status(toy_plan(1).runs[0].fingerprint).status is Status.FINISHED
    assert shifts(other) == []


def test_a_pilot_stops_at_its_limit_and_is_not_taken_up_again(tmp_path):
    folder = SweepFolder(tmp_path, "toys.pilot")
    folder.write_plan(toy_plan(2))
    write_json_atomic(folder.path / PILOT_FILE, {"run_s": 0.05})
    trained = []

    def train(spec, *, should_stop, on_progress, **_):
        trained.append(spec.config.seed)
        for step in range(1, 1001):
            time.sleep(0.01)
            on_progress(step, 1000)
            if should_stop():
                raise GivenBack("saved")
        raise AssertionError("it was never stopped")

    ledger = Ledger(tmp_path)
    Worker(ledger, folder, Flag(), name="w", make_run_one=lambda: train).run()
    assert trained == [0, 1]
    states = ledger.statuses(spec.fingerprint for spec in toy_plan(2).runs)
    assert {state.status for state in states.values()} == {Status.INTERRUPTED}
    (shift,) = shifts(tmp_path)
    for entry in shift.entries:
        assert (entry.outcome, entry.num_steps) == ("interrupted", 1000)
        assert 2 <= entry.steps <= 6
        assert entry.training_s / entry.steps == pytest.approx(0.01, abs=0.006)

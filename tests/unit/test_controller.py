"""A controller starts as many workers as make sense, notices what ends, and knows when to give up."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import threading
import time

import pytest
from toys import failed, finished, toy_plan

from sweep import controller as module
from sweep.claims import process_start
from sweep.controller import Controller, Interrupts, stop_workers, take_controller_lock
from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.launch import Job, Launch
from sweep.ledger import Ledger
from sweep.show import PlainView
from sweep.slots import holders, take_slot, take_slots
from sweep.spec import Status
from sweep.trainers import GivenBack
from sweep.worker import Worker

PLAN = toy_plan(5)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr("sweep.worker.output_to", lambda path: contextlib.nullcontext())
    monkeypatch.setattr("sweep.holding.BEAT_EVERY_S", 0.02)


@pytest.fixture
def folder(tmp_path):
    folder = SweepFolder(tmp_path, PLAN.name)
    folder.write_plan(PLAN)
    return folder


class FakeJob(Job):
    """A job whose process is a thread, or nothing at all."""

    def is_alive(self):
        return self.pid in FakeJob.alive

    def ended_in_order(self):
        return self.process_start == "in order"

    def last_words(self, num_lines=5):
        return ["Traceback", "ImportError: no torch"]

    alive: set[int]


class Machine:
    """Starts workers as threads of this process: each takes its slot, works and goes."""

    def __init__(self, folder, run_one=None, dies=False, starts_after_s=0.0):
        self.folder, self.run_one, self.dies, self.starts_after_s = folder, run_one, dies, starts_after_s
        self.started, self.most, self.threads = [], 0, []
        FakeJob.alive = set()

    def __call__(self, launch, slots):
        jobs = []
        for slot in slots:
            number = 100000 + len(self.started)
            self.started.append(slot)
            FakeJob.alive.add(number)
            jobs.append(
                FakeJob(
                    slot=slot,
                    pid=number,
                    process_start="died" if self.dies else "in order",
                    folder="",
                    started_at=time.time(),
                )
            )
            thread = threading.Thread(target=self._live, args=(slot, number, launch))
            thread.start()
            self.threads.append(thread)
        return jobs

    def _live(self, slot, number, launch):
        time.sleep(self.starts_after_s)
        root, name, ranks = self.folder.root, self.folder.name, launch.ranks
        locks = None if self.dies else take_slots(root, name, slot, str(number), ranks, launch.num_slots)
        if locks:
            self.most = max(self.most, len(FakeJob.alive))
            Worker(
                Ledger(root),
                self.folder,
                Flag(),
                name=str(slot),
                make_run_one=lambda: self.run_one,
                may_claim=lambda spec: spec.config.num_ranks == ranks,
            ).run()
            for lock in locks.values():
                lock.truncate(0)
                lock.close()
        FakeJob.alive.discard(number)


def train(spec, *, folder, attempt, should_stop, on_progress):
    for step in range(5):
        on_progress(step + 1, 5)
        time.sleep(0.01)
        if should_stop():
            raise GivenBack
    return finished(spec, attempt=attempt)


def control(folder, machine, *, num_slots=2, plan=PLAN, interrupts=None, **settings):
    stream = io.StringIO()
    launch = Launch(root=str(folder.root), sweep=folder.name, num_slots=num_slots)
    ending = Controller(
        plan,
        Ledger(folder.root),
        folder,
        launch,
        PlainView(stream),
        interrupts or Interrupts(),
        start=machine,
        poll_s=0.01,
        **settings,
    ).run()
    for thread in machine.threads:
        thread.join()
    return ending, stream.getvalue()


def test_it_runs_everything_and_says_so(folder, capsys):
    machine = Machine(folder, train)
    ending, text = control(folder, machine)
    assert ending.num(Status.FINISHED) == 5
    assert not ending.is_interrupted
    assert not ending.problem
    assert sorted(machine.started)[:2] == [0, 1]
    assert machine.most <= 2, "never more workers than slots"
    for spec in PLAN.runs:
        assert f"finished {spec.run_id}\n" in text


def test_a_finished_sweep_starts_nothing(folder, capsys):
    control(folder, Machine(folder, train))
    machine = Machine(folder, train)
    ending, _ = control(folder, machine)
    assert ending.num(Status.FINISHED) == 5
    assert machine.started == []


def test_no_more_workers_than_runs(folder, capsys):
    plan = toy_plan(1)
    folder.write_plan(plan)
    machine = Machine(folder, train, starts_after_s=0.1)
    control(folder, machine, num_slots=8, plan=plan)
    assert machine.started == [0]


def test_failed_runs_end_a_sweep_too(folder, capsys):
    def break_one(spec, **arguments):
        return failed(spec, kind="data") if spec.config.seed == 1 else train(spec, **arguments)

    ending, text = control(folder, Machine(folder, break_one))
    assert ending.num(Status.FINISHED) == 4
    assert ending.num(Status.FAILED) == 1
    assert f"failed {PLAN.runs[1].run_id}: data: broken\n" in text
    assert not ending.problem


def test_the_same_failure_three_times_is_enough(folder, capsys):
    def break_all(spec, **_):
        raise RuntimeError("a bug")

    ending, text = control(folder, Machine(folder, break_all), num_slots=1)
    assert ending.num(Status.FAILED) == 3
    assert ending.num(Status.PLANNED) == 2
    assert "the first 3 runs all failed in" in ending.problem
    assert "RuntimeError: a bug" in text


def test_workers_that_die_at_once_are_not_started_forever(folder):
    machine = Machine(folder, dies=True)
    ending, text = control(folder, machine, num_slots=1)
    assert len(machine.started) == 3
    assert ending.num(Status.PLANNED) == 5
    assert "3 workers in a row died at once" in text
    assert text.count("a worker died: Traceback") == 3
    assert "ImportError: no torch" in text
    assert len(ending.problem.splitlines()) <= 5


def test_a_taken_slot_is_left_alone(folder, capsys):
    lock = take_slot(folder.root, "another sweep", 0)
    machine = Machine(folder, train)
    ending, _ = control(folder, machine)
    assert set(machine.started) == {1}
    assert ending.num(Status.FINISHED) == 5
    lock.close()


def test_a_measured_base_model_does_not_excuse_the_code(folder, capsys):
    plan = toy_plan(5, has_base=True)
    folder.write_plan(plan)

    def break_training(spec, **_):
        if spec.config.stage == "base":
            return finished(spec)
        raise RuntimeError("a bug")

    ending, _ = control(folder, Machine(folder, break_training), num_slots=1, plan=plan)
    assert ending.num(Status.FAILED) == 3
    assert "the first 3 runs all failed in" in ending.problem


def test_when_others_hold_all_slots_it_says_so(folder, capsys):
    lock = take_slot(folder.root, "another sweep", 0)
    threading.Timer(0.2, lock.truncate, [0]).start()
    threading.Timer(0.3, lock.close).start()
    ending, text = control(folder, Machine(folder, train), num_slots=1)
    assert text.count("waiting: other sweeps hold all 1 slots of this machine") == 1
    assert ending.num(Status.FINISHED) == 5


def test_a_request_to_stop_leaves_the_rest_planned(folder, capsys):
    interrupts = Interrupts()
    trained = []

    def train_two(spec, **arguments):
        trained.append(spec)
        if len(trained) == 3:
            interrupts.event.set()
        return train(spec, **arguments)

    # the workers are threads of this process, so the signal to their pid must not arrive
    machine = Machine(folder, train_two)
    ending, text = control(folder, machine, num_slots=1, interrupts=interrupts)
    assert ending.is_interrupted
    assert ending.num_left_working == 0
    assert ending.num(Status.FINISHED) == 2
    assert ending.num(Status.INTERRUPTED) == 1
    assert "stopping: waiting for 1 worker to save their state" in text


@pytest.fixture(autouse=True)
def no_signals_to_ourselves(monkeypatch):
    kill = os.kill

    def guarded(pid, number):
        if pid != os.getpid() and pid < 100000:
            kill(pid, number)

    monkeypatch.setattr(os, "kill", guarded)


def test_a_second_controller_watches_and_takes_over(folder, capsys):
    lock = take_controller_lock(folder)
    assert take_controller_lock(folder) is None
    threading.Timer(0.2, lock.close).start()
    machine = Machine(folder, train)
    started = time.monotonic()
    ending, text = control(folder, machine)
    assert time.monotonic() - started > 0.2
    assert text.count("another process is running this sweep") == 1
    assert ending.num(Status.FINISHED) == 5


def test_a_watcher_that_is_stopped_stops_nobody(folder):
    lock = take_controller_lock(folder)
    interrupts = Interrupts()
    threading.Timer(0.1, interrupts.event.set).start()
    ending, _ = control(folder, Machine(folder, train), interrupts=interrupts)
    assert ending.is_interrupted
    assert ending.is_watcher
    assert not folder.was_stopped_after(0.0)
    lock.close()


def test_a_request_from_elsewhere_stops_it(folder):
    lock = take_controller_lock(folder)
    threading.Timer(0.1, folder.ask_to_stop).start()
    ending, _ = control(folder, Machine(folder, train))
    assert ending.is_interrupted
    assert not ending.is_watcher
    lock.close()


def test_watching_starts_nothing_and_does_not_wait_for_nobody(folder, monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    machine = Machine(folder, train)
    ending, _ = control(folder, machine, only_watch=True)
    assert machine.started == []
    assert ending.problem == "nobody is working on it"
    lock = take_controller_lock(folder)
    assert lock is not None, "a watcher holds no lock"
    lock.close()


def test_stopping_waits_only_so_long(tmp_path, project):
    folder = SweepFolder(tmp_path, "toys")
    code = (
        "import signal, sys, time; from sweep.slots import take_slot\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"lock = take_slot({str(tmp_path)!r}, 'toys', 0); print('up', flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    assert stop_workers(folder, patience_s=0.2) == 1
    assert folder.was_stopped_after(0.0)
    process.communicate(b"\n")
    assert stop_workers(folder, patience_s=5.0) == 0
    assert not holders(tmp_path)


def test_the_first_interrupt_asks_and_the_second_insists():
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts().listening() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.event.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_job_is_its_supervisor(tmp_path):
    job = Job(
        slot=0,
        pid=os.getpid(),
        process_start=process_start(os.getpid()),
        folder=str(tmp_path),
        started_at=0.0,
    )
    assert job.is_alive()
    assert not job.ended_in_order()
    (tmp_path / f"{os.getpid()}_0_log.err").write_text("one\ntwo\n")
    assert job.last_words(1) == ["two"]
    (tmp_path / f"{os.getpid()}_0_result.pkl").write_bytes(b"..success..")
    assert job.ended_in_order()
    assert not Job(slot=0, pid=os.getpid(), process_start="gone", folder="", started_at=0.0).is_alive()


def on_ranks(plan, ranks_of_each):
    """The plan with runs of so many ranks."""
    runs = []
    for spec, ranks in zip(plan.runs, ranks_of_each, strict=True):
        kind = "fsdp" if ranks > 1 else "none"
        recipe = dataclasses.replace(spec.config.train, distributed=kind, num_ranks=ranks)
        runs.append(dataclasses.replace(spec, config=dataclasses.replace(spec.config, train=recipe)))
    return dataclasses.replace(plan, runs=tuple(runs))


def test_a_run_of_two_ranks_holds_two_slots_and_is_not_starved(folder):
    plan, order, held, guard = on_ranks(toy_plan(6), [1, 1, 2, 1, 2, 1]), [], [], threading.Lock()
    folder.write_plan(plan)

    def train_wide(spec, *, folder, attempt, should_stop, on_progress):
        with guard:
            order.append(spec.config.num_ranks)
            held.append(spec.config.num_ranks)
            assert sum(held) <= 3, "no more ranks than slots"
        time.sleep(0.05)
        with guard:
            held.remove(spec.config.num_ranks)
        return finished(spec, attempt=attempt)

    ending, _ = control(folder, Machine(folder, train_wide), num_slots=3, plan=plan)
    assert ending.num(Status.FINISHED) == 6
    assert order[0] == 2 or order[1] == 2, "the wide ones first"
    assert sorted(order) == [1, 1, 1, 1, 2, 2]


def test_more_ranks_than_slots_hold_them_all(folder):
    plan = on_ranks(toy_plan(3), [4, 1, 1])
    folder.write_plan(plan)
    machine = Machine(folder, train)
    ending, _ = control(folder, machine, num_slots=2, plan=plan)
    assert ending.num(Status.FINISHED) == 3
    assert machine.started[0] == 0


def test_the_last_record_is_awaited_with_short_pauses(folder):
    launch = Launch(root=str(folder.root), sweep=folder.name, num_slots=2)
    ledger = Ledger(folder.root)
    controller = Controller(PLAN, ledger, folder, launch, PlainView(io.StringIO()), Interrupts())
    controller.states = ledger.statuses(spec.fingerprint for spec in PLAN.runs)
    assert controller._pause_until_next_look(0.001) == module.POLL_S  # runs wait to be claimed
    claims = [ledger.claim(spec.fingerprint, "worker") for spec in PLAN.runs]
    assert all(claims)
    controller.states = ledger.statuses(spec.fingerprint for spec in PLAN.runs)
    assert controller._pause_until_next_look(0.001) == module.END_POLL_S
    assert controller._pause_until_next_look(1.0) == 20.0  # a slow disk isn't asked all the time

"""Several runs on one device: how many fit, and a task that packs, measures, and takes it back. Real processes."""

import dataclasses
import fcntl
import json
import os
import time

import pytest
from toys import finished, toy_plan

from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.packing import MOST, Footprint, Place, footprint, runs_at_once
from sweep.packs import Pack
from sweep.sharing import PACKED_OOM, memory_of_this_task, pack_path, undo_of_dead
from sweep.timesheets import shifts
from sweep.trainers import GivenBack
from sweep.worker import Worker

ROOMY = Place(memory_gb=64.0, cores=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("sweep.packs.LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("sweep.packs.POLL_S", 0.01)
    monkeypatch.setattr("sweep.sharing._READ_EVERY_S", 0.0)
    monkeypatch.setattr(os, "fsync", lambda number: None)


def footprint_of(**changes):
    return Footprint(**{"memory_gb": 4.0, "cores": 0.5, **changes})


@pytest.mark.parametrize(
    ("one", "place", "number", "why"),
    [
        (footprint_of(), Place(memory_gb=20.0, cores=8), 4, "4.00 of 20.00 GiB of memory"),
        (footprint_of(cores=1.04), Place(memory_gb=None, cores=2), 2, "1.04 of 2 cores"),
        (footprint_of(cores=1.3), Place(memory_gb=None, cores=2), 1, "1.30 of 2 cores"),
        (footprint_of(memory_gb=30.0), Place(memory_gb=20.0, cores=8), 1, "30.00 of 20.00 GiB"),
        (footprint_of(memory_gb=0.0, cores=0.0), Place(memory_gb=20.0, cores=8), MOST, "never more"),
        (footprint_of(), Place(memory_gb=None, cores=8, gpus=1), 1, "was not measured"),
        (
            footprint_of(device_gb=20.0, device_total_gb=139.0, device_share=0.24),
            Place(memory_gb=None, cores=16, gpus=1),
            4,
            "24% of the device's time",
        ),
        (
            footprint_of(device_gb=40.0, device_total_gb=139.0, device_share=0.1),
            Place(memory_gb=None, cores=16, gpus=1),
            3,
            "40.00 of 139.0 GiB of the device",
        ),
    ],
)
def test_what_is_scarce_decides(one, place, number, why):
    found = runs_at_once(one, place)
    assert found[0] == number
    assert why in found[1]


def make(folder, train, place=ROOMY, number=None, class_name="c", task="t"):
    ledger, stop = Ledger(folder.root), Flag()

    def make_worker(index, shared):
        return Worker(
            ledger, folder, stop, name=f"t.{index}", make_run_one=lambda: train, cores=0, shared=shared
        )

    return Pack(
        ledger,
        folder,
        stop,
        task=task,
        class_name=class_name,
        number=number,
        place=place,
        num_threads=1,
        make_worker=make_worker,
    )


@pytest.fixture
def folder(tmp_path):
    folder = SweepFolder(tmp_path, "toys")
    folder.write_plan(toy_plan(6, name="toys"))
    return folder


def statuses(folder):
    return [str(state.status) for state in Ledger(folder.root).statuses(names(folder)).values()]


def names(folder):
    return [spec.fingerprint for spec in folder.plan().runs]


def slow(spec, *, should_stop, **_):
    for _ in range(15):
        time.sleep(0.01)
        if should_stop():
            raise GivenBack("saved")
    return finished(spec)


def test_the_first_run_is_measured_alone_and_then_as_many_run_as_fit(folder):
    assert make(folder, slow).run() == 0
    assert statuses(folder) == ["finished"] * 6
    packs = [entry.pack for shift in shifts(folder.root) for entry in shift.entries]
    assert packs.count(2) >= 3
    assert packs.count(1) >= 1
    ledger = Ledger(folder.root)
    described = [ledger.record(name).environment["pack"] for name in names(folder)]
    assert described[0]["runs_at_once"] == 1
    assert {"runs_at_once": 2, "why": "1.00 of 2 cores each"}.items() <= described[-1].items()
    assert described[-1]["measured"]["memory_gb"] > 0.01
    billed = [shift.cores for shift in shifts(folder.root)]
    assert sorted(billed) == [0, 0, 2], "the task is billed, its workers are not"


def test_a_run_too_large_for_two_is_not_packed(folder):
    assert make(folder, slow, Place(memory_gb=1e-3, cores=8)).run() == 0
    assert statuses(folder) == ["finished"] * 6
    assert {entry.pack for shift in shifts(folder.root) for entry in shift.entries} == {1}
    assert json.loads(pack_path(folder, "t").read_text())["runs_at_once"] == 1


def test_another_shape_is_measured_before_it_is_packed(folder):
    plan = toy_plan(4, name="toys", models=("toy", "other"))
    folder.write_plan(plan)
    assert make(folder, slow).run() == 0
    assert statuses(folder) == ["finished"] * 8
    packs = {"toy": [], "other": []}
    for shift in shifts(folder.root):
        for entry in shift.entries:
            packs[entry.workload.model].append(entry.pack)
    assert packs["other"].count(1) >= 1, "alone at first"
    assert packs["other"].count(2) >= 1


def scarce(path, num_hungry):
    """The first `num_hungry` seeds need the whole of something: they fail where somebody else is at work."""

    def train(spec, *, should_stop, **_):
        with open(path, "a") as lock:
            want = fcntl.LOCK_EX if spec.config.seed < num_hungry else fcntl.LOCK_SH
            try:
                fcntl.flock(lock, want | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MemoryError(f"no room for seed {spec.config.seed}") from None
            return slow(spec, should_stop=should_stop)

    return train


def test_out_of_memory_among_others_is_undone_and_not_the_runs_fault(folder, tmp_path):
    plan = folder.plan()
    hungry_last = tuple(sorted(plan.runs, key=lambda spec: spec.config.seed < 1))
    folder.write_plan(dataclasses.replace(plan, runs=hungry_last[:3] + hungry_last[-1:] + hungry_last[3:-1]))
    assert make(folder, scarce(tmp_path / "lock", 1), number=2).run() == 0
    assert statuses(folder) == ["finished"] * 6
    ledger, losses = Ledger(folder.root), []
    for name in names(folder):
        losses += ledger.losses(name)
    assert losses
    assert set(losses) == {PACKED_OOM}
    state = json.loads(pack_path(folder, "t").read_text())
    assert state["runs_at_once"] == 1
    assert "ran out of memory among 2" in state["undone"]
    again = make(folder, slow, number=2, task="later")
    assert json.loads(pack_path(folder, "later").read_text())["runs_at_once"] == 1, "no later task packs"
    assert again.run() == 0


def test_out_of_memory_alone_is_the_runs_own(folder):
    def train(spec, *, should_stop, **_):
        if spec.config.seed == 2:
            raise MemoryError("too large for this machine")
        return slow(spec, should_stop=should_stop)

    assert make(folder, train, number=2).run() == 0
    assert statuses(folder) == ["finished", "finished", "failed", "finished", "finished", "finished"]
    ledger, name = Ledger(folder.root), names(folder)[2]
    assert ledger.losses(name) == [PACKED_OOM], "once among others, and then alone"
    assert ledger.status(name).failure.kind == "host_oom"


def dying_once(path):
    def train(spec, *, should_stop, **_):
        if spec.config.seed == 3 and not path.exists():
            path.touch()
            time.sleep(0.2)  # until it was looked at
            os.kill(os.getpid(), 9)
        return slow(spec, should_stop=should_stop)

    return train


def test_killed_while_memory_was_short_is_the_packings_fault(folder, tmp_path):
    number = make(folder, dying_once(tmp_path / "died"), Place(memory_gb=1e-3, cores=2), number=2).run()
    assert number == 0
    assert statuses(folder) == ["finished"] * 6
    ledger, name = Ledger(folder.root), names(folder)[3]
    assert ledger.losses(name) == [PACKED_OOM]
    assert "ended by signal 9" in ledger.loss(name, 1)["evidence"]


def test_killed_with_memory_to_spare_is_a_death_like_any_other(folder, tmp_path):
    assert make(folder, dying_once(tmp_path / "died"), number=2).run() == 0
    assert statuses(folder) == ["finished"] * 6
    assert Ledger(folder.root).losses(names(folder)[3]) == ["killed"]
    assert json.loads(pack_path(folder, "t").read_text())["undone"] == ""


def test_asked_to_stop_all_of_its_workers_give_back(folder):
    pack = make(folder, lambda spec, **more: slow_forever(spec, **more), number=2)
    pack.stop.set()
    started = time.monotonic()
    assert pack.run() == 0
    assert time.monotonic() - started < 10
    assert "finished" not in statuses(folder)


def slow_forever(spec, *, should_stop, **_):
    while not should_stop():
        time.sleep(0.01)
    raise GivenBack("saved")


def test_three_like_failures_of_code_end_all_workers(folder):
    def broken(spec, **_):
        raise RuntimeError("a bug")

    folder.write_plan(toy_plan(12, name="toys"))
    assert make(folder, broken, number=2).run() == 4
    assert statuses(folder).count("planned") >= 4, "each of the two stopped after three"


def test_a_whole_task_that_was_ended_for_its_memory(folder):
    assert not undo_of_dead(folder, "t", "OUT_OF_MEMORY"), "it never packed"
    make(folder, slow, number=3)
    assert undo_of_dead(folder, "t", "OUT_OF_MEMORY")
    assert undo_of_dead(folder, "t", "OUT_OF_MEMORY"), "of each of its runs"
    make(folder, slow, number=3)  # the same task, started again
    assert not undo_of_dead(folder, "t", "OUT_OF_MEMORY"), "alone it was the run's own"


def test_footprints_are_the_most_that_was_seen(folder):
    make(folder, slow).run()
    entries = [entry for shift in shifts(folder.root) for entry in shift.entries]
    found = footprint(entries, num_threads=3)
    assert found.cores == 3.0, "its threads, even where a busy machine let it wait"
    assert found.memory_gb == max(entry.memory_gb for entry in entries)
    assert footprint([], 1) is None


def test_memory_is_what_the_scheduler_gave(monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "10")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert memory_of_this_task() == pytest.approx(20 / 1024)
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    whole = memory_of_this_task()
    assert whole is None or whole > 0.05

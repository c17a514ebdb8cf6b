"""A worker takes what is there, survives what breaks, and gives back what it can't finish."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest
from toys import failed, finished, toy_plan

from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.local_worker import work
from sweep.outcomes import same_failure
from sweep.recovery import CLUSTER_REMEDIES
from sweep.slots import holders, take_slot
from sweep.spec import Status
from sweep.trainers import GivenBack, load_trainer, make_trainer
from sweep.worker import NO_SLOT, NODE_FAILURE, NOTHING_LEFT, SAME_FAILURE, Worker

PLAN = toy_plan(4)


class Trainer:
    """Finishes every run, unless told otherwise for its seed: an exception to raise or a record to return."""

    def __init__(self, **by_seed):
        self.by_seed = {int(name.removeprefix("seed")): value for name, value in by_seed.items()}
        self.trained = []

    def __call__(self, spec, *, folder, attempt, should_stop, on_progress):
        self.trained.append(spec.config.seed)
        on_progress(1, 4)
        print(f"training {spec.run_id}", flush=True)
        os.write(2, b"from below python\n")
        what = self.by_seed.get(spec.config.seed)
        if callable(what):
            what = what(should_stop)
        if isinstance(what, BaseException):
            raise what
        return what or finished(spec, attempt=attempt)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)


@contextlib.contextmanager
def real_streams():
    """Python's streams end in file descriptors, as in a process without pytest."""
    with (
        open(1, "w", closefd=False) as output,
        open(2, "w", closefd=False, errors="backslashreplace") as errors,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        yield


@pytest.fixture
def folder(tmp_path):
    folder = SweepFolder(tmp_path, PLAN.name)
    folder.write_plan(PLAN)
    return folder


def worker(folder, trainer, stop=None, **settings):
    make = {"name": "me", "make_run_one": lambda: trainer}
    return Worker(Ledger(folder.root), folder, stop or Flag(), **make, **settings)


def statuses(folder):
    states = Ledger(folder.root).statuses(spec.fingerprint for spec in PLAN.runs)
    return [str(state.status) for state in states.values()]


def test_it_trains_everything_in_the_plans_order(folder):
    trainer = Trainer()
    with real_streams():
        assert worker(folder, trainer).run() == NOTHING_LEFT
    assert trainer.trained == [0, 1, 2, 3]
    assert statuses(folder) == ["finished"] * 4
    spec = PLAN.runs[0]
    run = folder.path / "runs" / spec.run_id
    assert json.loads((run / "spec.json").read_text())["command"].startswith("python -m train ")
    assert (run / "attempts" / "0001.log").read_text().splitlines() == [
        f"training {spec.run_id}",
        "from below python",
    ], "both kinds of output, in order"
    assert worker(folder, trainer).run() == NOTHING_LEFT
    assert trainer.trained == [0, 1, 2, 3], "nothing twice"


def test_the_trainer_is_made_once_and_only_for_work(folder):
    made = []

    def make():
        made.append(1)
        return Trainer()

    for _ in range(2):
        Worker(Ledger(folder.root), folder, Flag(), name="", make_run_one=make).run()
    assert made == [1]


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), MemoryError(), SystemExit(3), ValueError("\udcff lone")]
)
def test_what_breaks_one_run_does_not_break_the_next(folder, error):
    with real_streams():
        assert worker(folder, Trainer(seed1=error)).run() == NOTHING_LEFT
    assert statuses(folder) == ["finished", "failed", "finished", "finished"]
    state = Ledger(folder.root).status(PLAN.runs[1].fingerprint)
    assert state.failure.kind == ("host_oom" if isinstance(error, MemoryError) else "code")
    assert type(error).__name__ in state.failure.traceback
    assert "test_worker.py" in state.failure.last_frame
    log = Ledger(folder.root).attempt_path(PLAN.runs[1].fingerprint, 1, "log")
    assert type(error).__name__ in log.read_text()


def test_a_record_of_a_failure_is_a_failure(folder):
    worker(folder, Trainer(seed2=failed(PLAN.runs[2], kind="nan_loss"))).run()
    assert statuses(folder)[2] == "failed"
    assert Ledger(folder.root).status(PLAN.runs[2].fingerprint).failure.kind == "nan_loss"


def test_a_record_that_cannot_be_written_is_a_failure(folder):
    record = finished(PLAN.runs[0], metrics={"validation_response_nll": float("nan")})
    worker(folder, Trainer(seed0=record)).run()
    assert statuses(folder)[0] == "failed"


def test_a_trainer_that_cannot_be_made_fails_three_runs_and_no_more(folder):
    def make():
        raise ImportError("no torch here")

    unlucky = Worker(Ledger(folder.root), folder, Flag(), name="", make_run_one=make)
    assert unlucky.run() == SAME_FAILURE
    assert statuses(folder) == ["failed", "failed", "failed", "planned"]


def test_three_different_failures_are_the_runs_own(folder):
    errors = {f"seed{seed}": RuntimeError(seed) for seed in (0, 1)}
    assert worker(folder, Trainer(**errors, seed2=MemoryError())).run() == NOTHING_LEFT
    assert statuses(folder) == ["failed", "failed", "failed", "finished"]


def test_a_measured_base_model_says_nothing_about_training(folder):
    plan = toy_plan(4, has_base=True)
    folder.write_plan(plan)

    class Untrainable(Trainer):
        def __call__(self, spec, **arguments):
            if spec.config.stage == "base":
                return finished(spec)
            raise RuntimeError("a bug")

    assert worker(folder, Untrainable()).run() == SAME_FAILURE
    assert statuses(folder) == ["failed", "failed", "failed", "planned"]


def test_a_checkpoint_goes_when_the_record_is_there(folder):
    class Saving(Trainer):
        def __call__(self, spec, *, folder, **arguments):
            (folder / "checkpoint").mkdir()
            return super().__call__(spec, folder=folder, **arguments)

    worker(folder, Saving(seed1=RuntimeError("no"))).run()
    left = [(Ledger(folder.root).folder(spec.fingerprint) / "checkpoint").exists() for spec in PLAN.runs]
    assert left == [False, True, False, False]


def test_only_the_codes_failures_are_taken_for_the_codes():
    code = failed(PLAN.runs[0]).failure
    other = failed(PLAN.runs[0], last_frame="elsewhere:1").failure
    data = failed(PLAN.runs[0], kind="data").failure
    assert same_failure([code, code, code]) == code
    assert same_failure([code] * 4) == code
    assert same_failure([code, code]) is None
    assert same_failure([code, code, other]) is None
    assert same_failure([code, None, code]) is None
    assert same_failure([None] * 3) is None
    assert same_failure([data] * 3) is None, "another dataset of the sweep may be well"


def test_asked_to_stop_it_gives_its_run_back(folder):
    stop, heard = Flag(), []

    def be_stopped(should_stop):
        heard.append(should_stop())
        stop.set()
        heard.append(should_stop())
        return GivenBack("saved")

    trainer = Trainer(seed1=be_stopped)
    assert worker(folder, trainer, stop).run() == NOTHING_LEFT
    assert heard == [False, True]
    assert trainer.trained == [0, 1]
    assert statuses(folder) == ["finished", "interrupted", "planned", "planned"]
    assert worker(folder, Trainer()).run() == NOTHING_LEFT
    assert statuses(folder) == ["finished"] * 4
    assert Ledger(folder.root).record(PLAN.runs[1].fingerprint).attempt == 2


def test_a_full_disk_is_not_the_runs_fault(folder):
    trainer = Trainer(seed1=OSError(28, "No space left on device"))
    with pytest.raises(OSError, match=f"No space left on device; {PLAN.runs[1].run_id} can be continued"):
        worker(folder, trainer).run()
    assert trainer.trained == [0, 1]
    assert statuses(folder) == ["finished", "lost", "planned", "planned"]
    assert Ledger(folder.root).losses(PLAN.runs[1].fingerprint) == ["disk_full"]


def test_a_broken_node_gives_its_run_to_another_and_ends(folder):
    trainer = Trainer(seed1=RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    assert worker(folder, trainer).run() == NODE_FAILURE
    assert statuses(folder) == ["finished", "lost", "planned", "planned"]
    for _ in range(3):
        assert worker(folder, trainer).run() == NODE_FAILURE
    assert worker(folder, trainer).run() == NODE_FAILURE, "on five nodes: it's the run"
    assert statuses(folder)[1] == "failed"
    assert worker(folder, trainer).run() == NOTHING_LEFT
    assert statuses(folder) == ["finished", "failed", "finished", "finished"]


def test_a_run_gets_more_memory_where_there_is_more(folder):
    trainer = Trainer(seed0=MemoryError())
    worker(folder, trainer).run()
    assert statuses(folder)[0] == "failed", "this machine has no more"
    Ledger(folder.root).retry(PLAN.runs[0].fingerprint)
    worker(folder, trainer, remedies=CLUSTER_REMEDIES).run()
    assert statuses(folder)[0] == "failed"
    assert Ledger(folder.root).losses(PLAN.runs[0].fingerprint) == ["host_oom", "host_oom"]


def test_a_run_that_somebody_took_over_is_stopped_and_not_recorded(folder, monkeypatch):
    monkeypatch.setattr("sweep.holding.BEAT_EVERY_S", 0.02)
    ledger, heard = Ledger(folder.root), []

    def be_taken_over(should_stop):
        claimed = ledger.attempt_path(PLAN.runs[0].fingerprint, 1, "json")
        claimed.with_name("0002.json").write_text(claimed.read_text())
        deadline = time.monotonic() + 10
        while not should_stop() and time.monotonic() < deadline:
            time.sleep(0.005)
        heard.append(should_stop())

    worker(folder, Trainer(seed0=be_taken_over)).run()
    assert heard == [True]
    assert ledger.record(PLAN.runs[0].fingerprint) is None


def test_a_request_on_disk_stops_it_too(folder, monkeypatch):
    monkeypatch.setattr("sweep.holding.BEAT_EVERY_S", 0.02)

    def be_cancelled(should_stop):
        time.sleep(0.05)
        folder.ask_to_stop()
        deadline = time.monotonic() + 10
        while not should_stop() and time.monotonic() < deadline:
            time.sleep(0.005)
        return GivenBack("saved")

    trainer = Trainer(seed0=be_cancelled)
    worker(folder, trainer).run()
    assert trainer.trained == [0]
    assert statuses(folder)[:2] == ["interrupted", "planned"]


def test_it_beats_while_a_step_is_long(folder, monkeypatch):
    monkeypatch.setattr("sweep.holding.BEAT_EVERY_S", 0.02)
    monkeypatch.setattr("sweep.ledger.BEAT_EVERY_S", 0.01)
    times = []

    def take_long(should_stop):
        for _ in range(2):
            time.sleep(0.1)
            times.append(Ledger(folder.root).status(PLAN.runs[0].fingerprint).heartbeat.time)
        return

    worker(folder, Trainer(seed0=take_long)).run()
    assert times[0] < times[1]


def test_another_question_under_the_same_name_is_heard(folder):
    longer = toy_plan(6)

    def ask_more(should_stop):
        folder.write_plan(longer)
        return

    trainer = Trainer(seed1=ask_more)
    worker(folder, trainer).run()
    assert trainer.trained == [0, 1, 2, 3, 4, 5]


def test_what_is_no_longer_asked_is_not_begun(folder):
    def ask_less(should_stop):
        folder.write_plan(toy_plan(2))

    trainer = Trainer(seed0=ask_less)
    worker(folder, trainer).run()
    assert trainer.trained == [0, 1]


def test_without_a_plan_there_is_nothing_to_do(tmp_path):
    assert worker(SweepFolder(tmp_path, "nothing"), Trainer()).run() == NOTHING_LEFT


def test_a_slot_is_one_workers(tmp_path):
    lock = take_slot(tmp_path, "toys", 0, job="17")
    (holder,) = holders(tmp_path).values()
    assert (holder.slot, holder.sweep, holder.job, holder.owner.pid) == (0, "toys", "17", os.getpid())
    assert take_slot(tmp_path, "others", 0) is None
    assert work(str(tmp_path), "toys", 0) == NO_SLOT
    assert holders(tmp_path)[0].sweep == "toys", "who looked in vain left no trace"
    lock.close()
    other = take_slot(tmp_path, "others", 0)
    assert holders(tmp_path)[0].sweep == "others"
    other.close()


def test_a_dead_holder_is_no_holder(tmp_path, project):
    code = (
        "from sweep.slots import take_slot; import os\n"
        f"lock = take_slot({str(tmp_path)!r}, 'toys', 3); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=False)
    assert list((tmp_path / ".slots").iterdir())
    assert holders(tmp_path) == {}
    take_slot(tmp_path, "toys", 3).close()


def test_signals_that_come_all_at_once_do_not_hang_a_worker(project):
    code = (
        "import signal, sys, time; from sweep.flag import Flag; from sweep.local_worker import _detach\n"
        "stop = Flag(); _detach(stop); print('up', flush=True)\n"
        "end = time.monotonic() + 1.0\n"
        "while time.monotonic() < end: stop.set(); stop.wait(0.001); stop.is_set()\n"
        "print(stop.is_set(), flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=project, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    while process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGUSR2)
        if select.select([process.stdout], [], [], 0)[0]:
            break
    output, _ = process.communicate(timeout=30)
    assert output == "True\n"


def test_the_trainer_is_named_by_module_and_function():
    assert load_trainer("sweep.trainers:make_trainer") is make_trainer


def test_a_worker_composes_nothing(project):
    code = "import sys, sweep.local_worker; print({'hydra', 'sweep.compose', 'submitit'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_importing_a_worker_loads_no_torch(project):
    code = "import sys, sweep.local_worker, sweep.controller, sweep.commands.running; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_a_status_is_one_of_seven():
    assert [str(status) for status in Status] == [
        "planned",
        "running",
        "interrupted",
        "lost",
        "paused",
        "failed",
        "finished",
    ]

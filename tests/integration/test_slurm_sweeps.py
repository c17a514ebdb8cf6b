"""Sweeps on a real SLURM: detached, in few calls, equal to the local launcher's bit for bit."""

import os
import shutil
import time

import pytest
from commands import run_command
from slurm_sweeps import toy_tender
from test_kill import assert_no_attempt_after_the_record, results
from toy_sweep import toy_plan

from sweep.ledger import Ledger
from sweep.slurm.batches import folder_of
from sweep.slurm.queue import read_queue
from sweep.spec import Status
from train.files import only_one, read_json

pytestmark = pytest.mark.integration
SMALL = (
    "dataset.num_train_rows=64",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "dataset.num_robustness_rows=0",
    "train.epochs=1",
    "eval.max_new_tokens=4",
)
FORTY = (
    "+grid=smoke_2x2",
    f"grid.seeds={list(range(13))}".replace(" ", ""),
    *SMALL,
)  # 3 x 13 runs, and the base


@pytest.fixture
def calls(monkeypatch):
    """Every call of the scheduler's commands that we make, as its first word. sbatch is submitit's."""
    import subprocess

    made: list[str] = []
    popen = subprocess.Popen

    class Counted(popen):
        def __init__(self, command, *args, **kwargs):
            made.append(str(command[0]))
            super().__init__(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Counted)
    return made


def finish(tender, timeout_s=120.0, poll_s=1.0):
    """Look again and again, as watch does, until all is recorded."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = tender.tend()
        if all(state.status is Status.FINISHED for state in found.states.values()):
            return found
        assert time.monotonic() < deadline, {name: state.status for name, state in found.states.items()}
        time.sleep(poll_s)


def test_forty_runs_on_four_nodes_equal_the_local_launchers(slurm, tmp_path):
    there, here = tmp_path / "cluster", tmp_path / "local"
    words = (*FORTY, f"root={there}", "launcher=slurm", "launcher.max_jobs=4")
    started = run_command("sweep", *words)
    assert started.returncode == 0, started.stdout + started.stderr
    assert "submitted 4 workers" in started.stdout
    local = run_command("sweep", *FORTY, f"root={here}", "launcher.slots=1")
    assert local.returncode == 0, local.stdout + local.stderr
    deadline = time.monotonic() + 240  # nobody looks meanwhile: the workers need nobody
    while len(list(there.glob(".runs/*/record.json"))) < 40 and time.monotonic() < deadline:
        time.sleep(1.0)
    claims = [read_json(path) or {} for path in there.glob(".runs/*/attempts/0001.json")]
    done = run_command("sweep", *words, "collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 of 40 runs finished" in done.stdout
    assert results(there) == results(here)
    assert len(results(there)) == 40
    assert_no_attempt_after_the_record(there)
    nodes = {claim["worker"].partition(",")[0] for claim in claims}
    assert nodes <= {"c1", "c2", "g1", "g2"}
    assert len(nodes) >= 2, "all on one node"  # a late node may find nothing left of 40 runs of a second


def test_many_runs_take_one_sbatch_and_less_than_two_seconds(slurm, tmp_path, calls):
    tender = toy_tender(tmp_path, toy_plan(625), max_jobs=625, sbatch=("--begin=now+1hour",))
    started = time.monotonic()
    found = tender.tend()
    elapsed_s = time.monotonic() - started
    assert sum(batch.num_tasks for batch in found.sent) == 625
    assert calls.count("sbatch") <= 2
    assert len([task for task in read_queue().values() if task.batch == found.sent[0].batch]) == 625
    assert elapsed_s <= 2.0
    assert tender.tend().sent == (), "all workers are in the queue already"
    tender.cancel_waiting()


def test_a_look_at_a_thousand_runs_takes_a_second_and_one_call(slurm, tmp_path, calls):
    plan = toy_plan(1000)
    tender = toy_tender(tmp_path, plan, sbatch=("--begin=now+1hour",))
    for spec in plan.runs[:600]:
        claim = Ledger(tmp_path).claim(spec.fingerprint, "test")
        assert claim is not None
    tender.tend()
    time.sleep(3.0)  # the scheduler has to pass by once before it gives reasons
    calls.clear()
    started = time.monotonic()
    found = tender.look()
    assert time.monotonic() - started <= 1.0
    assert calls == ["squeue"]
    assert found.num_waiting == 8
    assert found.reasons() == {"Dependency": 8}, "on the job that looks whether nodes see our files"
    tender.cancel_waiting()


def test_two_submitters_at_once_send_one_array(slurm, tmp_path):
    plan = toy_plan(20)
    first, second = (toy_tender(tmp_path, plan) for _ in range(2))
    with only_one(folder_of(first.folder) / "submit.lock") as is_ours:
        assert is_ours
        assert second.tend().sent == ()
    assert len(first.tend().sent) == 1
    assert second.tend().sent == ()
    finish(second, 60)
    assert_no_attempt_after_the_record(tmp_path)


def test_a_submitter_that_dies_around_sbatch_loses_and_doubles_nothing(slurm, tmp_path, monkeypatch):
    from sweep.slurm import submit

    plan = toy_plan(6)
    tender = toy_tender(tmp_path, plan)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(submit, "write_answer", die)  # after sbatch, before it is written down
        with pytest.raises(KeyboardInterrupt):
            tender.tend()
    again = toy_tender(tmp_path, plan)
    found = again.tend()
    assert found.sent == (), "its array was found by its name"
    assert found.batches[0].job
    assert again.repair() == [
        f"batch {found.batches[0].batch} is job {found.batches[0].job}: "
        "its submitter died before writing it down"
    ]


REFUSALS = {
    "partition": (["launcher.partition=nowhere"], "launcher.partition"),
    "gpus": (["model.gpus=9", "launcher.partition=gpu"], "launcher.gpus"),
    "memory": (["launcher.memory_gb=900"], "launcher.memory_gb"),
    "no such gres": (["model.gpus=1", "launcher.gres='tpu:{gpus}'"], "launcher.gres"),
    "constraint": (["launcher.constraint=quantum"], "launcher.constraint"),
    "option": (["launcher.sbatch=['--no-such-option=1']"], "launcher.sbatch"),
}


def at_work() -> set[str]:
    """What waits or works in the queue."""
    return {key for key, task in read_queue().items() if task.is_waiting or task.is_working}


def assert_nothing_was_sent(before):
    deadline = time.monotonic() + 10  # in which one that was taken back ends
    while more := at_work() - before:
        assert time.monotonic() < deadline, more
        time.sleep(0.2)


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_the_schedulers_words_and_the_setting_to_change(slurm, tmp_path, name):
    words, setting = REFUSALS[name]
    before = at_work()
    done = run_command("sweep", "+grid=smoke_2x2", f"root={tmp_path}", "launcher=slurm", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: sbatch says: ")
    assert setting in lines[0]
    assert_nothing_was_sent(before)


def test_without_sbatch_it_is_one_line(slurm, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("squeue", "scontrol", "scancel"):
        (tools / name).symlink_to(shutil.which(name) or "/absent")
    done = run_command(
        "sweep", "+grid=smoke_2x2", f"root={tmp_path / 'root'}", "launcher=slurm", PATH=str(tools)
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: sbatch is not on PATH; expected a login node of a SLURM cluster")


LACKING = {  # what a file system can't do -> what Python then sees
    "hard links": ("link", "PermissionError(errno.EPERM, 'Operation not permitted')"),
    "atomic rename": ("replace", "OSError(errno.ENOTSUP, 'Operation not supported')"),
    "locks": ("flock", "OSError(errno.ENOLCK, 'No locks available')"),
}


@pytest.mark.parametrize("lacks", sorted(LACKING))
def test_a_file_system_that_cannot_hold_results_is_refused_before_anything_is_sent(slurm, tmp_path, lacks):
    call, error = LACKING[lacks]
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl, os\n"
        f"module = fcntl if {call!r} == 'flock' else os\n"
        f"real = module.{call}\n"
        "def lacking(first, *rest, **named):\n"
        f"    if {call!r} == 'flock' or '/root/' in str(first): raise {error}\n"
        "    return real(first, *rest, **named)\n"
        f"module.{call} = lacking\n"
    )
    before, places = at_work(), os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    words = ("+grid=smoke_2x2", f"root={tmp_path}/root", "launcher=slurm")
    done = run_command("sweep", *words, PYTHONPATH=places)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: root={tmp_path}/root can't hold results: ")
    assert "set root= to a folder on such a disk" in line
    assert_nothing_was_sent(before)


def test_without_a_scheduler_it_is_one_line(tmp_path):
    done = run_command("sweep", "+grid=smoke_2x2", f"root={tmp_path}", "launcher=slurm", PATH="/nowhere")
    assert done.returncode == 2
    assert "squeue is not on PATH" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

"""Each fault alone, on a real SLURM: nothing is lost, nothing is trained twice to the end, the bits are the same.

The toy trainer's parameters are a chain of hashes over its steps, with a checkpoint after each: the save interval is
one step. Faults that concern only one sweep, or only a node of its own, happen at the same time, to save minutes.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from slurm_scenes import Scene, as_user_of, crash, fill, most_in_a_minute, preempt, scene

from sweep.claims import owner_from_dict
from sweep.errors import LedgerError
from sweep.slurm.burial import bad_nodes
from train.files import read_json

pytestmark = pytest.mark.integration
WATCHERS = ("one", "two")
ELSEWHERE = {"exclude": "c1,c2"}  # those two nodes are for the faults that break one


def kill_a_worker(it: Scene) -> None:
    _, pid = it.running()[0]
    os.kill(pid, signal.SIGKILL)


def cancel_a_task(it: Scene) -> None:
    spec, _ = it.running()[0]
    subprocess.run(["scancel", it.job_of(spec)], check=True)


def requeue_a_task(it: Scene) -> None:
    spec, _ = it.running()[0]
    subprocess.run(["scontrol", "requeue", it.job_of(spec)], check=True)


def preempt_a_task(it: Scene) -> None:
    preempt(next(task.node for task in it.tasks() if task.state == "RUNNING"))
    it.until(lambda: it.num_released() > 0, 30)


def stop_a_worker(it: Scene) -> None:
    _, pid = it.running()[0]
    os.kill(pid, signal.SIGSTOP)


def nothing(it: Scene) -> None:
    """The time limit comes by itself, or the device is broken from the start."""


def crash_a_node(it: Scene) -> None:
    """Everything on it dies at once, and it comes back when SLURM has noticed."""
    it.cluster.daemons.kill("slurmd.c1")
    crash("c1")
    it.until(lambda: any(task.restart for task in it.tasks()), 60)
    it.cluster.start_node("c1")


def silence_a_node(it: Scene) -> None:
    """Its worker computes on, and SLURM can't know."""
    it.cluster.daemons.kill("slurmd.c2")
    it.until(lambda: any(task.restart for task in it.tasks()), 60)
    it.cluster.start_node("c2")


def fill_the_disk(it: Scene) -> None:
    """Steps fail, words are lost, nobody dies of it: jobs wait, and whoever looks is told."""
    ballast = fill(it.root)
    told = it.until(lambda: _refusal(it), 30)
    assert "can't hold results: No space left on device; expected some free space" in told
    num_jobs = len(it.tasks())
    time.sleep(6.0)
    ballast.unlink()
    it.finish()
    assert len(it.tasks()) == num_jobs, "the jobs waited; none was burnt"


def _refusal(it: Scene) -> str:
    try:
        it.tender.tend()
    except LedgerError as error:
        return str(error)
    return ""


def close_the_terminal(it: Scene) -> None:
    """Of the process that submits and watches: SIGHUP, and output that goes nowhere."""
    terminal, watcher = it.watch_in_a_terminal()
    it.until(it.running)
    os.close(terminal)
    assert watcher.wait(timeout=20) == -signal.SIGHUP


def watch_twice(it: Scene) -> None:
    """For more than a minute, in which a worker dies and only they see to it."""
    watchers = [it.watch_and_count(name) for name in WATCHERS]
    started = time.monotonic()
    it.until(it.running)
    kill_a_worker(it)
    while time.monotonic() - started < 75:
        assert [watcher.poll() for watcher in watchers] == [None, None], "still watching"
        time.sleep(1.0)
    assert it.losses() == ["killed"]
    for watcher in watchers:
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(timeout=30) == 130


@dataclass(frozen=True)
class Fault:
    """do: what happens. lost: steps that may be repeated. kinds: how the loss may be classed; () for no loss.

    begin: what comes before it.
    """

    do: Callable[[Scene], None]
    lost: int = 0
    kinds: tuple[str, ...] = ()
    settings: dict = field(default_factory=dict)
    begin: Callable[[Scene], None] = Scene.begin


ALONE = {
    "time limit": Fault(
        nothing,
        settings={
            "partition": "short",
            "time_min": 1,
            "max_jobs": 1,
            "num_runs": 1,
            "step_s": 2.5,
            **ELSEWHERE,
        },
    ),
    "time limit without a signal": Fault(
        nothing,
        settings={
            "partition": "short",
            "time_min": 1,
            "max_jobs": 1,
            "num_runs": 1,
            "step_s": 2.7,
            "signal": "none",
            **ELSEWHERE,
        },
    ),
    "a silent node": Fault(
        silence_a_node,
        1,
        ("node_fail",),
        settings={"num_runs": 2, "step_s": 1.8, "max_jobs": 1, "sbatch": ("--nodelist=c2",)},
    ),
    "a node crashes": Fault(
        crash_a_node, 1, ("node_fail",), settings={"num_runs": 3, "max_jobs": 1, "sbatch": ("--nodelist=c1",)}
    ),
    "a broken device": Fault(
        nothing,
        2,
        ("node_fail",),
        settings={"partition": "gpu", "max_jobs": 4, "setup": ("export TOY_STEP_S=0.2 TOY_BROKEN_NODE=g2",)},
        begin=Scene.send,
    ),
    "SIGKILL of a worker": Fault(kill_a_worker, 1, ("killed",), settings=ELSEWHERE),
    "scancel of a task": Fault(cancel_a_task, settings=ELSEWHERE),
    "scontrol requeue": Fault(requeue_a_task, settings={"max_jobs": 1, "num_runs": 3, **ELSEWHERE}),
    "preemption": Fault(
        preempt_a_task,
        settings={"partition": "low", "max_jobs": 1, "num_runs": 3, "cpus_per_worker": 8, **ELSEWHERE},
    ),
    "a hung worker": Fault(  # SLURM wakes what it ends: it can save
        stop_a_worker, 1, settings={"hung_s": 8.0, **ELSEWHERE}
    ),
    "a full disk": Fault(
        fill_the_disk, 6, ("disk_full",), settings={"disk_mb": 8, "hung_s": 60.0, **ELSEWHERE}
    ),
    "a full disk under packed runs": Fault(
        fill_the_disk,
        6,
        ("disk_full",),
        settings={"disk_mb": 8, "hung_s": 60.0, "max_jobs": 1, "pack": 2, "cpus_per_worker": 2, **ELSEWHERE},
    ),
    "a terminal that closes": Fault(close_the_terminal, settings=ELSEWHERE, begin=nothing),
    "too little memory": Fault(
        nothing,
        20,
        ("host_oom",),
        settings={
            "num_runs": 2,
            "memory_gb": 0.3,
            "setup": ("export TOY_STEP_S=0.3 TOY_MB=420",),
            **ELSEWHERE,
        },
        begin=Scene.send,
    ),
    "two who watch": Fault(
        watch_twice, 1, ("killed",), settings={"num_runs": 1, "max_jobs": 1, "step_s": 4.0, **ELSEWHERE}
    ),
}


@pytest.fixture(scope="module")
def scenes(slurm_cluster, tmp_path_factory):
    """All of them at once."""
    folder = tmp_path_factory.mktemp("faults")
    with as_user_of(slurm_cluster), contextlib.ExitStack() as disks:
        stages = {
            name: scene(folder, name.replace(" ", "_"), cluster=slurm_cluster, disks=disks, **fault.settings)
            for name, fault in ALONE.items()
        }

        def play(name: str) -> None:
            try:
                ALONE[name].begin(stages[name])
                ALONE[name].do(stages[name])
                stages[name].finish()
            except BaseException as error:
                stages[name].error = error

        threads = [threading.Thread(target=play, args=(name,)) for name in ALONE]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        for thread in threads:
            thread.join()
        yield stages


@pytest.mark.parametrize("name", list(ALONE))
def test_a_fault_alone(scenes, name):
    it, fault = scenes[name], ALONE[name]
    if it.error is not None:
        raise it.error
    it.check(fault.lost)
    losses = it.losses()
    assert set(losses) <= set(fault.kinds), it.said
    assert bool(losses) == bool(fault.kinds)
    if name.startswith(("preemption", "time limit", "scontrol requeue")):
        lives = [owner_from_dict(read_json(path)) for path in it.root.glob(".runs/*/attempts/*[0-9].json")]
        assert max(int(owner.job.rpartition(".")[2]) for owner in lives if owner) >= 1, "the same job went on"
        assert it.num_released() >= 1
    if name == "a hung worker":
        assert any("queued again" in line for line in it.said)
    if name == "a broken device":
        assert bad_nodes(it.tender.folder) == ["g2"]
        assert it.tender._without_bad_nodes().exclude == "g2"
        assert len(losses) == 2, "each of its two workers lost one run and left"
    if name == "too little memory":
        assert {batch.class_name for batch in it.tender.look().batches} == {
            "0gpu-0.3gb-5min",
            "0gpu-0.6gb-5min",
        }


@pytest.mark.parametrize("watcher", WATCHERS)
def test_who_watches_calls_the_scheduler_four_times_a_minute_at_most(scenes, watcher):
    calls = scenes["two who watch"].root / f"calls-{watcher}"
    names = [line.split()[1] for line in calls.read_text().splitlines()]
    assert names.count("squeue") >= 3, "it looked every half minute"
    assert names.count("squeue") + names.count("sacct") + names.count("sbatch") == len(names)
    assert most_in_a_minute(calls) <= 4, calls.read_text()


def test_the_controller_restarts(slurm, tmp_path):
    it = scene(tmp_path, "controller", num_runs=3)
    it.begin()
    slurm.daemons.stop(
        "slurmctld"
    )  # SIGTERM: it saves its state; jobs it hadn't saved are killed by the next one
    assert "squeue says" in it.tender.look().problem
    assert it.tender.look().dead == ()
    slurm.start_controller()
    it.finish()
    it.check(0)
    assert it.losses() == []


def test_the_controller_is_killed(slurm, tmp_path, monkeypatch):
    """What was submitted in the last second may be lost, and its number given to somebody else."""
    monkeypatch.setattr(
        "sweep.slurm.reconcile.SUBMISSION_S", 5.0
    )  # that a batch is given to appear in the queue
    it = scene(tmp_path, "killed", num_runs=4)
    it.send()
    slurm.daemons.kill("slurmctld")
    time.sleep(1.0)
    slurm.start_controller()
    it.finish()
    it.check(2)
    assert set(it.losses()) <= {"killed", "node_fail", "cancelled", "preempted"}


def test_without_accounting_everything_works(slurm, tmp_path):
    slurm.daemons.stop("slurmdbd")
    try:
        it = scene(tmp_path, "accounting", num_runs=3)
        it.begin()
        kill_a_worker(it)
        it.finish()
        it.check(1)
        assert it.losses() == ["killed"]
    finally:
        slurm.start_accounting()

"""Each fault alone, on a real SLURM: nothing is lost, nothing is trained twice to the end, the bits are the same.

The toy trainer's parameters are a chain of hashes over its steps, with a checkpoint after each: the save interval is
one step. Faults that concern only one sweep happen at the same time in sweeps of their own, to save minutes.
"""

import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from slurm_sweeps import toy_tender
from test_kill import assert_no_attempt_after_the_record, results
from toy_sweep import toy_plan
from toy_trainer import NUM_STEPS

from sweep.claims import owner_from_dict
from sweep.slurm.queue import Queued, read_queue
from sweep.slurm.tend import Tender
from sweep.spec import Plan, RunSpec, Status
from train.files import read_json

pytestmark = pytest.mark.integration
NUM_RUNS = 6
STEP_S = 0.4  # a run takes 8 s


@dataclass
class Scene:
    """A toy sweep on the cluster and what is done to it."""

    root: Path
    plan: Plan
    tender: Tender
    said: list[str] = field(default_factory=list)
    error: BaseException | None = None

    def begin(self) -> None:
        self.tender.say = self.said.append
        self.tender.tend()
        self.until(lambda: self.running(), 60)

    def until(self, condition: Callable[[], object], timeout_s: float = 60.0):
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{self.root.name}: waited {timeout_s} s; {self.said}"
            time.sleep(0.2)
        return value

    def running(self, at_least: int = 3) -> list[tuple[RunSpec, int]]:
        """Runs that are under way, with the process number of their worker."""
        found = []
        for spec in self.plan.runs:
            state = self.tender.ledger.status(spec.fingerprint)
            if state.status is Status.RUNNING and state.owner and self.num_steps(spec) >= at_least:
                found.append((spec, state.owner.pid))
        return found

    def job_of(self, spec: RunSpec) -> str:
        state = self.tender.ledger.status(spec.fingerprint)
        assert state.owner
        return state.owner.job.partition(":")[2].rpartition(".")[0]

    def tasks(self) -> list[Queued]:
        known = {batch.batch for batch in self.tender.look().batches}
        return [task for task in read_queue().values() if task.batch in known]

    def num_steps(self, spec: RunSpec) -> int:
        try:
            return len((self.root / ".runs" / spec.fingerprint / "steps.log").read_text().split())
        except FileNotFoundError:
            return 0

    def finish(self, timeout_s: float = 150.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            states = self.tender.tend().states
            if all(state.status is Status.FINISHED for state in states.values()):
                return
            assert time.monotonic() < deadline, (
                f"{self.root.name}: {[s.status for s in states.values()]} {self.said}"
            )
            time.sleep(1.0)

    def check(self, num_steps_lost: int) -> None:
        """Everything recorded, to the bit, and no more steps repeated than so many."""
        found = results(self.root)
        assert {name: parameters for name, (parameters, _, _) in found.items()} == {
            spec.fingerprint: chain(spec) for spec in self.plan.runs
        }
        assert_no_attempt_after_the_record(self.root)
        total = sum(self.num_steps(spec) for spec in self.plan.runs)
        assert total <= len(self.plan.runs) * NUM_STEPS + num_steps_lost, f"{total} steps"

    def losses(self) -> list[str]:
        """The classes of what was lost."""
        return [
            str((read_json(path) or {})["kind"]) for path in self.root.glob(".runs/*/attempts/*.lost.json")
        ]

    def num_released(self) -> int:
        return len(list(self.root.glob(".runs/*/attempts/*.released")))


def chain(spec: RunSpec) -> str:
    """What an undisturbed training of this run ends in."""
    value = spec.fingerprint
    for step in range(NUM_STEPS):
        value = hashlib.sha256(f"{value} {step}".encode()).hexdigest()
    return value


def scene(folder: Path, name: str, *, num_runs: int = NUM_RUNS, step_s: float = STEP_S, **settings) -> Scene:
    plan = toy_plan(num_runs)
    options = {"max_jobs": 2, "setup": (f"export TOY_STEP_S={step_s}",), **settings}
    return Scene(folder / name, plan, toy_tender(folder / name, plan, **options))


def kill_a_worker(it: Scene) -> None:
    _, pid = it.running()[0]
    os.kill(pid, signal.SIGKILL)


def cancel_a_task(it: Scene) -> None:
    spec, _ = it.running()[0]
    subprocess.run(["scancel", it.job_of(spec)], check=True)


def requeue_a_task(it: Scene) -> None:
    spec, _ = it.running()[0]
    subprocess.run(["scontrol", "requeue", it.job_of(spec)], check=True)


def preempt(it: Scene) -> None:
    node = next(task.node for task in it.tasks() if task.state == "RUNNING")
    subprocess.run(
        [
            "sbatch",
            "--partition=main",
            f"--nodelist={node}",
            "--cpus-per-task=4",
            "--output=/dev/null",
            "--wrap=sleep 3",
        ],
        check=True,
        capture_output=True,
    )
    it.until(lambda: it.num_released() > 0, 30)


def stop_a_worker(it: Scene) -> None:
    _, pid = it.running()[0]
    os.kill(pid, signal.SIGSTOP)


def nothing(it: Scene) -> None:
    """The time limit comes by itself."""


@dataclass(frozen=True)
class Fault:
    """do: what happens. lost: steps that may be repeated. kinds: how the loss may be classed; () for no loss."""

    do: Callable[[Scene], None]
    lost: int = 0
    kinds: tuple[str, ...] = ()
    settings: dict = field(default_factory=dict)


ALONE = {
    "SIGKILL of a worker": Fault(kill_a_worker, 1, ("killed",)),
    "scancel of a task": Fault(cancel_a_task),
    "scontrol requeue": Fault(requeue_a_task, settings={"max_jobs": 1, "num_runs": 3}),
    "preemption": Fault(
        preempt, settings={"partition": "low", "max_jobs": 1, "num_runs": 3, "cpus_per_worker": 4}
    ),
    "time limit": Fault(
        nothing, settings={"partition": "short", "time_min": 1, "max_jobs": 1, "num_runs": 2, "step_s": 1.8}
    ),
    "a hung worker": Fault(
        stop_a_worker, 1, settings={"hung_s": 8.0}
    ),  # SLURM wakes what it ends: it can save
}


@pytest.fixture(scope="module")
def scenes(slurm_cluster, tmp_path_factory):
    """All faults that concern only their own sweep, at once."""
    folder = tmp_path_factory.mktemp("faults")
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        patch.delenv(name)
    here = Path(__file__).resolve().parent
    patch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    patch.setenv("PATH", slurm_cluster.environment["PATH"])
    patch.setenv("PYTHONPATH", os.pathsep.join([str(here.parents[1]), str(here)]))
    stages = {name: scene(folder, name.replace(" ", "_"), **fault.settings) for name, fault in ALONE.items()}

    def play(name: str) -> None:
        try:
            stages[name].begin()
            ALONE[name].do(stages[name])
            stages[name].finish()
        except BaseException as error:
            stages[name].error = error

    threads = [threading.Thread(target=play, args=(name,)) for name in ALONE]
    for thread in threads:
        thread.start()
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    yield stages
    patch.undo()


@pytest.mark.parametrize("name", list(ALONE))
def test_a_fault_alone(scenes, name):
    it, fault = scenes[name], ALONE[name]
    if it.error is not None:
        raise it.error
    it.check(fault.lost)
    losses = it.losses()
    assert set(losses) <= set(fault.kinds), it.said
    assert bool(losses) == bool(fault.kinds)
    if name in ("preemption", "time limit", "scontrol requeue"):
        lives = [owner_from_dict(read_json(path)) for path in it.root.glob(".runs/*/attempts/*[0-9].json")]
        assert max(int(owner.job.rpartition(".")[2]) for owner in lives if owner) >= 1, "the same job went on"
        assert it.num_released() >= 1
    if name == "a hung worker":
        assert any("queued again" in line for line in it.said)


def test_a_node_goes_down(slurm, tmp_path):
    it = scene(tmp_path, "down", num_runs=4)
    it.begin()
    node = next(task.node for task in it.tasks() if task.state == "RUNNING")
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    try:
        it.finish()
    finally:
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
    it.check(1)


def test_a_node_that_falls_silent_computes_on_and_is_not_robbed(slurm, tmp_path):
    it = scene(tmp_path, "zombie", num_runs=2, step_s=1.8, max_jobs=1)
    it.begin()
    node = next(task.node for task in it.tasks() if task.state == "RUNNING")
    slurm.daemons.kill(f"slurmd.{node}")  # its worker lives, and SLURM can't know
    it.until(lambda: any(task.restart for task in it.tasks()), 60)
    it.finish(150)
    slurm.start_node(node)
    it.check(1)


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

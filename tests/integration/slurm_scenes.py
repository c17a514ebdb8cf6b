"""Scenes: toy sweeps on a real SLURM to which things are done, and what must be true of them afterwards."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from slurm_sweeps import toy_tender
from test_kill import assert_no_attempt_after_the_record, results
from toy_sweep import toy_plan
from toy_trainer import NUM_STEPS

from sweep.slurm.queue import Queued, read_queue
from sweep.slurm.tend import Tender
from sweep.spec import Plan, RunSpec, Status
from train.files import read_json

HERE = Path(__file__).resolve().parent
NUM_RUNS = 6
STEP_S = 0.4  # a run takes 8 s


@dataclass
class Scene:
    """A toy sweep on the cluster and what is done to it."""

    root: Path
    plan: Plan
    tender: Tender
    cluster: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    error: BaseException | None = None

    def send(self) -> None:
        self.tender.say = self.said.append
        self.tender.tend()

    def begin(self) -> None:
        self.send()
        self.until(self.running, 180)

    def watch_in_a_terminal(self) -> tuple[int, subprocess.Popen]:
        """Somebody submits and watches from a terminal of their own: its other end, and the process."""
        other_end, terminal = os.openpty()
        watcher = subprocess.Popen(
            # Who runs the tests may ignore SIGHUP, as nohup does.
            ["env", "--default-signal=HUP", "setsid", "--ctty", sys.executable, *self.watch_words()],
            cwd=HERE.parents[1],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        return other_end, watcher

    def watch_and_count(self, name: str) -> subprocess.Popen:
        """Somebody watches; each of their calls of the scheduler is a line with its time in root/calls-NAME."""
        return subprocess.Popen(
            [sys.executable, *self.watch_words()],
            cwd=HERE.parents[1],
            env=counting_environment(self.root / f"calls-{name}"),
            stdout=subprocess.DEVNULL,
        )

    def watch_words(self) -> list[str]:
        """What python is asked to run for it."""
        settings = json.dumps(self.settings)
        return [str(HERE / "slurm_sweeps.py"), str(self.root), str(len(self.plan.runs)), settings]

    def is_over(self) -> bool:
        """One look that puts right what it can; whether nothing is left to do."""
        states = self.tender.tend().states.values()
        return all(state.status in (Status.FINISHED, Status.FAILED) for state in states)

    def until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
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


@dataclass
class RealScene(Scene):
    """A sweep of the embedded experiment, as `python -m sweep` submitted it with these words."""

    words: Sequence[str] = ()

    def num_steps(self, spec: RunSpec) -> int:
        heartbeat = self.tender.ledger.status(spec.fingerprint).heartbeat
        return heartbeat.step if heartbeat else 0

    def watch_words(self) -> list[str]:
        return ["-m", "sweep", *self.words, "watch"]


def chain(spec: RunSpec) -> str:
    """What an undisturbed training of this run ends in."""
    value = spec.fingerprint
    for step in range(NUM_STEPS):
        value = hashlib.sha256(f"{value} {step}".encode()).hexdigest()
    return value


def scene(
    folder: Path,
    name: str,
    *,
    num_runs: int = NUM_RUNS,
    step_s: float = STEP_S,
    disk_mb: int = 0,
    disks: contextlib.ExitStack | None = None,
    cluster: Any = None,
    **settings: Any,
) -> Scene:
    """disk_mb: its root is a small disk of its own, until `disks` is closed."""
    plan, root = toy_plan(num_runs), folder / name
    if disk_mb and disks is not None:
        disks.enter_context(small_disk(root, disk_mb))
    options = {"max_jobs": 2, "setup": (f"export TOY_STEP_S={step_s}",), **settings}
    return Scene(root, plan, toy_tender(root, plan, **options), cluster, options)


def counting_environment(calls: Path) -> dict[str, str]:
    """An environment in which the scheduler's commands write down, in `calls`, when they are called."""
    tools = calls.with_name(f"{calls.name}.bin")
    tools.mkdir(parents=True)
    for name in ("squeue", "sacct", "scontrol", "sbatch", "scancel", "sinfo", "sacctmgr"):
        real = shutil.which(name)
        (tools / name).write_text(f'#!/bin/sh\necho "$(date +%s.%N) {name}" >> {calls}\nexec {real} "$@"\n')
        (tools / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}


def most_in_a_minute(calls: Path) -> int:
    """How many calls there were in the busiest minute."""
    times = [float(line.split()[0]) for line in calls.read_text().splitlines()]
    return max(sum(start <= time < start + 60 for time in times) for start in times)


@contextlib.contextmanager
def small_disk(place: Path, size_mb: int) -> Iterator[None]:
    """A file system of its own; a skip where this process may not mount one."""
    place.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"a disk that fills needs a mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def fill(place: Path) -> Path:
    """A file that takes all the room there is; remove it and there is room again."""
    ballast = place / "ballast"
    for size in (65536, 1):
        with open(ballast, "ab", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(size))
    return ballast


def crash(node: str) -> None:
    """SIGKILL for everything that a node's jobs consist of, as when its power goes."""
    pids: set[int] = set()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if f"SLURMD_NODENAME={node}\0".encode() in (place / "environ").read_bytes():
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                is_step = "slurmstepd" in Path(f"/proc/{parent}/comm").read_text()
                pids |= {int(place.name), *([parent] if is_step else [])}
    for pid in pids - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def preempt(node: str, *more: str) -> None:
    """A job of the partition that goes first wants the whole node."""
    words = ["--partition=main", f"--nodelist={node}", "--cpus-per-task=8", "--output=/dev/null", *more]
    subprocess.run(["sbatch", *words, "--wrap=sleep 3"], check=True, capture_output=True)


@contextlib.contextmanager
def as_user_of(cluster) -> Iterator[None]:
    """This process as a user of the cluster, as the fixture `slurm` makes it, for a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.setenv("PATH", cluster.environment["PATH"])
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parents[1]), str(HERE)]))
        yield

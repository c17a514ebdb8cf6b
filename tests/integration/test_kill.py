"""SIGKILL at random moments, then the same command again: nothing is lost, nothing is trained twice.

The bulk runs on a toy trainer that counts every step it executes. REAL_KILLS=12 makes the second test do the
same to `python -m sweep +grid=smoke_2x2` (REAL_SWEEP="..." for other arguments), which takes minutes.
"""

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import PROJECT
from toy_sweep import toy_plan
from toy_trainer import NUM_STEPS

from sweep.claims import process_lives
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.slots import holders
from sweep.spec import Status
from train.files import read_json

pytestmark = pytest.mark.integration
NUM_KILLS = 30
PATHS = [str(PROJECT), str(PROJECT / "tests" / "integration")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}


@dataclass
class Storm:
    """A command that is started again and again while its processes are killed at random moments."""

    command: list[str]
    root: Path
    random: random.Random
    longest_pause_s: float = 0.8
    num_kills: int = 0
    victims: list[str] = field(default_factory=list)

    def rage(self, num_kills: int, is_done) -> None:
        controller = self._start()
        try:
            while self.num_kills < num_kills and not is_done():
                time.sleep(self.random.uniform(0.05, self.longest_pause_s))
                if controller.poll() is not None:
                    controller = self._start()
                    continue
                self._kill_one(controller)
                if controller.poll() is not None:
                    controller = self._start()
        finally:
            with contextlib.suppress(ProcessLookupError):
                controller.kill()
            controller.wait()

    def _kill_one(self, controller: subprocess.Popen) -> None:
        owners = [holder.owner for holder in holders(self.root).values()]
        kind = self.random.choice(["controller", "worker", "worker", "supervisor"])
        if kind == "controller" or not owners:
            controller.kill()
            controller.wait()
            self._count("controller")
            return
        victim = self.random.choice(owners)
        pid = victim.pid if kind == "worker" else _parent(victim.pid)
        if pid > 1 and process_lives(victim.pid, victim.process_start):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._count(kind)

    def _count(self, kind: str) -> None:
        self.num_kills += 1
        self.victims.append(kind)

    def _start(self) -> subprocess.Popen:
        with open(self.root.parent / "output.txt", "ab") as output:
            return subprocess.Popen(
                self.command,
                cwd=PROJECT,
                env=ENVIRONMENT,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )


def _parent(pid: int) -> int:
    """The supervisor that submitit put above a worker; 0 if it was killed before."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        parent = int(words[1])
        return parent if "submitit" in Path(f"/proc/{parent}/cmdline").read_text() else 0
    except (OSError, ValueError):
        return 0


def finish(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


def results(root: Path) -> dict[str, tuple]:
    """What every finished run below a root found."""
    ledger = Ledger(root)
    records = ledger.records(path.name for path in ledger.runs.iterdir())
    return {
        name: (record.parameters_sha256, dict(record.metrics), record.num_steps)
        for name, record in records.items()
    }


def assert_no_attempt_after_the_record(root: Path) -> None:
    for folder in (root / ".runs").iterdir():
        committed = (folder / "record.json").stat().st_mtime
        for claim in (folder / "attempts").glob("*.json"):
            if claim.name.count(".") == 1 and not claim.with_suffix(".released").exists():
                assert (read_json(claim) or {})["claimed_at"] <= committed, f"{claim}: after the record"


@pytest.mark.parametrize("seed", [0, 1])
def test_thirty_kills_lose_nothing_and_repeat_nothing(tmp_path, seed):
    num_runs, root = 70, tmp_path / "stormy" / "root"
    root.mkdir(parents=True)
    command = [sys.executable, str(PROJECT / "tests/integration/toy_sweep.py"), str(root), str(num_runs), "2"]
    fingerprints = [spec.fingerprint for spec in toy_plan(num_runs).runs]
    ledger = Ledger(root)

    storm = Storm(command, root, random.Random(seed))
    storm.rage(NUM_KILLS, lambda: len(ledger.records(fingerprints)) == num_runs)
    last = finish(command, 120)

    assert storm.num_kills == NUM_KILLS, "the runs were over before the kills were"
    assert {"controller", "worker"} <= set(storm.victims)
    assert last.returncode == 0, last.stdout + last.stderr
    assert {state.status for state in Ledger(root).statuses(fingerprints).values()} == {Status.FINISHED}
    steps = [len((root / ".runs" / name / "steps.log").read_text().split()) for name in fingerprints]
    assert min(steps) >= NUM_STEPS
    assert max(steps) < 2 * NUM_STEPS, "a run was trained twice to its end"
    assert sum(steps) <= num_runs * NUM_STEPS + NUM_KILLS, "a kill cost more than the step it interrupted"
    assert_no_attempt_after_the_record(root)
    calm = tmp_path / "calm"
    assert finish([*command[:2], str(calm), *command[3:]], 120).returncode == 0
    assert results(root) == results(calm)
    assert not holders(root)


# A small real sweep by default. By hand: REAL_KILLS=30 REAL_SWEEP="+grid=wit_5x5 grid.seeds=[0]".
SMALL = (
    "+grid=smoke_2x2 dataset.num_train_rows=128 dataset.num_validation_rows=32 dataset.num_test_rows=32 "
    "dataset.num_robustness_rows=0"
)


def test_kills_do_not_change_the_real_experiment(tmp_path):
    arguments = shlex.split(os.environ.get("REAL_SWEEP", SMALL))
    root, calm = tmp_path / "stormy" / "root", tmp_path / "calm"
    root.mkdir(parents=True)
    command = [sys.executable, "-m", "sweep", *arguments]
    longest_s = float(os.environ.get("REAL_LONGEST_PAUSE_S", "12"))
    storm = Storm([*command, f"root={root}"], root, random.Random(0), longest_pause_s=longest_s)

    def is_done() -> bool:
        plans = [SweepFolder(root, path.parent.name).plan() for path in root.glob("*/plan.json")]
        names = [spec.fingerprint for plan in plans if plan for spec in plan.runs]
        return bool(names) and len(Ledger(root).records(names)) == len(names)

    storm.rage(int(os.environ.get("REAL_KILLS", "5")), is_done)
    last = finish([*command, f"root={root}"], 3600)
    assert last.returncode == 0, last.stdout + last.stderr
    assert finish([*command, f"root={calm}"], 3600).returncode == 0
    assert results(root) == results(calm)
    assert_no_attempt_after_the_record(root)

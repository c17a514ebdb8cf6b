"""Toy runs, small real sweeps, and what ledger, disk and server say of them: for the tests of mirrors."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from commands import PROJECT, run_command
from wandb_server import WandbServer, wait_until

from sweep.folder import SweepFolder
from sweep.ledger import Ledger

HERE = Path(__file__).parent
SMALL = (
    "dataset.num_train_rows=64",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "dataset.num_robustness_rows=0",
    "train.epochs=1",
    "eval.max_new_tokens=4",
)
QUICK = {"WANDB_INIT_TIMEOUT": "3"}


def sweep(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """python -m sweep on the three corners of smoke_2x2, in one worker."""
    return run_command(
        "sweep", "+grid=smoke_2x2", f"root={root}", "launcher.slots=1", *SMALL, *arguments, **variables
    )


def analyse(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """python -m analysis of the same sweep."""
    return run_command(
        "analysis", "+grid=smoke_2x2", f"root={root}", "launcher.slots=1", *SMALL, *arguments, **variables
    )


def toy_environment(**variables: str) -> dict[str, str]:
    """For toy_mirror.py, in whatever folder."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}{os.pathsep}{HERE}", **variables}


def toy(*words: str | Path, timeout_s: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """python toy_mirror.py; it must succeed or exit by itself."""
    return subprocess.run(
        [sys.executable, str(HERE / "toy_mirror.py"), *map(str, words)],
        text=True,
        cwd=HERE,
        env=toy_environment(**variables),
        capture_output=True,
        timeout=timeout_s,
    )


def toy_run(folder: Path, mode: str, num_steps: int = 30, **variables: str) -> tuple[dict, str]:
    """The record and the output of one toy run."""
    result = toy("run", folder, str(num_steps), mode, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((folder / "record.json").read_text()), result.stdout + result.stderr


def toy_run_killed(
    folder: Path, mode: str, num_steps: int, is_at_work: Callable[[], bool] = lambda: True, **variables: str
) -> None:
    """Start a long toy run and SIGKILL it once it has done so many steps more than its checkpoint, and is at work."""
    checkpoint = folder / "toy_checkpoint"
    before = int(checkpoint.read_text()) if checkpoint.exists() else 0
    command = [sys.executable, str(HERE / "toy_mirror.py"), "run", str(folder), "1000", mode]
    process = subprocess.Popen(command, cwd=HERE, env=toy_environment(**variables))
    try:
        assert wait_until(
            lambda: (
                process.poll() is None
                and last_written(folder, process) >= before + num_steps
                and is_at_work()
            ),
            60,
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def last_written(folder: Path, process: subprocess.Popen) -> int:
    """The last step, once this attempt has cut the file of the one before."""
    path = folder / "events.jsonl"
    started = (
        Path(f"/proc/{process.pid}").stat().st_mtime if Path(f"/proc/{process.pid}").exists() else time.time()
    )
    if not path.exists() or path.stat().st_mtime < started:
        return 0
    return max(steps_on_disk(folder), default=0)


def steps_on_disk(folder: Path) -> list[int]:
    """The steps of a run's events.jsonl; a half-written line is none."""
    path = folder / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def log_files(folder: Path) -> list[Path]:
    """W&B's own files of a run, oldest first; those of one second by their last write."""

    def age(path: Path) -> tuple[str, int]:
        return path.parent.name.split("run-")[1], path.stat().st_mtime_ns

    return sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=age)


def server_steps(server: WandbServer, name: str) -> list[int]:
    """Our own steps of a run, in the order of the server's lines."""
    return [row["trainer_step"] for row in server.store.run(name).history]


def fingerprints(root: Path, name: str) -> Sequence[str]:
    """The runs of a sweep's plan."""
    plan = SweepFolder(root, name).plan()
    assert plan is not None
    return [spec.fingerprint for spec in plan.runs]


def run_folders(root: Path, name: str) -> dict[str, Path]:
    """Fingerprint -> folder."""
    return {fingerprint: Ledger(root).folder(fingerprint) for fingerprint in fingerprints(root, name)}


def sleep_until_quiet(server: WandbServer, quiet_s: float = 0.5) -> None:
    """Until nobody has sent anything for a while."""
    seen, since = len(server.bodies), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.05)
        if len(server.bodies) != seen:
            seen, since = len(server.bodies), time.monotonic()

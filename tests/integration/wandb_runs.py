"""Small sweeps and runs of the embedded experiment for the tests of mirrors, and what their ledger says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from commands import PROJECT, run_command
from wandb_server import WandbServer, wait_until

from sweep.folder import SweepFolder
from sweep.ledger import Ledger

SMALL = ("dataset.num_train_rows=64", "dataset.num_validation_rows=16", "dataset.num_test_rows=16",
         "dataset.num_robustness_rows=0", "train.epochs=1", "eval.max_new_tokens=4")
LONG = ("dataset.num_train_rows=2400", *SMALL[1:], "train.checkpoint_every_s=0.2")
CELL = ("objective.prompt_weight=0.5", "objective.response_weight=1", "seed=0")
QUICK = {"WANDB_INIT_TIMEOUT": "3", "WANDB_SILENT": "true"}


def sweep(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """python -m sweep on the three corners of smoke_2x2, in one worker."""
    return run_command("sweep", "+grid=smoke_2x2", f"root={root}", "launcher.slots=1", *SMALL, *arguments, **variables)


def analyse(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """python -m analysis of the same sweep."""
    return run_command("analysis", "+grid=smoke_2x2", f"root={root}", *SMALL, *arguments, **variables)


def train(output: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """python -m train of one small cell."""
    return run_command("train", *CELL, f"output={output}", *(SMALL if "LONG" not in arguments else LONG),
                       *(word for word in arguments if word != "LONG"), **variables)


def steps_on_disk(folder: Path) -> list[int]:
    """The steps of a run's events.jsonl; a half-written line is none."""
    path = folder / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def train_and_kill(output: Path, num_steps: int, *arguments: str, **variables: str) -> None:
    """Start the long cell and SIGKILL it once it has done so many further steps."""
    before = max(steps_on_disk(output), default=0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **QUICK, **variables}
    process = subprocess.Popen([sys.executable, "-m", "train", *CELL, f"output={output}", *LONG, *arguments],
                               cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: max(steps_on_disk(output), default=0) >= before + num_steps, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def ledger_steps(root: Path, name: str = "smoke_2x2") -> dict[str, list[int]]:
    """Fingerprint -> steps, of every run of the sweep's plan."""
    plan = SweepFolder(root, name).plan()
    assert plan is not None
    return {spec.fingerprint: steps_on_disk(Ledger(root).folder(spec.fingerprint)) for spec in plan.runs}


def server_steps(server: WandbServer) -> dict[str, list[int]]:
    """Run id -> our own steps in the order of the server's lines, analyses left out."""
    return {run.name: [row["trainer_step"] for row in run.history] for run in server.store.runs.values()
            if run.job_type != "analysis"}


def sleep_until_quiet(server: WandbServer, quiet_s: float = 0.5) -> None:
    """Until nobody has sent anything for a while."""
    seen, since = len(server.bodies), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.05)
        if len(server.bodies) != seen:
            seen, since = len(server.bodies), time.monotonic()

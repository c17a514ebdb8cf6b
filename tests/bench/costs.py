"""What a command costs with everything that it starts, and how two ways compare over rounds. For the benches."""

import ctypes
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
_BECOME_PARENT_OF_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one command: seconds until it ended, and of processors until its last descendant had."""

    wall_s: float
    cpu_s: float


def become_parent_of_orphans() -> None:
    """Descendants whose parent ends are ours to wait for, so that no second of theirs is lost."""
    ctypes.CDLL(None).prctl(_BECOME_PARENT_OF_ORPHANS, 1, 0, 0, 0)


def go_ahead_of_others() -> bool:
    """Us and what we start before everything else of the machine, in round robin; whether we may."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    return True


def wait_for_orphans() -> float:
    """CPU seconds of every process below us that nobody waited for."""
    total_s = 0.0
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return total_s
        total_s += usage.ru_utime + usage.ru_stime


def cost_of(
    command: Sequence[str | Path], *, cwd: Path = PROJECT, environment: Mapping[str, str] | None = None
) -> Cost:
    """Run it to its end and to that of all that it started. RuntimeError with its last words if it fails."""
    with tempfile.TemporaryFile("w+") as words:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(environment or {})}, stdout=words, stderr=words
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu_s = usage.ru_utime + usage.ru_stime + wait_for_orphans()
        if process.returncode:
            words.seek(0)
            raise RuntimeError(f"{command} ended with {process.returncode}: {words.read()[-2000:]}")
    return Cost(wall_s, cpu_s)


def install(folder: Path, *requirements: str) -> Path:
    """Somebody else's pure Python into a folder of its own, on the packages that are here already."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *requirements],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return folder


def estimate(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """Mean (geometric) with its 95 % interval by Student's t, and the values themselves."""
    logs = [math.log(value) for value in values]
    found: dict[str, Any] = {"mean": round(math.exp(fmean(logs)), digits)}
    if len(logs) > 1:
        reach = float(stats.t.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
        found["interval_95"] = [round(math.exp(fmean(logs) + sign * reach), digits) for sign in (-1, 1)]
    return found | {"rounds": [round(value, digits) for value in values]}


def machine(how: str = "") -> dict[str, Any]:
    """What the numbers belong to. how: what else ran there."""
    about = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return about | ({"how": how} if how else {})


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """Into tests/bench/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path

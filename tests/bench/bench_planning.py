"""What planning and looking cost: CPU seconds of whole commands, Python's start included.

    python tests/bench/bench_planning.py          writes tests/bench/results/planning_<machine>_<date>.json

CPU seconds, not wall: the machine may be busy. Each command runs three times; the least is kept.
"""

import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from sweep.arguments import parse_arguments
from sweep.compose import compose_sweep
from sweep.ledger import Ledger
from sweep.plan import make_plan
from sweep.timesheets import Timesheet
from train.record import RunRecord

PROJECT = Path(__file__).resolve().parents[2]
LIMITS_CPU_S = {
    "help": 0.3,
    "plan of wit_5x5": 2.0,
    "plan of 624 cells": 5.0,
    "plan of 10,008 cells": 60.0,
    "status of 1,002 planned runs": 1.0,
    "status of 1,002 finished runs": 1.0,
    "a second run of them": 3.0,
}


def cpu_seconds(*arguments: str) -> float:
    """The least CPU time of three runs of `python -m sweep arguments`."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "sweep", *arguments], cwd=PROJECT, check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return round(min(times), 3)


def seeds(number: int) -> str:
    return f"grid.seeds=[{','.join(str(seed) for seed in range(number))}]"


def finish_every_run(root: str, *arguments: str) -> None:
    """Records and a timesheet, made by hand, of every run of a plan: as if the sweep were over."""
    plan = make_plan(compose_sweep(parse_arguments(arguments)), cache_folder=None)
    ledger, sheet = Ledger(root), Timesheet(root, plan.name, "bench", gpus=0, cores=1)
    for spec in plan.runs:
        ledger.write_spec(spec.fingerprint, {"run_id": spec.run_id})
        claim = ledger.claim(spec.fingerprint)
        if claim is None:
            raise RuntimeError(f"{spec.run_id} could not be claimed")
        metrics = {"validation_exact_answer": 0.5 + 0.001 * spec.config.seed, "test_exact_answer": 0.5}
        record = RunRecord(
            run_id=spec.run_id,
            fingerprint=spec.fingerprint,
            outcome="finished",
            stage=spec.config.stage,
            metrics=metrics,
            training_s=4.0,
            evaluation_s=2.0,
        )
        sheet.begin(spec)
        sheet.ready()
        claim.commit(record)
        sheet.end("finished", record)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = f"root={folder}"
        measured = {
            "help": cpu_seconds("--help"),
            "plan of wit_5x5": cpu_seconds("+grid=wit_5x5", "plan", root),
            "plan of 624 cells": cpu_seconds("+grid=wit_5x5", "plan", seeds(26), root),
            "plan of 10,008 cells": cpu_seconds("+grid=wit_5x5", "plan", seeds(417), root),
            "status of 1,002 planned runs": cpu_seconds("+grid=wit_5x5", "status", seeds(77), root),
        }
        finish_every_run(folder, "+grid=wit_5x5", seeds(77))
        cpu_seconds("+grid=wit_5x5", seeds(77), root)  # makes the report
        measured["status of 1,002 finished runs"] = cpu_seconds("+grid=wit_5x5", "status", seeds(77), root)
        measured["a second run of them"] = cpu_seconds("+grid=wit_5x5", seeds(77), root)
    result = {
        "cpu_s": measured,
        "limits_cpu_s": LIMITS_CPU_S,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }
    path = PROJECT / "tests" / "bench" / "results" / f"planning_{platform.machine()}_{result['date']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, seconds in measured.items():
        print(f"{name:32s} {seconds:7.3f} s CPU (limit {LIMITS_CPU_S[name]:g})")


if __name__ == "__main__":
    main()

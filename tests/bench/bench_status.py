"""What a look at a large sweep on a cluster costs: `status` as a whole command, beside a real SLURM.

    python tests/bench/bench_status.py          writes tests/bench/results/status_<machine>_<date>.json

A sweep of 1,002 runs: 500 finished, 300 held by jobs of which the queue knows nothing any more (so that accounting is
asked), 20 failed, the rest planned, and 64 workers that wait. Wall seconds, the least of seven, as a user has them; the
machine should be idle.
"""

import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests" / "slurm"), str(PROJECT / "tests" / "integration")]

from bench_planning import seeds  # noqa: E402
from cluster import Cluster  # noqa: E402
from slurm_scenes import counting_environment  # noqa: E402

from sweep.arguments import parse_arguments  # noqa: E402
from sweep.claims import JOB_VARIABLE  # noqa: E402
from sweep.compose import compose_sweep  # noqa: E402
from sweep.ledger import Ledger  # noqa: E402
from sweep.outcomes import failed_record  # noqa: E402
from sweep.plan import make_plan  # noqa: E402
from sweep.timesheets import Timesheet  # noqa: E402
from train.record import Failure, RunRecord  # noqa: E402

NUM_FINISHED, NUM_HELD, NUM_FAILED = 500, 300, 20
LIMIT_S = 1.0
SILENT_S = 100.0  # a held run's last heartbeat was so long ago


def furnish(root: str, words: list[str]) -> None:
    """The sweep half way, by hand."""
    plan = make_plan(compose_sweep(parse_arguments(words)), cache_folder=None)
    ledger, sheet = Ledger(root), Timesheet(root, plan.name, "bench", gpus=0, cores=1)
    for index, spec in enumerate(plan.runs[: NUM_FINISHED + NUM_HELD + NUM_FAILED]):
        ledger.write_spec(spec.fingerprint, {"run_id": spec.run_id})
        os.environ[JOB_VARIABLE] = f"{'ab' * 8}:{900000 + index}.0"
        claim = ledger.claim(spec.fingerprint, "c1, job")
        if claim is None:
            raise RuntimeError(f"{spec.run_id} could not be claimed")
        claim.beat(10, 100, force=True)
        if index < NUM_FINISHED:
            record = RunRecord(
                run_id=spec.run_id,
                fingerprint=spec.fingerprint,
                outcome="finished",
                stage=spec.config.stage,
                metrics={"validation_exact_answer": 0.5},
                training_s=4.0,
                evaluation_s=2.0,
            )
            sheet.begin(spec)
            sheet.ready()
            claim.commit(record)
            sheet.end("finished", record)
        elif index < NUM_FINISHED + NUM_FAILED:
            claim.fail(failed_record(spec, claim.attempt, Failure(kind="code", message="a bug")))
        else:
            then = time.time() - SILENT_S
            for suffix in ("json", "heartbeat"):
                os.utime(claim.path(suffix), (then, then))
    del os.environ[JOB_VARIABLE]


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="slurm-bench-"))
    cluster = Cluster(folder / "cluster")
    try:
        cluster.up()
        os.environ.update({name: cluster.environment[name] for name in ("SLURM_CONF", "PATH")})
        words = ["+grid=wit_5x5", seeds(77), f"root={folder / 'root'}", "launcher=slurm"]
        words += ["launcher.sbatch=['--begin=now+1hour']"]
        furnish(str(folder / "root"), words)
        command = [sys.executable, "-m", "sweep"]
        subprocess.run([*command, *words], cwd=PROJECT, check=True, capture_output=True)
        calls, took_s, said = folder / "calls", [], ""
        environment = counting_environment(calls)
        for _ in range(7):
            started = time.monotonic()
            said = subprocess.run(
                [*command, *words, "status"],
                cwd=PROJECT,
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            took_s.append(time.monotonic() - started)
        counts = Counter(line.split()[1] for line in calls.read_text().splitlines())
        subprocess.run([*command, *words, "cancel", "yes=true"], cwd=PROJECT, check=True, capture_output=True)
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    print(said)
    result = {
        "status_of_1002_runs_s": {
            "least": round(min(took_s), 3),
            "median": round(statistics.median(took_s), 3),
        },
        "limit_s": LIMIT_S,
        "calls_of_the_scheduler_each": {
            name: number / len(took_s) for name, number in sorted(counts.items())
        },
        "lines_on_the_screen": len(said.splitlines()),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }
    path = PROJECT / "tests" / "bench" / "results" / f"status_{platform.machine()}_{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

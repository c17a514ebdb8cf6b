"""How much of the time local workers have nothing to train while a search goes on: real runs, from the ledger.

    python tests/bench/bench_idle.py [ROOT [REPETITIONS [WORKERS]]]     writes tests/bench/results/idle_*.json

Each repetition is `python -m sweep +grid=wit_5x5 search=adaptive` of the embedded experiment (runs of a few seconds,
the hardest case: asking and starting cost the same for a run of hours), told to go on to its whole budget. A worker is
at work from the claim of a run to its record. It is idle from its first claim on whenever it isn't, until the search's
last run was claimed: then nothing may be asked any more. What starts a worker (interpreter, imports) comes before its
first claim, and is the same without a search.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LIMIT, NUM_RUNS = 0.05, 18
WORDS = ("+grid=wit_5x5", "grid.scale_checks=0", "search=adaptive", f"search.max_runs={NUM_RUNS}")


def runs_of(root: Path) -> list[dict[str, object]]:
    """Worker, claim and end (seconds since 1970) of every finished run below a root."""
    found = []
    for path in sorted(root.glob(".runs/*/record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        attempt = json.loads((path.parent / "attempts" / f"{record['attempt']:04d}.json").read_text("utf-8"))
        found.append(
            {
                "worker": attempt["worker"],
                "claimed_at": attempt["claimed_at"],
                "ended_at": record["finished_at"],
            }
        )
    return sorted(found, key=lambda run: run["claimed_at"])


def idle_of(runs: list[dict]) -> dict[str, float]:
    """Seconds at work and idle of all workers, while the search could still ask."""
    until = max(run["claimed_at"] for run in runs)
    at_work, idle = 0.0, 0.0
    longest = 0.0
    for worker in sorted({run["worker"] for run in runs}):
        own = [run for run in runs if run["worker"] == worker]
        free_since = own[0]["claimed_at"]
        for run in own:
            gap = run["claimed_at"] - free_since
            idle, longest = idle + gap, max(longest, gap)
            at_work += min(run["ended_at"], until) - min(run["claimed_at"], until)
            free_since = run["ended_at"]
        idle += max(0.0, until - free_since)
    return {
        "runs": len(runs),
        "workers": len({run["worker"] for run in runs}),
        "at_work_s": round(at_work, 2),
        "idle_s": round(idle, 2),
        "longest_gap_s": round(longest, 2),
        "share_idle": round(idle / (idle + at_work), 4),
    }


def repeat(root: Path, repetition: int, workers: int) -> dict[str, float]:
    # a confidence that no posterior reaches, so that the whole budget is asked for
    words = (*WORDS, "search.confidence=0.999999", f"search.seed={repetition}", f"launcher.slots={workers}")
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "sweep", *words, f"root={root}"],
        cwd=PROJECT,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    row = idle_of(runs_of(root)) | {"wall_s": round(time.monotonic() - started, 1)}
    assert row["runs"] >= NUM_RUNS, row
    return row


def main(place: str = "", repetitions: str = "2", workers: str = "2") -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for repetition in range(int(repetitions)):
            root = Path(place or temporary) / f"{workers}-{repetition}"
            rows.append(repeat(root, repetition, int(workers)))
            print(json.dumps(rows[-1]), flush=True)
    idle, work = (sum(row[name] for row in rows) for name in ("idle_s", "at_work_s"))
    values = {
        "what": "search=adaptive through the sweep, embedded experiment, local workers",
        "limit_share_idle": LIMIT,
        "share_idle": round(idle / (idle + work), 4),
        "held": idle / (idle + work) <= LIMIT,
        "rows": rows,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.date.today().isoformat(),
    }
    path = Path(__file__).parent / "results" / f"idle_{values['machine']}_{values['date']}.json"
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(*sys.argv[1:])

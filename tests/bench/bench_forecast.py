"""How good a forecast is: the embedded grid forecast before it is launched, then run and compared.

    python tests/bench/bench_forecast.py ROOT SEEDS      adds a repetition to tests/bench/results/forecast_*.json

In a ROOT without timesheets the forecast stands on pilots, else on what was trained there before. SEEDS such as
0,1,2 must be new to ROOT. One worker, which must have a core of its own: on a machine that does other things,
`taskset -c 1 chrt -r 1 python ...` gives it one.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from sweep.arguments import parse_arguments
from sweep.commands.costing import forecast_of
from sweep.commands.session import open_session
from sweep.forecast import like_runs, spent_hours
from sweep.timesheets import shifts
from sweep.workloads import workload_of

PROJECT = Path(__file__).resolve().parents[2]


def sweep(*words: str) -> None:
    """The product's own command."""
    subprocess.run(
        [sys.executable, "-m", "sweep", *words], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL
    )


def repetition(root: str, seeds: str) -> dict[str, object]:
    """One sweep: forecast, spent, and how many of its runs took what was forecast of them."""
    words = (
        "+grid=wit_5x5",
        f"root={root}",
        f"grid.seeds=[{seeds}]",
        f"name=seeds_{seeds.replace(',', '_')}",
    )
    source = "runs of other seeds"
    if not shifts(root):
        sweep(*words, "pilot")
        source = "pilots"
    session = open_session(parse_arguments(words))
    found = forecast_of(session, session.states())
    started = time.time()
    sweep(*words)
    history = shifts(root)
    spent = spent_hours(history, session.config.name, found.unit, since=started)
    launched = [shift for shift in history if shift.started_at >= started]
    inside, took = [], []
    for share in found.shares:
        for seconds, entry, _ in like_runs(launched, share.workload, 0):
            if share.seconds is not None and entry.workload == share.workload:
                inside.append(share.seconds.low <= seconds <= share.seconds.high)
                took.append(seconds)
    one = found.shares[-1].seconds
    seen = [
        entry
        for shift in history
        for entry in shift.entries
        if shift not in launched and entry.workload == workload_of(session.plan.runs[-1])
    ]
    return {
        "stands_on": f"{len(seen)} {source}",
        "forecast_cpu_h": found.hours,
        "interval_cpu_h": [found.low, found.high],
        "spent_cpu_h": spent,
        "forecast_to_spent": found.hours / spent if found.hours else None,
        "runs": len(inside),
        "runs_within_their_interval": sum(inside),
        "forecast_of_a_run_s": [one.low, one.mean, one.high] if one else None,
        "runs_took_s": [round(seconds, 2) for seconds in took],
    }


def main() -> None:
    measured = repetition(*sys.argv[1:])
    date, machine = datetime.date.today().isoformat(), f"{platform.machine()}, {os.cpu_count()} cores"
    path = PROJECT / "tests" / "bench" / "results" / f"forecast_{platform.machine()}_{date}.json"
    result = {"machine": machine, "python": platform.python_version(), "repetitions": []}
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    result["repetitions"].append(measured)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()

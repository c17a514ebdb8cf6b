"""How good a forecast is: the embedded grid forecast before it is launched, then run and compared.

    python tests/bench/bench_forecast.py ROOT SEEDS      adds a repetition to tests/bench/results/forecast_*.json

In a ROOT without timesheets the forecast stands on pilots, else on what was trained there before. SEEDS such as
0,1,2: seeds that this root has trained already would leave nothing to do. On a machine that does nothing else.
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
        for seconds, entry in like_runs(launched, share.workload, 0):
            if share.seconds is not None and entry.workload == share.workload:
                inside.append(share.seconds.low <= seconds <= share.seconds.high)
                took.append(seconds)
    return {
        "stands_on": source,
        "runs": len(inside),
        "runs_seen": sum(
            workload_of(session.plan.runs[-1]) == entry.workload
            for shift in history
            if shift not in launched
            for entry in shift.entries
        ),
        "forecast_cpu_h": found.hours,
        "low": found.low,
        "high": found.high,
        "spent_cpu_h": spent,
        "error": spent and found.hours / spent - 1,
        "share_of_runs_within_80_percent_interval": sum(inside) / len(inside),
        "run_s_forecast": [
            found.shares[-1].seconds.low,
            found.shares[-1].seconds.mean,
            found.shares[-1].seconds.high,
        ],
        "run_s_spread": [min(took), sum(took) / len(took), max(took)],
    }


def main() -> None:
    measured = repetition(*sys.argv[1:])
    date = datetime.date.today().isoformat()
    path = (
        PROJECT
        / "tests"
        / "bench"
        / "results"
        / f"forecast_{platform.machine()}_{os.cpu_count()}cores_{date}.json"
    )
    result = (
        json.loads(path.read_text())
        if path.exists()
        else {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "repetitions": [],
        }
    )
    result["repetitions"].append(measured)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()

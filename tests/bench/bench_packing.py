"""What packing gains: the embedded grid in one SLURM task with two cores, one run at a time and as many as fit.

    python tests/bench/bench_packing.py [WORDS]      writes tests/bench/results/packing_*.json

On a private cluster (tests/slurm/cluster.py); needs a machine that does nothing else for two minutes, and WORDS say
what was done where it does. Seconds count
from the task's first moment to its last record; hours are what the task is billed for.
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
sys.path.insert(0, str(PROJECT / "tests" / "slurm"))

from cluster import Cluster  # noqa: E402

from sweep.ledger import Ledger  # noqa: E402
from sweep.timesheets import shifts  # noqa: E402
from train.files import read_json  # noqa: E402


def measure(cluster: Cluster, root: Path, pack: str) -> tuple[dict[str, object], dict[str, tuple]]:
    """One sweep in one task; and what its runs found, to compare bits."""
    words = ["+grid=wit_5x5", "grid.seeds=[0]", f"root={root}", "launcher=slurm", "launcher.max_jobs=1"]
    subprocess.run(
        [sys.executable, "-m", "sweep", *words, "launcher.cpus_per_worker=2", f"launcher.pack={pack}"],
        cwd=PROJECT,
        env={**cluster.environment, "PYTHONPATH": str(PROJECT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    num_runs = len((read_json(root / "wit_5x5" / "plan.json") or {})["runs"])
    while len(list(root.glob(".runs/*/record.json"))) < num_runs:
        time.sleep(0.2)
    ledger = Ledger(root)
    records = ledger.records(path.name for path in ledger.runs.iterdir())
    worked = shifts(root)
    seconds = max(record.finished_at for record in records.values()) - worked[0].started_at
    measured = {
        "seconds": round(seconds, 1),
        "cpu_h_billed": round(2 * seconds / 3600, 4),
        "runs_at_once": max(entry.pack for shift in worked for entry in shift.entries),
        "seconds_of_a_run": [round(entry.seconds, 2) for shift in worked for entry in shift.entries],
        "pack": [read_json(path) for path in root.glob("wit_5x5/packs/*.json")],
    }
    found = {
        name: (record.parameters_sha256, tuple(sorted(record.metrics.items())))
        for name, record in records.items()
    }
    return measured, found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "cluster").up()
        try:
            alone, found_alone = measure(cluster, Path(folder) / "alone", "1")
            packed, found_packed = measure(cluster, Path(folder) / "packed", "auto")
        finally:
            cluster.down()
    date = datetime.date.today().isoformat()
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": date,
        "how": " ".join(sys.argv[1:]) or "nothing else ran",
        "runs": len(found_alone),
        "pack=1": alone,
        "pack=auto": packed,
        "times_as_fast": round(alone["seconds"] / packed["seconds"], 2),  # type: ignore[operator]
        "bitwise_equal": found_alone == found_packed,
    }
    path = PROJECT / "tests" / "bench" / "results" / f"packing_{platform.machine()}_{date}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

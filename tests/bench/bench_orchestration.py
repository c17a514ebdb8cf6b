"""Planning, submitting and collecting cells that do nothing: our sweep, Hydra's multirun and a Dora grid. CPU seconds.

    python tests/bench/bench_orchestration.py [--rounds 3] [--cells 625] [--how WORDS]

Each way gets the same product of two weights and seeds, and must bring back the answer of every cell (the gate).
Ours is composed, planned, trained in workers and collected as `python -m sweep` does it, with a trainer that does
nothing. The peers start one process per cell through submitit's local executor: hydra-submitit-launcher's
`submitit_local`, and dora-search's `run_grid`, which knows only SLURM, with that executor in SLURM's place. They are
given a configuration of three keys where ours composes a run's whole one. Their cost is a line in the number of cells:
each round measures it at a few cells and at more, and takes slope and start from these; ours is measured at all cells
and at a few. CPU is user and system time of the command and of all that it starts, waited for to the last orphan.
Peers are installed into a folder that goes with the bench. Writes results/orchestration.json; exits with 1 where ours
isn't 20 times cheaper than both.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from costs import (  # noqa: E402
    PROJECT,
    Cost,
    become_parent_of_orphans,
    cost_of,
    estimate,
    install,
    machine,
    write_result,
)
from noop.cells import are_right  # noqa: E402

PEERS = ("hydra-submitit-launcher==1.2.0", "dora-search==0.1.13", "treetable>=0.2", "retrying>=1.3")
SIZES = {"hydra_multirun": (5, 40), "dora_grid": (5, 20)}  # cells: few and more
MODULES = {"ours": "noop.ours", "hydra_multirun": "noop.by_hydra", "dora_grid": "noop.by_dora"}
PROMISED = 20.0


def main() -> int:
    """Measure in turns, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=625)
    parser.add_argument("--how", default="")
    arguments = parser.parse_args()
    become_parent_of_orphans()
    with tempfile.TemporaryDirectory() as folder:
        peers = install(Path(folder, "peers"), *PEERS)
        rounds = [
            one_round(Path(folder, str(number)), peers, arguments.cells) for number in range(arguments.rounds)
        ]
    result = summary(rounds, arguments.cells) | {"peers": PEERS, "machine": machine(arguments.how)}
    path = write_result("orchestration", result)
    for name, entry in result["over_ours"].items():
        print(f"{name}: {entry['cpu']['mean']:.1f} times our CPU, {entry['wall']['mean']:.1f} times our wall")
    print(f"wrote {path}")
    return 0 if result["kept"] else 1


def one_round(folder: Path, peers: Path, cells: int) -> dict[str, dict[int, Cost]]:
    """Every way once, at each of its sizes."""
    found = {}
    for name, sizes in {"ours": (5, cells), **SIZES}.items():
        found[name] = {size: measured(name, folder / name / str(size), peers, size) for size in sizes}
        shown = ", ".join(f"{size}: {cost.cpu_s:.2f} s" for size, cost in found[name].items())
        print(f"{name}: CPU at cells {shown}", flush=True)
    return found


def measured(name: str, folder: Path, peers: Path, cells: int) -> Cost:
    """One sweep of one way, its answers checked."""
    folder.mkdir(parents=True)
    paths = ":".join(map(str, (PROJECT, HERE, peers)))
    cost = cost_of(
        [sys.executable, "-m", MODULES[name], folder, str(cells)],
        cwd=folder,
        environment={"PYTHONPATH": paths, "DORA_FOLDER": str(folder / "dora"), "OMP_NUM_THREADS": "1"},
    )
    if not are_right(folder / "answers.json", cells):
        raise RuntimeError(f"{name} didn't bring back the answers of {cells} cells")
    return cost


def line_at(costs: dict[int, Cost], cells: int) -> dict[str, float]:
    """Start, slope and the value at so many cells, of the line through a round's two sizes."""
    (few, low), (more, high) = sorted(costs.items())
    found = {}
    for key in ("cpu_s", "wall_s"):
        slope = (getattr(high, key) - getattr(low, key)) / (more - few)
        start = getattr(low, key) - few * slope
        found |= {f"{key}_start": start, f"{key}_per_cell": slope, key: start + slope * cells}
    return found


def summary(rounds: list[dict[str, dict[int, Cost]]], cells: int) -> dict[str, Any]:
    """Every number of every round, the ratios at all cells, the verdict."""
    lines = {name: [line_at(found[name], cells) for found in rounds] for name in rounds[0]}
    over = {
        name: {
            key.removesuffix("_s"): estimate(
                [them[key] / us[key] for them, us in zip(lines[name], lines["ours"], strict=True)]
            )
            for key in ("cpu_s", "wall_s")
        }
        for name in SIZES
    }
    return {
        "cells": cells,
        "measured": {
            name: [
                {
                    f"{size} cells": {"cpu_s": round(cost.cpu_s, 3), "wall_s": round(cost.wall_s, 3)}
                    for size, cost in found[name].items()
                }
                for found in rounds
            ]
            for name in rounds[0]
        },
        "at_all_cells": {
            name: {key: [round(entry[key], 4) for entry in entries] for key in entries[0]}
            for name, entries in lines.items()
        },
        "note": "the peers' numbers at all cells are lines through their two sizes; Dora's jobs import torch",
        "over_ours": over,
        "promised_cpu_ratio": PROMISED,
        "kept": all(entry["cpu"]["mean"] >= PROMISED for entry in over.values()),
    }


if __name__ == "__main__":
    sys.exit(main())

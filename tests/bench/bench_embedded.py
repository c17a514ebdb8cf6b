"""The embedded experiment from the command line to the last number: our sweep, and TRL with a process for each cell.

    python tests/bench/bench_embedded.py plane [--fresh] [--ahead]      24 cells, one seed
    python tests/bench/bench_embedded.py question [--fresh] [--ahead]   24 cells, three seeds

Each call measures one round, every way once, the first one in turn, and adds it to results/embedded_plane.json or
embedded_question.json; --fresh begins a new file. Ours is `python -m sweep +grid=wit_5x5`: 13 runs and the base model,
or 39, 2 checks and the base model, and the report, which is made once more to know its part: theirs have none. Where
this checkout knows train.plane, also with train.plane=off. Theirs is trl_cell.py, whose first lines say what it doesn't
do. A first cell is measured padded and packed, and the cheaper way taken:

plane     a process for each of the 24 cells, two at once; 24 cells looped in two processes, one for each core; and, as
          if TRL's user merged rays too, a process for each of 13
question  Hydra's multirun with hydra-submitit-launcher's local launcher, a process for each of 72 cells. A random
          product of 6 is measured each round (the launcher starts all at once: 72 would not fit in memory); a sweep of
          one cell that does nothing is what a start costs, and the rest is taken as proportional to cells.

Wall and CPU, process starts included, CPU to the last descendant's end; with --ahead before everything else of the
machine (SCHED_RR). Exits with 1 where a promise is broken: the
plane 5 times faster than a process for each cell, the question 8 times in wall and CPU.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from costs import (  # noqa: E402
    PROJECT,
    RESULTS,
    Cost,
    become_parent_of_orphans,
    cost_of,
    estimate,
    go_ahead_of_others,
    install,
    machine,
    write_result,
)
from embedded_data import write_embedded  # noqa: E402

from sweep.arguments import parse_arguments  # noqa: E402
from sweep.compose import compose_sweep  # noqa: E402
from train.config import RecipeConfig  # noqa: E402
from train.files import read_json  # noqa: E402

LAUNCHER = "hydra-submitit-launcher==1.2.0"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # containers forbid it: packages come with theirs, a checkout may keep its own
}
RAYS, PLANE, CELLS, SAMPLE = 13, 24, 72, 6
PROMISED = {"plane": ("trl_processes", 5.0), "question": ("trl_hydra", 8.0)}


def main() -> int:
    """One round more, and the verdict over all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(PROMISED))
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--ahead", action="store_true")
    arguments = parser.parse_args()
    become_parent_of_orphans()
    is_ahead = arguments.ahead and go_ahead_of_others()
    how = "ahead of all others" if is_ahead else f"as others, load {os.getloadavg()[0]:.1f} before"
    name = f"embedded_{arguments.what}"
    before: dict[str, Any] = {} if arguments.fresh else read_json(RESULTS / f"{name}.json") or {}
    rounds = before.get("rounds", [])
    with tempfile.TemporaryDirectory() as folder:
        dataset = compose_sweep(parse_arguments(["+grid=wit_5x5"])).configs[0].dataset
        data = write_embedded(Path(folder, "data"), dataset)
        known = before or read_json(RESULTS / "embedded_plane.json") or {}
        trials = known.get("trl_trials") or trials_of(data)
        rows = min(trials, key=lambda key: trials[key]["cpu_s"])
        rounds.append(one_round(arguments.what, Path(folder), data, rows, len(rounds)))
    result = {"trl_rows": rows, "trl_trials": trials} | summary(arguments.what, rounds)
    result["machine"] = machine(f"{before['machine']['how']}; {how}" if before else how)
    path = write_result(name, result)
    print(json.dumps({key: result[key] for key in ("over_ours", "kept")}, indent=1), f"\nwrote {path}")
    return 0 if result["kept"] else 1


def one_round(what: str, folder: Path, data: Path, rows: str, number: int) -> dict[str, Any]:
    """Every way once, another one first each time."""
    ours = {"ours": ()} | ({"ours_plane_off": ("train.plane=off",)} if has_planes() else {})
    ways: dict[str, Any] = {
        name: lambda name=name, words=words: our_sweep(what, folder / name, words)
        for name, words in ours.items()
    }
    if what == "plane":
        ways |= {
            "trl_processes": lambda: trl_processes(data, rows, PLANE),
            "trl_loops": lambda: trl_loops(data, rows, PLANE),
            "trl_processes_of_rays": lambda: trl_processes(data, rows, RAYS),
        }
    else:
        ways["trl_hydra"] = lambda: trl_hydra(folder, data, rows, number)
    names = list(ways)
    found: dict[str, Any] = {}
    for name in names[number % len(names) :] + names[: number % len(names)]:
        found[name] = ways[name]()
        print(name, json.dumps(found[name]), flush=True)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, text=True)
    return {"commit": commit.strip(), "has_planes": has_planes(), **found}


def has_planes() -> bool:
    """Whether workers of this checkout can train planes."""
    return any(field.name == "plane" for field in dataclasses.fields(RecipeConfig))


def rounded(cost: Cost) -> dict[str, float]:
    return {"wall_s": round(cost.wall_s, 2), "cpu_s": round(cost.cpu_s, 2)}


def our_sweep(what: str, root: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """The command, on an empty root; all its records must be there."""
    question = ["grid.seeds=[0]", "grid.scale_checks=0"] if what == "plane" else []
    command = [sys.executable, "-m", "sweep", "+grid=wit_5x5", *question, f"root={root}", *words]
    cost = cost_of(command, environment=ONE_THREAD)
    records = [read_json(path) or {} for path in root.glob(".runs/*/record.json")]
    finished = [record for record in records if record["outcome"] == "finished"]
    expected = RAYS + 1 if what == "plane" else 3 * RAYS + 3
    if len(finished) != expected:
        raise RuntimeError(f"{len(finished)} runs finished, not {expected}")
    best = max(record["metrics"]["validation_exact_answer"] for record in finished)
    again = [sys.executable, "-m", "analysis", "+grid=wit_5x5", *question, f"root={root}", *words]
    report = cost_of(again, environment=ONE_THREAD)
    return rounded(cost) | {
        "report": rounded(report),
        "training": rounded(Cost(cost.wall_s - report.wall_s, cost.cpu_s - report.cpu_s)),
        "runs": len(finished),
        "best_validation_exact_answer": best,
    }


def trials_of(data: Path) -> dict[str, Any]:
    """One cell with padded rows and one with packed ones."""
    found = {}
    for rows in ("padded", "packed"):
        cost = cost_of([sys.executable, HERE / "trl_cell.py", data, rows, "0"], environment=ONE_THREAD)
        found[rows] = rounded(cost) | results_of(data, 1)[0]
    return found


def results_of(data: Path, number: int) -> list[dict[str, float]]:
    """What so many cells wrote; taken away, so that no later count sees them."""
    paths = sorted((data / "cells").glob("*.json"))
    if len(paths) != number:
        raise RuntimeError(f"{len(paths)} cells of {number} have a result")
    found = [json.loads(path.read_text()) for path in paths]
    for path in paths:
        path.unlink()
    return found


def exact_answers(data: Path, number: int) -> dict[str, Any]:
    values = [result["validation_exact_answer"] for result in results_of(data, number)]
    return {"cells": number, "best_validation_exact_answer": max(values)}


def trl_processes(data: Path, rows: str, number: int) -> dict[str, Any]:
    """A process for each of so many cells, as a shell's loop with two at once starts them."""
    each = f"{sys.executable} {HERE / 'trl_cell.py'} {data} {rows}"
    cost = cost_of(["sh", "-c", f"yes 0 | head -n {number} | xargs -P 2 -n 1 {each}"], environment=ONE_THREAD)
    return rounded(cost) | exact_answers(data, number)


def trl_loops(data: Path, rows: str, number: int) -> dict[str, Any]:
    """Two processes with half of the cells each."""
    first = number // 2
    each = [
        f"{sys.executable} {HERE / 'trl_cell.py'} {data} {rows} {' '.join('0' * some)}"
        for some in (first, number - first)
    ]
    cost = cost_of(["sh", "-c", f"{each[0]} & {each[1]} && wait $!"], environment=ONE_THREAD)
    return rounded(cost) | exact_answers(data, number)


def trl_hydra(folder: Path, data: Path, rows: str, number: int) -> dict[str, Any]:
    """A random product of weights and seeds under Hydra, what a start costs, and all cells from both."""
    peers = install(folder / "peers", LAUNCHER)
    environment = {**ONE_THREAD, "PYTHONPATH": f"{PROJECT}:{HERE}:{peers}"}
    nothing = folder / "nothing"
    nothing.mkdir()
    start = cost_of(
        [sys.executable, "-m", "noop.by_hydra", nothing, "1"], cwd=nothing, environment=environment
    )
    draw = random.Random(number)
    weights = draw.sample((0.0, 0.25, 0.5, 0.75, 1.0), 2)
    axes = [f"prompt_weight={weights[0]},{weights[1]}", f"response_weight={draw.choice((0.25, 0.5, 1.0))}"]
    command = [sys.executable, HERE / "trl_cell.py", data, rows, "-m", "hydra/launcher=submitit_local"]
    command += [f"hydra.sweep.dir={folder}/multirun", *axes, "seed=0,1,2"]
    measured = cost_of(command, cwd=folder, environment=environment)
    return {
        "start": rounded(start),
        "measured": rounded(measured) | exact_answers(data, SAMPLE) | {"axes": axes},
        **{
            key: round(first + (some - first) * CELLS / SAMPLE, 1)
            for key, first, some in (
                ("wall_s", start.wall_s, measured.wall_s),
                ("cpu_s", start.cpu_s, measured.cpu_s),
            )
        },
    }


def whole(entry: dict[str, Any]) -> dict[str, Any]:
    """What a way cost."""
    return entry


def without_report(entry: dict[str, Any]) -> dict[str, Any]:
    """What it cost without what only ours has."""
    return entry.get("training", entry)


def summary(what: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Every round, the ratios to ours, the verdict."""
    others = [name for name in rounds[0] if name not in ("ours", "commit", "has_planes")]
    over = {
        name: {
            f"{key.removesuffix('_s')}{suffix}": estimate(
                [part(each[name])[key] / part(each["ours"])[key] for each in rounds]
            )
            for key in ("wall_s", "cpu_s")
            for suffix, part in (("", whole), ("_without_report", without_report))
        }
        for name in others
    }
    peer, promised = PROMISED[what]
    keys = ("wall",) if what == "plane" else ("wall", "cpu")
    return {
        "rounds": rounds,
        "over_ours": over,
        "promised": {f"{peer}.{key}": promised for key in keys},
        "kept": all(over[peer][key]["mean"] >= promised for key in keys),
    }


if __name__ == "__main__":
    sys.exit(main())

"""An adaptive search through the real sweep, against the whole grid: the embedded experiment, 13 settings.

    python tests/bench/bench_search_sweep.py ROOT FIRST LAST     writes tests/bench/results/search_sweep_*.json

A repetition draws an order of the seeds that ROOT has runs of (`python -m sweep +grid=wit_5x5 grid.scale_checks=0
grid.seeds=[0,1,2,3,4] root=ROOT` trains them). The whole grid is 13 settings x the first 3 of them, 39 runs. The search
is `search=adaptive search.max_runs=23` (59 %) with the same order: the real controller, proposals and search process;
runs that ROOT has are not trained again, others are. Both recommend by posterior mean. What a setting is worth is its
mean over all seeds of ROOT; the search reaches the grid's recommendation if it loses at most epsilon, one point.
"""

import datetime
import json
import platform
import sys
from pathlib import Path

import numpy as np

from analysis.search.adaptive import believe
from analysis.search.questions import Told
from analysis.search.space import angle_of
from sweep.arguments import parse_arguments
from sweep.commands.running import control
from sweep.commands.session import open_session
from sweep.spec import Status
from train.metrics import metric

EXACT = metric("validation_exact_answer")
SEEDS, MOST, EPSILON = 5, 23, 0.01


def told_of(session) -> list[Told]:
    records = session.ledger.records(spec.fingerprint for spec in session.plan.runs)
    return [
        Told(
            weights=(spec.config.objective.prompt_weight, spec.config.objective.response_weight),
            seed=spec.config.seed,
            metrics={EXACT.name: records[spec.fingerprint].metrics[EXACT.name]},
        )
        for spec in session.plan.runs
        if spec.config.stage == "sft" and spec.fingerprint in records
    ]


def recommended(told: list[Told], places) -> tuple[float, float]:
    mean, _, _ = believe(places, told, [EXACT], 0).moments(1.0)
    return places[int(mean.argmax())]


def session_of(root: str, seeds: list[int], *words: str):
    line = (
        "+grid=wit_5x5",
        "grid.scale_checks=0",
        f"grid.seeds={json.dumps(seeds).replace(' ', '')}",
        f"root={root}",
    )
    return open_session(parse_arguments((*line, *words)))


def repeat(root: str, repetition: int, worth: dict, places) -> dict[str, object]:
    seeds = [int(seed) for seed in np.random.default_rng(repetition).permutation(SEEDS)]
    whole = recommended(told_of(session_of(root, seeds[:3])), places)
    words = ("search=adaptive", f"search.max_runs={MOST}", f"search.seed={repetition}", "launcher.slots=2")
    session = session_of(root, seeds, *words, f"name=adaptive{repetition}")
    session.folder.write_plan(session.plan)
    ending = control(session)
    session.search.close()
    assert ending is not None
    assert ending.num(Status.FINISHED) == len(ending.states)
    session = session_of(root, seeds, *words, f"name=adaptive{repetition}")
    told = told_of(session)
    found = recommended(told, places)
    return {
        "repetition": repetition,
        "runs": len(told),
        "why": session.search.lines()[0].rpartition("; ")[2],
        "recommended": found,
        "whole_grid_recommended": whole,
        "loss": round(worth[whole] - worth[found], 4),
    }


def main(root: str, first: int, last: int) -> None:
    everything = told_of(session_of(root, list(range(SEEDS))))
    assert len(everything) == 13 * SEEDS, f"{root} has {len(everything)} runs; see the head of this file"
    places = tuple(sorted({run.weights for run in everything}, key=angle_of))
    worth = {
        place: float(np.mean([run.metrics[EXACT.name] for run in everything if run.weights == place]))
        for place in places
    }
    raw = Path(root) / "repetitions.jsonl"
    for repetition in range(first, last):
        row = repeat(root, repetition, worth, places)
        with open(raw, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    rows = [json.loads(line) for line in raw.read_text().splitlines()]
    values = {
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "grid_runs": 39,
        "most_runs": MOST,
        "epsilon_share_of_rows": EPSILON,
        "repetitions": len(rows),
        "share_that_reach_the_grids_recommendation": float(np.mean([row["loss"] <= EPSILON for row in rows])),
        "median_runs": float(np.median([row["runs"] for row in rows])),
        "worth_by_setting": {f"{p:g}, {r:g}": round(value, 4) for (p, r), value in worth.items()},
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / f"search_sweep_{values['machine']}_{values['date']}.json"
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

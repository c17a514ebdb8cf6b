"""How many runs an adaptive search takes to be as good as the whole grid, on planes with a known truth.

    python tests/bench/bench_search.py simulate NAME BATCH FIRST LAST FILE    some repetitions, appended to a file
    python tests/bench/bench_search.py summarise FILE...                      writes tests/bench/results/search_*.json
    python tests/bench/bench_search.py speed                                  the same, of rebuilding and asking

Mid noise of region.md: a run's score is the truth plus N(0, 0.78 points); known evaluation variance 0.245. The paper's
35 cells are the candidates; regret is of the recommended one of 120 places. The references are the best of 35 single
runs ("argmax") and this surface on 35 single runs ("whole grid"). Runs are counted until the mean regret stays at or
below the reference's, with region.md's tolerance (x 1.05 + 0.02).
"""

import datetime
import json
import math
import platform
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from region_truths import (
    CELL_ROWS,
    CELLS,
    DECISIONS,
    NOISES,
    contrast_variance,
    index_of,
    published_planes,
    truth,
)

from analysis.gaussian import Points
from analysis.kernels import AVERAGE
from analysis.search.adaptive import Belief, propose
from analysis.search.answers import answer
from analysis.search.questions import Question, Told
from analysis.search.scales import Scale
from analysis.search.space import space_of
from analysis.search.studies import make_study
from analysis.surface import FULL, QUICK, Effort, fit_surface
from sweep.candidates import weights_at
from sweep.ledger import Ledger
from sweep.search_config import Range
from train.files import to_json
from train.metrics import metric
from train.record import RunRecord, record_to_dict

RESULTS = Path(__file__).parent / "results"
PILOT = ((0, 1), (1, 1), (0.2, 1), (0.4, 0.6), (1, 0.4))
TRUTHS = ("peak", "ray", "step", "fade", "plateau")  # two of them our own
MOST = 35
EPSILON, CONFIDENCE = (
    0.5,
    0.9,
)  # of the stop rule: what the recommended candidate loses to the best one, points
KNOWN, DEVIATION = contrast_variance(NOISES["mid"])
PLACES = tuple((float(p), float(r)) for p, r in CELLS)


def surface_of(name: str, repetition: int) -> tuple[np.ndarray, float, float]:
    """The truth at the 120 places, a run's s.d. around it, and how much of that is known variance."""
    if name != "published":
        return truth(name), DEVIATION, KNOWN
    planes = published_planes()
    scores = planes[sorted(planes)[repetition % len(planes)]]
    posterior = fit_surface(Points.of(*CELLS.T, scores, 0.0), AVERAGE, seed=1)
    mean, _ = posterior.moments(*DECISIONS.T)
    spread = posterior.run_deviation
    return mean, float(np.sqrt(0.5 * (0.3 * spread) ** 2 + spread**2)), 0.5 * (0.3 * spread) ** 2


def believed(rows: list[int], scores: list[float], known: float, repetition: int, effort: Effort) -> Belief:
    points = Points.of(*CELLS[rows].T, scores, known, 0)
    return Belief(PLACES, (fit_surface(points, AVERAGE, repetition, effort=effort),), (Scale(1.0),))


def regret_of(posterior, surface: np.ndarray) -> float:
    mean, _ = posterior.moments(*DECISIONS.T)
    return float(surface.max() - surface[int(mean.argmax())])


def search(name: str, batch: int, repetition: int) -> dict[str, object]:
    """Regret after each number of runs; the references from the same truth and fresh noise."""
    surface, deviation, known = surface_of(name, repetition)
    generator = np.random.default_rng([repetition, batch, zlib.crc32(name.encode())])
    rows = [index_of(CELLS, *cell) for cell in PILOT]
    scores = [float(surface[CELL_ROWS[row]] + deviation * generator.standard_normal()) for row in rows]
    candidates = surface[CELL_ROWS]
    regrets: dict[int, float] = {}
    stopped, lost = None, None
    while True:
        belief = believed(rows, scores, known, repetition, QUICK)
        regrets[len(rows)] = regret_of(belief.posteriors[0], surface)
        if (
            stopped is None and belief.optimum(1.0, EPSILON).sure >= CONFIDENCE
        ):  # as `analysis.search.answers` does
            optimum = believed(rows, scores, known, repetition, FULL).optimum(1.0, EPSILON)
            if optimum.sure >= CONFIDENCE:
                stopped, lost = len(rows), float(candidates.max() - candidates[optimum.best])
        if len(rows) >= MOST:
            break
        wanted = min(batch, MOST - len(rows))
        for weights, _ in propose(belief, [], wanted, len(rows)):
            row = PLACES.index(weights)
            rows.append(row)
            scores.append(float(surface[CELL_ROWS[row]] + deviation * generator.standard_normal()))
    whole = surface[CELL_ROWS] + deviation * generator.standard_normal(len(CELLS))
    return {
        "truth": name,
        "batch": batch,
        "repetition": repetition,
        "regrets": regrets,
        "stopped": stopped,
        "lost_when_stopped": lost,
        "whole_grid": regret_of(fit_surface(Points.of(*CELLS.T, whole, known), AVERAGE, repetition), surface),
    }


def simulate(name: str, batch: int, first: int, last: int, file: str) -> None:
    with open(file, "a", encoding="utf-8") as stream:
        for repetition in range(first, last):
            stream.write(json.dumps(search(name, batch, repetition)) + "\n")
            stream.flush()


def argmax_regrets(name: str, number: int = 6000) -> np.ndarray:
    """Regret of the best of 35 single runs, over many planes: it costs nothing, so its own error is none to mind."""
    generator, found = np.random.default_rng([9, zlib.crc32(name.encode())]), []
    kinds = len(published_planes()) if name == "published" else 1
    for kind in range(kinds):
        surface, deviation, _ = surface_of(name, kind)
        candidates = surface[CELL_ROWS]
        seen = candidates + deviation * generator.standard_normal((number // kinds, len(CELLS)))
        found.append(surface.max() - candidates[seen.argmax(axis=1)])
    return np.concatenate(found)


def summarise(files: list[str]) -> None:
    rows = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    found = []
    for name, batch in sorted({(row["truth"], row["batch"]) for row in rows}):
        ours = [row for row in rows if (row["truth"], row["batch"]) == (name, batch)]
        of_truth = [row for row in rows if row["truth"] == name]
        numbers = sorted(int(number) for number in ours[0]["regrets"])
        table = np.array([[row["regrets"][str(number)] for number in numbers] for row in ours])
        whole = np.array([row["whole_grid"] for row in of_truth])
        references = {"argmax": argmax_regrets(name), "whole_grid": whole}
        entry = {
            "truth": name,
            "batch": batch,
            "repetitions": len(ours),
            "regret_points_by_runs": {
                str(number): [round(float(mean), 3), round(float(error), 3)]
                for number, mean, error in zip(
                    numbers, table.mean(0), table.std(0, ddof=1) / np.sqrt(len(ours)), strict=True
                )
                if number % 5 == 0
            },
            "runs_until_known": _stopping(ours),
        }
        for key, values in references.items():
            limit = float(values.mean()) * 1.05 + 0.02
            entry[f"{key}_regret_points"] = round(float(values.mean()), 3)
            entry[f"runs_to_{key}"] = _stays_below(numbers, table.mean(0), limit)
            slack = 2 * table.std(0, ddof=1) / np.sqrt(len(ours)) + 2 * float(values.std(ddof=1)) / np.sqrt(
                len(values)
            )
            entry[f"runs_to_{key}_allowing_2_standard_errors"] = _stays_below(
                numbers, table.mean(0) - slack, limit
            )
        found.append(entry)
    write("search", {"criterion": LIMITS, "held": _held(found), "noise": "mid", "rows": found})


def _held(rows: list[dict]) -> dict[str, str]:
    """Each limit: the most runs that any truth takes, as measured and with the mean regret's two standard errors."""
    told = {}
    for key, limits in LIMITS.items():
        for batch, limit in limits.items():
            ours = [row for row in rows if str(row["batch"]) == batch]
            if not ours:
                continue
            for suffix in ("", "_allowing_2_standard_errors"):
                taken = {row["truth"]: row[f"runs_to_{key}{suffix}"] or math.inf for row in ours}
                worst = max(taken, key=lambda name: taken[name])
                word = "held" if taken[worst] <= limit else "not held"
                told[f"{key}, batch {batch}{suffix}"] = (
                    f"{word}: {taken[worst]:g} runs ({worst}), limit {limit}"
                )
    return told


LIMITS = {"argmax": {"1": 16, "5": 25}, "whole_grid": {"1": 28, "5": 30}}


def _stopping(rows: list[dict]) -> dict[str, float]:
    stopped = [row for row in rows if row["stopped"] is not None]
    if not stopped:
        return {"share": 0.0}
    kept = np.array([row["lost_when_stopped"] <= EPSILON for row in stopped])
    return {
        "share": round(len(stopped) / len(rows), 3),
        "median_runs": float(np.median([row["stopped"] for row in stopped])),
        "share_that_lose_at_most_epsilon": round(float(kept.mean()), 3),
        "standard_error": round(
            math.sqrt((kept.sum() + 1) * (len(kept) - kept.sum() + 1)) / (len(kept) + 2) ** 1.5, 3
        ),
    }


def _stays_below(numbers: list[int], regrets: np.ndarray, limit: float) -> int | None:
    ok = np.flip(np.logical_and.accumulate(np.flip(regrets <= limit)))
    return numbers[int(np.argmax(ok))] if ok.any() else None


def write(name: str, values: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    values |= {"machine": platform.machine(), "date": datetime.date.today().isoformat()}
    path = RESULTS / f"{name}_{values['machine']}_{values['date']}.json"
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def speed() -> None:
    """CPU and wall seconds: a study of 10,000 records from the ledger; a question with 600 runs."""
    with tempfile.TemporaryDirectory() as root:
        ledger, names = Ledger(root), []
        for number in range(10_000):
            name = f"{number:032x}"
            folder = ledger.folder(name)
            folder.mkdir(parents=True)
            record = RunRecord(
                run_id=name,
                fingerprint=name,
                outcome="finished",
                stage="sft",
                metrics={f"{split}_{key}": 0.5 for split in ("validation", "test") for key in _MEASURES},
            )
            (folder / "record.json").write_text(to_json(record_to_dict(record)))
            names.append(name)
        space = space_of(question([]))
        wall, cpu = time.perf_counter(), time.process_time()
        records = ledger.records(names)
        told = [
            Told(weights=RAYS[number % 13], seed=number // 13, metrics=records[name].metrics)
            for number, name in enumerate(names)
        ]
        study = make_study(space, [metric("validation_exact_answer")], told, [], None)
        rebuilt = {
            "cpu_s": round(time.process_time() - cpu, 3),
            "wall_s": round(time.perf_counter() - wall, 3),
        }
        assert len(study.trials) == 10_000
    generator = np.random.default_rng(0)
    asks = {}
    for kind in (
        "adaptive",
        "tpe",
    ):  # gp: Optuna refits 600 points from scratch, for seconds; use it below 200
        for free in (False, True):
            low, high = (math.tan(1e-3), math.tan(1.5))
            angles = generator.uniform(1e-3, 1.5, 600)
            runs = [
                Told(
                    weights=weights_at(math.tan(angles[number])) if free else RAYS[number % 13],
                    seed=number // 13,
                    metrics={"validation_exact_answer": 0.5 + 0.03 * generator.standard_normal()},
                )
                for number in range(600)
            ]
            ranges = (Range(axis="ratio", low=low, high=high),) if free else ()
            asked = question(runs, kind=kind, ranges=ranges, epsilon=1e-5)
            answer(asked)  # what is imported once
            wall, cpu = time.perf_counter(), time.process_time()
            found = answer(asked)
            assert found["proposals"]
            asks[f"{kind}, {'600 different ratios' if free else '13 settings'}"] = {
                "cpu_s": round(time.process_time() - cpu, 3),
                "wall_s": round(time.perf_counter() - wall, 3),
            }
    limits = {"study of 10,000 records": 2.0, "one proposal at 600 runs": 0.5}
    write(
        "search_speed",
        {"limits_s": limits, "study of 10,000 records": rebuilt, "one proposal at 600 runs": asks},
    )


_MEASURES = ("exact_answer", "constraint_adherence", "response_nll", "prompt_nll", "response_bits_per_byte")
RAYS = tuple((p, 1.0) for p in (0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75)) + tuple(
    (1.0, r) for r in (1.0, 0.75, 2 / 3, 0.5, 1 / 3, 0.25, 0.0)
)


def question(told, **changes):
    values = {"plane": "bench", "kind": "tpe", "candidates": RAYS, "told": tuple(told)}
    return Question(**{**values, **changes})


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "simulate":
        started = time.monotonic()
        simulate(words[0], *map(int, words[1:4]), words[4])
        print(words, f"{time.monotonic() - started:.0f} s", flush=True)
    elif command == "summarise":
        summarise(words)
    elif command == "speed":
        speed()

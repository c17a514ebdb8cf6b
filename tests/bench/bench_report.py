"""What the full report of a paper-sized sweep costs: 525 runs x 5 benchmarks x items, synthetic records.

    python tests/bench/bench_report.py [FOLDER]     writes tests/bench/results/report_<machine>_<date>.json

Every cell of wit_paper is a run of its own (grid.collapse=none). Items as many as the benchmarks have; the metric that
chooses is the one with most. Limits: 60 s of CPU, 2 GB, a page of 2 MB. With FOLDER the records are kept and reused.
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

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from sweep.arguments import parse_arguments  # noqa: E402
from sweep.compose import compose_sweep  # noqa: E402
from sweep.folder import SweepFolder  # noqa: E402
from sweep.ledger import Ledger  # noqa: E402
from sweep.plan import make_plan  # noqa: E402
from sweep.spec import RunSpec  # noqa: E402
from train.items import FOLDER, HALVES, Items, half_of, write_items  # noqa: E402
from train.metrics import MEASURES  # noqa: E402
from train.record import RunRecord  # noqa: E402

ARGUMENTS = ("+grid=wit_paper", "grid.collapse=none")
METRIC = "validation_mmlu.exact_match"
BENCHMARKS = {  # measure, items, clusters, level
    "mmlu": ("exact_match", 14_042, 57, 0.45),
    "bbh": ("exact_match", 6_511, 27, 0.35),
    "ifeval": ("instruction_loose", 541, 541, 0.35),
    "alpaca_eval": ("win_rate", 805, 805, 0.45),
    "mt_bench": ("rating", 80, 80, 4.0),
}
LIMITS = {"cpu_s": 60.0, "memory_mb": 2000.0, "page_mb": 2.0}


def items_of(
    benchmark: str, quality: float, difficulty_I: np.ndarray, generator: np.random.Generator
) -> Items:
    measure, number, clusters, level = BENCHMARKS[benchmark]
    noise_I = difficulty_I + 0.5 * generator.standard_normal(number)
    if measure == "rating":
        values = np.clip(np.round(level + 10 * quality + 2 * noise_I), 1, 10)
    else:
        values = (noise_I < np.quantile(difficulty_I, min(max(level + quality, 0.01), 0.99))).astype(float)
    ids = tuple(f"{benchmark}-{k}" for k in range(number))
    return Items(
        benchmark=benchmark,
        protocol="ab" * 16,
        metrics={measure: MEASURES[measure]},
        item_ids=ids,
        clusters=tuple(f"c{k % clusters}" for k in range(number)),
        splits=tuple(half_of(benchmark, f"c{k % clusters}") for k in range(number)),
        values={measure: values},
    )


def quality_of(spec: RunSpec, generator: np.random.Generator) -> float:
    """A share: an optimum at a ratio that differs by plane, and the noise of one run."""
    objective = spec.config.objective
    if spec.config.stage == "base":
        return -0.1
    angle = np.arctan2(objective.prompt_weight, objective.response_weight)
    best = 0.2 + 0.1 * (len(spec.config.dataset.name) % 3)
    cliff = 0.15 if objective.response_weight == 0 else 0.0
    return float(0.03 * np.exp(-((angle - best) ** 2) / 0.1) - cliff + 0.006 * generator.standard_normal())


def finish_every_run(root: Path) -> int:
    """Records and items of every run, made by hand: as if the sweep were over."""
    composed = compose_sweep(parse_arguments((*ARGUMENTS, f"root={root}")))
    plan = make_plan(composed, cache_folder=None, allow_unresolved=True)
    folder, ledger = SweepFolder(root, composed.config.name), Ledger(root)
    folder.write_plan(plan)
    difficulties = {
        name: np.random.default_rng(k).standard_normal(number)
        for k, (name, (_, number, _, _)) in enumerate(BENCHMARKS.items())
    }
    for index, spec in enumerate(plan.runs):
        generator = np.random.default_rng([7, index])
        quality = quality_of(spec, generator)
        ledger.write_spec(spec.fingerprint, {"run_id": spec.run_id})
        claim = ledger.claim(spec.fingerprint)
        assert claim is not None
        metrics = {}
        for name, (measure, *_) in BENCHMARKS.items():
            items = items_of(name, quality, difficulties[name], generator)
            write_items(ledger.folder(spec.fingerprint) / FOLDER, items)
            for half in HALVES:
                metrics[f"{half}_{name}.{measure}"] = float(items.values[measure][items.rows(half)].mean())
        claim.commit(
            RunRecord(
                run_id=spec.run_id,
                fingerprint=spec.fingerprint,
                outcome="finished",
                stage=spec.config.stage,
                metrics=metrics,
                parameters_sha256=spec.fingerprint,
                training_s=100.0,
            )
        )
    return len(plan.runs)


def measure(root: Path) -> dict[str, float]:
    """CPU seconds and peak memory of the command that makes the report."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "analysis", *ARGUMENTS, f"analysis.metric={METRIC}", f"root={root}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(command, cwd=PROJECT, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    page = SweepFolder(root, "wit_paper").report / "report.html"
    return {
        "cpu_s": round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 1),
        "memory_mb": round(after.ru_maxrss / 1024, 1),
        "page_mb": round(page.stat().st_size / 1e6, 3),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if not (root / "wit_paper" / "plan.json").exists():
            print(f"{finish_every_run(root)} records made", flush=True)
        measured = measure(root)
    results = {
        "limits": LIMITS,
        "measured": measured,
        "held": all(measured[name] <= limit for name, limit in LIMITS.items()),
    }
    name = f"report_{platform.machine()}_{datetime.date.today().isoformat()}.json"
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    (PROJECT / "tests" / "bench" / "results" / name).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Plans and records written by hand, for tests of the analysis: no Hydra, no model, no disk."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from analysis.table import Table, make_table
from sweep.spec import Cell, Plan, PlannedBase, PlannedCell, RunSpec, Status
from train.config import RunConfig, run_config_from_dict
from train.record import RunRecord

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
Score = Callable[[float, float, int], Mapping[str, float]]  # prompt weight, response weight, seed -> metrics


def run_config(
    prompt_weight: float,
    response_weight: float,
    seed: int,
    *,
    model: str = "tiny",
    dataset: str = "facts",
    stage: str = "sft",
) -> RunConfig:
    return run_config_from_dict(
        {
            "stage": stage,
            "model": {"name": model, "source": "embedded"},
            "dataset": {"name": dataset, "source": "embedded"},
            "seed": seed,
            "objective": {"prompt_weight": prompt_weight, "response_weight": response_weight},
        }
    )


def hand_made_plan(
    weights: Iterable[float] = GRID,
    seeds: Iterable[int] = (0, 1, 2),
    *,
    aliases: bool = True,
    groups: Iterable[tuple[str, str]] = (("tiny", "facts"),),
    pairs: Iterable[tuple[float, float]] | None = None,
    base: bool = True,
    name: str = "wit_5x5",
    checks: Iterable[tuple[float, float]] = (),
) -> Plan:
    """A square grid without (0, 0), or the pairs given; cells of one ratio share one run.

    checks: cells that are trained all the same, at the first seed.
    """
    seeds, checked = tuple(seeds), tuple(checks)
    weights = tuple(weights)
    asked = (
        tuple(pairs)
        if pairs is not None
        else tuple((p, r) for p in weights for r in weights if (p, r) != (0, 0))
    )
    cells, bases, runs = [], [], {}

    def spec(key: str, config: RunConfig) -> str:
        fingerprint = key.ljust(32, "0")
        runs.setdefault(fingerprint, RunSpec(key, fingerprint, config, "model-hash", "data-hash"))
        return fingerprint

    for model, dataset in groups:
        if base:
            config = run_config(0, 0, 0, model=model, dataset=dataset, stage="base")
            bases.append(PlannedBase(model, dataset, (), spec(f"{model}-{dataset}-base", config)))
        for seed in seeds:
            for p, r in asked:
                same = [pair for pair in asked if aliases and abs(pair[0] * r - pair[1] * p) < 1e-12]
                owner = max(same, default=(p, r))
                if (p, r) in checked and seed == seeds[0]:
                    owner = (p, r)
                key = f"{model}-{dataset}-p{owner[0]:g}-r{owner[1]:g}-s{seed}"
                fingerprint = spec(key, run_config(*owner, seed, model=model, dataset=dataset))
                cells.append(PlannedCell(Cell(model, dataset, p, r, seed), fingerprint, owner != (p, r)))
    return Plan(name, tuple(cells), tuple(bases), tuple(runs.values()))


def hand_made_records(plan: Plan, score: Score, **fields: Any) -> dict[str, RunRecord]:
    """A finished record of every run of the plan."""
    environment = {
        "host": "node1",
        "device": "cpu: x86_64",
        "torch": "2.11.0",
        "git_commit": "abc123",
        "git_has_changes": False,
    }
    shared = {
        "counts": {"train_rows": 2000, "unusable_rows.empty": 3},
        "num_steps": 60,
        "training_s": 20.0,
        "evaluation_s": 4.0,
        "setup_s": 1.0,
        "tokens_per_s": 7000.0,
        "environment": environment,
        **fields,
    }
    return {
        spec.fingerprint: RunRecord(
            run_id=spec.run_id,
            fingerprint=spec.fingerprint,
            outcome="finished",
            stage=spec.config.stage,
            metrics=dict(
                score(
                    spec.config.objective.prompt_weight,
                    spec.config.objective.response_weight,
                    spec.config.seed,
                )
            ),
            **shared,
        )
        for spec in plan.runs
    }


def planted_score(
    *, noise: float = 0.01, seed_effect: float = 0.02, best_angle: float = 0.3, generator_seed: int = 0
) -> Score:
    """Exact answers that peak at one angle, and nll that mirror them; seeds shift all runs together."""
    generator = np.random.default_rng(generator_seed)
    shifts: dict[int, float] = {}

    def score(prompt_weight: float, response_weight: float, seed: int) -> dict[str, float]:
        shift = shifts.setdefault(seed, float(generator.normal(0, seed_effect)))
        if (prompt_weight, response_weight) == (0, 0):
            quality, shift = 0.08, 0.0
        else:
            quality = 0.6 - 0.3 * abs(math.atan2(prompt_weight, response_weight) - best_angle)
        metrics = {}
        for split in ("validation", "test"):
            value = quality + shift + float(generator.normal(0, noise))
            metrics |= {
                f"{split}_exact_answer": value,
                f"{split}_response_nll": 1.5 - value,
                f"{split}_mean_output_tokens": 8.0,
                f"{split}_empty_output_rate": 0.01,
            }
        return metrics

    return score


def hand_made_table(
    plan: Plan | None = None,
    score: Score | None = None,
    *,
    drop: Iterable[str] = (),
    statuses: Mapping[str, Status] | None = None,
) -> Table:
    """A table of the plan, without the records of runs whose id ends on one of `drop`."""
    plan = hand_made_plan() if plan is None else plan
    records = hand_made_records(plan, planted_score() if score is None else score)
    kept = {
        key: record for key, record in records.items() if not record.run_id.endswith(tuple(drop) or ("\0",))
    }
    return make_table(plan, kept, statuses or {})

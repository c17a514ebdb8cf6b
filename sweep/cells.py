"""A sweep as a table: one row per cell, recorded or not. Pure; the data frame is made elsewhere."""

from collections.abc import Mapping
from typing import Any

from sweep.evaluations import answered
from sweep.ledger import PLANNED, RunState
from sweep.spec import Plan, RunSpec, Settings
from train.record import RunRecord

Row = dict[str, Any]


def cell_rows(plan: Plan, records: Mapping[str, RunRecord], states: Mapping[str, RunState]) -> list[Row]:
    """Axes, run, status and numbers of every base model (weights 0, 0) and cell, all with the same columns.

    The row of an alias repeats the numbers of the run that answers it. canonical_*: the weights trained.
    An absent number is None, never 0. Settings are columns under their full key, such as train.learning_rate.
    """
    specs = {spec.fingerprint: spec for spec in plan.runs}
    records = answered(plan, records)
    rows: list[Row] = []
    for base in plan.bases:
        row = _row(base.model, base.dataset, 0.0, 0.0, None, base.settings, is_alias=False, is_base=True)
        rows.append(row | _answer(specs[base.fingerprint], records, states))
    for planned in plan.cells:
        cell = planned.cell
        row = _row(
            cell.model,
            cell.dataset,
            cell.prompt_weight,
            cell.response_weight,
            cell.seed,
            cell.settings,
            is_alias=planned.is_alias,
            is_base=False,
        )
        rows.append(row | _answer(specs[planned.fingerprint], records, states))
    last = {name for record in records.values() for name in (*record.counts, *record.metrics)}
    columns = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name in last)
    return [{name: row.get(name) for name in columns} for row in rows]


def _row(
    model: str,
    dataset: str,
    prompt_weight: float,
    response_weight: float,
    seed: int | None,
    settings: Settings,
    *,
    is_alias: bool,
    is_base: bool,
) -> Row:
    return {
        "model": model,
        "dataset": dataset,
        "prompt_weight": prompt_weight,
        "response_weight": response_weight,
        "seed": seed,
        **dict(settings),
        "is_base": is_base,
        "is_alias": is_alias,
    }


def _answer(spec: RunSpec, records: Mapping[str, RunRecord], states: Mapping[str, RunState]) -> Row:
    objective = spec.config.objective
    answer: Row = {
        "run_id": spec.run_id,
        "fingerprint": spec.fingerprint,
        "status": str(states.get(spec.fingerprint, PLANNED).status),
        "canonical_prompt_weight": objective.prompt_weight,
        "canonical_response_weight": objective.response_weight,
    }
    record = records.get(spec.fingerprint)
    if record is None:
        return answer
    return answer | {
        "training_s": record.training_s,
        "evaluation_s": record.evaluation_s,
        "setup_s": record.setup_s,
        "tokens_per_s": record.tokens_per_s,
        "num_steps": record.num_steps,
        "final_train_loss": record.final_train_loss,
        "parameters_sha256": record.parameters_sha256,
        **dict(sorted(record.counts.items())),
        **dict(sorted(record.metrics.items())),
    }

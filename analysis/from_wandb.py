"""A sweep's table from W&B alone: on somebody else's machine, or when the ledger is gone.

Runs are found by their group, or by their tag sweep:GROUP where several sweeps share them. Every run carries
its own configuration and its cells, so no further file is needed; what W&B lacks is counted, not guessed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweep.asked import plan_from_asked
from sweep.ledger import RunState
from sweep.spec import Plan, Status
from train.errors import UserError
from train.record import RunRecord
from train.tracking_values import CELLS_KEY, SWEEP_TAG, record_from_summary

PREFIX = "wandb:"


@dataclass(frozen=True, slots=True)
class Found:
    """What W&B has of a sweep. num_asked: runs that the sweep wanted, there or not."""

    plan: Plan
    records: Mapping[str, RunRecord]
    states: Mapping[str, RunState]
    num_asked: int


def read_wandb(source: str) -> Found:
    """source: wandb:entity/project/group. UserError if there is nothing to be read."""
    entity, project, group = split_source(source)
    found, summaries = [], {}
    for run in _runs(entity, project, group):
        config = run.config
        if "run_json" not in config or CELLS_KEY + group not in config:
            continue  # the analysis, or somebody else's run in this group
        identity = json.loads(config["run_json"])
        found.append((identity, json.loads(config[CELLS_KEY + group])))
        summaries[identity["fingerprint"]] = run.summary_metrics
    if not found:
        raise UserError(
            f"W&B has no runs of the sweep {group} in {entity}/{project}",
            "a group with runs of this project",
            "python -m sweep +grid=... sync sends them",
        )
    plan, num_asked = plan_from_asked(group, found)
    read = {key: record_from_summary(summary) for key, summary in summaries.items()}
    records = {key: record for key, record in read.items() if record is not None}
    return Found(
        plan,
        {key: record for key, record in records.items() if record.outcome == "finished"},
        {spec.fingerprint: _state(records.get(spec.fingerprint)) for spec in plan.runs},
        num_asked,
    )


def split_source(source: str) -> tuple[str, str, str]:
    """entity, project and group; UserError for anything else."""
    parts = source.removeprefix(PREFIX).split("/")
    if not source.startswith(PREFIX) or len(parts) != 3 or not all(parts):
        raise UserError(
            f"from={source} names no sweep",
            "from=wandb:entity/project/group",
            "the group is the sweep's name",
        )
    return parts[0], parts[1], parts[2]


def _runs(entity: str, project: str, group: str) -> list[Any]:
    """All of them, configuration and summary included; UserError in one line if W&B doesn't answer."""
    from train.tracking_values import one_line
    from train.tracking_wandb import set_environment

    set_environment()
    import wandb

    try:
        wanted = {"$or": [{"group": group}, {"tags": (SWEEP_TAG + group)[:64]}]}
        return list(
            wandb.Api(timeout=60).runs(f"{entity}/{project}", filters=wanted, per_page=100, lazy=False)
        )
    except Exception as error:  # wandb raises its own, requests' and ValueError
        raise UserError(
            f"W&B doesn't give {entity}/{project}: {one_line(error)[:150]}",
            "an entity and a project that your API key may read",
            "check the names, or run `wandb login`",
        ) from error


def _state(record: RunRecord | None) -> RunState:
    if record is None:
        return RunState(status=Status.INTERRUPTED)
    status = Status.FINISHED if record.outcome == "finished" else Status.FAILED
    return RunState(status=status, attempt=record.attempt, failure=record.failure)

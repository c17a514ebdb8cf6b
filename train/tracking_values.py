"""What a run looks like in a mirror: name, tags, flat configuration, summary; and the record from it. Pure.

Configuration values are flat, so that scatter plots and parallel coordinates find them. Two keys are for
programs, not for plots: `run_json` is the whole configuration, `cells_json_of_<sweep>` what a sweep asked of
the run. From these and the summaries alone the sweep's table can be made again (analysis/from_wandb.py).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.config import ObjectiveConfig, RunConfig, config_to_dict
from train.metrics import is_metric
from train.record import RunRecord, record_from_dict, record_to_dict

STEP = "trainer_step"  # our own axis: optimiser steps, from 1
SWEEP_TAG = "sweep:"
CELLS_KEY = "cells_json_of_"
_JOB_TYPES = {"sft": "train", "base": "evaluate"}
_MAX_TAG = 64  # W&B's limit, characters
_JSON = ".json"  # ends the key of a value that has no place in a flat summary


@dataclass(frozen=True, slots=True)
class Asked:
    """What a sweep wanted of a run. `cells` is JSON that only the sweep understands."""

    sweep: str = ""
    aliases: tuple[str, ...] = ()  # the cells it answers, for people: p0.25 r0.5
    cells: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MirroredRun:
    """One run's place in a mirror."""

    id: str
    name: str
    project: str
    entity: str | None
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]


def mirrored_run(
    config: RunConfig,
    run_id: str,
    fingerprint: str,
    identities: Mapping[str, str],
    git_commit: str | None,
    asked: Asked,
) -> MirroredRun:
    """The run as every mirror shows it. id: the fingerprint, so that whoever continues it finds it."""
    tags = [config.model.name, config.dataset.name, objective_name(config), *config.tracking.tags]
    if asked.sweep:
        tags.append(SWEEP_TAG + asked.sweep)
    return MirroredRun(
        id=fingerprint,
        name=run_id,
        project=config.tracking.project,
        entity=config.tracking.entity,
        group=asked.sweep or None,
        job_type=_JOB_TYPES.get(config.stage, config.stage),
        tags=tuple(dict.fromkeys(tag[:_MAX_TAG] for tag in tags if tag)),
        config=_flat_config(config, run_id, fingerprint, identities, git_commit, asked),
    )


def one_line(error: BaseException) -> str:
    """An error in one line, its type included where the message is short."""
    text = " ".join(str(error).split())
    return text[:300] if len(text) > 20 else f"{type(error).__name__}: {text}"


def objective_name(config: RunConfig) -> str:
    """What the two weights amount to, in the literature's words."""
    weights = config.objective.prompt_weight, config.objective.response_weight
    if config.stage == "base":
        return "base"
    if weights[0] == 0:
        return "instruction_tuning"
    if weights[1] == 0:
        return "prompt_only"
    return "instruction_modelling" if weights[0] == weights[1] else "weighted_instruction_tuning"


def _flat_config(
    config: RunConfig,
    run_id: str,
    fingerprint: str,
    identities: Mapping[str, str],
    git_commit: str | None,
    asked: Asked,
) -> dict[str, Any]:
    objective: ObjectiveConfig = config.objective
    recipe = {
        f"recipe_{key}": value for key, value in config_to_dict(config.train).items() if value is not None
    }
    values: dict[str, Any] = {
        "prompt_weight": objective.prompt_weight,
        "response_weight": objective.response_weight,
        "angle": math.degrees(math.atan2(objective.prompt_weight, objective.response_weight)),
        "seed": config.seed,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "stage": config.stage,
        "objective": objective_name(config),
        "fingerprint": fingerprint,
        "run_id": run_id,
        "recipe": f"{config.train.method} {config.train.optimizer} {config.train.learning_rate:g}",
        **recipe,
        "run_json": json.dumps(
            {"run_id": run_id, "fingerprint": fingerprint, "config": config_to_dict(config), **identities},
            sort_keys=True,
        ),
    }
    if objective.response_weight:
        values["ratio"] = objective.prompt_weight / objective.response_weight
    if git_commit:
        values["git_commit"] = git_commit
    if asked.sweep:
        values["aliases"] = list(asked.aliases)
        values[CELLS_KEY + asked.sweep] = json.dumps(asked.cells, sort_keys=True)
    return values


def summary_of(record: RunRecord) -> dict[str, Any]:
    """Every number of a record under a flat key: metrics by their own name, mappings as counts/train_rows."""
    summary: dict[str, Any] = {}
    for name, value in record_to_dict(record).items():
        parts = (
            {name: value}
            if not isinstance(value, Mapping)
            else {key if name == "metrics" else f"{name}/{key}": part for key, part in value.items()}
        )
        for key, part in parts.items():
            if isinstance(part, str | int | float):
                summary[key] = part
            elif part is not None:
                summary[key + _JSON] = json.dumps(part, sort_keys=True)
    return summary


def record_from_summary(summary: Mapping[str, Any]) -> RunRecord | None:
    """The inverse of `summary_of`, as exact as the mirror's own numbers; None if there is no record in it."""
    values: dict[str, Any] = {}
    for key, value in summary.items():
        if key.endswith(_JSON):
            key, value = key.removesuffix(_JSON), json.loads(value)
        group, slash, name = key.partition("/")
        if slash:
            values.setdefault(group, {})[name] = value
        elif is_metric(key):
            values.setdefault("metrics", {})[key] = value
        else:
            values[key] = value
    known = RunRecord.__dataclass_fields__
    values = {
        key: _as_float(value) if known[key].type in (float, float | None) else value
        for key, value in values.items()
        if key in known
    }
    if isinstance(values.get("metrics"), Mapping):
        values["metrics"] = {key: float(value) for key, value in values["metrics"].items()}
    return record_from_dict(values)


def _as_float(value: Any) -> Any:
    """1.0 comes back from a mirror as 1."""
    return float(value) if isinstance(value, int) else value

"""What a plan wants of each of its runs, for mirrors; and the plan made again from what mirrors kept. Pure,
but for `asked_of`, which reads the plan of the sweep that a worker serves."""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sweep.evaluations import without_evaluations
from sweep.folder import SweepFolder
from sweep.spec import Cell, Plan, PlannedBase, PlannedCell, RunSpec, Settings
from train.config import run_config_from_dict
from train.tracking_values import Asked


def asked_by_fingerprint(plan: Plan) -> dict[str, Asked]:
    """For every run the cells it answers, each with its place in the plan."""
    cells: dict[str, list[list[Any]]] = {spec.fingerprint: [] for spec in plan.runs}
    bases: dict[str, list[list[Any]]] = {spec.fingerprint: [] for spec in plan.runs}
    aliases: dict[str, list[str]] = {spec.fingerprint: [] for spec in plan.runs}
    for index, planned in enumerate(plan.cells):
        cell = planned.cell
        cells[planned.fingerprint].append(
            [
                index,
                {
                    "model": cell.model,
                    "dataset": cell.dataset,
                    "prompt_weight": cell.prompt_weight,
                    "response_weight": cell.response_weight,
                    "seed": cell.seed,
                    "settings": dict(cell.settings),
                    "is_alias": planned.is_alias,
                },
            ]
        )
        if planned.is_alias:
            aliases[planned.fingerprint].append(f"p{cell.prompt_weight:g} r{cell.response_weight:g}")
    for index, base in enumerate(plan.bases):
        bases[base.fingerprint].append(
            [index, {"model": base.model, "dataset": base.dataset, "settings": dict(base.settings)}]
        )
    return {
        spec.fingerprint: Asked(
            plan.name,
            tuple(aliases[spec.fingerprint]),
            {
                "place": place,
                "num_runs": len(plan.runs),
                "cells": cells[spec.fingerprint],
                "bases": bases[spec.fingerprint],
            },
        )
        for place, spec in enumerate(plan.runs)
    }


def asked_of(root: str, spec: RunSpec) -> Asked:
    """What the sweep that this worker serves wants of the run; nothing if the run has no mirror."""
    sweep = os.environ.get("WEIGHT_SWEEP_NAME", "")
    if spec.config.tracking.mode == "none" or not sweep:
        return Asked()
    return _asked(root, sweep, SweepFolder(root, sweep).plan_version()).get(spec.fingerprint, Asked(sweep))


@lru_cache(maxsize=1)
def _asked(root: str, sweep: str, version: tuple[int, int]) -> dict[str, Asked]:
    """version: of the plan's file; another one is read again."""
    plan = SweepFolder(root, sweep).plan()
    return asked_by_fingerprint(without_evaluations(plan)) if plan is not None else {}


def plan_from_asked(name: str, found: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> tuple[Plan, int]:
    """The plan, and how many runs it asked for. found: `run_json` and `cells` of each run that is there.

    Runs that aren't there are missing with their cells.
    """
    found = sorted(found, key=lambda pair: pair[1]["place"])
    runs, cells, bases = [], [], []
    for run, asked in found:
        fingerprint = run["fingerprint"]
        runs.append(
            RunSpec(
                run["run_id"],
                fingerprint,
                run_config_from_dict(run["config"]),
                run["model_identity"],
                run["dataset_identity"],
            )
        )
        for index, item in asked["cells"]:
            cell = Cell(
                item["model"],
                item["dataset"],
                item["prompt_weight"],
                item["response_weight"],
                item["seed"],
                _settings(item),
            )
            cells.append((index, PlannedCell(cell, fingerprint, item["is_alias"])))
        bases += [
            (index, PlannedBase(item["model"], item["dataset"], _settings(item), fingerprint))
            for index, item in asked["bases"]
        ]
    plan = Plan(
        name,
        tuple(cell for _, cell in sorted(cells, key=lambda pair: pair[0])),
        tuple(base for _, base in sorted(bases, key=lambda pair: pair[0])),
        tuple(runs),
    )
    return plan, max((asked["num_runs"] for _, asked in found), default=0)


def _settings(item: Mapping[str, Any]) -> Settings:
    return tuple(
        sorted(
            (key, tuple(value) if isinstance(value, list) else value)
            for key, value in item["settings"].items()
        )
    )

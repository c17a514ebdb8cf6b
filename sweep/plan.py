"""What must be trained to answer every cell: configurations -> rays -> fingerprints -> distinct runs.

A plan is a value: the same question over the same data and models gives the same plan. What is already done
is the ledger's to know, not the plan's.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.evaluations import evaluation_line, is_evaluation, protocols_by_run, with_evaluations
from sweep.rays import canonical_objective, scale_checks
from sweep.spec import Cell, Plan, PlannedBase, PlannedCell, RunSpec, Settings
from sweep.stages import staged, with_keep
from train.config import (
    DatasetConfig,
    ModelConfig,
    ObjectiveConfig,
    PreferenceConfig,
    RunConfig,
    config_to_dict,
    run_config_from_dict,
)
from train.fingerprint import fingerprint
from train.overrides import overrides_for

if TYPE_CHECKING:  # workers read plans and compose nothing
    from sweep.compose import ComposedSweep

PLAN_VERSION = 1

MakeSpec = Callable[[RunConfig], RunSpec]


def make_plan(sweep: "ComposedSweep", *, cache_folder: Path | None, allow_unresolved: bool = False) -> Plan:
    """The plan of a composed sweep.

    cache_folder: where content hashes of large files are remembered. allow_unresolved: accept identities that
    only a download could settle, for a look at the plan; such a plan can't be trained.
    """
    grid = sweep.config.grid
    make_spec = _spec_maker(cache_folder, allow_unresolved)
    cells, configs = staged(sweep.cells, sweep.configs, grid.stages)
    configs = [with_keep(config, grid.stages, sweep.config.retention) for config in configs]
    cells = _labelled(cells, configs)
    specs = [make_spec(_canonical(config, grid.collapse)) for config in configs]
    owners = _owners(configs, specs)
    for index in _checked(cells, configs, specs, owners, grid.scale_checks):
        specs[index] = make_spec(configs[index])
    owners = _owners(configs, specs)
    planned = tuple(
        PlannedCell(cell, spec.fingerprint, owners[spec.fingerprint] != index)
        for index, (cell, spec) in enumerate(zip(cells, specs, strict=True))
    )
    firsts = {cell.group: index for index, cell in reversed(list(enumerate(cells)))}
    base_specs = {
        group: make_spec(_untrained(specs[firsts[group]].config))
        for group in dict.fromkeys(cell.group for cell in cells)
    }
    bases = tuple(PlannedBase(*group, spec.fingerprint) for group, spec in base_specs.items())
    base_runs = {spec.fingerprint: spec for spec in base_specs.values()}
    runs = [specs[index] for index in _execution_order(cells, owners.values())]
    wanted = [*base_runs.values(), *runs]
    evaluated = with_evaluations(wanted, protocols_by_run(wanted, cache_folder))
    return Plan(sweep.config.name, planned, bases, tuple(evaluated))


def train_command(spec: RunSpec, root: Path | str = "outputs") -> str:
    """The line to paste that trains this one run by hand. root: where the run that it starts from lies."""
    if is_evaluation(spec):
        return f"no line of its own: its sweep's `evaluate` measures {root}/.runs/{spec.parent_fingerprint}"
    parent = f"{root}/.runs/{spec.parent_fingerprint}" if spec.parent_fingerprint else ""
    return "python -m train " + shlex.join(overrides_for(spec.config, parent))


def _spec_maker(cache_folder: Path | None, allow_unresolved: bool) -> MakeSpec:
    from train import identity  # late, because it reads files: everything else in here is pure

    @cache
    def model_identity(config: ModelConfig) -> str:
        return identity.model_identity(config, cache_folder=cache_folder, allow_unresolved=allow_unresolved)

    @cache
    def dataset_identity(config: DatasetConfig) -> str:
        return identity.dataset_identity(config, cache_folder=cache_folder, allow_unresolved=allow_unresolved)

    @cache
    def preference_identity(config: PreferenceConfig) -> str:
        from train import preferences

        return preferences.preference_identity(
            config, cache_folder=cache_folder, allow_unresolved=allow_unresolved
        )

    def make_spec(config: RunConfig) -> RunSpec:
        model, dataset = model_identity(config.model), dataset_identity(config.dataset)
        preference = preference_identity(config.preference) if config.stage == "dpo" else ""
        config = identity.pinned(config, model, dataset, preference)
        parent = ""
        if config.stage == "dpo":
            supervised = dataclasses.replace(config, stage="sft")
            parent = fingerprint(supervised, model_identity=model, dataset_identity=dataset)
        name = fingerprint(
            config,
            model_identity=model,
            dataset_identity=dataset,
            parent_fingerprint=parent,
            preference_identity=preference,
        )
        return RunSpec(_run_id(config, name), name, config, model, dataset, parent, preference)

    return make_spec


def _canonical(config: RunConfig, collapse: str) -> RunConfig:
    if collapse == "none":
        return config
    return dataclasses.replace(config, objective=canonical_objective(config.objective, config.train))


def _untrained(config: RunConfig) -> RunConfig:
    objective = dataclasses.replace(config.objective, prompt_weight=0.0, response_weight=0.0)
    return dataclasses.replace(config, stage="base", objective=objective, keep="none")


def _owners(asked: Sequence[RunConfig], specs: Sequence[RunSpec]) -> dict[str, int]:
    """For each fingerprint, the cell that owns the run: the first with its very weights, else the first."""
    owners: dict[str, int] = {}
    exact: set[str] = set()
    for index, (config, spec) in enumerate(zip(asked, specs, strict=True)):
        is_exact = config.objective == spec.config.objective
        if spec.fingerprint not in owners or (is_exact and spec.fingerprint not in exact):
            owners[spec.fingerprint] = index
        if is_exact:
            exact.add(spec.fingerprint)
    return owners


def _checked(
    cells: Sequence[Cell],
    configs: Sequence[RunConfig],
    specs: Sequence[RunSpec],
    owners: Mapping[str, int],
    number: int,
) -> list[int]:
    """The aliases that are trained all the same: `number` for each plane, at its first seed only.

    One seed is enough, because a check is compared with the run of its ray with that very seed: the data order
    cancels, and what is left is rounding, or a broken invariance.
    """
    if not number:
        return []
    seeds: dict[Any, int] = {}
    aliases: dict[Any, list[int]] = {}
    for index, cell in enumerate(cells):
        is_alias = owners[specs[index].fingerprint] != index
        if seeds.setdefault(cell.group, cell.seed) == cell.seed and is_alias:
            aliases.setdefault(cell.group, []).append(index)
    objectives = [config.objective for config in configs]
    return [index for group in aliases.values() for index in scale_checks(objectives, group, number)]


def _labelled(cells: Sequence[Cell], configs: Sequence[RunConfig]) -> list[Cell]:
    """Cells under their models' and datasets' own names, which say more than the file chosen (local).

    Two files under one name keep the files' names: planes must not mix.
    """
    labels: dict[str, dict[str, set[str]]] = {"model": {}, "dataset": {}}
    for cell, config in zip(cells, configs, strict=True):
        labels["model"].setdefault(config.model.name, set()).add(cell.model)
        labels["dataset"].setdefault(config.dataset.name, set()).add(cell.dataset)
    return [
        dataclasses.replace(
            cell,
            model=config.model.name if len(labels["model"][config.model.name]) == 1 else cell.model,
            dataset=config.dataset.name if len(labels["dataset"][config.dataset.name]) == 1 else cell.dataset,
        )
        for cell, config in zip(cells, configs, strict=True)
    ]


def _execution_order(cells: Sequence[Cell], indices: Iterable[int]) -> list[int]:
    """Seeds outermost, so that a complete plane comes early; within a seed, planes one after another."""
    seeds = {seed: place for place, seed in enumerate(dict.fromkeys(cell.seed for cell in cells))}
    groups = {group: place for place, group in enumerate(dict.fromkeys(cell.group for cell in cells))}
    return sorted(indices, key=lambda index: (seeds[cells[index].seed], groups[cells[index].group], index))


def _run_id(config: RunConfig, name: str) -> str:
    weights = f"p{config.objective.prompt_weight:g}-r{config.objective.response_weight:g}-s{config.seed}"
    middle = {"base": "base", "sft": weights, "dpo": f"{weights}-dpo"}[config.stage]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{config.model.name}-{config.dataset.name}-{middle}-{name[:12]}")


def summary_lines(plan: Plan) -> list[str]:
    """The plan in two lines: cells, runs and aliases per seed, and in all. Scale checks are named apart."""
    checks = check_fingerprints(plan)
    seeds = {planned.cell.seed for planned in plan.cells}
    cells, aliases = len(plan.cells), sum(planned.is_alias for planned in plan.cells)
    runs = cells - aliases
    per_seed: dict[int, tuple[int, int]] = dict.fromkeys(seeds, (0, 0))
    for planned in plan.cells:
        count, alias = per_seed[planned.cell.seed]
        is_alias = planned.is_alias or planned.fingerprint in checks
        per_seed[planned.cell.seed] = count + 1, alias + is_alias
    lines = []
    if len(set(per_seed.values())) == 1:
        count, alias = next(iter(per_seed.values()))
        lines.append(
            f"{_counted(count, 'cell')} \u2192 {_counted(count - alias, 'run')} per seed "
            f"({_counted(alias, 'alias', 'aliases')})"
            + (f", {_counted(len(checks), 'alias', 'aliases')} trained as scale check" if checks else "")
        )
    num_tuned = sum(spec.config.stage == "dpo" for spec in plan.runs)
    if num_tuned:
        lines.append(
            f"{_counted(runs - num_tuned, 'supervised run')}, {_counted(num_tuned, 'preference-tuned run')} "
            "on top of them"
        )
    num_bases = len(plan.runs) - runs - sum(map(is_evaluation, plan.runs))
    lines.append(
        f"{_counted(len(seeds), 'seed')}, {_counted(len(plan.bases), 'plane')}: {_counted(cells, 'cell')} "
        f"\u2192 {_counted(runs, 'run')} + {_counted(num_bases, 'untrained base model')}"
    )
    return [*lines, *evaluation_line(plan)]


def check_fingerprints(plan: Plan) -> frozenset[str]:
    """The runs that are scale checks: on a plane that merges rays, those beside their ray's representative."""
    merging = {planned.cell.group for planned in plan.cells if planned.is_alias}
    specs = {spec.fingerprint: spec for spec in plan.runs}
    mine = {
        (planned.cell.group, planned.cell.seed, planned.fingerprint)
        for planned in plan.cells
        if planned.cell.group in merging
    }
    trained = {(group, seed, specs[key].config.objective) for group, seed, key in mine}
    found = set()
    for group, seed, key in mine:
        objective, recipe = specs[key].config.objective, specs[key].config.train
        representative = canonical_objective(objective, recipe)
        if representative != objective and (group, seed, representative) in trained:
            found.add(key)
    return frozenset(found)


def _counted(count: int, word: str, words: str = "") -> str:
    return f"{count} {word if count == 1 else words or word + 's'}"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as strict JSON; `plan_from_dict` is its inverse, and needs no Hydra.

    Runs differ in little, so what their configurations share is written once: 10,000 runs stay small.
    """
    shared: dict[str, tuple[int, dict[str, Any]]] = {}
    return {
        "version": PLAN_VERSION,
        "name": plan.name,
        "runs": [_run_to_dict(run, shared) for run in plan.runs],
        "cells": [
            {
                "model": cell.model,
                "dataset": cell.dataset,
                "prompt_weight": cell.prompt_weight,
                "response_weight": cell.response_weight,
                "seed": cell.seed,
                "settings": dict(cell.settings),
                "fingerprint": planned.fingerprint,
                "is_alias": planned.is_alias,
            }
            for planned in plan.cells
            for cell in [planned.cell]
        ],
        "bases": [
            {
                "model": base.model,
                "dataset": base.dataset,
                "settings": dict(base.settings),
                "fingerprint": base.fingerprint,
            }
            for base in plan.bases
        ],
        "shared": [tree for _, tree in shared.values()],
        **({"question": plan.question, "stops": dict(plan.stops)} if plan.question else {}),
    }


def _run_to_dict(run: RunSpec, shared: dict[str, tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    tree = config_to_dict(dataclasses.replace(run.config, seed=0, objective=_NO_OBJECTIVE, stage="base"))
    index, _ = shared.setdefault(repr(tree), (len(shared), tree))
    return {
        "run_id": run.run_id,
        "fingerprint": run.fingerprint,
        "model_identity": run.model_identity,
        "dataset_identity": run.dataset_identity,
        "shared": index,
        "stage": run.config.stage,
        "seed": run.config.seed,
        "objective": config_to_dict(run.config.objective),
        **({key: getattr(run, key) for key in _OF_CHILDREN} if run.parent_fingerprint else {}),
    }


_OF_CHILDREN = ("parent_fingerprint", "preference_identity")
_NO_OBJECTIVE = ObjectiveConfig(prompt_weight=0.0, response_weight=0.0)


def plan_from_dict(values: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_to_dict`."""
    planes = [run_config_from_dict(tree) for tree in values["shared"]]
    cells = tuple(
        PlannedCell(
            Cell(
                item["model"],
                item["dataset"],
                item["prompt_weight"],
                item["response_weight"],
                item["seed"],
                _settings(item),
            ),
            item["fingerprint"],
            item["is_alias"],
        )
        for item in values["cells"]
    )
    bases = tuple(
        PlannedBase(item["model"], item["dataset"], _settings(item), item["fingerprint"])
        for item in values["bases"]
    )
    runs = tuple(
        RunSpec(
            item["run_id"],
            item["fingerprint"],
            dataclasses.replace(
                planes[item["shared"]],
                stage=item["stage"],
                seed=item["seed"],
                objective=ObjectiveConfig(**item["objective"]),
            ),
            item["model_identity"],
            item["dataset_identity"],
            *(item.get(key, "") for key in _OF_CHILDREN),
        )
        for item in values["runs"]
    )
    return Plan(values["name"], cells, bases, runs, values.get("question", ""), values.get("stops", {}))


def _settings(item: Mapping[str, Any]) -> Settings:
    return tuple(
        sorted(
            (key, tuple(value) if isinstance(value, list) else value)
            for key, value in item["settings"].items()
        )
    )

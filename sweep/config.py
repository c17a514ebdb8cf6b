"""The configuration of a sweep: types, defaults and checks. conf/sweep.yaml holds the values people change.

The runs' own configuration is not in here: it is composed for each cell (see `sweep.compose`).
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sweep.arguments import ACTIONS
from sweep.budget import BudgetConfig
from sweep.launcher import LauncherConfig
from sweep.notify import NotifyConfig
from sweep.search_config import SearchConfig, search_config_from_dict
from train.config import MANDATORY, build, defaults_tree
from train.errors import ConfigError

RETENTIONS = ("none", "region", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """A question, as its YAML file says it; `sweep.grid` gives it its meaning and its checks.

    cells: an expression over axes. axes: further keys and their values, crossed with the cells.
    adjust: what a model or a dataset brings along, as {dataset: {lima: {train.epochs: 5}}}; the same key or
    its group said on the command line wins. models, datasets: None is the one that model= or dataset= picks.
    scale_checks: aliases of each plane that are trained all the same, at the first seed (see `sweep.rays`).
    """

    name: str
    models: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    seeds: tuple[Any, ...] = (0,)
    cells: Any = None
    axes: Mapping[str, Any] = field(default_factory=dict)
    adjust: Mapping[str, Any] = field(default_factory=dict)
    collapse: Literal["rays", "none"] = "rays"
    scale_checks: int = 0
    stages: tuple[str, ...] = ("sft",)  # [sft, dpo]: preference tuning on top of every supervised run


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmConfig:
    """How a gain is confirmed. Two seeds are the fewest that show their own spread."""

    num_seeds: int = 3  # fresh ones, at each of the recommended pair, (0, 1) and (1, 1)

    def __post_init__(self) -> None:
        if self.num_seeds < 2:
            raise ConfigError(
                f"confirm.num_seeds={self.num_seeds}", "2 or more fresh seeds", "set confirm.num_seeds=3"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """One sweep: its question, its folder, its workers."""

    action: str
    root: str
    name: str
    grid: GridConfig
    launcher: LauncherConfig
    search: SearchConfig
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    retention: str = "none"  # trained weights that stay: none, those of the region, all

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ConfigError(f"action={self.action}", f"one of {', '.join(ACTIONS)}", "say action=plan")
        if self.retention not in RETENTIONS:
            raise ConfigError(
                f"retention={self.retention}", f"one of {', '.join(RETENTIONS)}", "say retention=none"
            )
        if not self.name or self.name.startswith(".") or "/" in self.name:
            raise ConfigError(
                f"name={self.name!r}",
                "a word that can name a folder, not beginning with a dot",
                "say name=my_sweep",
            )


def sweep_defaults() -> dict[str, Any]:
    """The schema for Hydra: every key of a sweep that is not a run's."""
    grid = {
        "name": MANDATORY,
        "models": None,
        "datasets": None,
        "seeds": [0],
        "cells": None,
        "axes": {},
        "adjust": {},
        "collapse": "rays",
        "scale_checks": 0,
        "stages": ["sft"],
    }
    return {
        "action": "run",
        "root": "outputs",
        "name": None,
        "retention": "none",
        "grid": grid,
        "launcher": defaults_tree(LauncherConfig),
        "search": {**defaults_tree(SearchConfig), "ranges": {}},
        "budget": defaults_tree(BudgetConfig),
        "confirm": defaults_tree(ConfirmConfig),
        "notify": defaults_tree(NotifyConfig),
    }


def sweep_config_from_dict(values: Mapping[str, Any]) -> SweepConfig:
    """The typed configuration of a sweep; ConfigError names key, value and expectation."""
    grid = grid_config_from_dict(values["grid"])
    launcher = dict(values["launcher"])
    for key in ("slots", "pack"):
        if launcher.get(key) == "auto":
            launcher[key] = None
        elif isinstance(launcher.get(key), str):
            said = f"launcher.{key}={launcher[key]}"
            raise ConfigError(said, "a whole number, or auto", f"say launcher.{key}=auto")
    for key in ("partition", "exclude"):
        if isinstance(launcher.get(key), list):
            launcher[key] = ",".join(map(str, launcher[key]))
    for key in ("root", "name"):
        value = values[key]
        is_text = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
        if not is_text and not (key == "name" and value is None):
            raise ConfigError(f"{key}={value!r} names no folder", "a text", f"set {key}=my_{key}")
    return SweepConfig(
        action=values["action"],
        root=os.path.expanduser(str(values["root"])),
        name=str(values["name"] or grid.name),
        grid=grid,
        launcher=build(LauncherConfig, launcher, "launcher."),
        search=search_config_from_dict(values["search"]),
        budget=build(BudgetConfig, values.get("budget") or {}, "budget."),
        confirm=build(ConfirmConfig, values.get("confirm") or {}, "confirm."),
        notify=build(NotifyConfig, values.get("notify") or {}, "notify."),
        retention=str(values.get("retention") or "none"),
    )


def grid_config_from_dict(values: Mapping[str, Any]) -> GridConfig:
    """The typed grid. Expressions stay plain trees: `sweep.grid` reads them."""
    known = tuple(GridConfig.__dataclass_fields__)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigError(
                f"unknown key grid.{key}",
                f"one of {', '.join(known)}",
                f"did you mean grid.{near[0]}?" if near else "",
            )
    if values.get("name") in (None, MANDATORY):
        raise ConfigError(
            "grid.name is not set", "a word that can name a folder", "add name: my_grid to the grid"
        )
    trees = {key: values.get(key) or {} for key in ("axes", "adjust")}
    for key, tree in trees.items():
        if not isinstance(tree, Mapping):
            raise ConfigError(
                f"grid.{key}={tree!r} is not a mapping",
                "keys and values",
                f"say 'grid.{key}={{train.learning_rate: [1e-3, 3e-3]}}'" if key == "axes" else "",
            )
    collapse = values.get("collapse", "rays") or "none"  # null means none, too
    if collapse not in ("rays", "none"):
        raise ConfigError(f"grid.collapse={collapse!r}", "rays or none", "say grid.collapse=none")
    checks = values.get("scale_checks", 0)
    if isinstance(checks, bool) or not isinstance(checks, int) or checks < 0:
        raise ConfigError(f"grid.scale_checks={checks!r}", "a whole number from 0", "say grid.scale_checks=2")
    stages = _sequence(values.get("stages") or "sft")
    if stages not in (("sft",), ("sft", "dpo")):
        raise ConfigError(f"grid.stages={list(stages)}", "[sft] or [sft, dpo]", "say grid.stages=[sft,dpo]")
    return GridConfig(
        name=str(values["name"]),
        stages=stages,
        models=_names(values, "models"),
        datasets=_names(values, "datasets"),
        seeds=_sequence(values["seeds"] if values.get("seeds") is not None else 0),
        cells=values.get("cells"),
        collapse=collapse,
        scale_checks=checks,
        **trees,
    )


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    if values.get(key) is None:
        return None
    names = _sequence(values[key])
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(
                f"grid.{key} holds {name!r}",
                f"names of files of conf/{key.removesuffix('s')}",
                f"say grid.{key}=[embedded]",
            )
    return names


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)

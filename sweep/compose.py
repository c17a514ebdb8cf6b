"""Cells -> complete configurations, each checked: what Hydra would compose for every cell, but faster.

One composition costs 60 ms, so each combination of files (model, dataset, recipe, ...) is composed once and
the numbers of a cell are set on plain trees (0.05 ms). A test proves both routes equal for every cell. Where
an interpolation could read a swept number, each cell is resolved by itself: slower, but right.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.arguments import Arguments
from sweep.axes import GROUP_AXES, configuration_keys
from sweep.config import SweepConfig, sweep_config_from_dict, sweep_defaults
from sweep.errors import ComposeError, GridError
from sweep.grid import expand_cells
from sweep.spec import Cell
from train.compose import Composed, Override, check_option, compose, config_options, parse_overrides, resolved
from train.config import RunConfig, run_config_from_dict
from train.errors import ConfigError
from train.keys import nearest_key
from train.naming import complete_names

_RUN_KEYS = tuple(field.name for field in dataclasses.fields(RunConfig))
# Replaced whole, where Hydra would merge or refuse.
_TREES = ("grid.axes", "grid.cells", "grid.adjust", "search.ranges")
_SWEPT = {
    "objective.prompt_weight": "prompt_weight",
    "objective.response_weight": "response_weight",
    "seed": "seed",
}

Choices = tuple[tuple[str, str], ...]  # (group, file), sorted


@dataclass(frozen=True, slots=True)
class ComposedSweep:
    """A sweep with all its cells and, in the same order, the complete configuration that each asks for.

    The configurations carry the weights as asked; `sweep.plan` moves them to their ray's representative.
    extras: keys of the primary configuration that belong to neither a sweep nor a run (analysis.yaml's).
    """

    config: SweepConfig
    cells: tuple[Cell, ...]
    configs: tuple[RunConfig, ...]
    extras: Mapping[str, Any]
    configs_of: Callable[[Sequence[Cell]], tuple[RunConfig, ...]] = field(compare=False, repr=False)

    def with_cells(self, cells: Sequence[Cell]) -> "ComposedSweep":
        """The same sweep, asking for other cells."""
        return dataclasses.replace(self, cells=tuple(cells), configs=self.configs_of(cells))


def compose_sweep(arguments: Arguments, *, config_name: str = "sweep") -> ComposedSweep:
    """The sweep that a command line asks for.

    Raises   ComposeError or GridError, one line each, with what exists and the nearest name.
    """
    try:
        return _compose_sweep(arguments, config_name)
    except ConfigError as error:
        raise ComposeError(error.problem, error.expected, error.fix) from error


def _compose_sweep(arguments: Arguments, config_name: str) -> ComposedSweep:
    overrides = parse_overrides(arguments.overrides)
    if not any(override.text.startswith("+grid=") for override in overrides):
        options = config_options("grid", arguments.config_dirs)
        raise ComposeError(
            "no grid: a sweep starts from a question",
            f"one of {', '.join(options)}",
            "add +grid=NAME, such as +grid=wit_5x5",
        )
    trees = [override for override in overrides if override.key.startswith(_TREES)]
    composer = _Composer(config_name, [one for one in overrides if one not in trees], arguments.config_dirs)
    # Only what is not a run's: an interpolation in there may need the numbers of a cell.
    values = composer.first.plain(lambda key: key not in _RUN_KEYS)
    _apply_trees(values, trees)
    _apply_choices(values["grid"], overrides)
    config = sweep_config_from_dict({**values, "action": arguments.action})
    extras = {key: value for key, value in values.items() if key not in sweep_defaults()}
    if extras and config_name == "sweep":
        raise ComposeError(
            f"unknown key {next(iter(extras))}", "a key of the configuration", "see conf/sweep.yaml"
        )
    cells = expand_cells(
        config.grid,
        default_model=composer.first.choices["model"],
        default_dataset=composer.first.choices["dataset"],
    )
    _check_overrides(overrides, cells)
    _check_adjust(config.grid.adjust, arguments.config_dirs)
    said = {override.key for override in overrides}

    def configs_of(cells: Sequence[Cell]) -> tuple[RunConfig, ...]:
        return _run_configs(cells, composer, config.grid.adjust, said)

    return ComposedSweep(config, cells, configs_of(cells), extras, configs_of)


class _Composer:
    """Composes each combination of files once."""

    def __init__(self, config_name: str, overrides: Sequence[Override], config_dirs: Sequence[str]) -> None:
        self._config_name, self._overrides, self._config_dirs = config_name, overrides, config_dirs
        self.first = self._compose(overrides)
        self._by_choices: dict[Choices, tuple[Composed, dict[str, Any] | None]] = {}

    def for_choices(self, choices: Choices) -> tuple[Composed, dict[str, Any] | None]:
        """The composition, and its run as a plain tree: None if that takes resolving cell by cell."""
        if choices not in self._by_choices:
            composed = self.first
            if any(self.first.choices.get(group) != name for group, name in choices):
                for group, name in choices:
                    check_option(group, name, self._config_dirs)
                kept = [override for override in self._overrides if override.key not in dict(choices)]
                chosen = [Override(f"{group}={name}", group, name) for group, name in choices]
                composed = self._compose([*kept, *chosen])
            self._by_choices[choices] = composed, _plain_run(composed)
        return self._by_choices[choices]

    def _compose(self, overrides: Sequence[Override]) -> Composed:
        return compose(self._config_name, overrides, self._config_dirs, {"sweep_schema": sweep_defaults()})


def _plain_run(composed: Composed) -> dict[str, Any] | None:
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(composed.config, resolve=False)
    run = {key: tree[key] for key in _RUN_KEYS if key in tree}
    return None if _has_interpolation(run) else run


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_interpolation, value.values()))
    if isinstance(value, list):
        return any(map(_has_interpolation, value))
    return isinstance(value, str) and "${" in value


def _run_configs(
    cells: Sequence[Cell], composer: _Composer, adjust: Mapping[str, Any], said: set[str]
) -> tuple[RunConfig, ...]:
    planes: dict[Any, RunConfig] = {}
    configs = []
    for cell in cells:
        settings = dict(cell.settings)
        groups = {axis: settings[axis] for axis in GROUP_AXES if axis in settings}
        choices = tuple(sorted({"model": cell.model, "dataset": cell.dataset, **groups}.items()))
        composed, plain = composer.for_choices(choices)
        numbers = _adjustments(cell, adjust, said | set(settings))
        numbers |= {key: value for key, value in settings.items() if key not in GROUP_AXES}
        if plain is None:
            configs.append(_resolved_config(composed, numbers | _swept(cell)))
            continue
        if cell.group not in planes:
            planes[cell.group] = _patched_config(plain, numbers | _swept(cell))
        plane = planes[cell.group]
        objective = dataclasses.replace(
            plane.objective, prompt_weight=cell.prompt_weight, response_weight=cell.response_weight
        )
        configs.append(dataclasses.replace(plane, objective=objective, seed=cell.seed))
    return tuple(configs)


def _swept(cell: Cell) -> dict[str, Any]:
    return {key: getattr(cell, name) for key, name in _SWEPT.items()}


def _patched_config(plain: Mapping[str, Any], numbers: Mapping[str, Any]) -> RunConfig:
    values = copy.deepcopy(dict(plain))
    for key, value in numbers.items():
        *path, last = key.split(".")
        part = values
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    complete_names(values)
    return run_config_from_dict(values)


def _resolved_config(composed: Composed, numbers: Mapping[str, Any]) -> RunConfig:
    from omegaconf import OmegaConf

    config = copy.deepcopy(composed.config)
    for key, value in numbers.items():
        OmegaConf.update(config, key, list(value) if isinstance(value, tuple) else value)
    values = resolved(config)
    run = {key: values[key] for key in _RUN_KEYS if key in values}
    complete_names(run)
    return run_config_from_dict(run)


def _adjustments(cell: Cell, adjust: Mapping[str, Any], taken: set[str]) -> dict[str, Any]:
    """What the cell's model and dataset bring along, minus what was said: that key or its whole group."""
    chosen = {"model": cell.model, "dataset": cell.dataset}
    return {
        key: value
        for group, by_name in adjust.items()
        for key, value in (by_name.get(chosen[group]) or {}).items()
        if key not in taken and key.split(".")[0] not in taken
    }


def _apply_trees(values: dict[str, Any], trees: Sequence[Override]) -> None:
    """grid.axes={...} replaces all axes, grid.axes.train.epochs=[...] one; likewise grid.cells.only=[...]."""
    for override in trees:
        group, *path = override.key.split(".", 2)
        place = values[group]
        if path[0] == "cells" and len(path) == 2:  # operators and filters hold no dots, axes do
            path = ["cells", *path[1].split(".", 1)]
        for name in path[:-1]:
            part = place.get(name)
            place[name] = place = dict(part) if isinstance(part, Mapping) else {}
        place[path[-1]] = override.value


def _apply_choices(grid: dict[str, Any], overrides: Sequence[Override]) -> None:
    """model= and dataset= on the command line replace the grid's lists."""
    said = {override.key: override for override in overrides}
    for group in ("model", "dataset"):
        if group not in said:
            continue
        if f"grid.{group}s" in said:
            raise ComposeError(
                f"{said[group].text} and {said[f'grid.{group}s'].text} contradict each other",
                "one of them",
                f"say grid.{group}s=[...] alone",
            )
        if said[group].text.startswith("~"):
            raise ComposeError(
                f"{said[group].text} leaves the runs without one", "a name", f"say {group}=NAME"
            )
        if not isinstance(said[group].value, str):
            raise ComposeError(
                f"{said[group].text} gives several values", "one name", f"say grid.{group}s=[...]"
            )
        grid[f"{group}s"] = None


def _check_overrides(overrides: Sequence[Override], cells: Sequence[Cell]) -> None:
    """A value that every cell would overwrite is a misunderstanding, not an override."""
    axes = {axis for cell in cells for axis, _ in cell.settings}
    for override in overrides:
        key = override.key
        if key == "seed":
            raise ComposeError(
                f"{override.text}, but the grid sets the seeds",
                "grid.seeds",
                f"say grid.seeds=[{override.value}]",
            )
        if key == "stage":
            raise ComposeError(f"{override.text}, but a grid sets the stage", "no stage", "leave it out")
        if key in _SWEPT or key in axes:
            raise ComposeError(
                f"{override.text}, but {key} is an axis of the grid",
                "each value said once",
                "leave it out, or change the grid's axis",
            )
        if key in ("model", "dataset") and any(getattr(cell, key) != override.value for cell in cells):
            raise ComposeError(
                f"{override.text}, but {key} is an axis of grid.cells",
                "each value said once",
                f"leave it out, or add only: [{{{key}: {override.value}}}] under cells",
            )


def _check_adjust(adjust: Mapping[str, Any], config_dirs: Sequence[str]) -> None:
    known = configuration_keys()
    for group, by_name in adjust.items():
        if group not in ("model", "dataset") or not isinstance(by_name, Mapping):
            raise GridError(
                f"grid.adjust.{group}={by_name!r}",
                "model or dataset, and names under it",
                "write adjust: {dataset: {lima: {train.epochs: 5}}}",
            )
        for name, settings in by_name.items():
            check_option(group, str(name), config_dirs)
            for key in settings or {}:
                if key not in known or key in _SWEPT:
                    near = nearest_key(str(key), known)
                    raise GridError(
                        f"grid.adjust.{group}.{name} sets unknown key {key}",
                        "a full key",
                        f"did you mean {near}?" if near else "such as train.epochs",
                    )

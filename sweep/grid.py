"""Grid -> cells: a small algebra over named axes. Pure.

    {product: {axis: [values], ...}}     every combination
    {zip: {axis: [values], ...}}         the first values together, the second together, ...
    {product: [expression, ...]}         every combination of the rows of each
    {concatenate: [expression, ...]}     the rows of each, one after another

Beside any of them may stand `exclude` and `only`: lists of {axis: value or list of values}. A row is kept if it
matches an entry of `only` and none of `exclude`. At the top of a grid these two also see the outer axes (models,
datasets, seeds, axes). Duplicates are dropped and the order is the one written, so equal files give equal plans.
Values count by number: 1, 1.0 and 1e0 are one cell.

An expression instead of five fixed lists, because the paper's question (epochs by dataset) and a user's (these
nine points, with two learning rates) should both be one file.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sweep.config import GridConfig
from sweep.errors import GridError
from sweep.spec import Cell
from train.config import RunConfig, defaults_tree
from train.keys import leaf_keys, nearest_key

Row = dict[str, Any]  # axis -> value

WEIGHT_AXES = ("prompt_weight", "response_weight")
SHORT_AXES = (*WEIGHT_AXES, "seed", "model", "dataset")
GROUP_AXES = ("model", "dataset", "train", "eval", "tracking")  # their values are names of files in conf/
_LONG_NAMES = {"objective.prompt_weight": "prompt_weight", "objective.response_weight": "response_weight",
               "model.name": "model", "dataset.name": "dataset"}
_OPERATORS = ("product", "zip", "concatenate")
_FILTERS = ("exclude", "only")


@cache
def configuration_keys() -> tuple[str, ...]:
    """Every full key of a run's configuration."""
    return tuple(leaf_keys(defaults_tree(RunConfig)))


def expand_cells(grid: GridConfig, *, default_model: str, default_dataset: str) -> tuple[Cell, ...]:
    """The cells of a grid, without duplicates, in the order written: models, datasets, axes, cells, seeds.

    Raises   GridError, one line, for everything that is not a question: see the tests for the list.
    """
    expression, filters = _split_filters(grid.cells, "grid.cells")
    rows = _expand(expression, "grid.cells") if expression else [{}]
    further = {_axis_name(axis, "grid.axes"): values for axis, values in grid.axes.items()}
    inner = {axis for row in rows for axis in row}
    for axis in further:
        if axis in inner:
            raise GridError(f"{axis} is in grid.cells and in grid.axes", "one place", "remove it from one of the two")
    given = inner | set(further)
    before: Row = {"model": grid.models or (default_model,), "dataset": grid.datasets or (default_dataset,)}
    parts = [_product({axis: values}, f"grid.{axis}s") for axis, values in before.items() if axis not in given]
    parts += [_product(further, "grid.axes")] if further else []
    parts += [rows]
    parts += [_product({"seed": grid.seeds}, "grid.seeds")] if "seed" not in given else []
    rows = _filtered(_joined(parts), filters, "grid.cells")
    if not rows:
        raise GridError(f"grid {grid.name} has no cells", "at least one that exclude and only leave",
                        "loosen exclude or only")
    cells = tuple(dict.fromkeys(_cell(row) for row in rows))
    _check_untrained_corner(cells)
    return cells


def _cell(row: Row) -> Cell:
    for axis in WEIGHT_AXES:
        if axis not in row:
            raise GridError(f"the grid has no {axis}", "an axis for each weight",
                            f"add {axis}: [1] to the product under cells")
    settings = tuple(sorted((axis, value) for axis, value in row.items() if axis not in SHORT_AXES))
    return Cell(**{axis: row[axis] for axis in SHORT_AXES}, settings=settings)


def _check_untrained_corner(cells: Iterable[Cell]) -> None:
    if any(cell.prompt_weight == 0 and cell.response_weight == 0 for cell in cells):
        raise GridError("the grid asks to train (0, 0), where no token counts",
                        "at least one weight above 0 (the base model is measured anyway)",
                        "exclude it; add exclude: [{prompt_weight: 0, response_weight: 0}] under cells")


def _expand(node: Any, place: str) -> list[Row]:
    """The rows of one expression."""
    operation, filters = _split_filters(node, place)
    if len(operation) != 1:
        found = " and ".join(operation) or "none"
        raise GridError(f"{place} has {found} of {', '.join(_OPERATORS)}", "exactly one",
                        "nest them: {product: [{zip: ...}, {product: ...}]}")
    operator, content = next(iter(operation.items()))
    place = f"{place}.{operator}"
    if operator == "concatenate" or isinstance(content, list | tuple):
        if not isinstance(content, list | tuple) or operator == "zip" or not content:
            raise GridError(f"{place}={content!r}", "axes and their values" if operator == "zip" else
                            "a list of expressions", "see the head of sweep/grid.py")
        parts = [_expand(child, f"{place}[{index}]") for index, child in enumerate(content)]
        rows = _joined(parts) if operator == "product" else [row for part in parts for row in part]
    else:
        if not isinstance(content, Mapping) or not content:
            raise GridError(f"{place}={content!r}", "axes and their values", "write prompt_weight: [0, 1] under it")
        rows = _product(content, place) if operator == "product" else _zip(content, place)
    return _filtered(rows, filters, place.rsplit(".", 1)[0])


def _product(axes: Mapping[str, Any], place: str) -> list[Row]:
    names, columns = _columns(axes, place)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*columns)]


def _zip(axes: Mapping[str, Any], place: str) -> list[Row]:
    names, columns = _columns(axes, place, keep_duplicates=True)
    lengths = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise GridError(f"{place} has lists of different lengths: {said}", "equal lengths",
                        "add or drop values, or use product")
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _joined(parts: Sequence[list[Row]]) -> list[Row]:
    rows: list[Row] = [{}]
    for part in parts:
        shared = {axis for row in rows for axis in row} & {axis for row in part for axis in row}
        if shared:
            raise GridError(f"{', '.join(sorted(shared))} is set by two factors of one product", "one of them",
                            "use concatenate, or remove it from one")
        rows = [left | right for left in rows for right in part]
    return rows


def _columns(axes: Mapping[str, Any], place: str, keep_duplicates: bool = False) -> tuple[list[str], list[list[Any]]]:
    names = [_axis_name(axis, place) for axis in axes]
    if len(set(names)) < len(names):
        raise GridError(f"{place} names one axis twice: {', '.join(map(str, axes))}", "each once", "remove one")
    columns = []
    for name, values in zip(names, axes.values(), strict=True):
        values = values if isinstance(values, list | tuple) else [values]
        if not values:
            raise GridError(f"{place}: {name} has no values", "at least one", f"write {name}: [0, 1]")
        column = [_value(name, value) for value in values]
        columns.append(column if keep_duplicates else list(dict.fromkeys(column)))
    return names, columns


def _split_filters(node: Any, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The operator and the filters of a node."""
    if node is None and place == "grid.cells":
        return {}, {}
    if not isinstance(node, Mapping):
        raise GridError(f"{place}={node!r} is not an expression", f"one of {', '.join(_OPERATORS)}",
                        "write {product: {prompt_weight: [0, 1], response_weight: [1]}}")
    for key in node:
        if key not in _OPERATORS + _FILTERS:
            raise GridError(f"unknown key {key} in {place}", f"one of {', '.join(_OPERATORS + _FILTERS)}",
                            _did_you_mean(str(key), _OPERATORS + _FILTERS)
                            or f"put axes under product: {{product: {{{key}: ...}}}}")
    return ({key: node[key] for key in node if key in _OPERATORS},
            {key: node[key] for key in node if key in _FILTERS and node[key] is not None})


def _filtered(rows: list[Row], filters: Mapping[str, Any], place: str) -> list[Row]:
    known = {axis for row in rows for axis in row}
    if not rows:
        return rows
    for kind, entries in filters.items():
        wanted = [_entry(entry, known, f"{place}.{kind}") for entry in
                  (entries if isinstance(entries, list | tuple) else [entries])]
        rows = [row for row in rows
                if any(all(axis in row and row[axis] in values for axis, values in entry.items())
                       for entry in wanted) == (kind == "only")]
    return rows


def _entry(entry: Any, known: set[str], place: str) -> dict[str, list[Any]]:
    if not isinstance(entry, Mapping) or not entry:
        raise GridError(f"{place} holds {entry!r}", "axes and values", "write {prompt_weight: 0, response_weight: 0}")
    result = {}
    for axis, value in entry.items():
        name = _LONG_NAMES.get(axis, axis)
        if name not in known:
            raise GridError(f"{place} names {axis}, which is no axis here", f"one of {', '.join(sorted(known))}",
                            _did_you_mean(str(axis), sorted(known)))
        result[name] = [_value(name, each) for each in (value if isinstance(value, list | tuple) else [value])]
    return result


def _axis_name(axis: Any, place: str) -> str:
    name = _LONG_NAMES.get(axis, axis)
    known = (*SHORT_AXES, *GROUP_AXES, *(key for key in configuration_keys() if key != "stage"))
    if name not in known:
        raise GridError(f"{place} names {axis!r}, which is no axis", f"one of {', '.join(SHORT_AXES)} or a full key "
                        "such as train.learning_rate", _did_you_mean(str(axis), known))
    return name


def _value(axis: str, value: Any) -> Any:
    """The value in its one form; GridError if the axis can't take it."""
    if axis in WEIGHT_AXES:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise GridError(f"{axis}={value!r} is no weight", "a finite number of at least 0", f"write {axis}: [0, 1]")
        return float(value) + 0.0  # -0.0 + 0.0 is 0.0
    if axis == "seed":
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer() or value < 0:
            raise GridError(f"seed={value!r} is no seed", "a whole number of at least 0", "say grid.seeds=[0,1,2]")
        return int(value)
    if axis in GROUP_AXES:
        if not isinstance(value, str) or not value:
            raise GridError(f"{axis}={value!r} is no name", f"the name of a file of conf/{axis}",
                            f"write {axis}: [embedded]")
        return value
    if isinstance(value, Mapping):
        raise GridError(f"{axis}={value!r} is no single value", "a number, a word, true, false or null",
                        "name a full key such as train.learning_rate")
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise GridError(f"{axis}={value!r}", "a finite number", f"write {axis}: [1]")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = nearest_key(word, known)
    return f"did you mean {near}?" if near else ""

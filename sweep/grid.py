"""Grid -> cells: a small algebra over named axes. Pure.

    {product: {axis: [values], ...}}     every combination
    {zip: {axis: [values], ...}}         the first values together, the second together, ...
    {product: [expression, ...]}         every combination of the rows of each
    {concatenate: [expression, ...]}     the rows of each, one after another

Beside any of them may stand `exclude` and `only`: lists of {axis: value or list of values}. A row is kept if
it matches an entry of `only` and none of `exclude`. At the top of a grid these two also see the outer axes
(models, datasets, seeds, axes). Duplicates are dropped and the order is the one written, so equal files give
equal plans. Values count by number: 1, 1.0 and 1e0 are one cell.

An expression instead of five fixed lists, because the paper's question (epochs by dataset) and a user's
(these nine points, with two learning rates) should both be one file.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sweep.axes import SHORT_AXES, WEIGHT_AXES, axis_name, axis_value, did_you_mean, short_name
from sweep.config import GridConfig
from sweep.errors import GridError
from sweep.spec import Cell

Row = dict[str, Any]  # axis -> value

_OPERATORS = ("product", "zip", "concatenate")
_FILTERS = ("exclude", "only")
MOST_ROWS = 1_000_000  # more is a slip of the hand, and would only fill the memory


def expand_cells(grid: GridConfig, *, default_model: str, default_dataset: str) -> tuple[Cell, ...]:
    """The cells of a grid, without duplicates, in the order written: models, datasets, axes, cells, seeds.

    Raises   GridError, one line, for everything that is not a question: see the tests for the list.
    """
    expression, filters = _split_filters(grid.cells, "grid.cells")
    rows: list[Row] = _expand(expression, "grid.cells") if expression else [{}]
    further = {axis_name(axis, "grid.axes"): values for axis, values in grid.axes.items()}
    inner = {axis for row in rows for axis in row}
    for axis in further:
        if axis in inner:
            raise GridError(
                f"{axis} is in grid.cells and in grid.axes", "one place", "remove it from one of the two"
            )
    given = inner | set(further)
    before: Row = {"model": grid.models or (default_model,), "dataset": grid.datasets or (default_dataset,)}
    parts = [
        _product({axis: values}, f"grid.{axis}s") for axis, values in before.items() if axis not in given
    ]
    parts += [_product(further, "grid.axes")] if further else []
    parts += [rows]
    parts += [_product({"seed": grid.seeds}, "grid.seeds")] if "seed" not in given else []
    rows = _filtered(_joined(parts), filters, "grid.cells")
    if not rows:
        raise GridError(
            f"grid {grid.name} has no cells",
            "at least one that exclude and only leave",
            "loosen exclude or only",
        )
    cells = tuple(dict.fromkeys(_cell(row) for row in rows))
    _check_untrained_corner(cells)
    return cells


def _cell(row: Row) -> Cell:
    for axis in WEIGHT_AXES:
        if axis not in row:
            raise GridError(
                f"the grid has no {axis}",
                "an axis for each weight",
                f"add {axis}: [1] to the product under cells",
            )
    settings = tuple(sorted((axis, value) for axis, value in row.items() if axis not in SHORT_AXES))
    return Cell(**{axis: row[axis] for axis in SHORT_AXES}, settings=settings)


def _check_untrained_corner(cells: Iterable[Cell]) -> None:
    if any(cell.prompt_weight == 0 and cell.response_weight == 0 for cell in cells):
        raise GridError(
            "the grid asks to train (0, 0), where no token counts",
            "at least one weight above 0 (the base model is measured anyway)",
            "exclude it; add exclude: [{prompt_weight: 0, response_weight: 0}] under cells",
        )


def _expand(node: Any, place: str) -> list[Row]:
    """The rows of one expression."""
    operation, filters = _split_filters(node, place)
    if len(operation) != 1:
        found = " and ".join(operation) or "none"
        raise GridError(
            f"{place} has {found} of {', '.join(_OPERATORS)}",
            "exactly one",
            "nest them: {product: [{zip: ...}, {product: ...}]}",
        )
    operator, content = next(iter(operation.items()))
    return _filtered(_operated(operator, content, f"{place}.{operator}"), filters, place)


def _operated(operator: str, content: Any, place: str) -> list[Row]:
    if isinstance(content, Mapping) and content and operator != "concatenate":
        axes = cast(Mapping[str, Any], content)
        return _product(axes, place) if operator == "product" else _zip(axes, place)
    if isinstance(content, list | tuple) and content and operator != "zip":
        parts = [_expand(child, f"{place}[{index}]") for index, child in enumerate(_list(content))]
        return _joined(parts) if operator == "product" else [row for part in parts for row in part]
    raise GridError(
        f"{place}={content!r}",
        "a list of expressions" if operator == "concatenate" else "axes and their values",
        "see the head of sweep/grid.py",
    )


def _product(axes: Mapping[str, Any], place: str) -> list[Row]:
    names, columns = _columns(axes, place)
    _check_size(math.prod(map(len, columns)), place)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*columns)]


def _zip(axes: Mapping[str, Any], place: str) -> list[Row]:
    names, columns = _columns(axes, place, keep_duplicates=True)
    lengths = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise GridError(
            f"{place} has lists of different lengths: {said}",
            "equal lengths",
            "add or drop values, or use product",
        )
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _joined(parts: Sequence[list[Row]]) -> list[Row]:
    rows: list[Row] = [{}]
    for part in parts:
        shared = {axis for row in rows for axis in row} & {axis for row in part for axis in row}
        if shared:
            raise GridError(
                f"{', '.join(sorted(shared))} is set by two factors of one product",
                "one of them",
                "use concatenate, or remove it from one",
            )
        _check_size(len(rows) * len(part), "the grid")
        rows = [left | right for left in rows for right in part]
    return rows


def _check_size(num_rows: int, place: str) -> None:
    if num_rows > MOST_ROWS:
        raise GridError(
            f"{place} has {num_rows:,} rows", f"at most {MOST_ROWS:,}", "split it into several grids"
        )


def _columns(
    axes: Mapping[str, Any], place: str, keep_duplicates: bool = False
) -> tuple[list[str], list[list[Any]]]:
    names = [axis_name(axis, place) for axis in axes]
    if len(set(names)) < len(names):
        raise GridError(
            f"{place} names one axis twice: {', '.join(map(str, axes))}", "each once", "remove one"
        )
    columns: list[list[Any]] = []
    for name, value_or_values in zip(names, axes.values(), strict=True):
        values = _list(value_or_values)
        if not values:
            raise GridError(f"{place}: {name} has no values", "at least one", f"write {name}: [0, 1]")
        column = [axis_value(name, value) for value in values]
        columns.append(column if keep_duplicates else list(dict.fromkeys(column)))
    return names, columns


def _split_filters(node: Any, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The operator and the filters of a node."""
    if node is None and place == "grid.cells":
        return {}, {}
    if not isinstance(node, Mapping):
        raise GridError(
            f"{place}={node!r} is not an expression",
            f"one of {', '.join(_OPERATORS)}",
            "write {product: {prompt_weight: [0, 1], response_weight: [1]}}",
        )
    entries = cast(Mapping[str, Any], node)
    for key in entries:
        if key not in _OPERATORS + _FILTERS:
            raise GridError(
                f"unknown key {key} in {place}",
                f"one of {', '.join(_OPERATORS + _FILTERS)}",
                did_you_mean(str(key), _OPERATORS + _FILTERS)
                or f"put axes under product: {{product: {{{key}: ...}}}}",
            )
    return (
        {key: entries[key] for key in entries if key in _OPERATORS},
        {key: entries[key] for key in entries if key in _FILTERS and entries[key] is not None},
    )


def _filtered(rows: list[Row], filters: Mapping[str, Any], place: str) -> list[Row]:
    known = {axis for row in rows for axis in row}
    if not rows:
        return rows
    for kind, entries in filters.items():
        wanted = [_entry(entry, known, f"{place}.{kind}") for entry in _list(entries)]
        rows = [row for row in rows if _matches_any(row, wanted) == (kind == "only")]
    return rows


def _matches_any(row: Row, wanted: Iterable[Mapping[str, Sequence[Any]]]) -> bool:
    return any(all(axis in row and row[axis] in values for axis, values in entry.items()) for entry in wanted)


def _entry(entry: Any, known: set[str], place: str) -> dict[str, list[Any]]:
    if not isinstance(entry, Mapping) or not entry:
        raise GridError(
            f"{place} holds {entry!r}", "axes and values", "write {prompt_weight: 0, response_weight: 0}"
        )
    result: dict[str, list[Any]] = {}
    for axis, value in cast(Mapping[str, Any], entry).items():
        name = short_name(axis)
        if name not in known:
            raise GridError(
                f"{place} names {axis}, which is no axis here",
                f"one of {', '.join(sorted(known))}",
                did_you_mean(str(axis), sorted(known)),
            )
        result[name] = [axis_value(name, each) for each in _list(value)]
    return result


def _list(value: Any) -> list[Any]:
    """Several values, or one as a list of one."""
    return list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else [value]

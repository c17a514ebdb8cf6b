"""What a search asked for, batch by batch: <root>/<sweep>/proposals/0001.json, ... Each file appears once.

These files are the truth of a search; the plan is made of them. Whoever dies between asking and writing has lost
nothing but the answer, and of two who ask at once one finds the number taken, and reads what the other got.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.candidates import Group
from sweep.errors import LedgerError
from sweep.search_config import SearchConfig
from sweep.spec import Cell
from train.files import read_json, write_json_exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One answer. expected: what each cell was proposed for, in the metric's unit, if its sampler says so.

    known: planes whose region is known, and why. terms: of the search that said so (see `terms_of`).
    """

    number: int
    question: str
    cells: tuple[Cell, ...]
    expected: tuple[float | None, ...] = ()
    known: Mapping[Group, str] = field(default_factory=dict)
    terms: str = ""
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)


def num_batches(sweep_folder: Path) -> int:
    """How many there are."""
    return len(list((sweep_folder / "proposals").glob("*.json")))


def read_batches(sweep_folder: Path) -> list[Batch]:
    """All that was proposed, in order, for whatever question; unreadable files raise LedgerError."""
    found: list[Batch] = []
    for path in sorted((sweep_folder / "proposals").glob("*.json")):
        values = read_json(path)
        try:
            found.append(_batch(values or {}))
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"{path} can't be read", "a proposal of this version", "move it away, or say name=another"
            ) from error
    return found


def write_batch(sweep_folder: Path, batch: Batch) -> bool:
    """Make the batch part of the search; False if somebody else's has its number."""
    folder = sweep_folder / "proposals"
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "number": batch.number,
        "question": batch.question,
        "cells": [_cell_to_dict(cell) for cell in batch.cells],
        "expected": list(batch.expected),
        "known": [[*group[:2], dict(group[2]), why] for group, why in batch.known.items()],
        "terms": batch.terms,
        "ranges": {axis: [str(end) for end in ends] for axis, ends in batch.ranges.items()},
    }
    return write_json_exclusive(folder / f"{batch.number:04d}.json", values)


def terms_of(search: SearchConfig) -> str:
    """What has to be the same for "known" to stay known."""
    return f"{search.kind} {','.join(search.metrics)} {search.epsilon} {search.confidence}"


def check_units(batches: Sequence[Batch], question: str, search: SearchConfig) -> None:
    """LedgerError if what is searched was searched here before in a range that this one doesn't even touch."""
    for found in search.ranges:
        for batch in batches:
            ends = [float(end) for end in batch.ranges.get(found.axis, ())]
            if batch.question != question and ends and (found.low > ends[1] or found.high < ends[0]):
                raise LedgerError(
                    f"search.ranges.{found.axis}=[{found.low:g}, {found.high:g}], but this sweep's ledger has "
                    f"{found.axis} from {ends[0]:g} to {ends[1]:g}: other units?",
                    "the units of the ledger",
                    "say the range in them, or name=another for a question of its own",
                )


def _batch(values: Mapping[str, Any]) -> Batch:
    return Batch(
        number=int(values["number"]),
        question=values["question"],
        cells=tuple(map(_cell, values["cells"])),
        expected=tuple(values["expected"]),
        known={(model, dataset, _settings(of)): why for model, dataset, of, why in values["known"]},
        terms=values["terms"],
        ranges={axis: [float(end) for end in ends] for axis, ends in values["ranges"].items()},
    )


def _cell_to_dict(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model,
        "dataset": cell.dataset,
        "prompt_weight": cell.prompt_weight,
        "response_weight": cell.response_weight,
        "seed": cell.seed,
        "settings": dict(cell.settings),
    }


def _cell(values: Mapping[str, Any]) -> Cell:
    return Cell(**{**values, "settings": _settings(values["settings"])})


def _settings(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in values.items())
    )

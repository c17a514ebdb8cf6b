"""Scores of a dataset's rows, from the files in which judges and selection methods leave them.

One number for each row, in JSON, JSON lines, CSV or Parquet:
  a list of numbers           in the order of the dataset's rows
  score (or rating)           in the order of the dataset's rows, null where there is none
  id, score                   by the rows' own ids
  index, score                by the rows' places in the file, from 0
  file name, index, score     by their places among the rows of one source: LESS's sorted.csv
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.errors import DataError
from train.row_files import read_file

if TYPE_CHECKING:
    from train.rows import Row

_SCORE, _SOURCE = ("score", "rating"), ("file name", "source", "dataset")


def read_scores(path: Path, rows: "Sequence[Row]", num_raw_rows: int) -> dict[str, float]:
    """The score of each row that has one, by row id.

    rows           the usable rows of the dataset, of all its splits
    num_raw_rows   of the dataset's file, unusable ones included: a list in its order must be as long
    Raises         DataError where the file is missing or broken, has a score that is no number, or knows none
                   of the rows.
    """
    if not path.is_file():
        raise DataError(
            f"dataset.subset.scores={path} does not exist",
            "a file with a score for each row",
            "mend dataset.subset.scores=...",
        )
    lines = [_cleaned(line) for line in read_file(path)]
    keys = {key for line in lines[:100] for key in line}
    if not keys & set(_SCORE):
        raise DataError(
            f"{path} holds no scores (keys: {', '.join(sorted(keys)[:10]) or 'none'})",
            "numbers, or rows with a score",
            "set another dataset.subset.scores=...",
        )
    values = [_number(line, path, number) for number, line in enumerate(lines, 1)]
    if "id" in keys:
        places: list[Any] = [str(line.get("id")) for line in lines]
        wanted = {row.row_id: row.row_id for row in rows}
    elif "index" in keys:
        has_source = bool(keys & set(_SOURCE))
        places = [(_source(line) if has_source else "", _index(line, path)) for line in lines]
        wanted = {
            row.row_id: (row.source, row.place_in_source) if has_source else ("", row.place) for row in rows
        }
    else:
        if len(lines) != num_raw_rows:
            raise DataError(
                f"{path} has {len(lines)} scores for {num_raw_rows} rows",
                "as many, or scores with an id or an index",
                "set dataset.subset.scores=... to the scores of this dataset",
            )
        places, wanted = list(range(len(lines))), {row.row_id: row.place for row in rows}
    known = {place: value for place, value in zip(places, values, strict=True) if value is not None}
    found = {row_id: known[place] for row_id, place in wanted.items() if place in known}
    if not found:
        raise DataError(
            f"{path} scores none of the {len(rows)} rows",
            "ids or places of this dataset's rows",
            "set dataset.subset.scores=... to the scores of this dataset",
        )
    return found


def _cleaned(line: Any) -> dict[str, Any]:
    """A line as a mapping; LESS writes a space after each comma."""
    if not isinstance(line, Mapping):
        return {"score": line}
    return {
        str(key).strip(): value.strip() if isinstance(value, str) else value for key, value in line.items()
    }


def _number(line: Mapping[str, Any], path: Path, number: int) -> float | None:
    value = next((line[key] for key in _SCORE if key in line), None)
    if value is None or value == "":
        return None
    try:
        score = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise DataError(
            f"{path} row {number} has the score {str(value)[:40]!r}",
            "a number, or null",
            f"mend row {number}",
        )
    return score


def _index(line: Mapping[str, Any], path: Path) -> int:
    try:
        return int(line["index"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path} has a row without a whole index: {str(line)[:80]}", "a place from 0", "mend it"
        ) from None


def _source(line: Mapping[str, Any]) -> str:
    return str(next((line[key] for key in _SOURCE if key in line), ""))

"""Benchmark files in a folder: read whole, checked, and named by what they hold."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.errors import DataError


def find_file(folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of some names that is there: a file goes by several in the wild.

    Raises   DataError saying what is absent, where it was looked for and what it is called.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{what}: {folder} has no {' or '.join(names)}", "that file, as its authors publish it")


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a .json list, a .jsonl or a .csv file.

    Raises   DataError naming the file and the first bad line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({type(error).__name__})", "a UTF-8 text file") from None
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    try:
        if path.suffix == ".json":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no {path.suffix[1:]} ({error})", "the file whole") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds no list of objects", "rows with named fields")
    return rows


def column(rows: Sequence[Mapping[str, Any]], name: str, path: Path) -> list[str]:
    """A text field of every row; DataError names the first row without it."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(name), str):
            found = ", ".join(map(str, row)) or "nothing"
            raise DataError(
                f"{path}, row {number} has no text {name} (it has {found})", f"{name} in every row"
            )
    return [row[name] for row in rows]


def check_unique(values: Iterable[str], what: str, path: Path) -> None:
    """DataError naming the first value that stands twice."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: {what} {value[:60]!r} stands twice", f"each {what} once")
        seen.add(value)


def content_hash(paths: Iterable[Path]) -> str:
    """Of all bytes, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]

"""Every score is a distribution over items: what one run did on each item of one benchmark, in one file.

Paired differences, clustered standard errors and the statistics of a region need the items, not their mean; so
they are kept, compressed, and nothing has to be run again. An absent value is NaN here and null on disk, never 0.

    <run>/items/<benchmark>.parquet                    measured with the run itself: dataset, robustness
    <run>/evaluations/<protocol>/<benchmark>.parquet   measured by `evaluate`

Letters: I items. Importing this module doesn't import pyarrow; reading and writing do.
"""

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from train.metrics import Metric

ITEMS_VERSION = 1
HALVES = ("validation", "test")
FOLDER = "items"  # in the run's folder
_OUTPUT, _WEIGHT = "output", "weight."
_FIXED = ("item_id", "cluster", "split")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Items:
    """One run on one benchmark. Items are in the benchmark's order, the same for every run of a protocol.

    Shapes   item_ids, clusters, splits (I,), outputs (I,) or (); values and weights (I,) float64 by column.
    Units    of a column: metrics[column]. A column is the measure's bare name: `exact_answer`.
    Note     Items of one cluster aren't independent (one task, one passage, one conversation). A column with
             weights is a ratio, such as instruction-level accuracy: its mean is sum(w * v) / sum(w).
    """

    benchmark: str
    protocol: str  # fingerprint: scores of two protocols are not comparable
    metrics: Mapping[str, Metric]
    item_ids: tuple[str, ...]
    clusters: tuple[str, ...]
    splits: tuple[str, ...]  # validation: may choose; test: only reported
    values: Mapping[str, NDArray[numpy.float64]]
    weights: Mapping[str, NDArray[numpy.float64]] = field(default_factory=dict)
    outputs: tuple[str | None, ...] = ()  # what the model wrote; () where it wasn't kept

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.clusters), len(self.splits)}
        lengths |= {len(column) for column in (*self.values.values(), *self.weights.values())}
        if self.outputs:
            lengths.add(len(self.outputs))
        assert len(lengths) == 1, f"{self.benchmark}: columns of {sorted(lengths)} items"
        assert set(self.values) == set(self.metrics), f"{self.benchmark}: a column without unit and direction"
        assert set(self.weights) <= set(self.values), f"{self.benchmark}: weights of no column"
        assert set(self.splits) <= set(HALVES), f"{self.benchmark}: splits {set(self.splits)}"
        assert len(set(self.item_ids)) == len(self.item_ids), f"{self.benchmark}: an item twice"

    def __len__(self) -> int:
        return len(self.item_ids)

    def rows(self, split: str | None = None) -> NDArray[numpy.bool_]:
        """(I,) Which items belong to a split; None: all."""
        return numpy.array([split is None or own == split for own in self.splits], dtype=bool)


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over items. standard_error is that of the mean, over items like these; None for one cluster."""

    mean: float
    standard_error: float | None
    num_items: int
    num_clusters: int


def score(items: Items, column: str, split: str | None = None) -> Score | None:
    """The mean of a column and its clustered standard error; None if no item has a value.

        mean = sum(w v) / sum(w);   se^2 = C / (C - 1) * sum_c (sum_{i in c} w_i (v_i - mean))^2 / sum(w)^2

    Source   Miller 2024, arXiv:2411.00640, clustered standard errors; the ratio by linearisation.
    Differs  C / (C - 1), so that clusters of one item give the ordinary standard error.
    """
    values_I = items.values[column]
    weights_I = items.weights.get(column, numpy.ones(len(items)))
    chosen_I = items.rows(split) & numpy.isfinite(values_I) & (weights_I > 0)
    if not chosen_I.any():
        return None
    values, weights = values_I[chosen_I], weights_I[chosen_I]
    mean = float((weights * values).sum() / weights.sum())
    names = [name for name, is_chosen in zip(items.clusters, chosen_I, strict=True) if is_chosen]
    _, inverse = numpy.unique(names, return_inverse=True)
    sums_C = numpy.bincount(inverse, weights=weights * (values - mean))
    error = None
    if len(sums_C) > 1:
        scale = len(sums_C) / (len(sums_C) - 1)
        error = float(numpy.sqrt(scale * (sums_C**2).sum()) / weights.sum())
    return Score(mean, error, len(values), len(sums_C))


def half_of(benchmark: str, key: str, seed: int = 0) -> str:
    """The half that an item belongs to, from its id alone: stable whatever other items there are.

    key   the item's id, or that of the conversation or passage that must stay on one side.
    """
    digest = hashlib.sha256(f"{seed}\n{benchmark}\n{key}".encode()).digest()
    return HALVES[digest[0] % 2]


def write_items(folder: Path, items: Items) -> Path:
    """folder/<benchmark>.parquet, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {
        "item_id": _column_of_words(items.item_ids),
        "cluster": _column_of_kinds(items.clusters),
        "split": _column_of_kinds(items.splits),
    }
    for name, values in items.values.items():
        columns[name] = _column_of_floats(values)
    for name, values in items.weights.items():
        columns[_WEIGHT + name] = _column_of_floats(values)
    if items.outputs:
        columns[_OUTPUT] = _column_of_words(items.outputs)
    about = {
        "version": ITEMS_VERSION,
        "benchmark": items.benchmark,
        "protocol": items.protocol,
        "metrics": {name: dataclasses.asdict(metric) for name, metric in items.metrics.items()},
    }
    table = pyarrow.table(columns).replace_schema_metadata({"items": json.dumps(about)})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{items.benchmark}.parquet"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_items(folder: Path, benchmark: str, columns: Iterable[str] | None = None) -> Items | None:
    """What `write_items` wrote there; None if it is absent, or not a whole file of this version.

    columns   only these measures, and no outputs: a fifth of the time where texts are long.
    """
    import pyarrow
    import pyarrow.parquet

    path = folder / f"{benchmark}.parquet"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(b"items", b"{}"))
            if about.get("version") != ITEMS_VERSION:
                return None
            wanted = None if columns is None else set(columns)
            names = [
                name
                for name in file.schema_arrow.names
                if wanted is None or name in _FIXED or name.removeprefix(_WEIGHT) in wanted
            ]
            table = file.read(columns=names)
    except (FileNotFoundError, NotADirectoryError, pyarrow.ArrowInvalid, ValueError):
        return None
    found = {name: table.column(name) for name in table.column_names}
    return Items(
        benchmark=about["benchmark"],
        protocol=about["protocol"],
        metrics={name: Metric(**values) for name, values in about["metrics"].items() if name in found},
        item_ids=_words(found["item_id"]),
        clusters=_words(found["cluster"]),
        splits=_words(found["split"]),
        values={name: _floats(found[name]) for name in about["metrics"] if name in found},
        weights={
            name.removeprefix(_WEIGHT): _floats(found[name]) for name in found if name.startswith(_WEIGHT)
        },
        outputs=tuple(found[_OUTPUT].to_pylist()) if _OUTPUT in found else (),
    )


def _column_of_words(words: Sequence[str | None]) -> Any:
    """Strings and nulls. From buffers, as pyarrow.array would import pandas: a tenth of a second of each worker."""
    import pyarrow

    encoded = [b"" if word is None else word.encode() for word in words]
    ends = numpy.cumsum([0, *map(len, encoded)])
    if ends[-1] > numpy.iinfo(numpy.int32).max:  # pyarrow's own strings end there too
        raise ValueError(f"a column of {ends[-1]} bytes of text")
    present = numpy.array([word is not None for word in words], dtype=bool)
    buffers = [
        _bits(present),
        pyarrow.py_buffer(ends.astype(numpy.int32)),
        pyarrow.py_buffer(b"".join(encoded)),
    ]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(encoded), buffers)


def _column_of_kinds(words: Sequence[str]) -> Any:
    """Strings that repeat, each stored once. pyarrow's own dictionary_encode loads all of its functions for it."""
    import pyarrow

    number = {word: index for index, word in enumerate(dict.fromkeys(words))}
    indices = numpy.array([number[word] for word in words], numpy.int32)
    buffers = [None, pyarrow.py_buffer(indices)]
    where = pyarrow.Array.from_buffers(pyarrow.int32(), len(indices), buffers)
    return pyarrow.DictionaryArray.from_arrays(where, _column_of_words(tuple(number)))


def _column_of_floats(values: NDArray[numpy.float64]) -> Any:
    """Numbers, and null for NaN."""
    import pyarrow

    buffers = [_bits(~numpy.isnan(values)), pyarrow.py_buffer(numpy.ascontiguousarray(values, numpy.float64))]
    return pyarrow.Array.from_buffers(pyarrow.float64(), len(values), buffers)


def _bits(present: NDArray[numpy.bool_]) -> Any:
    """Arrow's validity bitmap."""
    import pyarrow

    return pyarrow.py_buffer(numpy.packbits(present, bitorder="little"))


def _words(column: Any) -> tuple[str, ...]:
    """A column of strings. Decoded first: pyarrow makes a scalar of each entry of a dictionary, forty times as slow."""
    return tuple(column.cast("string").to_pylist())


def _floats(column: Any) -> NDArray[numpy.float64]:
    """A column with null as NaN."""
    return column.cast("float64").to_numpy(zero_copy_only=False).astype(numpy.float64)

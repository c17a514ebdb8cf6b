"""Columns of items while they are gathered: values of any kind as numbers, and what each weighs in the mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from numpy.typing import NDArray

from train.benchmarks.interface import Output
from train.errors import ConfigError

# Of every benchmark that generates: what a broken model shows first.
OUTPUT_MEASURES = ("empty_output_rate", "truncated_output_rate", "mean_output_tokens", "cut_prompt_rate")


def output_values(outputs: Sequence[Output]) -> dict[str, float]:
    """The signs of a broken model in what it wrote for one item; nothing where nothing was written."""
    if not outputs:
        return {}
    rows = [(not one.text.strip(), one.is_truncated, one.num_tokens, one.is_cut) for one in outputs]
    return dict(
        zip(OUTPUT_MEASURES, numpy.mean(numpy.array(rows, dtype=float), axis=0).tolist(), strict=True)
    )


@dataclass(slots=True)
class Columns:
    """Items one after another."""

    item_ids: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    outputs: list[str | None] = field(default_factory=list)

    def add(
        self, item_id: str, cluster: str, values: Mapping[str, Any], weight: float, signs: Mapping[str, float]
    ) -> None:
        """One item. `weight` is the item's own; a value that is a ratio brings its denominator besides."""
        for name, value in {**values, **signs}.items():
            number, own = as_number(name, value)
            # A measure that first appears here was absent in every item before.
            missing = len(self.item_ids)
            self.values.setdefault(name, [math.nan] * missing).append(number)
            self.weights.setdefault(name, [0.0] * missing).append(own * weight)
        self.item_ids.append(item_id)
        self.clusters.append(cluster)
        for name in self.values:
            if len(self.values[name]) < len(self.item_ids):
                self.values[name].append(math.nan)
                self.weights[name].append(0.0)

    def column(self, name: str) -> NDArray[numpy.float64]:
        """(I,) values."""
        return numpy.array(self.values[name], dtype=float)

    def weight(self, name: str) -> NDArray[numpy.float64]:
        """(I,) weights."""
        return numpy.array(self.weights[name], dtype=float)

    def is_weighted(self, name: str) -> bool:
        """Whether the mean of the column isn't the plain one over its values."""
        return any(
            weight != 1.0
            for weight, value in zip(self.weights[name], self.values[name], strict=True)
            if not math.isnan(value)
        )


def as_number(name: str, value: Any) -> tuple[float, float]:
    """A value and its weight. A list is a share of its length (instructions of one prompt); a (reference,
    prediction) pair is what translation metrics are made of. ConfigError for what has no mean over items."""
    if value is None:
        return math.nan, 0.0
    if isinstance(value, bool | int | float | numpy.number):
        return float(value), 1.0
    if isinstance(value, list) and value and all(isinstance(one, bool) for one in value):
        return sum(value) / len(value), float(len(value))
    if name == "translation_edit_rate" and isinstance(value, list | tuple) and len(value) == 2:
        return _edit_rate(*value)
    raise ConfigError(
        f"{name} of this task is no mean over its items ({type(value).__name__})",
        "a metric with one number for each item",
        "choose another under metrics",
    )


def _edit_rate(reference: Any, prediction: Any) -> tuple[float, float]:
    """Edits per reference word, weighing the words: the mean over items is the corpus' TER / 100."""
    from sacrebleu.metrics.ter import TER

    references = [reference] if isinstance(reference, str) else list(reference)
    text = prediction if isinstance(prediction, str) else prediction[0]
    found = TER().sentence_score(text, references)
    words = float(found.ref_length)
    return (found.num_edits / words, words) if words else (math.nan, 0.0)

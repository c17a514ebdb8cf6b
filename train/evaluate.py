"""What a trained model is worth on its own dataset, without the swept weights: likelihoods by role, answers by rule.

A weighted evaluation loss is smaller *because* the weight is smaller; nothing here sees a weight. Public benchmarks
are `train.benchmarks`'.

Letters: I rows (items) of a split, R roles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import nn

from train.answers import Answer, answers_of, asked_of
from train.config import EvalConfig
from train.distributed import World
from train.embedded.scoring import is_exact_answer, meets_constraint
from train.items import Items, half_of, score
from train.metrics import MEASURES
from train.reading import kept_bytes, read
from train.spans import Role
from train.tokens import TokenData, TokenSplit, joined

DATASET, ROBUSTNESS = "dataset", "robustness"  # the benchmarks of a run's own dataset
_BENCHMARK_OF_SPLIT = {"validation": DATASET, "test": DATASET, "robustness": ROBUSTNESS}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a run (see `train.metrics`), and what each item added to them."""

    metrics: Mapping[str, float]
    items: tuple[Items, ...] = ()
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # see `train.record`


@dataclass(slots=True, eq=False)
class _Measured:
    """One split: its metrics, and by measure each row's value and what it weighs in the mean."""

    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, NDArray[numpy.float64]] = field(default_factory=dict)
    weights: dict[str, NDArray[numpy.float64]] = field(default_factory=dict)
    outputs: list[str | None] = field(default_factory=list)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: TokenData,
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    world: World = World(),
    *,
    protocol: str = "",
) -> Evaluation:
    """Every metric of every split but train. A metric without a row is absent, never 0.

    The ranks of a world divide the batches of one process among them, and each gets the same metrics.
    protocol   fingerprint of the dataset and of how it is asked: that of the items.
    """
    split, asked = measured_rows(data), asked_of(config, tokenizer)
    reads = read(model, split, device, world, asked=asked, kept_bytes=kept_bytes(device))
    (answers,) = answers_of(model, split, reads, asked, config, tokenizer, device, world)
    return evaluation_of(reads[0].sums_2IR, answers, data, tokenizer, protocol)


def measured_splits(data: TokenData) -> dict[str, TokenSplit]:
    return {name: split for name, split in data.splits.items() if name != "train" and len(split.row_ids)}


def measured_rows(data: TokenData) -> TokenSplit:
    """The rows of all measured splits, one after another: they are read and answered together."""
    return joined(list(measured_splits(data).values()))


def evaluation_of(
    sums_2IR: NDArray[numpy.float64],
    answers: Mapping[int, Answer],
    data: TokenData,
    tokenizer: object,
    protocol: str,
) -> Evaluation:
    """Metrics and items from what a model said of the measured rows (`train.reading`, `train.answers`)."""
    metrics: dict[str, float] = {}
    measured: dict[str, tuple[TokenSplit, _Measured]] = {}
    end = 0
    for name, split in measured_splits(data).items():
        start, end = end, end + len(split)
        found = _likelihoods(sums_2IR[:, start:end], split)
        if any(row in answers for row in range(start, end)):
            _add_answers(found, split, [answers.get(row) for row in range(start, end)], tokenizer)
        metrics |= {f"{name}_{key}": value for key, value in found.metrics.items() if math.isfinite(value)}
        measured[name] = split, found
    items = [
        _items(benchmark, {name: measured[name] for name in names}, protocol)
        for benchmark in (DATASET, ROBUSTNESS)
        if (names := [name for name in measured if _BENCHMARK_OF_SPLIT[name] == benchmark])
    ]
    for one in items:
        if one.benchmark == ROBUSTNESS:  # whose halves have no metrics of their own above
            metrics |= {
                f"{half}_{ROBUSTNESS}.{column}": found.mean
                for half in ("validation", "test")
                for column in one.values
                if (found := score(one, column, half)) is not None
            }
    return Evaluation(metrics, tuple(items))


def _items(benchmark: str, splits: Mapping[str, tuple[TokenSplit, _Measured]], protocol: str) -> Items:
    """The rows of the splits one after another; robustness rows are halved by their ids."""
    row_ids = [row_id for split, _ in splits.values() for row_id in split.row_ids]
    halves = [
        half_of(benchmark, row_id) if name == ROBUSTNESS else name
        for name, (split, _) in splits.items()
        for row_id in split.row_ids
    ]
    checks = [check or {} for split, _ in splits.values() for check in split.checks]
    columns = [name for name in MEASURES if any(name in found.values for _, found in splits.values())]

    def joined(which: str, column: str, absent: float) -> NDArray[numpy.float64]:
        parts = [
            getattr(found, which).get(column, numpy.full(len(split), absent))
            for split, found in splits.values()
        ]
        return numpy.concatenate(parts)

    weighted = {name for _, found in splits.values() for name in found.weights}
    outputs = [text for split, found in splits.values() for text in found.outputs or [None] * len(split)]
    return Items(
        benchmark=benchmark,
        protocol=protocol,
        metrics={name: MEASURES[name] for name in columns},
        item_ids=tuple(row_ids),
        clusters=tuple(
            str(check.get("family", row_id)) for check, row_id in zip(checks, row_ids, strict=True)
        ),
        splits=tuple(halves),
        values={name: joined("values", name, math.nan) for name in columns},
        weights={name: joined("weights", name, 0.0) for name in columns if name in weighted},
        outputs=tuple(outputs) if any(text is not None for text in outputs) else (),
    )


def _likelihoods(sums_2IR: NDArray[numpy.float64], split: TokenSplit) -> _Measured:
    """Unweighted nll per target token and per UTF-8 byte of text, for prompt and response tokens apart.

    Units    nats/token; bits/byte. The end-of-sequence token counts as a response token of no bytes.
    """
    sums_IR, counts_IR = sums_2IR
    sums_R, counts_R = sums_2IR.sum(axis=1)
    bytes_R = split.role_bytes.sum(axis=0)
    found = _Measured()
    for role in (Role.PROMPT, Role.RESPONSE):
        key = role.name.lower()
        if counts_R[role]:
            found.metrics[f"{key}_nll"] = float(sums_R[role] / counts_R[role])
            _add_ratio(found, f"{key}_nll", sums_IR[:, role], counts_IR[:, role])
        if bytes_R[role]:
            found.metrics[f"{key}_bits_per_byte"] = float(sums_R[role]) / (math.log(2) * float(bytes_R[role]))
            _add_ratio(
                found, f"{key}_bits_per_byte", sums_IR[:, role] / math.log(2), split.role_bytes[:, role]
            )
    return found


def _add_ratio(
    found: _Measured, name: str, sums_I: NDArray[numpy.float64], weights_I: NDArray[numpy.generic]
) -> None:
    """A column that is a ratio in each row, weighing its denominator; absent where that is 0."""
    weights = weights_I.astype(numpy.float64)
    found.weights[name] = weights
    found.values[name] = numpy.where(weights > 0, sums_I / numpy.where(weights > 0, weights, 1), math.nan)


def _add_answers(
    found: _Measured, split: TokenSplit, answers: Sequence[Answer | None], tokenizer: object
) -> None:
    """Greedy answers to the rows that carry a verifiable one, and the signs of a broken model beside them."""
    rows = [row for row, answer in enumerate(answers) if answer is not None]
    outputs = [answer for answer in answers if answer is not None]
    texts = tokenizer.batch_decode([tokens for tokens, _ in outputs], skip_special_tokens=True)  # type: ignore[attr-defined]
    checks = [split.checks[row] or {} for row in rows]
    adherence = [
        meets_constraint(text, check.get("constraint")) for text, check in zip(texts, checks, strict=True)
    ]
    measured: dict[str, list[bool | int | None]] = {
        "exact_answer": [is_exact_answer(text, check) for text, check in zip(texts, checks, strict=True)],
        "empty_output_rate": [not text.strip() for text in texts],
        "truncated_output_rate": [not ended for _, ended in outputs],
        "mean_output_tokens": [len(tokens) for tokens, _ in outputs],
        "constraint_adherence": list(adherence),
    }
    for name, values in measured.items():
        present = [value for value in values if value is not None]
        if present:
            found.metrics[name] = sum(present) / len(present)
            found.values[name] = numpy.full(len(split), math.nan)
            found.values[name][rows] = [math.nan if value is None else float(value) for value in values]
    found.outputs = [None] * len(split)
    for row, text in zip(rows, texts, strict=True):
        found.outputs[row] = text

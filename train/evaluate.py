"""What a trained model is worth on its own dataset, without the swept weights: likelihoods by role, answers by rule.

A weighted evaluation loss is smaller *because* the weight is smaller; nothing here sees a weight. Public benchmarks
are `train.benchmarks`'.

Letters: I rows (items) of a split, R roles.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import nn

from train.answers import Answer, answers_of
from train.batches import collate, micro_batches
from train.config import EvalConfig
from train.distributed import World
from train.embedded.scoring import is_exact_answer, meets_constraint
from train.items import Items, half_of, score
from train.loss import nll_sums_by_role_and_row
from train.metrics import MEASURES
from train.spans import Role
from train.tokens import TokenData, TokenSplit

# Held at once while measuring likelihoods: on a CPU fewer stay in its caches, and are padded less (1.7 times as fast).
_NLL_PADDED_TOKENS = {"cpu": 1024, "cuda": 8192}
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


@dataclass(frozen=True, slots=True, eq=False)
class NllSums:
    """Of one split: nll and target counts by role (2, R), and by row and role (2, I, R)."""

    by_role_2R: NDArray[numpy.float64]
    by_row_2IR: NDArray[numpy.float64]


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
    splits = measured_splits(data)
    said = {name: nll_sums(model, split, device, world)[0] for name, split in splits.items()}
    (answers,) = answers_of(model, splits, config, tokenizer, device, world)
    return evaluation_of(said, answers, data, tokenizer, protocol)


def measured_splits(data: TokenData) -> dict[str, TokenSplit]:
    return {name: split for name, split in data.splits.items() if name != "train" and len(split.row_ids)}


def evaluation_of(
    said: Mapping[str, NllSums],
    answers: Mapping[str, Sequence[Answer]],
    data: TokenData,
    tokenizer: object,
    protocol: str,
) -> Evaluation:
    """Metrics and items from what a model said of the measured splits."""
    metrics: dict[str, float] = {}
    measured: dict[str, tuple[TokenSplit, _Measured]] = {}
    for name, split in measured_splits(data).items():
        found = _likelihoods(said[name], split)
        if name in answers:
            _add_answers(found, split, answers[name], tokenizer)
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


@torch.no_grad()
def nll_sums(
    model: nn.Module, split: TokenSplit, device: torch.device, world: World = World(), num_cells: int = 1
) -> list[NllSums]:
    """Unweighted nll by role and by row, of each cell that the model holds (`train.stacked`; else one).

    Exact    a cell's rows keep the batches that they have alone.
    """
    lengths = (split.offsets[1:] - split.offsets[:-1]).tolist()
    sums_N2R = torch.zeros(num_cells, 2, len(Role), dtype=torch.float64, device=device)  # nll, tokens
    sums_N2IR = torch.zeros(num_cells, 2, len(lengths), len(Role), dtype=torch.float64, device=device)
    for rows in islice(nll_batches(split, device), world.rank, None, world.size):
        batch = collate(split, rows, device)
        logits = model(input_ids=batch.ids_BT.repeat(num_cells, 1)).logits
        for n, logits_BTV in enumerate(logits.chunk(num_cells)):
            sums_R, counts_R, sums_BR, counts_BR = nll_sums_by_role_and_row(
                logits_BTV, batch.ids_BT, batch.roles_BT
            )
            sums_N2R[n, 0] += sums_R
            sums_N2R[n, 1] += counts_R
            sums_N2IR[n, 0, rows], sums_N2IR[n, 1, rows] = sums_BR.double(), counts_BR.double()
    sums_N2R, sums_N2IR = world.add(sums_N2R).cpu(), world.add(sums_N2IR).cpu()
    return [NllSums(sums_N2R[n].numpy(), sums_N2IR[n].numpy()) for n in range(num_cells)]


def nll_batches(split: TokenSplit, device: torch.device) -> Iterator[list[int]]:
    """Rows whose likelihoods are measured in one pass, the most padded tokens first."""
    lengths = (split.offsets[1:] - split.offsets[:-1]).tolist()
    return micro_batches(range(len(lengths)), lengths, _NLL_PADDED_TOKENS.get(device.type, 8192))


def _likelihoods(said: NllSums, split: TokenSplit) -> _Measured:
    """Unweighted nll per target token and per UTF-8 byte of text, for prompt and response tokens apart.

    Units    nats/token; bits/byte. The end-of-sequence token counts as a response token of no bytes.
    """
    (sums_R, counts_R), (sums_IR, counts_IR) = said.by_role_2R, said.by_row_2IR
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


def _add_answers(found: _Measured, split: TokenSplit, outputs: Sequence[Answer], tokenizer: object) -> None:
    """Greedy answers to the rows that carry a verifiable one, and the signs of a broken model beside them."""
    rows = [row for row, check in enumerate(split.checks) if check is not None]
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

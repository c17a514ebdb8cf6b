"""What the cells of a stack are worth, each exactly as a run alone is measured (`train.evaluate`).

One model stays where it is and the cells' parameters are put into it, some at a time. How many is a matter of what
bounds a pass: reading likelihoods, thousands of tokens at once, is bound by arithmetic and no faster together;
writing answers, one token of each row at a time, is bound by the calls, so more rows cost little more.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from train.config import EvalConfig
from train.evaluate import Evaluation, answers_of, evaluation_of, measured_splits, nll_batches, nll_sums
from train.model import trainable_parameters
from train.stacked.loop import CellResult
from train.stacked.stacking import stacked
from train.tokens import TokenData, TokenSplit

Found = TypeVar("Found")
Parameters = Mapping[str, Tensor]

# Padded tokens of a pass of likelihoods, and rows of a pass of answers, from which on more gain nothing; measured in
# tests/bench/bench_plane_evaluation.py.
_TOKENS_AT_ONCE = {"cpu": 512, "cuda": 8192}
_ROWS_AT_ONCE = {"cpu": 256, "cuda": 2048}


def evaluate_cells(
    model: nn.Module,
    cells: Sequence[CellResult],
    data: TokenData,
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    *,
    method: str,
    protocol: str = "",
) -> list[Evaluation | None]:
    """`evaluate` of every cell, in their order; None for a cell that failed, whose numbers nobody sees.

    model    as `train_stacked` was given it, adapters included, and left as it was
    method   train.method
    Exact    float32 on CPU: with stacked full fine-tuning, the bits of a run alone. Adapters write the same answers,
             and their likelihoods agree to 1e-6 nats/token, to the bit where a pass holds one cell: base layers are
             one product over all rows, which a library may sum otherwise.
    """
    whole = [cell.parameters for cell in cells if cell.failure is None]
    if not whole:
        return [None] * len(cells)
    splits = measured_splits(data)
    model.eval()
    with _as_it_was(model):
        said = {
            name: _in_groups(
                model,
                method,
                whole,
                _TOKENS_AT_ONCE[device.type] // _largest_batch(split),
                lambda count, split=split: nll_sums(model, split, device, num_cells=count),
            )
            for name, split in splits.items()
        }
        answers = _in_groups(
            model,
            method,
            whole,
            _ROWS_AT_ONCE[device.type] // config.batch_rows,
            lambda count: answers_of(model, splits, config, tokenizer, device, num_cells=count),
        )
    found = iter(
        evaluation_of({name: sums[n] for name, sums in said.items()}, answers[n], data, tokenizer, protocol)
        for n in range(len(whole))
    )
    return [next(found) if cell.failure is None else None for cell in cells]


def _in_groups(
    model: nn.Module,
    method: str,
    cells: Sequence[Parameters],
    at_once: int,
    measure: Callable[[int], list[Found]],
) -> list[Found]:
    """`measure(how many)` of as many cells at a time; one alone is measured by the model's own layers."""
    found: list[Found] = []
    for start in range(0, len(cells), max(1, at_once)):
        group = cells[start : start + max(1, at_once)]
        if len(group) == 1:
            _fill(trainable_parameters(model), group[0])
            found += measure(1)
            continue
        with stacked(model, len(group), method) as stack:
            for views, values in zip(stack.cells, group, strict=True):
                _fill(views, values)
            found += measure(len(group))
    return found


def _largest_batch(split: TokenSplit) -> int:
    """Padded tokens of the largest pass over a split."""
    lengths = (split.offsets[1:] - split.offsets[:-1]).tolist()
    return max(len(rows) * max(lengths[row] for row in rows) for rows in nll_batches(split))


def _fill(parameters: Mapping[str, Any], values: Parameters) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    parameters = trainable_parameters(model)
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        _fill(parameters, kept)

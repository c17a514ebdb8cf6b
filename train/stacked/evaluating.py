"""What the cells of a stack are worth, each exactly as a run alone is measured (`train.evaluate`).

One model stays where it is and the cells' parameters are put into it, some at a time. How many is a matter of what
bounds a pass: reading rows, thousands of tokens at once, is bound by arithmetic and no faster together; writing
answers, one token of each row at a time, is bound by the calls, more so with adapters, which have more of them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from train.answers import answers_of, asked_of, rows_at_once
from train.config import EvalConfig, RunConfig
from train.evaluate import Evaluation, evaluation_of, measured_rows
from train.heads import base_model
from train.model import trainable_parameters
from train.reading import Read, kept_bytes, read, reading_batches
from train.stacked.loop import CellResult
from train.stacked.stacking import stacked
from train.together import with_wordings
from train.tokens import TokenData, TokenSplit

Found = TypeVar("Found")
Parameters = Mapping[str, Tensor]

# Padded tokens of a pass that reads, and rows of one that writes, from which on company gains nothing. Measured on CPU
# in tests/bench/bench_plane_evaluation.py; on a GPU set to what fills it, and bounded by its memory.
_TOKENS_OF_A_PASS = {"cpu": 512, "cuda": 8192}
_ROWS_OF_A_PASS = {"cpu": 256, "cuda": 2048}
_SHARE_OF_FREE_MEMORY = 0.5  # for keys and values


def cells_that_read(device: torch.device, num_tokens: int) -> int:
    """How many cells read at once, if one has so many padded tokens in a pass."""
    return max(1, _TOKENS_OF_A_PASS.get(device.type, 8192) // max(1, num_tokens))


def cells_that_write(model: nn.Module, device: torch.device, num_rows: int, num_tokens: int) -> int:
    """How many cells write at once, if one has so many rows and tokens in a pass."""
    count = _ROWS_OF_A_PASS.get(device.type, 2048) // max(1, num_rows)
    if device.type == "cuda":
        config: Any = base_model(model).config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        size = next(model.parameters()).element_size()
        held = 2 * config.num_hidden_layers * keys * width * size * num_tokens
        count = min(count, int(_SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0] / held))
    return max(1, count)


def cells_at_once(config: EvalConfig, device: torch.device) -> int:
    """How many cells a pass of answers holds; evaluating more at a time gains nothing."""
    return max(1, _ROWS_OF_A_PASS.get(device.type, 2048) // config.batch_rows)


def evaluate_cells(
    model: nn.Module,
    cells: Sequence[CellResult],
    data: TokenData,
    config: RunConfig,
    tokenizer: object,
    device: torch.device,
    *,
    protocol: str = "",
) -> list[Evaluation | None]:
    """What a run alone measures (`train.together`), of every cell in their order; None for a cell that failed.

    model    as `train_stacked` was given it, adapters included, and left as it was
    config   any cell's
    Exact    Likelihoods have the bits of a run alone where a pass holds one cell, as it does on a CPU; where adapters
             share one, they agree to 2e-6 of themselves: base layers are one product over all rows, which a library may
             sum otherwise. Answers are the same texts: a token is the largest logit, which rounding leaves alone.
    """
    whole = [cell.parameters for cell in cells if cell.failure is None]
    if not whole:
        return [None] * len(cells)
    method, split, asked = config.train.method, measured_rows(data), asked_of(config.eval, tokenizer)
    share = kept_bytes(device) // len(whole)
    model.eval()
    with _as_it_was(model):
        reads = in_groups(
            model,
            method,
            whole,
            cells_that_read(device, _largest_batch(split, device)),
            lambda some: read(
                model, split, device, num_cells=len(some), asked=asked, kept_bytes=len(some) * share
            ),
        )
        rows = max(_num_rows_to_write(one, config.eval, device) for one in reads)
        # On a CPU products with weights of each cell's own are no faster together.
        is_better_alone = method == "full" and device.type == "cpu"
        answers = in_groups(
            model,
            method,
            whole,
            1
            if is_better_alone
            else cells_that_write(model, device, rows, rows * _longest(split, config.eval)),
            lambda some: answers_of(
                model, split, [reads[n] for n in some], asked, config.eval, tokenizer, device
            ),
        )
        measured = in_groups(
            model,
            method,
            whole,
            1,
            lambda some: [
                with_wordings(
                    evaluation_of(reads[some[0]].sums_2IR, answers[some[0]], data, tokenizer, protocol),
                    model,
                    config,
                    tokenizer,
                    device,
                )
            ],
        )
    found = iter(measured)
    return [next(found) if cell.failure is None else None for cell in cells]


def in_groups(
    model: nn.Module,
    method: str,
    cells: Sequence[Parameters],
    at_once: int,
    measure: Callable[[range], list[Found]],
) -> list[Found]:
    """`measure(their numbers)` of so many cells at a time; one alone is measured by the model's own layers."""
    found: list[Found] = []
    for start in range(0, len(cells), at_once):
        some = range(start, min(start + at_once, len(cells)))
        if len(some) == 1:
            fill(trainable_parameters(model), cells[start])
            found += measure(some)
            continue
        with stacked(model, len(some), method) as stack:
            for views, number in zip(stack.cells, some, strict=True):
                fill(views, cells[number])
            found += measure(some)
    return found


def _largest_batch(split: TokenSplit, device: torch.device) -> int:
    """Padded tokens of the largest pass over a split."""
    lengths = (split.offsets[1:] - split.offsets[:-1] - 1).tolist()
    return max(len(rows) * max(lengths[row] for row in rows) for rows in reading_batches(split, device))


def _num_rows_to_write(one: Read, config: EvalConfig, device: torch.device) -> int:
    """Of a cell, in its first pass."""
    begun = sum(len(part.rows) for part in one.begun)
    return min(begun, rows_at_once(device)) if begun else min(config.batch_rows, len(one.written))


def _longest(split: TokenSplit, config: EvalConfig) -> int:
    """Tokens of the longest prompt and answer."""
    return int(split.prompt_lengths.max()) + config.max_new_tokens


def fill(parameters: Mapping[str, Any], values: Parameters) -> None:
    """Copy the values in, on whatever device they are."""
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
        fill(parameters, kept)

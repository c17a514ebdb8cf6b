"""Greedy answers to the rows of a dataset that carry a verifiable one, by one model or by every cell of a stack.

Letters: N cells, I rows, T positions.
"""

from collections.abc import Sequence

import torch
from torch import nn

from train.config import EvalConfig
from train.decoding import Begun, decode, go_on
from train.distributed import World
from train.reading import Asked, Read, kept_bytes
from train.tokens import TokenSplit

Answer = tuple[list[int], bool]  # tokens without the end token, and whether there was one

# Rows that one pass writes from kept states; on a CPU more gain nothing (tests/bench/bench_plane_evaluation.py).
_ROWS_OF_A_PASS = {"cpu": 128, "cuda": 2048}
_FEW = 4  # one in so many is few


def asked_of(config: EvalConfig, tokenizer: object) -> Asked | None:
    """What is to be written; None for nothing."""
    end_id: int = tokenizer.eos_token_id  # type: ignore[attr-defined]
    return Asked(end_id, config.max_new_tokens) if config.generate else None


@torch.no_grad()
def answers_of(
    model: nn.Module,
    split: TokenSplit,
    reads: Sequence[Read],
    asked: Asked | None,
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    world: World = World(),
) -> list[dict[int, Answer]]:
    """Of each cell that the model holds: its answers by row; `reads` is what it has read, which is used up."""
    if asked is None:
        return [{} for _ in reads]
    _write_on(model, reads, asked, max(config.batch_rows, _rows_that_fit(reads, asked, device) // len(reads)))
    _write_unread(model, split, reads, asked, config, tokenizer, device)
    # Each token plus one, 0 where there is none: sums over ranks bring them together.
    found_NIT = torch.zeros(len(reads), len(split), asked.max_new_tokens, dtype=torch.int64)
    for n, one in enumerate(reads):
        for row, tokens in one.written.items():
            found_NIT[n, row, : len(tokens)] = torch.tensor(tokens) + 1
    rows = [row for row, check in enumerate(split.checks) if check is not None]
    found = world.add(found_NIT.to(device)).tolist()
    return [{row: _until_end(texts[row], asked.end_id) for row in rows} for texts in found]


def rows_at_once(device: torch.device) -> int:
    """That one pass writes, of all cells."""
    return _ROWS_OF_A_PASS.get(device.type, 2048)


def _rows_that_fit(reads: Sequence[Read], asked: Asked, device: torch.device) -> int:
    """Rows at once, if what is to be kept of them may be as large as what was kept of the reading."""
    sizes = [
        part.states.num_bytes
        // max(1, part.states.is_read_BT.numel())  # of a position
        * (part.states.is_read_BT.shape[1] + asked.max_new_tokens)
        for one in reads
        for part in one.begun
    ]
    return min(rows_at_once(device), kept_bytes(device) // max(sizes, default=1))


def _write_on(model: nn.Module, reads: Sequence[Read], asked: Asked, most_rows: int) -> None:
    """What has been begun, so many rows of a cell at once; the few that are still written join the next."""
    while any(one.begun for one in reads):
        cells = [_taken(one.begun, most_rows) for one in reads]
        left = go_on(
            model,
            cells,
            [one.written for one in reads],
            max_new_tokens=asked.max_new_tokens,
            end_id=asked.end_id,
            least_rows=most_rows // _FEW if any(one.begun for one in reads) else 0,
        )
        for one, rest in zip(reads, left, strict=True):
            one.begun += [] if rest is None else [rest]


def _taken(begun: list[Begun], most_rows: int) -> list[Begun]:
    """The first of them with no more rows than that, but one at least; they are kept no longer."""
    part: list[Begun] = []
    while begun and sum(len(one.rows) for one in [*part, begun[0]]) <= max(most_rows, len(begun[0].rows)):
        part.append(begun.pop(0))
    return part


def _write_unread(
    model: nn.Module,
    split: TokenSplit,
    reads: Sequence[Read],
    asked: Asked,
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
) -> None:
    """Answers of rows whose states weren't kept: read again, with what is written of them.

    Prompts of similar length share a batch, padded on the left, so that padding costs little.
    """
    pad_id = getattr(tokenizer, "pad_token_id", None)
    pad_id = asked.end_id if pad_id is None else pad_id
    cells = [
        sorted(
            (
                row
                for row, text in one.written.items()
                if len(text) < asked.max_new_tokens and asked.end_id not in text
            ),
            key=lambda row: int(split.prompt_lengths[row]),
        )
        for one in reads
    ]
    for start in range(0, max(map(len, cells)), config.batch_rows):
        places = range(start, min(start + config.batch_rows, max(map(len, cells))))
        rows = [
            (n, own[place] if place < len(own) else None) for n, own in enumerate(cells) for place in places
        ]
        written = decode(
            model,
            [None if row is None else _read_so_far(split, row, reads[n]) for n, row in rows],
            max_new_tokens=asked.max_new_tokens,
            end_ids=[asked.end_id],
            pad_id=pad_id,
            device=device,
            num_cells=len(reads),
        )
        for (n, row), tokens in zip(rows, written, strict=True):
            if row is not None:
                text = reads[n].written[row] + tokens
                reads[n].written[row] = text[: asked.max_new_tokens]


def _read_so_far(split: TokenSplit, row: int, read: Read) -> list[int]:
    start = int(split.offsets[row])
    return split.ids[start : start + int(split.prompt_lengths[row])].tolist() + read.written[row]


def _until_end(row: Sequence[int], end_id: int) -> Answer:
    """The tokens before the end token, and whether there was one; each of `row` is a token plus one, or 0."""
    tokens = [value - 1 for value in row if value]
    ended = end_id in tokens
    return (tokens[: tokens.index(end_id)] if ended else tokens), ended

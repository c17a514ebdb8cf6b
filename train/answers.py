"""Greedy answers to the rows of a dataset that carry a verifiable one, by one model or by every cell of a stack.

Letters: N cells, P prompts, B rows, T positions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from train.config import EvalConfig
from train.decoding import decode
from train.distributed import World
from train.tokens import TokenSplit

Answer = tuple[list[int], bool]  # tokens without the end token, and whether there was one


@torch.no_grad()
def answers_of(
    model: nn.Module,
    splits: Mapping[str, TokenSplit],
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    world: World = World(),
    num_cells: int = 1,
) -> list[dict[str, list[Answer]]]:
    """Of each cell that the model holds: its greedy answers to the rows that carry a check, by split.

    The rows of all splits are one queue; a split without such rows is absent.
    """
    rows = [
        (name, row)
        for name, split in splits.items()
        for row, check in enumerate(split.checks)
        if config.generate and check is not None
    ]
    prompts = [_prompt_ids(splits[name], row) for name, row in rows]
    found: list[dict[str, list[Answer]]] = []
    for outputs in generate(model, prompts, config, tokenizer, device, world, num_cells):
        answers: dict[str, list[Answer]] = {}
        for (name, _), output in zip(rows, outputs, strict=True):
            answers.setdefault(name, []).append(output)
        found.append(answers)
    return found


def generate(
    model: nn.Module,
    prompts: Sequence[list[int]],
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    world: World = World(),
    num_cells: int = 1,
) -> list[list[Answer]]:
    """Of each cell that the model holds: greedy continuations, without their end token, and whether each ended.

    Prompts of similar length share a batch, padded on the left, so that padding costs little.
    """
    end_id: int = tokenizer.eos_token_id  # type: ignore[attr-defined]
    pad_id = getattr(tokenizer, "pad_token_id", None)
    pad_id = end_id if pad_id is None else pad_id
    # Each new token plus one, 0 where there is none: sums over ranks bring them together.
    found_NPT = torch.zeros(num_cells, len(prompts), config.max_new_tokens, dtype=torch.int64, device=device)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    starts = range(0, len(order), config.batch_rows)
    for start in starts[world.rank :: world.size]:
        chunk = order[start : start + config.batch_rows]
        written = decode(
            model,
            [prompts[index] for _ in range(num_cells) for index in chunk],
            max_new_tokens=config.max_new_tokens,
            end_ids=[end_id],
            pad_id=pad_id,
            device=device,
            num_cells=num_cells,
        )
        for place, tokens in enumerate(written):
            n, index = place // len(chunk), chunk[place % len(chunk)]
            found_NPT[n, index, : len(tokens)] = torch.tensor(tokens, device=device) + 1
    return [[_until_end(row, end_id) for row in rows] for rows in world.add(found_NPT).tolist()]


def _until_end(row: Sequence[int], end_id: int) -> Answer:
    """The tokens before the end token, and whether there was one; each of `row` is a token plus one, or 0."""
    tokens = [value - 1 for value in row if value]
    ended = end_id in tokens
    return (tokens[: tokens.index(end_id)] if ended else tokens), ended


def _prompt_ids(split: TokenSplit, row: int) -> list[int]:
    start = int(split.offsets[row])
    return split.ids[start : start + int(split.prompt_lengths[row])].tolist()

"""Greedy answers to the rows of a dataset that carry a verifiable one, by one model or by every cell of a stack.

Letters: N cells, P prompts, B rows, T positions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from train.config import EvalConfig
from train.distributed import World
from train.tokens import TokenSplit

# A batch writes until its last row ends, and one in fifty never does: rows that haven't ended after so many tokens
# go on together. Cells of a stack don't: they end at different rows.
_FIRST_TOKENS = 8
_FEW = 0.25  # of a batch, so that going on costs less than waiting

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

    def continued(texts: Sequence[list[int]], max_new_tokens: int) -> Tensor:
        """(N, B, up to max_new_tokens) each new token plus one; the rest of a row that ended is padding."""
        longest = max(map(len, texts))
        ids_BT = torch.full((len(texts), longest), pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, text in enumerate(texts):
            ids_BT[row, longest - len(text) :] = torch.tensor(text)
            mask_BT[row, longest - len(text) :] = 1
        generated: Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids_BT.repeat(num_cells, 1).to(device),
            attention_mask=mask_BT.repeat(num_cells, 1).to(device),
            do_sample=False,
            use_cache=True,
            max_new_tokens=max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=pad_id,
        )
        return generated[:, longest:].unflatten(0, (num_cells, len(texts))) + 1

    # 0 where there is no token: sums over ranks bring them together.
    found_NPT = torch.zeros(num_cells, len(prompts), config.max_new_tokens, dtype=torch.int64, device=device)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    starts = range(0, len(order), config.batch_rows)[world.rank :: world.size]
    first = _FIRST_TOKENS if num_cells == 1 and config.max_new_tokens > _FIRST_TOKENS else None
    unended: list[tuple[int, list[int]]] = []
    for start in starts:
        chunk = order[start : start + config.batch_rows]
        new_NBT = continued([prompts[index] for index in chunk], first or config.max_new_tokens)
        found_NPT[:, torch.tensor(chunk, device=device), : new_NBT.shape[2]] = new_NBT
        if first is not None:
            rows = zip(chunk, (new_NBT[0] - 1).tolist(), strict=True)
            left = [(index, tokens) for index, tokens in rows if end_id not in tokens]
            unended += left
            first = first if len(left) <= _FEW * len(chunk) else None  # of a model that seldom ends
    for start in range(0, len(unended), config.batch_rows):
        chunk, begun = zip(*unended[start : start + config.batch_rows], strict=True)
        texts = [[*prompts[index], *tokens] for index, tokens in zip(chunk, begun, strict=True)]
        new_NBT = continued(texts, config.max_new_tokens - _FIRST_TOKENS)
        places = slice(_FIRST_TOKENS, _FIRST_TOKENS + new_NBT.shape[2])
        found_NPT[:, torch.tensor(chunk, device=device), places] = new_NBT
    return [[_until_end(row, end_id) for row in rows] for rows in world.add(found_NPT).tolist()]


def _until_end(row: Sequence[int], end_id: int) -> Answer:
    """The tokens before the end token, and whether there was one; each of `row` is a token plus one, or 0."""
    tokens = [value - 1 for value in row if value]
    ended = end_id in tokens
    return (tokens[: tokens.index(end_id)] if ended else tokens), ended


def _prompt_ids(split: TokenSplit, row: int) -> list[int]:
    start = int(split.offsets[row])
    return split.ids[start : start + int(split.prompt_lengths[row])].tolist()

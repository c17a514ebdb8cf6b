"""Continuations of prompts by one model, or by every cell of a stack, token by token from kept keys and values.

transformers' `generate` goes on with all rows of a batch until the last has ended; answers mostly are much shorter
than their limit, and a batch has one that rambles. Here rows that have ended leave, so that a pass holds what is still
being written. The tokens are those of `generate`, greedy or sampled: what a row sees is the same, only the number of
rows beside it differs, which moves its logits by rounding.

Letters: B rows, T positions, V vocabulary.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.heads import base_model

_LOOK_EVERY = 4  # tokens; a look at who has ended costs little, a copy of keys and values more
_WORTH_LEAVING = 0.75  # rows leave where no more than this share stays

Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (B, V) and the numbers of those rows; their next tokens (B,)."""
Stopped = Callable[[Sequence[int], Sequence[list[int]]], list[bool]]
"""The numbers of rows and what each has written so far; which are to end."""


def greedy(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
    """The likeliest token."""
    return logits_BV.argmax(-1)


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
    num_cells: int = 1,
    choose: Choose = greedy,
    is_stopped: Stopped | None = None,
) -> list[list[int]]:
    """What is written after each prompt, up to and with the first of `end_ids`.

    prompts   cell by cell, as many of each (`train.stacked`)
    """
    batch = _Batch(model, prompts, num_cells, pad_id, device)
    processors = _own_processors(model, batch.whole_BT.shape[1], device)
    written: list[list[int]] = [[] for _ in prompts]
    ends = set(end_ids)
    is_live = [True] * len(prompts)  # of every row
    for step in range(max_new_tokens):
        logits_BV = batch.logits()
        tokens_B = choose(
            logits_BV if processors is None else processors(batch.whole_BT, logits_BV), batch.rows
        )
        for row, token in zip(batch.rows, tokens_B.tolist(), strict=True):
            if is_live[row]:
                written[row].append(token)
                is_live[row] = token not in ends
        if is_stopped is not None:
            live = [row for row in batch.rows if is_live[row]]
            for row, ended in zip(live, is_stopped(live, [written[row] for row in live]), strict=True):
                is_live[row] = not ended
        if not any(is_live):
            break
        batch.add(tokens_B)
        if (step + 1) % _LOOK_EVERY == 0:
            batch.leave(is_live)
    return written


def _own_processors(model: nn.Module, prompt_length: int, device: torch.device) -> Any:
    """What the checkpoint's generation_config does to logits (a penalty on repetition); mostly None."""
    inner = base_model(model)
    settings = copy.deepcopy(getattr(inner, "generation_config", None))
    if settings is None or not hasattr(inner, "_get_logits_processor"):
        return None
    settings.do_sample = False  # sampling is ours
    return inner._get_logits_processor(settings, input_ids_seq_length=prompt_length, device=device) or None


class _Batch:
    """Rows being written: the tokens to be read next, and the cache of those that were."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        num_cells: int,
        pad_id: int,
        device: torch.device,
    ) -> None:
        longest = max(map(len, prompts))
        ids_BT = torch.full((len(prompts), longest), pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(prompts):  # padded on the left
            ids_BT[row, longest - len(ids) :] = torch.tensor(list(ids))
            mask_BT[row, longest - len(ids) :] = 1
        self.rows = list(range(len(prompts)))
        self._model, self._num_cells, self._device = model, num_cells, device
        self._cache: Any = None
        self._ids_BT, self._mask_BT = ids_BT.to(device), mask_BT.to(device)
        self.whole_BT = self._ids_BT  # with what was written
        self._positions_BT = (self._mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        known = inspect.signature(base_model(model).forward).parameters
        self._takes_positions = "position_ids" in known
        self._keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def logits(self) -> Tensor:
        """(B, V), after the tokens read so far."""
        positions = {"position_ids": self._positions_BT} if self._takes_positions else {}
        said = self._model(
            input_ids=self._ids_BT,
            attention_mask=self._mask_BT,
            past_key_values=self._cache,
            use_cache=True,
            **positions,
            **self._keeps_last,
        )
        self._cache = said.past_key_values
        return said.logits[:, -1]

    def add(self, tokens_B: Tensor) -> None:
        """Read these next."""
        self._ids_BT = tokens_B[:, None]
        self.whole_BT = torch.cat([self.whole_BT, self._ids_BT], dim=1)
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(self._ids_BT)], dim=1)
        self._positions_BT = self._positions_BT[:, -1:] + 1

    def leave(self, is_live: Sequence[bool]) -> None:
        """Let rows that have ended go, as many of every cell, where that is worth it."""
        size = len(self.rows) // self._num_cells
        cells = [range(n * size, (n + 1) * size) for n in range(self._num_cells)]
        staying = max(sum(is_live[self.rows[place]] for place in places) for places in cells)
        if staying > _WORTH_LEAVING * size or not hasattr(self._cache, "batch_select_indices"):
            return
        kept = [
            place
            for places in cells
            for place in sorted(sorted(places, key=lambda place: not is_live[self.rows[place]])[:staying])
        ]
        where = torch.tensor(kept, device=self._device)
        self._cache.batch_select_indices(where)
        self.whole_BT = self.whole_BT[where]
        self._ids_BT, self._mask_BT = self._ids_BT[where], self._mask_BT[where]
        self._positions_BT = self._positions_BT[where]
        self.rows = [self.rows[place] for place in kept]

"""Continuations of prompts by one model, or by every cell of a stack, token by token from kept keys and values.

transformers' `generate` goes on with all rows of a batch until the last has ended; answers mostly are much shorter
than their limit, and a batch has one that rambles. Here rows that have ended leave, so that a pass holds what is still
being written. The tokens are those of `generate`, greedy or sampled: what a row sees is the same, only the number of
rows beside it differs, which moves its logits by rounding.

Letters: B rows, T positions, V vocabulary.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.heads import base_model
from train.states import Cache, States, forward_takes, joined, num_plain_layers

_LOOK_EVERY = 4  # tokens; a look at who has ended costs little, a copy of keys and values more
_WORTH_LEAVING = 0.75  # rows leave where no more than this share stays
_ROOM = 16  # tokens that a cache has room for at first

Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (B, V) and the numbers of those rows; their next tokens (B,)."""
Stopped = Callable[[Sequence[int], Sequence[list[int]]], list[bool]]
"""The numbers of rows and what each has written so far; which are to end."""


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """Rows by number, and what the model has read of each."""

    rows: list[int]
    states: States


def greedy(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
    """The likeliest token."""
    return logits_BV.argmax(-1)


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int] | None],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
    num_cells: int = 1,
    choose: Choose = greedy,
    is_stopped: Stopped | None = None,
    is_penalised: bool = True,
) -> list[list[int]]:
    """What is written after each prompt, up to and with the first of `end_ids`.

    prompts        cell by cell, as many of each (`train.stacked`); None fills a cell up, nothing is written
    is_penalised   as the checkpoint's own generation_config says
    """
    batch = _Batch.of_prompts(model, prompts, num_cells, pad_id, device)
    processors = own_processors(model, batch.whole_BT.shape[1], device) if is_penalised else None
    written: list[list[int]] = [[] for _ in prompts]

    def chosen(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        return choose(logits_BV if processors is None else processors(batch.whole_BT, logits_BV), rows)

    is_live = [prompt is not None for prompt in prompts]
    _write(batch, written, is_live, max_new_tokens, set(end_ids), chosen, is_stopped)
    return written


@torch.no_grad()
def begin(
    model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, States | None]:
    """Logits (B, V) of what comes after each prompt, and what was read; None where that can't be told apart."""
    batch = _Batch.of_prompts(model, prompts, 1, pad_id, device)
    logits_BV = batch.logits()
    return logits_BV, batch.states(torch.arange(len(prompts), device=device))


@torch.no_grad()
def go_on(
    model: nn.Module,
    cells: Sequence[Sequence[Begun]],
    written: Sequence[Mapping[int, list[int]]],
    *,
    max_new_tokens: int,
    end_id: int,
    least_rows: int = 0,
    choose: Choose = greedy,
) -> list[Begun | None]:
    """Write on what was begun, up to and with the end token.

    cells        of each cell, rows whose prompt and text so far, but for its last token, the model has read
    written      of each cell, the text of each row so far; grows
    least_rows   of a cell: with no more than so many it stops, as a pass costs its start
    choose       is told places in `cells`, one after another
    Returns      of each cell, what is left then
    """
    numbers = [[row for part in parts for row in part.rows] for parts in cells]
    size = max(map(len, numbers))
    # Cells with fewer rows are filled up with rows of nobody.
    own = [(n, row) for n, rows in enumerate(numbers) for row in [*rows, *[None] * (size - len(rows))]]
    texts = [[end_id] if row is None else written[n][row] for n, row in own]
    starts: list[int] = []
    for n, parts in enumerate(cells):
        start = n * size
        for part in parts:
            starts.append(start)
            start += len(part.rows)
    states = joined([part.states for parts in cells for part in parts], starts, len(own), _ROOM)
    batch = _Batch.of_states(model, states, [text[-1] for text in texts], len(cells))
    is_live = [text[-1] != end_id and len(text) < max_new_tokens for text in texts]
    if any(is_live):
        _write(batch, texts, is_live, max_new_tokens, {end_id}, choose, least_rows=least_rows * len(cells))
    left: list[Begun | None] = []
    for n in range(len(cells)):
        places = [place for place, row in enumerate(batch.rows) if is_live[row] and own[row][0] == n]
        found = batch.states(torch.tensor(places, device=states.is_read_BT.device)) if places else None
        rows = [number for place in places if (number := own[batch.rows[place]][1]) is not None]
        left.append(None if found is None else Begun(rows, found.without_gaps()))
    return left


def _write(
    batch: "_Batch",
    written: Sequence[list[int]],
    is_live: list[bool],
    max_new_tokens: int,
    ends: Set[int],
    choose: Choose = greedy,
    is_stopped: Stopped | None = None,
    least_rows: int = 0,
) -> None:
    """Until no more than `least_rows` rows are live."""
    for step in itertools.count(1):
        tokens_B = choose(batch.logits(), batch.rows)
        for row, token in zip(batch.rows, tokens_B.tolist(), strict=True):
            if is_live[row]:
                written[row].append(token)
                is_live[row] = token not in ends and len(written[row]) < max_new_tokens
        live = [row for row in batch.rows if is_live[row]]
        if is_stopped is not None and live:
            for row, ended in zip(live, is_stopped(live, [written[row] for row in live]), strict=True):
                is_live[row] = not ended
        if sum(is_live) <= least_rows:
            return
        batch.add(tokens_B)
        if step % _LOOK_EVERY == 0:
            batch.leave(is_live)


def own_processors(model: nn.Module, prompt_length: int, device: torch.device) -> Any:
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
        self, model: nn.Module, num_cells: int, ids_BT: Tensor, mask_BT: Tensor, states: States | None = None
    ) -> None:
        self.rows = list(range(len(ids_BT)))
        self._model, self._num_cells, self._device = model, num_cells, ids_BT.device
        self._ids_BT, self._mask_BT = ids_BT, mask_BT
        self.whole_BT = ids_BT  # with what was written
        self._positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        self._num_plain = num_plain_layers(model)
        self._cache: Any = Cache(self._num_plain, states) if self._num_plain else None
        self._takes_positions = forward_takes(model, "position_ids")
        self._keeps_last = {"logits_to_keep": 1} if forward_takes(model, "logits_to_keep") else {}

    @classmethod
    def of_prompts(
        cls,
        model: nn.Module,
        prompts: Sequence[Sequence[int] | None],
        num_cells: int,
        pad_id: int,
        device: torch.device,
    ) -> "_Batch":
        """Prompts padded on the left."""
        filled = [[pad_id] if prompt is None else list(prompt) for prompt in prompts]
        longest = max(map(len, filled))
        ids_BT = torch.full((len(filled), longest), pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(filled):
            ids_BT[row, longest - len(ids) :] = torch.tensor(ids)
            mask_BT[row, longest - len(ids) :] = 1
        return cls(model, num_cells, ids_BT.to(device), mask_BT.to(device))

    @classmethod
    def of_states(cls, model: nn.Module, states: States, tokens: Sequence[int], num_cells: int) -> "_Batch":
        """Rows that are to read one token more."""
        ids_BT = torch.tensor(tokens, device=states.is_read_BT.device)[:, None]
        mask_BT = torch.cat([states.is_read_BT, torch.ones_like(ids_BT)], dim=1)
        return cls(model, num_cells, ids_BT, mask_BT, states)

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

    def states(self, rows_B: Tensor) -> States | None:
        """Of these rows, what was read; None where the model keeps it its own way."""
        if not isinstance(self._cache, Cache):
            return None
        return self._cache.states(rows_B, self._mask_BT[rows_B, : self._cache.get_seq_length()])

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
        states = self.states(where)
        self._ids_BT, self._mask_BT = self._ids_BT[where], self._mask_BT[where]
        if states is None:
            self._cache.batch_select_indices(where)
        else:
            states = joined([states.without_gaps()], [0], len(kept), _ROOM)
            self._mask_BT = torch.cat([states.is_read_BT, self._mask_BT[:, -1:]], dim=1)
            self._cache = Cache(self._num_plain, states)
        self.whole_BT = self.whole_BT[where]
        self._positions_BT = self._positions_BT[where]
        self.rows = [self.rows[place] for place in kept]

"""Likelihoods of continuations, by one model or by every cell of a stack: each context once, beginnings once.

The items of a few-shot benchmark begin with the same examples, and the choices of an item with the same question.
Where that saves enough, the keys and values of a beginning are computed once per cell and read by all rows that
begin so. A row's numbers then come from a product of other shape, and agree to float32's rounding (1.4e-5 nats/token at
most in tests/bench/bench_plane_evaluation.py); a run by itself and runs in a plane share the same beginnings.

Letters: N cells, B rows, T positions, K scored positions, V vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from train.benchmarks.interface import Likelihood
from train.heads import decoder_of, head_of
from train.loss import token_nll

# What a pass costs beside its tokens, in tokens: a beginning is shared where it saves the cost of two.
_TOKENS_OF_A_PASS = {"cpu": 64, "cuda": 4096}

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a context and of its continuation


@dataclass(frozen=True, slots=True)
class Row:
    """What is read by the model for some of the pairs: all their tokens but the last, which predicts nothing."""

    ids: tuple[int, ...]
    pairs: tuple[int, ...]  # their numbers
    widest: int  # tokens of the longest continuation among them

    @property
    def num_shareable(self) -> int:
        """Tokens before the first that predicts a scored one."""
        return len(self.ids) - self.widest


@torch.no_grad()
def likelihoods_of(
    model: nn.Module,
    pairs: Sequence[Pair],
    *,
    context_length: int,
    batch_tokens: int,
    pad_id: int,
    device: torch.device,
    num_cells: int = 1,
) -> list[list[Likelihood]]:
    """For each cell that the model holds (`train.stacked`; else one) the likelihood of every pair, in their order.

    context_length   tokens the model can hold: a longer context loses its beginning
    batch_tokens     of a cell's rows, held at once
    """
    rows = _rows(pairs, context_length)
    found: list[dict[int, Likelihood]] = [{} for _ in range(num_cells)]
    reader = _Reader(model, pad_id, device, num_cells)
    shared = beginnings(rows, 2 * _TOKENS_OF_A_PASS.get(device.type, 4096))
    for length, part in shared:
        cache = reader.read_beginning(part[0].ids[:length]) if length else None
        for batch in _batches(part, batch_tokens):
            for cell, numbers in zip(found, reader.score(batch, pairs, cache, length), strict=True):
                cell.update(numbers)
    return [[cell[number] for number in range(len(pairs))] for cell in found]


def beginnings(rows: Sequence[Row], worth: int) -> list[tuple[int, list[Row]]]:
    """Rows by the tokens that they begin with alike and that are read once: (how many, the rows).

    worth   tokens that have to be saved; what saves less is not shared: (0, those rows).
    In the order of their tokens, rows that begin alike are neighbours, in nested groups. A group is shared where
    that saves more than what its inner groups save; a row shares one beginning.
    """
    ordered = sorted(rows, key=lambda row: row.ids)
    open_groups = [_Group(0, 0)]
    for end in range(1, len(ordered) + 1):
        common = _common(ordered[end - 1], ordered[end]) if end < len(ordered) else 0
        inner = _Group(common, end - 1)
        while open_groups[-1].length > common:
            group = open_groups.pop()
            group.take(inner)
            saved = group.length * (end - group.start - 1) - worth
            if saved > group.saved:
                group.saved, group.parts = saved, [(group.length, group.start, end)]
            inner = _Group(common, group.start, group.saved, group.parts)
        if open_groups[-1].length < common:
            open_groups.append(inner)
        else:
            open_groups[-1].take(inner)
    found = [(length, ordered[start:end]) for length, start, end in open_groups[0].parts]
    shared = {row.ids for _, part in found for row in part}
    plain = [row for row in rows if row.ids not in shared]
    return [*found, (0, plain)] if plain else found


@dataclass(slots=True)
class _Group:
    """Neighbours from `start` on that share `length` tokens; the best found so far inside: tokens saved, parts."""

    length: int
    start: int
    saved: int = 0
    parts: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, inner: "_Group") -> None:
        self.saved += inner.saved
        self.parts += inner.parts


def _common(one: Row, other: Row) -> int:
    """Tokens that both begin with and that nothing scored is predicted by."""
    most = max(0, min(one.num_shareable, other.num_shareable))
    return next((place for place in range(most) if one.ids[place] != other.ids[place]), most)


def _rows(pairs: Sequence[Pair], context_length: int) -> list[Row]:
    """Pairs that differ in their last token only share a row."""
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        whole = [*context, *continuation][-(context_length + 1) :]
        numbers.setdefault(tuple(whole[:-1]), []).append(number)
    return [
        Row(ids, tuple(those), max(len(pairs[number][1]) for number in those))
        for ids, those in numbers.items()
    ]


def _batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Longest first."""
    ordered = sorted(rows, key=lambda row: len(row.ids), reverse=True)
    start = 0
    while start < len(ordered):
        count = max(1, batch_tokens // max(1, len(ordered[start].ids)))
        yield ordered[start : start + count]
        start += count


class _Reader:
    """The model, and how many cells it holds."""

    def __init__(self, model: nn.Module, pad_id: int, device: torch.device, num_cells: int) -> None:
        self._model, self._pad_id, self._device, self._num_cells = model, pad_id, device, num_cells

    def read_beginning(self, ids: Sequence[int]) -> Any:
        """Keys and values of a beginning, a row for each cell."""
        ids_NT = torch.tensor([list(ids)] * self._num_cells, device=self._device)
        return self._body()(input_ids=ids_NT, use_cache=True).past_key_values

    def score(
        self, batch: Sequence[Row], pairs: Sequence[Pair], cache: Any, length: int
    ) -> Iterator[dict[int, Likelihood]]:
        """For each cell the likelihood of the batch's pairs by number; the first `length` tokens are in the cache."""
        longest = max(len(row.ids) for row in batch) - length
        ids_BT = torch.full((len(batch), longest), self._pad_id, dtype=torch.int64)
        mask_BT = torch.zeros(len(batch), length + longest, dtype=torch.int64)
        places: list[tuple[int, int]] = []
        starts: list[int] = []
        for b, row in enumerate(batch):  # padded on the right: what follows changes nothing
            own = row.ids[length:]
            ids_BT[b, : len(own)] = torch.tensor(own)
            mask_BT[b, : len(row.ids)] = 1
            starts.append(len(places) + row.widest)
            places += [(b, len(own) - row.widest + k) for k in range(row.widest)]
        logits_NKV = self._logits(ids_BT.to(self._device), mask_BT.to(self._device), places, cache, length)
        for logits_KV in logits_NKV:
            greedy_K = logits_KV.argmax(-1).cpu()
            found = {}
            for end, row in zip(starts, batch, strict=True):
                for number in row.pairs:
                    tokens = torch.tensor(list(pairs[number][1]))
                    where = slice(end - len(tokens), end)
                    nll = token_nll(logits_KV[where], tokens.to(self._device))
                    found[number] = Likelihood(-float(nll.sum()), bool((greedy_K[where] == tokens).all()))
            yield found

    def _body(self) -> Any:
        decoder = decoder_of(self._model)
        return self._model if decoder is None else decoder

    def _logits(
        self, ids_BT: Tensor, mask_BT: Tensor, places: Sequence[tuple[int, int]], cache: Any, length: int
    ) -> Tensor:
        """Logits at (row, position) pairs only, where the model's decoder and head can be told apart: (N, K, V)."""
        count, num_rows = self._num_cells, len(ids_BT)
        rows = torch.tensor([n * num_rows + row for n in range(count) for row, _ in places])
        positions = torch.tensor([position for _, position in places] * count)
        extra: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            cache = copy.deepcopy(cache)  # its rows: cell by cell, as those of the batch
            cache.batch_repeat_interleave(num_rows)
            positions_T = torch.arange(length, mask_BT.shape[1], device=self._device)
            extra = {"use_cache": True, "past_key_values": cache, "position_ids": positions_T[None]}
        asked = {
            "input_ids": ids_BT.repeat(count, 1),
            "attention_mask": mask_BT.repeat(count, 1),
            **extra,
        }
        decoder, head = decoder_of(self._model), head_of(self._model)
        if decoder is None or head is None or head.softcap is not None or head.scale != 1.0:
            return self._model(**asked).logits[rows, positions].unflatten(0, (count, -1))
        hidden = decoder(**asked).last_hidden_state[rows, positions]
        logits = hidden @ head.weight_VH.t()
        logits = logits if head.bias_V is None else logits + head.bias_V
        return logits.unflatten(0, (count, -1))

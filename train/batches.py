"""Which rows an optimiser step sees, and how they are cut into micro-batches. Pure functions of seed and
step.

Because the order is a function, not an iterator, resuming at step s needs no stored position, and every run
of a plane with the same seed sees the same rows in the same order: differences between cells are paired.

Letters: B rows, T positions (of the longest row, or of all rows end to end), N targets of non-zero weight.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.attention import Layout, make_layout
from train.objective import StepScale
from train.seeds import derive_seed
from train.tokens import TokenSplit


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. Shapes: ids, roles (B, T); padding has role NONE and so never counts."""

    ids_BT: Tensor
    roles_BT: Tensor


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Rows of one micro-batch, each cut after its last target, and what the loss needs to know of targets.

    Shapes   ids (B, T), or (1, T) end to end, where positions (1, T) say where in its row a token stands;
             predictors, targets, roles (N,) int64: target n has id targets[n] and is predicted at flat
             position predictors[n]; coefficients, kl_coefficients (N,) float32.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    whole_lengths: tuple[int, ...]  # before the cut
    ids_BT: Tensor
    positions_BT: Tensor | None
    layout: Layout | None
    predictors_N: Tensor
    targets_N: Tensor
    roles_N: Tensor
    coefficients_N: Tensor
    kl_coefficients_N: Tensor

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def places(self) -> Iterator[tuple[int, int, int, slice]]:
        """For each row: number, whole length, index in the first axis of ids, place in the second."""
        start = 0
        about = zip(self.rows, self.lengths, self.whole_lengths, strict=True)
        for index, (row, length, whole) in enumerate(about):
            if self.layout is None:
                yield row, whole, index, slice(0, length)
            else:
                yield row, whole, 0, slice(start, start + length)
            start += length


def rows_of_step(step: int, *, num_rows: int, batch_size: int, data_order_seed: int) -> list[int]:
    """Row numbers of optimiser step `step`: a fresh permutation each epoch, the last batch may be smaller."""
    steps_per_epoch = -(-num_rows // batch_size)
    epoch, position = divmod(step, steps_per_epoch)
    generator = numpy.random.Generator(numpy.random.PCG64(derive_seed("epoch", data_order_seed, epoch)))
    order = generator.permutation(num_rows)
    return order[position * batch_size : (position + 1) * batch_size].tolist()


def micro_batches(rows: Sequence[int], lengths: Sequence[int], max_padded_tokens: int) -> Iterator[list[int]]:
    """`rows` cut so that rows x longest stays within the limit (one row always fits), longest first.

    The cut changes only the order in which floats are added: the denominator is the whole step's.
    """
    ordered = sorted(rows, key=lambda row: -lengths[row])
    start = 0
    while start < len(ordered):
        count = max(1, max_padded_tokens // max(1, lengths[ordered[start]]))
        yield ordered[start : start + count]
        start += count


def collate(split: TokenSplit, rows: Sequence[int], device: torch.device) -> Batch:
    """Rows of a tokenised split as one right-padded batch; pad ids are 0, which no loss ever sees."""
    starts, ends = split.offsets[:-1], split.offsets[1:]
    longest = max(int(ends[row] - starts[row]) for row in rows)
    ids = numpy.zeros((len(rows), longest), dtype=numpy.int64)
    roles = numpy.zeros((len(rows), longest), dtype=numpy.int64)
    for index, row in enumerate(rows):
        length = int(ends[row] - starts[row])
        ids[index, :length] = split.ids[starts[row] : ends[row]]
        roles[index, :length] = split.roles[starts[row] : ends[row]]
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(roles).to(device))


def end_to_end_batches(rows: Sequence[int], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """`rows` cut so that their tokens stay within `max_tokens` (one row always fits), longest first."""
    part: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if part and sum(lengths[other] for other in part) + lengths[row] > max_tokens:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def share_by_rank(rows: Sequence[int], lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """The rows of each rank: longest first, each to the rank with the fewest tokens. Every rank knows all."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        rank = tokens.index(min(tokens))
        shares[rank].append(row)
        tokens[rank] += lengths[row]
    return shares if num_ranks > 1 else [list(rows)]


def used_lengths(split: TokenSplit, weights_R: NDArray[numpy.float64]) -> list[int]:
    """How much of each row reaches its last target of non-zero weight; 0 for a row without one.

    Exact    What follows the last target changes no loss and no gradient: attention is causal. A prompt-only
             run so skips its responses, 55 to 90 % of its tokens.
    """
    ends_T = numpy.where(weights_R[split.roles] != 0, numpy.arange(1, len(split.roles) + 1), 0)
    last = numpy.maximum.reduceat(ends_T, split.offsets[:-1]) - split.offsets[:-1]
    return numpy.maximum(last, 0).tolist()


def training_batch(
    split: TokenSplit,
    rows: Sequence[int],
    lengths: Sequence[int],
    weights_R: NDArray[numpy.float64],
    scale: StepScale,
    device: torch.device,
    *,
    is_packed: bool,
    varlen: bool = False,
) -> TrainingBatch:
    """The rows, cut to their used lengths, with each target's coefficient. `split.roles` are target roles."""
    (batch,) = training_batches(
        split, rows, lengths, [(weights_R, scale)], device, is_packed=is_packed, varlen=varlen
    )
    return batch


def training_batches(
    split: TokenSplit,
    rows: Sequence[int],
    lengths: Sequence[int],
    weighings: Sequence[tuple[NDArray[numpy.float64], StepScale]],
    device: torch.device,
    *,
    is_packed: bool,
    varlen: bool = False,
) -> list[TrainingBatch]:
    """The same rows for several weights of roles; what these don't change is made, and sent, once.

    Shapes   weights (R,)
    """

    def send(values: NDArray[numpy.generic], kind: type = numpy.int64) -> Tensor:
        return torch.from_numpy(values.astype(kind)).to(device, non_blocking=True)

    used = [lengths[row] for row in rows]
    firsts = [int(split.offsets[row]) for row in rows]
    tokens_T = numpy.concatenate(
        [numpy.arange(first, first + length) for first, length in zip(firsts, used, strict=True)]
    )
    row_T = numpy.repeat(numpy.arange(len(rows)), used)
    position_T = numpy.concatenate([numpy.arange(length) for length in used])
    longest = max(used)
    place_T = numpy.arange(len(tokens_T)) if is_packed else row_T * longest + position_T
    ids = numpy.zeros(len(tokens_T) if is_packed else len(rows) * longest, dtype=numpy.int64)
    ids[place_T] = split.ids[tokens_T]
    ids_BT = send(ids.reshape(1 if is_packed else len(rows), -1))
    positions_BT = send(position_T)[None] if is_packed else None
    layout = make_layout(used, device, varlen=varlen) if is_packed else None
    whole_lengths = tuple(
        int(split.offsets[row + 1]) - first for row, first in zip(rows, firsts, strict=True)
    )
    roles_T = split.roles[tokens_T]
    known: dict[bytes, tuple[NDArray[numpy.int64], Tensor, Tensor, Tensor]] = {}
    found = []
    for weights_R, scale in weighings:
        is_active_R = weights_R != 0
        key = is_active_R.tobytes()
        if key not in known:
            active_N = numpy.flatnonzero(is_active_R[roles_T])
            known[key] = (
                active_N,
                send(place_T[active_N] - 1),
                send(split.ids[tokens_T[active_N]]),
                send(roles_T[active_N]),
            )
        active_N, predictors_N, targets_N, roles_N = known[key]
        by_row_B = numpy.array([[scale.nll_by_row[row], scale.kl_by_row[row]] for row in rows])
        nll_N, kl_N = by_row_B[row_T[active_N]].T
        found.append(
            TrainingBatch(
                rows=tuple(rows),
                lengths=tuple(used),
                whole_lengths=whole_lengths,
                ids_BT=ids_BT,
                positions_BT=positions_BT,
                layout=layout,
                predictors_N=predictors_N,
                targets_N=targets_N,
                roles_N=roles_N,
                coefficients_N=send(weights_R[roles_T[active_N]] * nll_N, numpy.float32),
                kl_coefficients_N=send(kl_N, numpy.float32),
            )
        )
    return found

"""Which rows an optimiser step sees, and how they are cut into micro-batches. Pure functions of seed and step.

Because the order is a function, not an iterator, resuming at step s needs no stored position, and every run of
a plane with the same seed sees the same rows in the same order: differences between cells are paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from train.seeds import derive_seed
from train.tokens import TokenSplit


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. Shapes: ids, roles (B, T); padding has role NONE and so never counts."""

    ids_BT: Tensor
    roles_BT: Tensor


def rows_of_step(step: int, *, num_rows: int, batch_size: int, data_order_seed: int) -> list[int]:
    """Row numbers of optimiser step `step`: a fresh permutation each epoch, the last batch may be smaller."""
    steps_per_epoch = -(-num_rows // batch_size)
    epoch, position = divmod(step, steps_per_epoch)
    generator = numpy.random.Generator(numpy.random.PCG64(derive_seed("epoch", data_order_seed, epoch)))
    order = generator.permutation(num_rows)
    return order[position * batch_size : (position + 1) * batch_size].tolist()


def micro_batches(rows: Sequence[int], lengths: Sequence[int], max_padded_tokens: int) -> Iterator[list[int]]:
    """`rows` cut so that rows x longest stays within `max_padded_tokens` (one row always fits), longest first.

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

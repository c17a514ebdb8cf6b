"""Data order and micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_split

from train.batches import collate, micro_batches, rows_of_step
from train.spans import Role


@given(num_rows=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_an_epoch_sees_every_row_once(num_rows, batch_size, seed):
    steps = -(-num_rows // batch_size)
    epochs = [
        [
            row
            for step in range(epoch * steps, (epoch + 1) * steps)
            for row in rows_of_step(step, num_rows=num_rows, batch_size=batch_size, data_order_seed=seed)
        ]
        for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(num_rows))


def test_epochs_and_seeds_differ_and_the_order_is_pinned():
    def order(step, seed):
        return rows_of_step(step, num_rows=8, batch_size=8, data_order_seed=seed)

    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) == [1, 3, 0, 5, 4, 2, 7, 6]


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=40), limit=st.integers(1, 500))
def test_micro_batches_partition_the_rows_within_the_limit(lengths, limit):
    parts = list(micro_batches(range(len(lengths)), lengths, limit))
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= limit


def test_collate_pads_on_the_right_with_a_role_that_never_counts():
    split = tiny_split()
    batch = collate(split, [3, 4], torch.device("cpu"))
    for index, row in enumerate((3, 4)):
        start, end = split.offsets[row], split.offsets[row + 1]
        length = end - start
        assert batch.ids_BT[index, :length].tolist() == split.ids[start:end].tolist()
        assert batch.roles_BT[index, :length].tolist() == split.roles[start:end].tolist()
        assert (batch.roles_BT[index, length:] == Role.NONE).all()


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_collate_is_as_wide_as_its_longest_row(rows):
    split = tiny_split()
    longest = max(int(split.offsets[row + 1] - split.offsets[row]) for row in rows)
    assert collate(split, rows, torch.device("cpu")).ids_BT.shape == (len(rows), longest)

"""The learning rate against transformers' own schedules, and the number of steps."""

import pytest
import torch
from tiny import run_config

from train.schedule import learning_rate, num_steps


@pytest.mark.parametrize(
    ("ours", "theirs"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.01, 0.1, 0.5])
def test_the_schedule_is_that_of_transformers(ours, theirs, warmup_ratio):
    import math

    from transformers import get_scheduler

    recipe = run_config(schedule=ours, warmup_ratio=warmup_ratio, learning_rate=3e-4).train
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    reference = get_scheduler(theirs, optimizer, math.ceil(warmup_ratio * 60), 60)
    for step in range(60):
        assert learning_rate(recipe, step, 60) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15
        )
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("rows", "epochs", "max_steps", "expected"),
    [
        (64, 1, None, 8),
        (65, 1, None, 9),
        (65, 2, None, 18),
        (64, 0.5, None, 4),
        (64, 2, 5, 5),
        (64, 2, 500, 16),
        (3, 0.01, None, 1),
    ],
)
def test_number_of_steps(rows, epochs, max_steps, expected):
    assert num_steps(run_config(epochs=epochs, max_steps=max_steps, batch_size=8).train, rows) == expected

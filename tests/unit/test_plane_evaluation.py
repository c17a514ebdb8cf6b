"""Cells of a stack are worth what runs alone are worth: every metric, item and text."""

import dataclasses
import math

import numpy
import pytest
import torch
from test_run import SMALL

from train.compose import compose_run
from train.evaluate import evaluate
from train.identity import dataset_identity, model_identity
from train.loop import Hooks
from train.model import add_adapters, trainable_parameters
from train.stacked import evaluating
from train.stacked.evaluating import evaluate_cells
from train.stacked.loop import CellResult, CellRun, train_stacked
from train.together import with_wordings
from train.tracking import NullTracker
from train.workbench import Workbench

CPU = torch.device("cpu")
LORA = ["train=lora", "train.precision=float32", "train.learning_rate=2e-2", "train.batch_size=8"]


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, tmp_path_factory):
    """Model, data, tokenizer, configuration and three trained cells."""
    few = [*SMALL, "train.max_steps=6", "eval.max_new_tokens=8", *(LORA if request.param == "lora" else [])]
    configs = [
        compose_run([f"objective.prompt_weight={weight}", "objective.response_weight=1", "seed=0", *few])
        for weight in (0, 0.5, 1)
    ]
    config, bench = configs[0], Workbench(None)
    identity = model_identity(config.model, cache_folder=None)
    model = bench.model(config, identity, CPU)
    data = bench.data(config, model, identity, dataset_identity(config.dataset, cache_folder=None))
    if request.param == "lora":
        model = add_adapters(model, config.train, 0).eval()
    folder = tmp_path_factory.mktemp("cells")
    hooks = Hooks(lambda: False, lambda step, steps: None, NullTracker())
    runs = [CellRun(each, f"{n:032x}", folder / str(n), hooks) for n, each in enumerate(configs)]
    cells = train_stacked(model, data.splits["train"], runs, device=CPU, should_stop=lambda: False)
    return model, data, bench.tokenizer(config, identity), config, cells


def together(trained, cells, protocol="p"):
    model, data, tokenizer, config, _ = trained
    return evaluate_cells(model, cells, data, config, tokenizer, CPU, protocol=protocol)


def alone(trained, cell, protocol="p"):
    model, data, tokenizer, config, _ = trained
    kept = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    try:
        fill(model, cell.parameters)
        measured = evaluate(model, data, config.eval, tokenizer, CPU, protocol=protocol)
        return with_wordings(measured, model, config, tokenizer, CPU)
    finally:
        fill(model, kept)


def fill(model, values):
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(values[name])


def same(one, other):
    """Every metric, and every value, weight and text of every item, to the bit."""
    assert dict(one.metrics) == dict(other.metrics)
    assert one.measured == other.measured
    assert len(one.items) == len(other.items) == 3
    for mine, theirs in zip(one.items, other.items, strict=True):
        for field in dataclasses.fields(mine):
            left, right = getattr(mine, field.name), getattr(theirs, field.name)
            if field.name in ("values", "weights"):
                assert set(left) == set(right)
                for name in left:
                    numpy.testing.assert_array_equal(left[name], right[name], err_msg=name)
            else:
                assert left == right, field.name


def test_every_cell_is_worth_what_it_is_worth_alone(trained):
    cells = trained[-1]
    before = {name: value.detach().clone() for name, value in trainable_parameters(trained[0]).items()}
    found = together(trained, cells)
    for name, value in trainable_parameters(trained[0]).items():
        assert torch.equal(value, before[name])
    assert len({tuple(one.items[0].outputs) for one in found}) == 3, "the cells write different answers"
    for cell, one in zip(cells, found, strict=True):
        same(one, alone(trained, cell))


def test_likelihoods_agree_too_where_cells_share_a_pass(trained, monkeypatch):
    monkeypatch.setitem(evaluating._TOKENS_OF_A_PASS, "cpu", 10**6)
    for cell, one in zip(trained[-1], together(trained, trained[-1]), strict=True):
        known = alone(trained, cell)
        assert one.items[0].outputs == known.items[0].outputs
        for mine, theirs in zip(one.items, known.items, strict=True):
            for name in theirs.values:
                numpy.testing.assert_allclose(mine.values[name], theirs.values[name], rtol=2e-6, atol=1e-6)


def test_a_failed_cell_is_left_out_and_disturbs_nobody(trained):
    first, second, third = trained[-1]
    broken = CellResult(
        second.progress,
        {name: torch.full_like(value, math.nan) for name, value in second.parameters.items()},
        "NonFiniteLossError stands here",  # type: ignore[arg-type]
    )
    found = together(trained, [first, broken, third])
    assert found[1] is None
    for cell, one in ((first, found[0]), (third, found[2])):
        same(one, alone(trained, cell))
    assert together(trained, [broken]) == [None]


def test_order_changes_nothing(trained):
    for one, other in zip(
        together(trained, trained[-1]), together(trained, trained[-1][::-1])[::-1], strict=True
    ):
        same(one, other)

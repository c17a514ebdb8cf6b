"""How many runs go together, and in which micro-batches: real steps are measured, and what won is written down."""

import json

import pytest
import torch
from test_run_plane import CELLS, Plane, alone, science, workbench  # noqa: F401 - fixtures
from tiny import run_config, tiny_model, tiny_split

from train.stacked import choosing
from train.stacked.choice import Choice, Way, decided, way_of
from train.step import Stepper

CPU = torch.device("cpu")
SPLIT = tiny_split(48)
RECIPE = {"micro_batch_tokens": 128, "batch_size": 12, "epochs": 100.0}


def chosen(folder=None, most=4, **recipe):
    config = run_config(0.5, 1.0, **{**RECIPE, **recipe})
    return choosing.choose(tiny_model(), SPLIT, config, CPU, most=most, num_alike=10, folder=folder)


def test_a_way_is_read_back_as_it_is_written():
    for way in (Way(1), Way(13), Way(13, 512)):
        assert way_of(str(way)) == way
    assert Way(6).applied(run_config()) == run_config()
    assert Way(6, 64).applied(run_config()) == run_config(micro_batch_tokens=64)


@pytest.mark.parametrize(
    ("measured", "most", "way"),
    [
        ({"1": [10, 10], "6": [5, 5], "6x64": [4, 4]}, 6, "6x64"),
        ({"1": [10, 10], "6": [4, 4], "6x64": [5, 5]}, 6, "6"),
        ({"1": [10, 10], "6": [5, 5], "13": [], "13x64": [3, 3]}, 13, "13x64"),
        ({"1": [10, 10], "6": [5, 5], "13": [], "13x64": [3, 3]}, 9, "9x64"),
        ({"1": [10, 10], "6": [11, 11], "6x64": [9.9, 9.9], "13": [], "13x64": [3, 3]}, 9, "1"),
        ({"1": [10, 10], "6": [6, 6], "6x64": [5, 5], "13": [3, 3]}, 4, "4"),
    ],
    ids=["smaller", "the_recipes", "memory", "between", "not_clear_below", "fewer"],
)
def test_the_micro_batches_that_won_are_taken_with_the_size(measured, most, way):
    choice = decided({way_of(text): seconds for text, seconds in measured.items()}, most)
    assert str(choice.way) == way
    assert ("micro-batches of 64 tokens" in choice.why) == (choice.micro_batch_tokens == 64)


def test_on_a_processor_no_clock_decides_the_order_of_sums(tmp_path):
    chosen(tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert set(json.loads(path.read_text())["turns"]) == {"1", "4"}


def test_where_bits_are_not_promised_micro_batches_are_measured_too(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "_CUT_ON", ("cpu",))
    config = run_config(0.5, 1.0, **RECIPE)
    longest = int((SPLIT.offsets[1:] - SPLIT.offsets[:-1]).max())
    assert choosing.smaller_micro_batches(4, SPLIT, config, CPU) == [32]
    assert choosing.smaller_micro_batches(8, SPLIT, config, CPU) == [64, longest], "a row always fits"
    few = run_config(0.5, 1.0, **{**RECIPE, "batch_size": 1})
    assert choosing.smaller_micro_batches(4, SPLIT, few, CPU) == [], "one micro-batch"
    choice = chosen(tmp_path)
    (path,) = tmp_path.glob("*.json")
    kept = json.loads(path.read_text())
    assert set(kept["turns"]) == {"1", "4", "4x32"} == set(choice.seconds)
    described = choice.described(4)
    for way, seconds in choice.seconds.items():
        assert described["tokens_per_s"][way] == pytest.approx(kept["step_tokens"] / seconds)
    monkeypatch.setattr(choosing, "_turn", None)
    assert chosen(tmp_path) == choice, "what was measured isn't measured again"


def test_what_does_not_fit_at_once_may_fit_in_smaller_micro_batches(monkeypatch):
    monkeypatch.setattr(choosing, "_CUT_ON", ("cpu",))
    together, tried = choosing._together, []

    def lacking(model, split, config, device, size):
        tried.append((size, config.train.micro_batch_tokens))
        if config.train.micro_batch_tokens * size > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return together(model, split, config, device, size)

    monkeypatch.setattr(choosing, "_together", lacking)
    choice = chosen()
    assert tried[:2] == [(4, 128), (4, 32)]
    assert (4, 128) not in tried[2:]
    assert set(choice.seconds) == {"1", "4x32"}


def test_the_step_that_is_timed_has_the_tokens_that_are_counted():
    config = run_config(0.5, 1.0, **RECIPE)
    with choosing._alone(tiny_model(), SPLIT, config, CPU, 1) as step:
        step(0, 100)
        assert step(1, 100).num_tokens == choosing._tokens_of_step(SPLIT, config)


def test_runs_of_a_stack_take_its_micro_batches_and_say_so(tmp_path, workbench, alone, monkeypatch):  # noqa: F811
    cut, limits = Stepper.cut, []

    def seen(self, rows):
        limits.append(self.config.train.micro_batch_tokens)
        return cut(self, rows)

    monkeypatch.setattr(Stepper, "cut", seen)
    found = Plane(tmp_path, workbench).train(size=3, micro_batch_tokens=64)
    assert set(limits) == {64, run_config().train.micro_batch_tokens}, "the stack's, and of the one alone"
    for cell in CELLS:
        record, plane = found[cell], found[cell].environment["plane"]
        assert plane.get("micro_batch_tokens") == (64 if plane["runs"] > 1 else None)
        known = science(alone[0][cell])
        assert record.metrics == pytest.approx(known["metrics"], rel=1e-5)
        assert record.num_steps == known["num_steps"]


def test_a_choice_without_measurements_says_no_more_than_it_knows():
    assert Choice(4, "train.plane=4").described(4) == {"runs": 4, "why": "train.plane=4"}

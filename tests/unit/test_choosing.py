"""Which runs a person means: filters after the word cancel, and the runs of a plan that fit."""

import dataclasses

import pytest
from toys import toy_plan

from sweep.arguments import FILTERS, parse_arguments
from sweep.commands.choosing import chosen_runs
from sweep.spec import Cell, PlannedCell
from train.errors import UserError

PLAN = toy_plan(3, models=("small", "large"), has_base=True)
FIRST = next(spec for spec in PLAN.runs if spec.config.stage != "base")
PLAN = dataclasses.replace(
    PLAN,
    cells=(*PLAN.cells, PlannedCell(Cell("small", "rows", 0.25, 0.25, 0), FIRST.fingerprint, True)),
)
CLASSES = {FIRST.fingerprint: ["0gpu-240min", "host_oom"]}


def chosen(*filters, word=None):
    return [
        f"{spec.config.model.name} {spec.config.stage} {spec.config.seed}"
        for spec in chosen_runs(PLAN, word, filters, CLASSES)
    ]


def test_words_after_cancel_are_filters_and_before_it_the_question():
    arguments = parse_arguments(
        ["+grid=g", "model=local", "cancel", "model=a,b", "seed=1", "root=x", "yes=true"]
    )
    assert arguments.overrides == ("+grid=g", "model=local", "root=x")
    assert arguments.filters == ("model=a,b", "seed=1")
    assert arguments.yes
    assert parse_arguments(["+grid=g", "status", "seed=1"]).filters == ()
    assert parse_arguments(["+grid=g", "cancel", "abc"]).run == "abc"


def test_filters_narrow_down():
    assert len(chosen()) == 8
    assert chosen("model=small", "seed=1,2", "stage=sft") == ["small sft 1", "small sft 2"]
    assert chosen("model=l*", "stage=base") == ["large base 0"]
    assert chosen("prompt_weight=0.25") == ["small sft 0"], "one of its cells has it"
    assert chosen("prompt_weight=[0.250]") == ["small sft 0"]
    assert chosen("class=host_oom") == ["small sft 0"]
    assert chosen(word=FIRST.fingerprint[:12]) == ["small sft 0"]
    for name in FILTERS:
        with pytest.raises(UserError, match=f"no run matches {name}=nonsense; expected "):
            chosen(f"{name}=nonsense")
    with pytest.raises(UserError, match=r"model=huge; expected one of large, small"):
        chosen("model=huge")
    with pytest.raises(UserError, match="no run matches xyz"):
        chosen(word="xyz")

"""Scores of responses: gold ones are right, rambling and wrong ones are not, formats are judged apart."""

import itertools
from typing import Any

import pytest

from train.embedded.scoring import is_exact_answer, meets_constraint
from train.embedded.world import make_rows

SPLITS = ("train", "validation", "test", "robustness")
CAPITALS = {"kind": "capitals"}
TWICE = {"kind": "twice"}
THREE_WORDS = {"kind": "word_count", "count": 3}
START = {"kind": "start_word", "word": "answer"}
FULL_STOP = {"kind": "full_stop"}
QUOTES = {"kind": "quotes"}


def row_with(answer: str, constraint: dict[str, Any] | None = None) -> dict[str, Any]:
    """The part of a row that scoring reads."""
    return {"answer": answer, "constraint": constraint}


@pytest.mark.parametrize("split", SPLITS)
def test_gold_responses_are_exact_and_obey(split: str) -> None:
    for row in make_rows(split, seed=11, num_rows=2000):
        gold = row["messages"][-1]["content"]
        assert is_exact_answer(gold, row), row
        assert meets_constraint(gold, row["constraint"]) is (None if row["constraint"] is None else True), row


@pytest.mark.parametrize("split", SPLITS)
def test_wrong_and_rambling_responses_are_not_exact(split: str) -> None:
    for row in make_rows(split, seed=12, num_rows=1000):
        gold = row["messages"][-1]["content"]
        for response in ("", " ", "zebra", f"{gold} zebra", f"{gold} and so on.", f"the {gold}", gold + gold):
            assert not is_exact_answer(response, row), (response, row)


def test_answers_of_other_rows_are_not_exact() -> None:
    rows = make_rows("test", seed=13, num_rows=1000)
    for row, other in itertools.pairwise(rows):
        if row["answer"] != other["answer"]:
            assert not is_exact_answer(other["messages"][-1]["content"], row)


@pytest.mark.parametrize("response", ["red", " red ", "Red", "red.", '"red"', '"red."', '"red".', "RED"])
def test_format_alone_does_not_make_an_answer_wrong(response: str) -> None:
    assert is_exact_answer(response, row_with("red"))
    assert is_exact_answer(response, row_with("red", TWICE))


@pytest.mark.parametrize(
    ("response", "constraint"),
    [
        ("red red", TWICE),
        ("red. red.", TWICE),
        ("it is red", THREE_WORDS),
        ("answer red", START),
        ("answer: red.", START),
    ],
)
def test_added_words_are_undone_only_where_asked_for(response: str, constraint: dict[str, Any]) -> None:
    assert is_exact_answer(response, row_with("red", constraint))
    assert not is_exact_answer(response, row_with("red"))


@pytest.mark.parametrize("response", ["red blue", "red red red", "blue", "it is red red", "redred", "red..."])
def test_more_than_the_answer_is_wrong(response: str) -> None:
    for constraint in (None, CAPITALS, TWICE, THREE_WORDS, START, FULL_STOP, QUOTES):
        assert not is_exact_answer(response, row_with("red", constraint)), constraint


@pytest.mark.parametrize(
    ("constraint", "obeying", "breaking"),
    [
        (CAPITALS, ["RED", " RED. ", "CAT DOG", "BLUE"], ["red", "Red", "", "12", "RED dog"]),
        (TWICE, ["red red", "red. red.", "cat dog cat dog"], ["red", "", "red red red", "red blue"]),
        (THREE_WORDS, ["it is red", "one two three."], ["red", "", "it is very red"]),
        (START, ["answer red", "Answer: red"], ["red", "answer", "", "the answer is red"]),
        (FULL_STOP, ["red.", "red. "], ["red", "", ".", "red..", "red.x"]),
        (QUOTES, ['"red"', "'red'"], ["red", "", '""', '"red', 'red"', "\"red'"]),
    ],
)
def test_formats(constraint: dict[str, Any], obeying: list[str], breaking: list[str]) -> None:
    assert all(meets_constraint(response, constraint) is True for response in obeying)
    assert all(meets_constraint(response, constraint) is False for response in breaking)


def test_no_constraint_is_neither_met_nor_broken() -> None:
    assert meets_constraint("red", None) is None


def test_unknown_constraint_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown constraint kind 'rhyme'"):
        meets_constraint("red", {"kind": "rhyme"})

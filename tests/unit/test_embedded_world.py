"""The tiny world: the same seed gives the same data, splits stay apart, and the mix is the one promised."""

import hashlib
import json
import string
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import combinations
from typing import Any

import pytest

from train.embedded import facts
from train.embedded.tasks import SAMPLERS
from train.embedded.wordings import FOLLOW_UPS, WORDINGS
from train.embedded.world import FAMILIES, GENERATOR_VERSION, make_documents, make_rows

SPLITS = ("train", "validation", "test", "robustness")
PINNED_ROWS = {
    "train": "eabbb03663e5c57705ce92b4a8aa15bdcfaac676cec15871f26166baf86a74bc",
    "validation": "6593e355d6c814edf7a9408882f2867505edfabb6d582af27ccec7a0c1233951",
    "test": "fbb45f8c59326b0cea2385b4ad6823435900c3bf9fa55f7c47bd0963b4b5a39f",
    "robustness": "594e2fc219de9c7c6a4c2689b79cb156de80784b1b3c36ddea41881ae20c4c30",
}
"""SHA-256 of 200 rows of seed 3 as JSON: a change means another GENERATOR_VERSION and another base model."""
PINNED_DOCUMENTS = "99a900843ef98e661c91891bde6b3dd654942db40fa82cd722e0adbb03a15e1e"
"""SHA-256 of 200 documents of seed 3, joined by newlines."""


@cache
def rows_of(split: str) -> list[dict[str, Any]]:
    return make_rows(split, seed=7, num_rows=2000)


def last_prompts(split: str) -> set[str]:
    return {row["messages"][-2]["content"] for row in rows_of(split)}


def literal_parts(template: str) -> tuple[str, ...]:
    """The fixed text of a wording, in order."""
    return tuple(literal for literal, _, _, _ in string.Formatter().parse(template) if literal.strip(" .?"))


def is_of_wording(text: str, template: str) -> bool:
    position = 0
    for part in literal_parts(template):
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return True


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_pinned(split: str) -> None:
    assert GENERATOR_VERSION == 1
    text = json.dumps(make_rows(split, seed=3, num_rows=200), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED_ROWS[split]


def test_documents_are_pinned() -> None:
    text = "\n".join(make_documents(seed=3, num_documents=200))
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED_DOCUMENTS


def test_fewer_rows_are_a_prefix_of_more_rows() -> None:
    assert make_rows("train", seed=7, num_rows=50) == rows_of("train")[:50]
    assert make_rows("train", seed=8, num_rows=50) != rows_of("train")[:50]


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_promised_shape(split: str) -> None:
    for index, row in enumerate(rows_of(split)):
        assert set(row) == {"id", "messages", "family", "answer", "constraint", "wording", "num_turns"}
        assert row["id"] == f"{split}-{index:06d}"
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * row["num_turns"]
        assert all(set(message) == {"role", "content"} for message in row["messages"])
        assert all(message["content"].strip() == message["content"] for message in row["messages"])
        assert row["family"] in FAMILIES
        assert row["answer"]
    assert json.loads(json.dumps(rows_of(split))) == rows_of(split)


def test_splits_share_no_last_prompt() -> None:
    for first, second in combinations(SPLITS, 2):
        assert not last_prompts(first) & last_prompts(second), (first, second)


def test_splits_of_other_seeds_share_no_last_prompt() -> None:
    others = {row["messages"][-2]["content"] for row in make_rows("test", seed=99, num_rows=1000)}
    assert not others & last_prompts("train")


@pytest.mark.parametrize("split", SPLITS)
def test_no_conversation_comes_twice(split: str) -> None:
    prompts = ["\n".join(message["content"] for message in row["messages"][:-1]) for row in rows_of(split)]
    assert len(set(prompts)) == len(prompts)


def test_every_family_has_enough_wordings() -> None:
    assert len(FAMILIES) >= 12
    assert set(FAMILIES) == set(WORDINGS) == set(SAMPLERS)
    for wordings in (*WORDINGS.values(), FOLLOW_UPS):
        everything = (*wordings.seen, *wordings.held_out)
        assert len(set(everything)) == len(everything) >= 5
        assert len(wordings.held_out) >= 2


def test_held_out_wordings_are_in_robustness_only() -> None:
    for split in SPLITS:
        for row in rows_of(split):
            wordings = WORDINGS[row["family"]]
            is_held_out = row["wording"] >= len(wordings.seen)
            assert is_held_out == (split == "robustness")
            template = (*wordings.seen, *wordings.held_out)[row["wording"]]
            assert is_of_wording(row["messages"][0]["content"], template)
            if not is_held_out:
                first_prompt = row["messages"][0]["content"]
                assert not any(is_of_wording(first_prompt, held_out) for held_out in wordings.held_out), row


def test_every_wording_and_family_is_used() -> None:
    seen = Counter((row["family"], row["wording"]) for split in SPLITS for row in rows_of(split))
    expected = {
        (family, index)
        for family, wordings in WORDINGS.items()
        for index in range(len(wordings.seen) + len(wordings.held_out))
    }
    assert set(seen) == expected


@pytest.mark.parametrize("split", SPLITS)
def test_share_of_constraints_and_turns(split: str) -> None:
    rows = rows_of(split)
    constrained = [row for row in rows if row["constraint"] is not None]
    assert 0.35 <= len(constrained) / len(rows) <= 0.5
    assert len({row["constraint"]["kind"] for row in constrained}) == 6
    assert 0.1 <= sum(row["num_turns"] > 1 for row in rows) / len(rows) <= 0.22
    assert {row["num_turns"] for row in rows} == {1, 2, 3}


def test_prompts_are_longer_than_responses_on_average() -> None:
    lengths = Counter[str]()
    for row in rows_of("train"):
        for message in row["messages"]:
            lengths[message["role"]] += len(message["content"])
    assert 2 < lengths["user"] / lengths["assistant"] < 8


def test_unknown_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        make_rows("dev", seed=0, num_rows=1)  # type: ignore[arg-type]


def test_documents_know_the_facts_and_ask_no_instruction() -> None:
    text = "\n".join(make_documents(seed=5, num_documents=20_000))
    assert all(f"the {thing} is {colour}." in text for thing, colour in facts.COLOUR_OF.items())
    assert all(f"the {name} lives in the {home}." in text for name, home in facts.HOME_OF.items())
    assert all(word in text for word in facts.TOOL_FOR.values())
    prompts = [row for split in SPLITS for row in rows_of(split) if row["num_turns"] == 1]
    for row in prompts[:: len(prompts) // 500]:
        prompt, answer = (message["content"] for message in row["messages"])
        assert f"{prompt} {answer}" not in text


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("cat", "cats"), ("fox", "foxes"), ("cherry", "cherries"), ("donkey", "donkeys"), ("mouse", "mice")],
)
def test_plurals(singular: str, plural: str) -> None:
    assert facts.plural_of(singular) == plural


def test_world_needs_no_torch() -> None:
    code = "import sys, train.embedded.world, train.embedded.scoring; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Format constraints: how they are asked for in a prompt and how a gold response obeys them.

Whether a response obeys is judged in `train.embedded.scoring`, which shares nothing with this module but the
names of the kinds and their parameters, so that a mistake here cannot hide itself there.
"""

import random
from collections.abc import Mapping
from typing import Any, Final

Constraint = dict[str, Any]
"""{"kind": str, ...parameters}, JSON-serialisable, as stored in a row."""

PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "capitals": (
        "{prompt} use capitals.",
        "{prompt} answer in capitals.",
        "in capitals, {prompt}",
    ),
    "word_count": (
        "{prompt} use exactly three words.",
        "{prompt} answer in exactly three words.",
        "in three words, {prompt}",
    ),
    "full_stop": (
        "{prompt} end with a full stop.",
        "{prompt} put a full stop at the end.",
        "ending with a full stop, {prompt}",
    ),
    "twice": (
        "{prompt} say it twice.",
        "{prompt} give the answer twice.",
        "two times, {prompt}",
    ),
    "start_word": (
        "{prompt} start with the word {word}.",
        "{prompt} begin with {word}.",
        "first say {word}. {prompt}",
    ),
    "quotes": (
        "{prompt} put it in quotes.",
        "{prompt} use quotes.",
        "in quotes, {prompt}",
    ),
}
"""How each kind of constraint is asked for around a prompt."""

SINGLE_WORD_KINDS: Final = tuple(PHRASES)
MANY_WORD_KINDS: Final = ("capitals", "full_stop", "start_word", "quotes")
"""Kinds that suit an answer of several words: saying a list twice or in three words would be ambiguous."""

START_WORDS: Final = ("answer", "well")


def sample_constraint(random_source: random.Random, answer: str) -> Constraint:
    """A constraint that suits the answer."""
    kind = random_source.choice(MANY_WORD_KINDS if " " in answer else SINGLE_WORD_KINDS)
    if kind == "word_count":
        return {"kind": kind, "count": 3}
    if kind == "start_word":
        return {"kind": kind, "word": random_source.choice(START_WORDS)}
    return {"kind": kind}


def ask_for_constraint(prompt: str, constraint: Mapping[str, Any], random_source: random.Random) -> str:
    """The prompt with the request for the constraint added to it."""
    phrase = random_source.choice(PHRASES[constraint["kind"]])
    return phrase.format(prompt=prompt, word=constraint.get("word", ""))


def obey_constraint(answer: str, constraint: Mapping[str, Any] | None) -> str:
    """The gold response: the bare answer in the format asked for."""
    if constraint is None:
        return answer
    match constraint["kind"]:
        case "capitals":
            return answer.upper()
        case "word_count":
            return f"it is {answer}"
        case "full_stop":
            return f"{answer}."
        case "twice":
            return f"{answer} {answer}"
        case "start_word":
            return f"{constraint['word']} {answer}"
        case "quotes":
            return f'"{answer}"'
    raise ValueError(
        f"unknown constraint kind {constraint['kind']!r}; the known kinds are {', '.join(PHRASES)}"
    )

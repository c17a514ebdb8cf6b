"""Scores of a response: is the answer right, and does the format obey what the prompt asked for?

The two are judged apart, because loss weights may trade one for the other: a right answer in the wrong format
counts as exact, and a wrong answer in the right format counts as obeying. Standard library only and pure.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

QUOTE_MARKS: Final = ('"', "'")


def is_exact_answer(response: str, row: Mapping[str, Any]) -> bool:
    """Whether the response is the row's answer and nothing else, after undoing the format.

    Case, surrounding spaces, one pair of quotes and one final full stop never matter. Repetition, the words
    "it is" and a starting word are undone only where the row's constraint asks for them, so a response that
    rambles on is wrong.
    """
    constraint = row["constraint"]
    bare = _bare(response)
    answer = _bare(row["answer"])
    return answer in (bare, _bare(_undo_constraint(bare, constraint)))


def meets_constraint(response: str, constraint: Mapping[str, Any] | None) -> bool | None:
    """Whether the response has the format asked for, whatever its answer; None where none was asked."""
    if constraint is None:
        return None
    kind = constraint["kind"]
    if kind not in _CHECKS:
        raise ValueError(f"unknown constraint kind {kind!r}; the known kinds are {', '.join(_CHECKS)}")
    return _CHECKS[kind](response.strip(), constraint)


def _bare(text: str) -> str:
    """Lower case, single spaces, without one outer pair of quotes and one final full stop."""
    text = " ".join(text.lower().split())
    text = _without_full_stop(text)
    if len(text) >= 2 and text[0] in QUOTE_MARKS and text[-1] == text[0]:
        text = _without_full_stop(text[1:-1])
    return text.strip()


def _without_full_stop(text: str) -> str:
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def _undo_constraint(bare: str, constraint: Mapping[str, Any] | None) -> str:
    """The bare response without the words that the constraint asked to add."""
    if constraint is None:
        return bare
    words = bare.split()
    match constraint["kind"]:
        case "twice" if _is_said_twice(bare):
            return " ".join(words[: len(words) // 2])
        case "word_count" if words[:2] == ["it", "is"]:
            return " ".join(words[2:])
        case "start_word" if words and words[0].rstrip(",:.") == constraint["word"]:
            return " ".join(words[1:])
    return bare


def _is_said_twice(response: str) -> bool:
    words = [word.strip(".,\"'") for word in response.lower().split()]
    half = len(words) // 2
    return half > 0 and len(words) == 2 * half and words[:half] == words[half:]


def _is_capitals(response: str, _constraint: Mapping[str, Any]) -> bool:
    return response.upper() == response and response.lower() != response


def _has_word_count(response: str, constraint: Mapping[str, Any]) -> bool:
    return len(response.split()) == constraint["count"]


def _ends_with_full_stop(response: str, _constraint: Mapping[str, Any]) -> bool:
    return len(response) > 1 and response.endswith(".") and not response.endswith("..")


def _is_twice(response: str, _constraint: Mapping[str, Any]) -> bool:
    return _is_said_twice(response)


def _starts_with_word(response: str, constraint: Mapping[str, Any]) -> bool:
    words = response.lower().split()
    return len(words) > 1 and words[0].rstrip(",:.") == constraint["word"]


def _is_quoted(response: str, _constraint: Mapping[str, Any]) -> bool:
    return len(response) > 2 and response[0] in QUOTE_MARKS and response[-1] == response[0]


_CHECKS: Final[dict[str, Callable[[str, Mapping[str, Any]], bool]]] = {
    "capitals": _is_capitals,
    "word_count": _has_word_count,
    "full_stop": _ends_with_full_stop,
    "twice": _is_twice,
    "start_word": _starts_with_word,
    "quotes": _is_quoted,
}

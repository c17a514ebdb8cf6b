"""MT-Bench: a judge grades each of two turns from 1 to 10. Pure; the asking is in panel.

Source   Zheng et al. 2023 (arXiv:2306.05685), FastChat's llm_judge (Apache-2.0): single-answer grading with its
         prompts, reference answers for math, reasoning and coding, ratings read by its two patterns.
Differs  A reply without a rating is counted and missing, where FastChat stores -1 and drops it silently; a rating
         outside 1..10 is no rating.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.errors import DataError
from train.judges.endpoint import Question, Reply

NUM_TURNS = 2
CATEGORIES_WITH_REFERENCE = ("math", "reasoning", "coding")
# How warm the answers are sampled, by category; FastChat's table.
TEMPERATURES: Mapping[str, float] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
_PATTERNS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
_PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One of FastChat's templates, with {question}, {answer}, {question_1} and so on."""

    system: str
    template: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One question of two turns; `references` are empty where the category has none."""

    question_id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


def make_dialogues(
    questions: Sequence[Mapping[str, object]], references: Sequence[Mapping[str, object]]
) -> list[Dialogue]:
    """From the rows of question.jsonl and reference_answer/gpt-4.jsonl.

    Raises   DataError for a row without two turns, a question asked twice, or one that should have a reference
             and has none.
    """
    known: dict[str, tuple[str, ...]] = {}
    for row in references:
        choices = row.get("choices")
        if isinstance(choices, list) and choices:
            known[str(row.get("question_id"))] = tuple(map(str, choices[0]["turns"]))
    dialogues: dict[str, Dialogue] = {}
    for number, row in enumerate(questions, start=1):
        turns, identifier, category = row.get("turns"), str(row.get("question_id")), str(row.get("category"))
        if not isinstance(turns, list) or len(turns) != NUM_TURNS or "question_id" not in row:
            raise DataError(
                f"MT-Bench question {number} has no question_id or not {NUM_TURNS} turns",
                "rows of question_id, category and two turns",
            )
        if identifier in dialogues:
            raise DataError(f"MT-Bench question {identifier} stands twice", "each question_id once")
        needs = category in CATEGORIES_WITH_REFERENCE
        if needs and len(known.get(identifier, ())) != NUM_TURNS:
            raise DataError(
                f"MT-Bench question {identifier} ({category}) has no reference answer",
                "reference_answer/gpt-4.jsonl beside question.jsonl",
            )
        dialogues[identifier] = Dialogue(
            identifier, category, tuple(map(str, turns)), known[identifier] if needs else ()
        )
    return list(dialogues.values())


def make_prompts(rows: Sequence[Mapping[str, object]]) -> dict[str, JudgePrompt]:
    """The four templates of single-answer grading, from the rows of judge_prompts.jsonl."""
    found = {
        str(row.get("name")): JudgePrompt(str(row.get("system_prompt")), str(row.get("prompt_template")))
        for row in rows
    }
    absent = [name for name in _PROMPTS if name not in found]
    if absent:
        raise DataError(f"judge_prompts.jsonl lacks {', '.join(absent)}", "FastChat's judge prompts")
    return {name: found[name] for name in _PROMPTS}


def questions(
    dialogues: Sequence[Dialogue],
    answers: Sequence[Sequence[str]],
    prompts: Mapping[str, JudgePrompt],
    max_tokens: int,
) -> list[Question]:
    """Two for each dialogue, in order: its first turn, then its second with the first before it."""
    asked = []
    for dialogue, turns in zip(dialogues, answers, strict=True):
        words = {"question": dialogue.turns[0], "answer": turns[0]}
        for turn in range(NUM_TURNS):
            words[f"question_{turn + 1}"], words[f"answer_{turn + 1}"] = dialogue.turns[turn], turns[turn]
            if dialogue.references:
                words[f"ref_answer_{turn + 1}"] = dialogue.references[turn]
        for suffix in ("", "-multi-turn"):
            prompt = prompts[f"single{'-math' if dialogue.references else ''}-v1{suffix}"]
            text = _fill(prompt.template, words)
            asked.append(Question((("system", prompt.system), ("user", text)), max_tokens))
    return asked


def read_grade(reply: Reply) -> float | None:
    """The rating, 1 to 10; None where there is none."""
    for pattern in _PATTERNS:
        match = pattern.search(reply.text)
        if match is not None:
            grade = float(match.group(1))
            return grade if 1 <= grade <= 10 else None
    return None


def _fill(template: str, words: Mapping[str, str]) -> str:
    """Every {name} once and in one pass, so that braces inside an answer stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match.group(1), match.group(0)), template)

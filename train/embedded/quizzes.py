"""Quizzes as the unlabelled web of the tiny world has them: questions with answers, in words of its own.

Real base models have read many questions and answers before they are instruction-tuned. These paragraphs give
the small base model the same start. Their wordings are no wordings of instruction rows, neither of those seen
in training nor of those held out, and they show no bare prompt that is followed by nothing but its answer.
"""

import random
from collections.abc import Mapping
from typing import Any, Final

from train.embedded import facts
from train.embedded.constraints import obey_constraint, sample_constraint
from train.embedded.tasks import SAMPLERS

FORMAT_SHARE: Final = 0.3
"""Share of quiz questions that come with a note about the format of the answer."""

QUIZ_WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "colour": ("colour of {subject}", "{subject}, its colour", "how does {subject} look, which colour"),
    "home": ("home of {subject}", "{subject}, its place", "where to find {subject}"),
    "sound": ("sound of {subject}", "{subject}, its sound", "what one hears from {subject}"),
    "opposite": ("opposite to {subject}", "not {subject} but", "the other of {subject}"),
    "plural": ("plural form of {subject}", "one {subject}, two", "{subject}, many of them"),
    "category": ("{subject}, its kind", "kind of {subject}", "group with {subject}"),
    "tool": ("a tool to {subject}", "how to {subject}, with which thing", "used to {subject}"),
    "next_number": ("after {subject}", "{subject} and then", "the next one to {subject}"),
    "larger": ("more, {subject}", "{subject}, the larger one", "bigger of both, {subject}"),
    "addition": ("{subject} together", "the sum of {subject}", "{subject} make"),
    "first_word": ("start of {subject}", "{subject}, the first", "first in {subject}"),
    "last_word": ("end of {subject}", "{subject}, the last", "last in {subject}"),
    "count": ("words in {subject}", "{subject}, how many", "number of words, {subject}"),
    "repeat": ("sing {subject}", "{subject}", "again and again, {subject}"),
    "reverse": ("backwards, {subject}", "{subject}, from the end", "the other way, {subject}"),
    "count_up": ("numbers {subject}", "counting {subject}", "{subject}, every number"),
    "owner": (
        "{facts} with the {subject} is",
        "{facts} {subject}, its person",
        "{facts} it is whose {subject}",
    ),
    "copy": ("the same as {subject}", "{subject}, again", "once more, {subject}"),
}
"""How quizzes ask what each family asks."""

FORMAT_NOTES: Final[dict[str, str]] = {
    "capitals": "(capitals)",
    "word_count": "(three words)",
    "full_stop": "(full stop)",
    "twice": "(twice)",
    "start_word": "(word {word} at the start)",
    "quotes": "(quotes)",
}
"""How quizzes ask for each kind of format."""


def quiz(random_source: random.Random) -> str:
    """One to three questions with their answers, all in the style of one page."""
    first, second = random_source.sample(facts.PEOPLE, 2)
    style = random_source.choice(
        (
            "q: {question}? a: {response}",
            "{first}: {question}? {second}: {response}",
            "{first} asks {question}. {second} says {response}",
            "quiz. {question} = {response}",
        )
    )
    separator = random_source.choice(("\n", "\n", ". "))
    lines = []
    for _ in range(random_source.randint(1, 3)):
        question, response = _question_and_response(random_source)
        lines.append(style.format(question=question, response=response, first=first, second=second))
    return separator.join(lines)


def _question_and_response(random_source: random.Random) -> tuple[str, str]:
    family = random_source.choice(tuple(QUIZ_WORDINGS))
    question = SAMPLERS[family](random_source)
    text = random_source.choice(QUIZ_WORDINGS[family]).format(**question.fields)
    if random_source.random() >= FORMAT_SHARE:
        return text, question.answer
    constraint: Mapping[str, Any] = sample_constraint(random_source, question.answer)
    note = FORMAT_NOTES[constraint["kind"]].format(word=constraint.get("word", ""))
    return f"{text} {note}", obey_constraint(question.answer, constraint)

"""Sentences of the tiny world, used both in unlabelled documents and as context before a question.

They are shared so that the context of a prompt is text of the kind the base model was pre-trained on.
"""

import random
from typing import Final

from train.embedded import facts

SAYINGS: Final[tuple[str, ...]] = (
    "what is that?", "where is it now?", "who is there?", "which one do you want?",
    "how much does it cost?", "what do you need?", "can you tell me the way?",
    "please give me a name for it.", "which kind of day is it?", "what number is on the door?",
    "write to me soon, please.", "we count these every day.", "how are you today?", "do you live here?",
    "whose book is this?", "read this page and the next page.", "put these words in your book.",
    "now start from the end.", "use both hands, exactly like me.", "what about the other group?",
    "say that again.", "how many of these numbers are there?", "where does this list begin?",
    "repeat after me, said the teacher.", "copy nothing from this page.", "the answer is not here.",
    "i know the name of each thing.", "we need a place to live.", "the full list was in capitals.",
    "stop at the start, or at the end?", "can you make a sound?", "turn around two times.",
    "work makes us strong.", "which numbers are larger?", "the same word was in quotes.",
    "tell me how to do it.", "i say only what i mean.", "give it to the person with the bigger hat.",
    "we go out of the house in a row.",
)  # fmt: skip
"""Small talk: it has the words that questions are made of, and none of the questions."""


def coloured(random_source: random.Random) -> str:
    """A thing with its true colour, as in "black crow"."""
    thing = random_source.choice(tuple(facts.COLOUR_OF))
    return f"{facts.COLOUR_OF[thing]} {thing}"


def noun_phrase(random_source: random.Random) -> str:
    """A short noun phrase without an article."""
    choice = random_source.random()
    if choice < 0.4:
        return coloured(random_source)
    noun = random_source.choice((*facts.HOME_OF, *facts.ITEMS))
    return f"{random_source.choice(facts.ADJECTIVES)} {noun}" if choice < 0.7 else noun


def clause(random_source: random.Random) -> str:
    """A statement of about five words without a final full stop; it is what the copying tasks copy."""
    kind = random_source.randrange(4)
    person = random_source.choice(facts.PEOPLE)
    verb = random_source.choice(facts.VERBS)
    if kind == 0:
        return f"{person} {verb} the {noun_phrase(random_source)}"
    if kind == 1:
        animal = random_source.choice(facts.ANIMALS)
        return f"the {animal.name} {verb} the {noun_phrase(random_source)}"
    if kind == 2:
        place = random_source.choice(facts.ANIMALS).home
        return f"{person} walks to the {place}"
    return f"the {noun_phrase(random_source)} is {random_source.choice(facts.ADJECTIVES)}"


def context(random_source: random.Random) -> str:
    """One to three sentences that may precede a question and do not help to answer it."""
    return " ".join(f"{clause(random_source)}." for _ in range(random_source.randint(1, 3)))

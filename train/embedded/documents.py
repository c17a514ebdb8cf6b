"""Unlabelled pre-training text of the tiny world: what its web would say, without any instructions.

Documents state every fact and show every pattern that the tasks need (plurals, opposites, capitals,
repeating, quoting, lists from both ends), but never a question in the wording of an instruction row followed
by its answer. So the base model knows things, and what instruction tuning adds is how to answer. Of the
paragraphs, about two in five are quizzes in wordings of their own (see `train.embedded.quizzes`).
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

from train.embedded import facts
from train.embedded.quizzes import quiz
from train.embedded.sentences import SAYINGS, clause, coloured, noun_phrase

Paragraph = Callable[[random.Random], str]

QUIZ_SHARE: Final = 0.4
"""Share of paragraphs that are quizzes."""


def make_documents(*, seed: int, num_documents: int) -> Iterator[str]:
    """Documents of one to five paragraphs (about 20 to 120 words), one after another, from a seed."""
    for index in range(num_documents):
        random_source = random.Random(f"{seed}:document:{index}")
        paragraphs = [_paragraph(random_source) for _ in range(random_source.randint(1, 5))]
        yield random_source.choice((" ", "\n")).join(paragraphs)


def _paragraph(random_source: random.Random) -> str:
    if random_source.random() < QUIZ_SHARE:
        return quiz(random_source)
    return random_source.choice(PARAGRAPHS)(random_source)


def _story(random_source: random.Random) -> str:
    return " ".join(f"{clause(random_source)}." for _ in range(random_source.randint(2, 5)))


def _animal_page(random_source: random.Random) -> str:
    animal = random_source.choice(facts.ANIMALS)
    name, plural = animal.name, facts.plural_of(animal.name)
    lines = [
        random_source.choice(
            (f"the {name} is {animal.colour}.", f"{animal.colour} is the colour of a {name}.")
        ),
        random_source.choice(
            (
                f"it lives in the {animal.home}.",
                f"its home is the {animal.home}.",
                f"{plural} live in the {animal.home}.",
            )
        ),
        random_source.choice((f"{facts.with_article(name)} is an animal.", f"{plural} are animals.")),
    ]
    if animal.sound is not None:
        sounds = (
            f"it says {animal.sound}.",
            f"its sound is {animal.sound}.",
            f"{plural} go {animal.sound}, {animal.sound}.",
        )
        lines.append(random_source.choice(sounds))
    first, *rest = lines
    random_source.shuffle(rest)
    kept = rest[: random_source.randint(1, len(rest))]
    opening = first if name in first else f"{facts.with_article(name)} is {animal.colour}."
    return " ".join([opening, *kept])


def _animal_fact(random_source: random.Random) -> str:
    animal = random_source.choice(facts.ANIMALS)
    person = random_source.choice(facts.PEOPLE)
    choices = [
        f"{person} goes to the {animal.home} and finds the {animal.name} at home.",
        f"the {animal.name} lives in the {animal.home}.",
        f"the home of the {animal.name} is the {animal.home}.",
        f"{person} saw {facts.with_article(animal.colour)} {animal.name} in the {animal.home}.",
    ]
    if animal.sound is not None:
        choices += [
            f"the {animal.name} says {animal.sound}.",
            f"{animal.sound}, says the {animal.name} to {person}.",
            f"the sound of the {animal.name} is {animal.sound}.",
            f"{person} hears {animal.sound} in the {animal.home}. it is the {animal.name}.",
        ]
    return random_source.choice(choices)


def _colours(random_source: random.Random) -> str:
    parts = []
    for _ in range(random_source.randint(1, 3)):
        thing = random_source.choice(tuple(facts.COLOUR_OF))
        colour = facts.COLOUR_OF[thing]
        parts.append(
            random_source.choice(
                (
                    f"the {thing} is {colour}.",
                    f"the colour of the {thing} is {colour}.",
                    f"{random_source.choice(facts.PEOPLE)} has a {colour} {thing}.",
                    f"the {thing} has the colour {colour}.",
                )
            )
        )
    return " ".join(parts)


def _categories(random_source: random.Random) -> str:
    name = random_source.choice(tuple(facts.CATEGORY_OF))
    kind = facts.CATEGORY_OF[name]
    return random_source.choice(
        (
            f"{facts.with_article(name)} is {facts.with_article(kind)}.",
            f"the {name} is {facts.with_article(kind)}, one kind of {kind}.",
            f"the {name} belongs to the group {kind}.",
            f"{facts.plural_of(name)} are {kind}s.",
        )
    )


def _tools(random_source: random.Random) -> str:
    tool = random_source.choice(facts.TOOLS)
    person = random_source.choice(facts.PEOPLE)
    return random_source.choice(
        (
            f"{person} wants to {tool.verb} {tool.thing} and takes the {tool.name}.",
            f"people {tool.verb} {tool.thing} with the {tool.name}.",
            f"to {tool.verb} {tool.thing}, {person} uses the {tool.name}.",
            f"the {tool.name} is there to {tool.verb} {tool.thing}.",
        )
    )


def _opposites(random_source: random.Random) -> str:
    left = random_source.choice(tuple(facts.OPPOSITES))
    right = facts.OPPOSITES[left]
    return random_source.choice(
        (
            f"{left} and {right} are opposites.",
            f"{left} is not {right}.",
            f"{left} is the opposite word to {right}.",
            f"if it is not {left} then it is {right}.",
            f"first it was {left}, then it was {right}.",
        )
    )


def _plurals(random_source: random.Random) -> str:
    noun = random_source.choice(facts.COUNTABLE)
    plural, number = facts.plural_of(noun), random_source.choice(facts.NUMBERS[2:10])
    person = random_source.choice(facts.PEOPLE)
    return random_source.choice(
        (
            f"one {noun}, {number} {plural}.",
            f"{person} has one {noun} and wants {number} {plural}.",
            f"more than one {noun} are {plural}.",
            f"{facts.with_article(noun)} and {facts.with_article(noun)} are two {plural}.",
            f"many {plural} were there, but {person} saw only one {noun}.",
        )
    )


def _numbers(random_source: random.Random) -> str:
    start = random_source.randint(0, 18)
    numbers = facts.NUMBERS[start : start + random_source.randint(2, 8)]
    low, high = sorted(random_source.sample(range(21), 2))
    low_word, high_word = facts.NUMBERS[low], facts.NUMBERS[high]
    return random_source.choice(
        (
            f"{random_source.choice(facts.PEOPLE)} counts: {' '.join(numbers)}.",
            f"after {numbers[0]} comes {numbers[1]}.",
            f"{numbers[0]}, then {numbers[1]}.",
            f"from {numbers[0]} to {numbers[-1]}: {' '.join(numbers)}.",
            f"{high_word} is more than {low_word}.",
            f"{low_word} is less than {high_word}, so {high_word} is larger.",
            f"of {low_word} and {high_word}, {high_word} is larger.",
            f"between {high_word} and {low_word}, {high_word} is more.",
        )
    )


def _sums(random_source: random.Random) -> str:
    left, right = random_source.randint(0, 9), random_source.randint(0, 9)
    total = facts.NUMBERS[left + right]
    left_word, right_word = facts.NUMBERS[left], facts.NUMBERS[right]
    item = random_source.choice(facts.ITEMS)
    left_items, right_items, all_items = (
        item if number == 1 else facts.plural_of(item) for number in (left, right, left + right)
    )
    return random_source.choice(
        (
            f"{left_word} and {right_word} make {total}.",
            f"{left_word} {left_items} and {right_word} {right_items} make {total} {all_items}.",
            f"{random_source.choice(facts.PEOPLE)} adds {left_word} and {right_word} and gets {total}.",
        )
    )


def _word_lists(random_source: random.Random) -> str:
    words = random_source.sample(facts.LIST_WORDS, random_source.randint(1, 6))
    text, person = " ".join(words), random_source.choice(facts.PEOPLE)
    return random_source.choice(
        (
            f"{person} reads: {text}. it begins with {words[0]} and ends with {words[-1]}.",
            f"a list: {text}. it ends with {words[-1]}.",
            f"the words were {text}. {words[0]} came first and {words[-1]} came last.",
            f"{text}. so there were {facts.NUMBERS[len(words)]} words.",
            f"{person} wrote {facts.NUMBERS[len(words)]} words: {text}.",
            f"{person} walked past {text}, and on the way back {' '.join(reversed(words))}.",
            f"{text}, and backwards {' '.join(reversed(words))}.",
        )
    )


def _repeats(random_source: random.Random) -> str:
    word, times = random_source.choice(facts.LIST_WORDS), random_source.randint(2, 5)
    repeated, person = " ".join([word] * times), random_source.choice(facts.PEOPLE)
    return random_source.choice(
        (
            f"{person} sang {facts.NUMBERS[times]} times {word}: {repeated}.",
            f"{word} {facts.NUMBERS[times]} times is {repeated}.",
            f"on the wall it says {repeated}.",
            f"{word}, twice: {word} {word}.",
        )
    )


def _echo(random_source: random.Random) -> str:
    sentence = clause(random_source)
    first, second = random_source.sample(facts.PEOPLE, 2)
    return random_source.choice(
        (
            f"{first} says: {sentence}. {second} says the same: {sentence}.",
            f'{first} wrote "{sentence}". then {second} wrote "{sentence}".',
            f"{sentence}. yes, {sentence}.",
        )
    )


def _capitals(random_source: random.Random) -> str:
    words = random_source.choice((_any_word(random_source), clause(random_source), coloured(random_source)))
    person = random_source.choice(facts.PEOPLE)
    return random_source.choice(
        (
            f"{words} in capitals is {words.upper()}.",
            f"the sign says {words.upper()}, so {person} reads {words}.",
            f"{person} shouts: {words.upper()}. then, quietly: {words}.",
            f"{words} {words.upper()}",
        )
    )


def _quotes(random_source: random.Random) -> str:
    words = random_source.choice((_any_word(random_source), noun_phrase(random_source)))
    person = random_source.choice(facts.PEOPLE)
    return random_source.choice(
        (
            f'"{words}" said {person}.',
            f'{person} said "{words}".',
            f'the word {words} in quotes is "{words}".',
            f"well, {person} said, it is {words}. the answer was {words}.",
        )
    )


def _owners(random_source: random.Random) -> str:
    count = random_source.randint(2, 4)
    people, items = random_source.sample(facts.PEOPLE, count), random_source.sample(facts.ITEMS, count)
    stated = " ".join(f"{person} has the {item}." for person, item in zip(people, items, strict=True))
    asked = random_source.randrange(count)
    person, item = people[asked], items[asked]
    return random_source.choice(
        (
            f"{stated} so the {item} is with {person}.",
            f"{stated} if you want the {item}, ask {person}.",
            f"{stated} the one with the {item} is {person}.",
            f"{stated} so {person} plays with the {item}.",
        )
    )


def _dialogue(random_source: random.Random) -> str:
    """People talk; their questions get no direct answer, but make question words known to a model."""
    first, second = random_source.sample(facts.PEOPLE, 2)
    question = random_source.choice(SAYINGS)
    reply = random_source.choice(
        (
            f"look, {facts.with_article(coloured(random_source))}.",
            f"{clause(random_source)}.",
            "i do not know.",
            "wait.",
        )
    )
    return f"{question} said {first}. {reply} said {second}."


def _saying(random_source: random.Random) -> str:
    return f"{random_source.choice(SAYINGS)} {clause(random_source)}."


def _any_word(random_source: random.Random) -> str:
    return random_source.choice(_WORDS)


_WORDS: Final[tuple[str, ...]] = tuple(
    sorted(
        {
            *facts.LIST_WORDS, *facts.NUMBERS, *facts.OPPOSITES, *facts.PEOPLE, *facts.CATEGORY_OF.values(),
            *facts.HOME_OF.values(), *facts.SOUND_OF.values(), *facts.TOOL_FOR.values(),
            *(facts.plural_of(noun) for noun in facts.COUNTABLE), "answer", "well",
        }
    )
)  # fmt: skip
"""Every word that may be the answer to a question."""

PARAGRAPHS: Final[tuple[Paragraph, ...]] = (
    _story, _animal_page, _animal_fact, _animal_fact, _colours, _categories, _tools, _opposites, _opposites,
    _plurals, _plurals, _numbers, _numbers, _sums, _sums, _word_lists, _word_lists, _word_lists, _repeats,
    _echo, _echo, _capitals, _capitals, _quotes, _owners, _owners, _dialogue, _saying,
)  # fmt: skip
"""Kinds of paragraph, drawn alike; a kind that needs more showing is named twice."""

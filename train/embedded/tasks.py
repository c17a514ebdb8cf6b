"""Instruction rows of the tiny world: verifiable questions, asked in several wordings and formats.

Which split a prompt belongs to is decided by a digest of the text of its last turn, and not by the seed. So
no two splits ever share a last prompt, whatever their seeds and sizes, and nothing has to be remembered to
keep them apart.
"""

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from train.embedded import facts
from train.embedded.constraints import Constraint, ask_for_constraint, obey_constraint, sample_constraint
from train.embedded.sentences import clause, context
from train.embedded.wordings import FOLLOW_UPS, WORDINGS, Wordings

Split = Literal["train", "validation", "test", "robustness"]
Row = dict[str, Any]

CONTEXT_SHARE: Final = 0.35
"""Share of first turns with a short paragraph before the question (families with their own context aside)."""
CONSTRAINT_SHARE: Final = 0.42
"""Share of rows whose last turn asks for a format."""
MULTI_TURN_SHARE: Final = 0.16
"""Share of rows with two or three user turns."""
THREE_TURN_SHARE: Final = 0.3
"""Share of three-turn rows among the multi-turn ones."""
SPLIT_OF_BUCKET: Final = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2
"""Digest bucket of a last prompt -> the split it belongs to; held-out wordings all belong to robustness."""
MAXIMUM_ATTEMPTS: Final = 1000
"""Attempts to draw a prompt that belongs to the split; after half of them it need not be new."""


class Question(NamedTuple):
    """One question of a family: the fields of its wordings, its answer and how a later turn refers to it.

    `holders` (item -> person) is what a later turn may ask about where the facts were given in the prompt.
    """

    fields: Mapping[str, str]
    answer: str
    follow: str
    holders: Mapping[str, str] | None = None


def _look_up(table: Mapping[str, str], follow: str) -> Callable[[random.Random], Question]:
    """A sampler of questions that ask for one entry of a table of facts."""
    keys = tuple(table)

    def sample(random_source: random.Random) -> Question:
        key = random_source.choice(keys)
        return Question({"subject": key}, table[key], follow.format(key))

    return sample


def _words(random_source: random.Random, fewest: int, most: int) -> list[str]:
    return random_source.sample(facts.LIST_WORDS, random_source.randint(fewest, most))


def _larger(random_source: random.Random) -> Question:
    pair = random_source.sample(range(21), 2)
    subject = f"{facts.NUMBERS[pair[0]]} or {facts.NUMBERS[pair[1]]}"
    return Question({"subject": subject}, facts.NUMBERS[max(pair)], subject)


def _addition(random_source: random.Random) -> Question:
    left, right = random_source.randint(0, 9), random_source.randint(0, 9)
    subject = f"{facts.NUMBERS[left]} and {facts.NUMBERS[right]}"
    return Question({"subject": subject}, facts.NUMBERS[left + right], subject)


def _first_word(random_source: random.Random) -> Question:
    words = _words(random_source, 2, 5)
    return Question({"subject": " ".join(words)}, words[0], " ".join(words))


def _last_word(random_source: random.Random) -> Question:
    words = _words(random_source, 2, 5)
    return Question({"subject": " ".join(words)}, words[-1], " ".join(words))


def _count(random_source: random.Random) -> Question:
    words = _words(random_source, 1, 6)
    return Question({"subject": " ".join(words)}, facts.NUMBERS[len(words)], " ".join(words))


def _repeat(random_source: random.Random) -> Question:
    word, times = random_source.choice(facts.LIST_WORDS), random_source.randint(2, 5)
    subject = f"{word} {facts.NUMBERS[times]} times"
    return Question({"subject": subject}, " ".join([word] * times), subject)


def _reverse(random_source: random.Random) -> Question:
    words = _words(random_source, 2, 4)
    return Question({"subject": " ".join(words)}, " ".join(reversed(words)), " ".join(words))


def _count_up(random_source: random.Random) -> Question:
    start, length = random_source.randint(0, 14), random_source.randint(3, 6)
    numbers = facts.NUMBERS[start : start + length]
    subject = f"{numbers[0]} to {numbers[-1]}"
    return Question({"subject": subject}, " ".join(numbers), f"from {subject}")


def _owner(random_source: random.Random) -> Question:
    count = random_source.randint(2, 4)
    people = random_source.sample(facts.PEOPLE, count)
    items = random_source.sample(facts.ITEMS, count)
    stated = " ".join(f"{person} has the {item}." for person, item in zip(people, items, strict=True))
    holders = dict(zip(items, people, strict=True))
    asked = random_source.choice(items)
    return Question({"facts": stated, "subject": asked}, holders[asked], f"the {asked}", holders)


def _copy(random_source: random.Random) -> Question:
    sentence = clause(random_source)
    return Question({"subject": sentence}, sentence, sentence)


def _next_question(family: str, previous: Question | None, random_source: random.Random) -> Question:
    """The question of the next turn; facts given in the prompt stay as they are."""
    if previous is None or previous.holders is None:
        return SAMPLERS[family](random_source)
    asked = random_source.choice(tuple(previous.holders))
    return previous._replace(answer=previous.holders[asked], follow=f"the {asked}")


SAMPLERS: Final[dict[str, Callable[[random.Random], Question]]] = {
    "colour": _look_up(facts.COLOUR_OF, "the {}"),
    "home": _look_up(facts.HOME_OF, "the {}"),
    "sound": _look_up(facts.SOUND_OF, "the {}"),
    "opposite": _look_up(facts.OPPOSITES, "{}"),
    "plural": _look_up({noun: facts.plural_of(noun) for noun in facts.COUNTABLE}, "{}"),
    "category": _look_up(facts.CATEGORY_OF, "the {}"),
    "tool": _look_up(facts.TOOL_FOR, "to {}"),
    "next_number": _look_up(dict(zip(facts.NUMBERS[:-1], facts.NUMBERS[1:], strict=True)), "{}"),
    "larger": _larger,
    "addition": _addition,
    "first_word": _first_word,
    "last_word": _last_word,
    "count": _count,
    "repeat": _repeat,
    "reverse": _reverse,
    "count_up": _count_up,
    "owner": _owner,
    "copy": _copy,
}

FAMILIES: Final[tuple[str, ...]] = tuple(SAMPLERS)
"""Names of the task families, as in a row's "family"."""


def make_rows(split: Split, *, seed: int, num_rows: int) -> list[Row]:
    """The first `num_rows` instruction rows of a split; fewer rows are a prefix of more rows."""
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(get_args(Split))}")
    known_prompts: set[str] = set()
    return [_make_row(split, seed, index, known_prompts) for index in range(num_rows)]


def _make_row(split: Split, seed: int, index: int, known_prompts: set[str]) -> Row:
    """Row `index` of a split; the prompts of earlier rows are in `known_prompts`, and this row's is added."""
    for attempt in range(MAXIMUM_ATTEMPTS + 1):
        row = _draw_row(split, random.Random(f"{seed}:{split}:{index}:{attempt}"))
        if row is None:
            continue
        prompt = "\n".join(message["content"] for message in row["messages"][:-1])
        if prompt not in known_prompts or attempt >= MAXIMUM_ATTEMPTS // 2:
            known_prompts.add(prompt)
            return {"id": f"{split}-{index:06d}", **row}
    raise RuntimeError(f"no prompt of split {split!r} was drawn in {MAXIMUM_ATTEMPTS} attempts")


def _draw_row(split: Split, random_source: random.Random) -> Row | None:
    """One row without its id, or None where the last prompt belongs to another split."""
    family = random_source.choice(FAMILIES)
    is_multi_turn = random_source.random() < MULTI_TURN_SHARE
    num_turns = (3 if random_source.random() < THREE_TURN_SHARE else 2) if is_multi_turn else 1
    wording, template = _pick_wording(WORDINGS[family], split, random_source)
    messages: list[dict[str, str]] = []
    question: Question | None = None
    constraint: Constraint | None = None
    for turn in range(num_turns):
        question = _next_question(family, question, random_source)
        if turn == 0:
            prompt = template.format(**question.fields)
        else:
            prompt = _pick_wording(FOLLOW_UPS, split, random_source)[1].format(follow=question.follow)
        constraint = _maybe_constraint(question.answer, random_source) if turn == num_turns - 1 else None
        if constraint is not None:
            prompt = ask_for_constraint(prompt, constraint, random_source)
        if turn == 0 and family != "owner" and random_source.random() < CONTEXT_SHARE:
            prompt = f"{context(random_source)} {prompt}"
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": obey_constraint(question.answer, constraint)})
    if split_of_prompt(messages[-2]["content"], is_held_out=split == "robustness") != split:
        return None
    return {
        "messages": messages,
        "family": family,
        "answer": question.answer if question is not None else "",
        "constraint": constraint,
        "wording": wording,
        "num_turns": num_turns,
    }


def _pick_wording(wordings: Wordings, split: Split, random_source: random.Random) -> tuple[int, str]:
    """The index and the template of a wording that the split may use."""
    if split == "robustness":
        index = random_source.randrange(len(wordings.held_out))
        return len(wordings.seen) + index, wordings.held_out[index]
    index = random_source.randrange(len(wordings.seen))
    return index, wordings.seen[index]


def _maybe_constraint(answer: str, random_source: random.Random) -> Constraint | None:
    return sample_constraint(random_source, answer) if random_source.random() < CONSTRAINT_SHARE else None


def split_of_prompt(last_prompt: str, *, is_held_out: bool) -> str:
    """The split that a last prompt belongs to, from its text alone."""
    if is_held_out:
        return "robustness"
    digest = hashlib.sha256(last_prompt.encode("utf-8")).digest()
    return SPLIT_OF_BUCKET[digest[0] % len(SPLIT_OF_BUCKET)]

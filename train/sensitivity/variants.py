"""Wordings that keep the intent of a prompt: misspelt, in another template, paraphrased. Pure, seeded.

Source   Chatterjee et al. 2024, POSIX (arXiv:2410.02185): 20 spelling variants (1, 2, 4 and 8 misspelt tokens, 5
         seeds each; an insertion, an omission, a transposition or a neighbouring key), 20 templates, 20
         paraphrases; "mixture" draws evenly from the three.
Differs  The templates are those the paper prints, completed in its manner: its own list is not published apart
         from its data. A prompt of fewer words than are to be misspelt has each word misspelt.
"""

import random
from collections.abc import Callable, Mapping, Sequence

from train.errors import ConfigError

SPELLING_COUNTS = (1, 2, 4, 8)
SPELLING_SEEDS = 5
DEFAULT_TEMPLATE = "Q:{}\nA: "
TEMPLATES = (
    "q:{}\na:",
    "Q::{}\nA::",
    "Q: {} || A:",
    "QUESTION:{}\nANSWER:",
    "Question - {}\nAnswer -",
    "Question: {} , Answer:",
    "Question:{}\nAnswer:",
    "question: {}\nanswer: ",
    "Q. {}\nA. ",
    "Q - {}\nA - ",
    "Q: {}\n\nA: ",
    "Q: {} A: ",
    "[Q] {}\n[A] ",
    "(Q) {}\n(A) ",
    "Question\n{}\nAnswer\n",
    "QUESTION - {}\nANSWER - ",
    "Question :: {}\nAnswer :: ",
    "Question: {} || Answer: ",
    "Prompt: {}\nResponse: ",
    "Input: {}\nOutput: ",
)
KINDS = ("spelling", "template", "paraphrase", "mixture")

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _keyboard() -> dict[str, str]:
    """The letters around each letter on a QWERTY keyboard, whose rows are shifted by half a key."""
    place = {
        key: (row, column + row / 2) for row, keys in enumerate(_ROWS) for column, key in enumerate(keys)
    }
    return {
        key: "".join(
            other
            for other, (other_row, other_column) in place.items()
            if other != key and abs(other_row - row) <= 1 and abs(other_column - column) <= 1
        )
        for key, (row, column) in place.items()
    }


NEIGHBOURS = _keyboard()


def spelling_variants(prompt: str, seed: int) -> list[str]:
    """Twenty misspelt prompts: 1, 2, 4, 8 words x 5 draws."""
    return [
        misspell(prompt, count, random.Random(f"spelling {seed} {count} {draw} {prompt}"))
        for count in SPELLING_COUNTS
        for draw in range(SPELLING_SEEDS)
    ]


def misspell(prompt: str, num_words: int, generator: random.Random) -> str:
    """`prompt` with that many of its words misspelt, each once; spaces and line ends stay."""
    pieces = _split_words(prompt)
    places = [place for place, piece in enumerate(pieces) if any(letter.isalpha() for letter in piece)]
    for place in generator.sample(places, min(num_words, len(places))):
        pieces[place] = _misspell_word(pieces[place], generator)
    return "".join(pieces)


def variants(
    prompt: str, kind: str, seed: int, num_variants: int = 20, paraphrases: Sequence[str] = ()
) -> list[str]:
    """The prompt itself first, in the default template, then `num_variants` wordings of it.

    Raises   ConfigError for an unknown kind, or more variants than the kind has for this prompt.
    """
    makers: Mapping[str, Callable[[], list[str]]] = {
        "spelling": lambda: [DEFAULT_TEMPLATE.format(text) for text in spelling_variants(prompt, seed)],
        "template": lambda: [template.format(prompt) for template in TEMPLATES],
        "paraphrase": lambda: [DEFAULT_TEMPLATE.format(text) for text in paraphrases],
    }
    if kind in makers:
        pools = [makers[kind]()]
    elif kind == "mixture":
        pools = [pool for pool in (make() for make in makers.values()) if pool]
    else:
        raise ConfigError(f"unknown kind of variants {kind}", f"one of {', '.join(KINDS)}")
    shuffled = []
    for number, pool in enumerate(pools):
        generator = random.Random(f"order {seed} {number} {prompt}")
        shuffled.append(
            generator.sample(pool, len(pool)) if num_variants < len(pool) or len(pools) > 1 else pool
        )
    chosen = _evenly(shuffled, num_variants)
    if len(chosen) < num_variants:
        raise ConfigError(
            f"only {len(chosen)} {kind} variants of a prompt for eval.posix.num_variants={num_variants}",
            "a file with more paraphrases" if kind == "paraphrase" else f"at most {len(chosen)}",
            f"set eval.posix.num_variants={len(chosen)}",
        )
    return [DEFAULT_TEMPLATE.format(prompt), *chosen]


def _evenly(pools: Sequence[Sequence[str]], count: int) -> list[str]:
    """One of each pool in turn, until there are enough or none is left."""
    longest = max((len(pool) for pool in pools), default=0)
    turns = [pool[place] for place in range(longest) for pool in pools if place < len(pool)]
    return turns[:count]


def _split_words(text: str) -> list[str]:
    """Words and the white space between them, which joined give the text again."""
    pieces: list[str] = []
    for letter in text:
        if pieces and pieces[-1][-1].isspace() == letter.isspace():
            pieces[-1] += letter
        else:
            pieces.append(letter)
    return pieces


def _misspell_word(word: str, generator: random.Random) -> str:
    letters = [place for place, letter in enumerate(word) if letter.isalpha()]
    place = generator.choice(letters)
    operations = [_insert, _neighbour]
    if len(letters) > 1:
        operations.append(_omit)
    if place + 1 < len(word) and word[place] != word[place + 1]:
        operations.append(_transpose)
    return generator.choice(operations)(word, place, generator)


def _insert(word: str, place: int, generator: random.Random) -> str:
    return word[:place] + _near(word[place], generator) + word[place:]


def _omit(word: str, place: int, generator: random.Random) -> str:
    return word[:place] + word[place + 1 :]


def _transpose(word: str, place: int, generator: random.Random) -> str:
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _neighbour(word: str, place: int, generator: random.Random) -> str:
    return word[:place] + _near(word[place], generator) + word[place + 1 :]


def _near(letter: str, generator: random.Random) -> str:
    """A neighbouring key, in the letter's case; any letter where the keyboard has no such key."""
    chosen = generator.choice(NEIGHBOURS.get(letter.lower(), "etaoinshrdlu"))
    return chosen.upper() if letter.isupper() else chosen

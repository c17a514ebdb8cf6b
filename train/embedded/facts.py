"""The facts of the tiny world, shared by the unlabelled documents and by the instruction rows.

They live in one place because the experiment is only fair when the base model could have read every fact that
an instruction row asks for. Standard library only; every table is a constant.
"""

from typing import Final, NamedTuple

GENERATOR_VERSION: Final = 1
"""Raised whenever the same seed would give other rows or documents: records name the data by it."""


class Animal(NamedTuple):
    """One kind of animal; `sound` is None for the quiet ones."""

    name: str
    colour: str
    home: str
    sound: str | None


class Tool(NamedTuple):
    """One tool and the job it does, as verb and object ("cut", "wood")."""

    name: str
    verb: str
    thing: str


ANIMALS: Final[tuple[Animal, ...]] = tuple(
    Animal(name, colour, home, None if sound == "-" else sound)
    for name, colour, home, sound in (
        line.split()
        for line in """
        crow black tree caw|cow brown field moo|pig pink pen oink|hen red coop cluck|duck yellow pond quack
        frog green pond croak|sheep white hill baa|dog brown house woof|cat grey house meow
        mouse grey wall squeak|lion yellow desert roar|bear brown forest growl|wolf grey forest howl
        owl brown tree hoot|bee yellow hive buzz|snake green grass hiss|horse black stable neigh
        goat white hill bleat|donkey grey stable bray|dove white roof coo|seal black ice bark
        monkey brown jungle chatter|robin red garden chirp|parrot green jungle squawk|turkey brown yard gobble
        whale blue sea sing|fish blue river -|crab red beach -|fox red den -|ant black nest -|worm pink soil -
        camel yellow desert -|spider black web -|swan white lake -
        """.replace("\n", "|").split("|")
        if line.strip()
    )
)

FOOD_COLOURS: Final[dict[str, str]] = {
    "apple": "red", "banana": "yellow", "carrot": "orange", "pea": "green", "plum": "purple", "cherry": "red",
    "lemon": "yellow", "lime": "green", "grape": "purple", "tomato": "red", "potato": "brown",
    "onion": "white", "cabbage": "green", "peach": "orange", "pear": "green", "beet": "purple",
    "radish": "pink",
}  # fmt: skip

THING_COLOURS: Final[dict[str, str]] = {
    "bus": "red", "boat": "blue", "van": "white", "train": "black", "bike": "green", "truck": "yellow",
    "sky": "blue", "sun": "yellow", "snow": "white", "coal": "black", "brick": "red", "sand": "yellow",
    "cloud": "grey", "fire": "orange", "leaf": "green", "rose": "pink", "moon": "white", "stone": "grey",
}  # fmt: skip

_TOOL_LINES: Final = (
    "hammer hit nails|saw cut wood|spade dig holes|broom sweep floors|needle sew cloth|pen write letters|"
    "brush paint walls|knife slice bread|spoon stir soup|key unlock doors|rope tie boats|ladder climb roofs|"
    "bucket carry water|axe chop logs|rake gather leaves|torch light caves|comb tidy hair|oven bake cakes|"
    "net catch fish|clock tell time|towel dry hands|soap wash plates"
)

TOOLS: Final[tuple[Tool, ...]] = tuple(Tool(*entry.split()) for entry in _TOOL_LINES.split("|"))

FRUITS: Final[tuple[str, ...]] = (
    "apple",
    "banana",
    "plum",
    "cherry",
    "lemon",
    "lime",
    "grape",
    "peach",
    "pear",
)
VEGETABLES: Final[tuple[str, ...]] = (
    "carrot",
    "pea",
    "tomato",
    "potato",
    "onion",
    "cabbage",
    "beet",
    "radish",
)
VEHICLES: Final[tuple[str, ...]] = ("bus", "boat", "van", "train", "bike", "truck")
COLOURS: Final[tuple[str, ...]] = (
    "red",
    "blue",
    "green",
    "yellow",
    "black",
    "white",
    "brown",
    "grey",
    "pink",
    "orange",
    "purple",
)
PEOPLE: Final[tuple[str, ...]] = (
    "tom",
    "ann",
    "sam",
    "kim",
    "ben",
    "eve",
    "max",
    "joy",
    "dan",
    "amy",
    "leo",
    "zoe",
)
ITEMS: Final[tuple[str, ...]] = (
    "ball",
    "cup",
    "hat",
    "box",
    "bell",
    "coin",
    "drum",
    "kite",
    "ring",
    "doll",
    "book",
    "lamp",
)
ADJECTIVES: Final[tuple[str, ...]] = (
    "old",
    "small",
    "big",
    "happy",
    "sad",
    "clean",
    "wet",
    "tall",
    "loud",
    "quiet",
)
VERBS: Final[tuple[str, ...]] = ("sees", "likes", "finds", "wants", "follows", "knows")

NUMBERS: Final[tuple[str, ...]] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
"""NUMBERS[n] is the word for n, from 0 to 20."""

_OPPOSITE_LINES: Final = (
    "hot cold|big small|up down|day night|old new|fast slow|wet dry|hard soft|full empty|happy sad|"
    "open closed|light dark|tall short|good bad|high low|left right|first last|near far|loud quiet|"
    "clean dirty|thick thin|rich poor|early late|inside outside|push pull|start stop|top bottom|"
    "strong weak|win lose|buy sell|sweet sour|rough smooth|true false|wide narrow|sharp blunt|begin end"
)

OPPOSITE_PAIRS: Final[tuple[tuple[str, str], ...]] = tuple(
    (left, right) for left, right in (pair.split() for pair in _OPPOSITE_LINES.split("|"))
)

OPPOSITES: Final[dict[str, str]] = {
    word: other for left, right in OPPOSITE_PAIRS for word, other in ((left, right), (right, left))
}

IRREGULAR_PLURALS: Final[dict[str, str]] = {
    "mouse": "mice", "sheep": "sheep", "fish": "fish", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "child": "children", "goose": "geese",
}  # fmt: skip

COLOUR_OF: Final[dict[str, str]] = {
    **{animal.name: animal.colour for animal in ANIMALS},
    **FOOD_COLOURS,
    **THING_COLOURS,
}
HOME_OF: Final[dict[str, str]] = {animal.name: animal.home for animal in ANIMALS}
SOUND_OF: Final[dict[str, str]] = {
    animal.name: animal.sound for animal in ANIMALS if animal.sound is not None
}
TOOL_FOR: Final[dict[str, str]] = {f"{tool.verb} {tool.thing}": tool.name for tool in TOOLS}
CATEGORY_OF: Final[dict[str, str]] = {
    **{animal.name: "animal" for animal in ANIMALS},
    **dict.fromkeys(FRUITS, "fruit"),
    **dict.fromkeys(VEGETABLES, "vegetable"),
    **{tool.name: "tool" for tool in TOOLS},
    **dict.fromkeys(VEHICLES, "vehicle"),
    **dict.fromkeys(("ball", "kite", "doll", "drum"), "toy"),
}
COUNTABLE: Final[tuple[str, ...]] = (
    *HOME_OF, *FRUITS, *VEGETABLES, *VEHICLES, *ITEMS, *(tool.name for tool in TOOLS if tool.name != "soap"),
    "leaf", "rose", "stone", "cloud", "brick", "man", "woman", "foot", "tooth", "child", "goose",
)  # fmt: skip
"""Singular nouns with a plural."""

LIST_WORDS: Final[tuple[str, ...]] = (*HOME_OF, *FOOD_COLOURS, *ITEMS, *COLOURS)
"""Words that lists of words are drawn from (first word, last word, reversing, counting, repeating)."""


def plural_of(noun: str) -> str:
    """The plural of a singular noun of this world."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "sh", "ch", "x", "ato")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

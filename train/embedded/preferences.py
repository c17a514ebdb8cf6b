"""Pairs of answers about the tiny world: what a person would prefer, and what they would not.

The better answer is the row's own. The worse one has a fault that people name when they rank answers: it is
wrong, it ignores the format that was asked for, or it rambles on. Which fault is drawn with the row.
"""

import random
from typing import Any, Final, Literal, get_args

from train.embedded import facts
from train.embedded.constraints import obey_constraint
from train.embedded.tasks import Row, make_rows

Fault = Literal["wrong", "disobedient", "rambling"]

FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
SEED_OFFSET: Final = 7919
"""Keeps pairs and instruction rows of one seed from being the same conversations."""
RAMBLES: Final = ("the {} is nice.", "i like the {}.", "well, the {} is far away.", "also, look at the {}.")


def make_pairs(split: Literal["train", "validation"], *, seed: int, num_pairs: int) -> list[dict[str, Any]]:
    """The first `num_pairs` pairs of a split; fewer pairs are a prefix of more.

    Each holds id, prompt (messages), chosen, rejected (texts) and fault. Prompts of the two splits never meet,
    as in `make_rows`.
    """
    rows = make_rows(split, seed=seed + SEED_OFFSET, num_rows=num_pairs)
    return [_make_pair(row, random.Random(f"{seed}:{row['id']}:fault")) for row in rows]


def _make_pair(row: Row, random_source: random.Random) -> dict[str, Any]:
    *prompt, answer = row["messages"]
    chosen = answer["content"]
    for fault in random_source.sample(FAULTS, len(FAULTS)):
        rejected = _with_fault(fault, row, chosen, random_source)
        if rejected != chosen:
            return {"id": row["id"], "prompt": prompt, "chosen": chosen, "rejected": rejected, "fault": fault}
    raise AssertionError("a rambling answer always differs")


def _with_fault(fault: Fault, row: Row, chosen: str, random_source: random.Random) -> str:
    if fault == "wrong":
        return obey_constraint(_another_answer(row, random_source), row["constraint"])
    if fault == "disobedient":
        return obey_constraint(row["answer"], None)  # equal where nothing was asked for: then not a fault
    thing = random_source.choice(facts.ITEMS)
    return f"{chosen} {random_source.choice(RAMBLES).format(thing)}"


def _another_answer(row: Row, random_source: random.Random) -> str:
    """An answer of as many words that isn't the right one."""
    words = row["answer"].split()
    if len(words) > 1 and len(set(words)) > 1:
        for _ in range(10):
            shuffled = " ".join(random_source.sample(words, len(words)))
            if shuffled != row["answer"]:
                return shuffled
    others = [word for word in (*facts.NUMBERS, *facts.ITEMS, *facts.COLOURS) if word not in words]
    return " ".join(random_source.choice(others) for _ in words)

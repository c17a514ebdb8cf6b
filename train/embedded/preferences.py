"""Pairs of answers about the tiny world: what a person would prefer, and what they would not.

The better answer is the row's own. The worse one has a fault that people name when they rank answers: it
ignores the format that was asked for, it stops half-way, or it is wrong. The first two are where a model that
was only shown good answers errs most: they are short, and a short answer is a likely one.
"""

import random
from typing import Any, Final, Literal, get_args

from train.embedded import facts
from train.embedded.constraints import obey_constraint
from train.embedded.tasks import Row, make_rows

Fault = Literal["disobedient", "incomplete", "wrong"]

SEED_OFFSET: Final = 7919
"""Keeps pairs and instruction rows of one seed from being the same conversations."""
WRONG_SHARE: Final = 0.25
"""Share of pairs whose worse answer is wrong, though another fault was possible."""


def make_pairs(split: Literal["train", "validation"], *, seed: int, num_pairs: int) -> list[dict[str, Any]]:
    """The first `num_pairs` pairs of a split; fewer pairs are a prefix of more.

    Each holds id, prompt (messages), chosen, rejected (texts) and fault. Prompts of the two splits never
    meet, as in `make_rows`.
    """
    rows = make_rows(split, seed=seed + SEED_OFFSET, num_rows=num_pairs)
    return [_make_pair(row, random.Random(f"{seed}:{row['id']}:fault")) for row in rows]


def _make_pair(row: Row, random_source: random.Random) -> dict[str, Any]:
    *prompt, answer = row["messages"]
    chosen = answer["content"]
    worse = {fault: _with_fault(fault, row, chosen, random_source) for fault in get_args(Fault)}
    possible = [fault for fault in worse if worse[fault] != chosen]
    others = [fault for fault in possible if fault != "wrong"]
    fault = "wrong" if not others or random_source.random() < WRONG_SHARE else random_source.choice(others)
    return {"id": row["id"], "prompt": prompt, "chosen": chosen, "rejected": worse[fault], "fault": fault}


def _with_fault(fault: Fault, row: Row, chosen: str, random_source: random.Random) -> str:
    if fault == "wrong":
        return obey_constraint(_another_answer(row, random_source), row["constraint"])
    if fault == "disobedient":
        return obey_constraint(row["answer"], None)  # equal where nothing was asked for: then not a fault
    words = chosen.split()
    return " ".join(words[: (len(words) + 1) // 2])  # all of it where there is one word: then not a fault


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

"""Questions of the tiny world, each in a wording of training and in all that training never sees. Pure.

A question's half is that of its first wording, by the digest that keeps the rows of the splits apart: so nothing
here was trained on, and nothing that reports was there when weights were chosen.
"""

import random
from dataclasses import dataclass

from train.embedded.tasks import FAMILIES, MAXIMUM_ATTEMPTS, SAMPLERS, split_of_prompt
from train.embedded.wordings import WORDINGS
from train.items import HALVES


@dataclass(frozen=True, slots=True)
class Intent:
    """One question. prompts: the wording of training first, then the held-out ones."""

    intent_id: str
    family: str
    half: str  # validation or test
    prompts: tuple[str, ...]


def make_intents(seed: int, num_intents: int) -> list[Intent]:
    """Half of them for validation and half for test, the families in turn; fewer are a prefix of more."""
    known: set[str] = set()
    return [_make_intent(seed, index, known) for index in range(num_intents)]


def _make_intent(seed: int, index: int, known: set[str]) -> Intent:
    """Intent `index`; the first prompts of earlier ones are in `known`, and this one's is added."""
    half = HALVES[index % len(HALVES)]
    family = FAMILIES[index // len(HALVES) % len(FAMILIES)]
    for attempt in range(MAXIMUM_ATTEMPTS + 1):
        random_source = random.Random(f"{seed}:intent:{index}:{attempt}")
        fields = SAMPLERS[family](random_source).fields
        templates = (random_source.choice(WORDINGS[family].seen), *WORDINGS[family].held_out)
        prompts = tuple(template.format(**fields) for template in templates)
        is_new = prompts[0] not in known or attempt >= MAXIMUM_ATTEMPTS // 2  # some families are small
        if is_new and split_of_prompt(prompts[0], is_held_out=False) == half:
            known.add(prompts[0])
            return Intent(f"{half}-{index:04d}", family, half, prompts)
    raise RuntimeError(f"no question of family {family!r} was drawn in {MAXIMUM_ATTEMPTS} attempts")

"""Independent streams of chance from one seed. Pure.

Initialisation, data order and dropout are kept apart, so that changing one leaves the others as they were, and
each is a function of its seed and the step: a resumed run needs no stored generator state to go on exactly.
"""

import hashlib

from train.config import RunConfig


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on the process, unlike hash())."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_of(config: RunConfig, purpose: str) -> int:
    """The seed for `purpose` (init, data_order or dropout): its own if set, else derived from the run's."""
    explicit = getattr(config.seeds, purpose)
    return explicit if explicit is not None else derive_seed(purpose, config.seed)

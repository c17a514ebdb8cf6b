"""Full keys of a configuration such as train.learning_rate: their list, the nearest to a misspelt one."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def leaf_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every full key of a plain tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key most like `key`: by its whole spelling, or by its last word (learning_rat)."""
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    if "." not in key and key in by_last:  # the whole spelling would prefer the group with the shortest name
        return by_last[key]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if near:
        return near[0]
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(by_last), n=1, cutoff=0.6)
    return by_last[near[0]] if near else None

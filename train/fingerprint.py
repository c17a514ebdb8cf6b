"""A short name for an experiment: equal if and only if the experiment is the same.

128 bits over the complete resolved configuration, minus the fields marked "how", plus the content hashes of
data and model. Numbers count by value (1, 1.0 and 1e0 agree), keys by name (their order doesn't matter).

Two promises, each kept by a test:
  - a *new* setting at its declared neutral value changes no fingerprint, so adding it re-runs nothing;
  - changing an *existing* default changes the fingerprint of every run that relied on it, because the resolved
    value enters, never the difference from a default (where dora's signatures go wrong).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from train.config import RunConfig

# Raise it when a change of code alters results that the configuration can't show.
SCIENCE_VERSION = 1
_OF_TRAINING_ROWS = ("subset", "num_train_rows", "max_unusable_share")  # no measured row depends on them


def fingerprint(
    config: RunConfig,
    *,
    model_identity: str,
    dataset_identity: str,
    parent_fingerprint: str = "",
    preference_identity: str = "",
) -> str:
    """32 hexadecimal digits naming the experiment.

    model_identity, dataset_identity: content hashes or hub commits; see `train.identity`.
    parent_fingerprint, preference_identity: of a preference-tuned run (stage "dpo"), which is named by the run
    it starts from, and by the pairs.
    The base model (stage "base") isn't trained, so neither recipe, weights nor seeds enter its name.
    """
    identity: dict[str, Any] = {
        "version": SCIENCE_VERSION,
        "model": model_identity,
        "dataset": dataset_identity,
        "config": identity_tree(config),
    }
    if config.stage == "dpo":
        identity |= {"parent": parent_fingerprint, "preference": preference_identity}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identity_tree(config: RunConfig) -> dict[str, Any]:
    """The part of the configuration that changes the science, with canonical numbers."""
    tree = _science(config)
    if config.stage == "base":
        for key in ("train", "objective", "seed", "seeds"):
            tree.pop(key, None)
    if config.stage == "dpo":  # sections that say nothing about any other stage
        tree |= {"preference": _science(config.preference), "dpo": _science(config.dpo)}
    return tree


def protocol_fingerprint(protocol: Mapping[str, Any]) -> str:
    """32 hexadecimal digits naming a way of measuring: all that changes a score but the model measured."""
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def own_protocol(config: RunConfig, dataset_identity: str) -> str:
    """The protocol of what a run measures of its own dataset: equal where its items may be compared."""
    dataset = {key: value for key, value in _science(config.dataset).items() if key not in _OF_TRAINING_ROWS}
    return protocol_fingerprint(
        {
            "benchmark": "dataset",
            "version": SCIENCE_VERSION,
            "identity": dataset_identity.partition("+scores:")[0],  # which choose training rows only
            "dataset": dataset,
            "eval": _science(config.eval),
        }
    )


def _science(value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        if item.metadata.get("identity") == "how":
            continue
        content = getattr(value, item.name)
        if "neutral" in item.metadata and content == item.metadata["neutral"]:
            continue
        if dataclasses.is_dataclass(content):
            content = _section(content)
            if not content:
                continue
        tree[item.name] = _canonical(content)
    return tree


@lru_cache(maxsize=4096)
def _section(value: Any) -> dict[str, Any]:
    """Of a part that the runs of a sweep have in common: nobody changes the answer."""
    return _science(value)


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, tuple):
        return [_canonical(element) for element in cast(tuple[Any, ...], value)]
    return value

"""The inverse of `train.compose`: the overrides with which `python -m train` composes a given configuration.

Workers write this line beside every run, so it asks no Hydra: it compares with the files of conf/ and keeps
what differs. Settings that never change a result (threads, tracking, ...) are left out.
"""

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from train.config import MANDATORY, RunConfig, config_to_dict, defaults_tree
from train.naming import complete_names

CONF = Path(__file__).resolve().parents[1] / "conf"
_DEFAULT_FILES = {"model": "embedded", "dataset": "embedded", "train": "embedded", "eval": "default"}
_DPO_FILES = {"preference": "embedded", "dpo": "embedded"}  # said of preference-tuned runs only
_CORPORA = ("model", "dataset", "preference")
_KEPT = ("source", "path", "revision", "template")  # no part of the identity, but needed to find it
_WORD = re.compile(r"[A-Za-z_./][\w./@-]*", re.ASCII)  # what Hydra's grammar reads as a text without quotes


def overrides_for(config: RunConfig, parent: str = "") -> tuple[str, ...]:
    """KEY=VALUE texts, not yet quoted for a shell: files first, then what differs from them, then weights.

    parent: the folder of the run that it starts from, which says all but what is new.
    """
    if parent:
        new = [text for text in overrides_for(config) if re.match(r"(stage|preference|dpo)\b", text)]
        return *new, f"parent={parent}"
    values = {
        key: _flat(value) if isinstance(value, dict) else value
        for key, value in config_to_dict(config).items()
    }
    chosen, differing = [], []
    for group, default in (_DEFAULT_FILES | (_DPO_FILES if config.stage == "dpo" else {})).items():
        files = {name: _differences(group, tree, values) for name, tree in _files(group).items()}
        best = min(files, key=lambda name: (_distance(group, files[name]), name != default, name))
        if best != default or group in _CORPORA:
            chosen.append(f"{group}={best}")
        differing += [f"{group}.{key}={_text(value)}" for key, value in files[best].items()]
    weights = {
        key: value for key, value in values["objective"].items() if value != _defaults("objective")[key]
    }
    differing += [f"objective.{key}={_text(value)}" for key, value in weights.items()]
    differing += [f"seeds.{key}={value}" for key, value in values["seeds"].items() if value is not None]
    stage = [] if config.stage == "sft" else [f"stage={config.stage}"]
    return (*chosen, *stage, *differing, f"seed={config.seed}")


def _distance(group: str, differences: Mapping[str, Any]) -> tuple[bool, int]:
    """Another source is another thing, however few keys differ."""
    return group in _CORPORA and "source" in differences, len(differences)


def _differences(group: str, tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What must be said beyond `group=file`, for the configuration `values`."""
    expected = {**_defaults(group), **{key: value for key, value in tree.items() if value != MANDATORY}}
    if values[group].get("source") == "local":
        expected_with_path = {group: {**expected, "path": values[group]["path"]}}
        complete_names(expected_with_path)
        expected["name"] = expected_with_path[group]["name"]
    return {
        key: value
        for key, value in values[group].items()
        if key in _science_keys(group)
        and (expected.get(key) != value or isinstance(expected.get(key), bool) != isinstance(value, bool))
    }


@cache  # read only: a report asks for the lines of hundreds of runs
def _defaults(group: str) -> Mapping[str, Any]:
    return _flat(defaults_tree(RunConfig)[group])


@cache
def _science_keys(group: str) -> frozenset[str]:
    schema = next(item.type for item in dataclasses.fields(RunConfig) if item.name == group)
    assert dataclasses.is_dataclass(schema)
    names = {
        item.name
        for item in dataclasses.fields(schema)
        if item.metadata.get("identity") != "how" or item.name in (*_KEPT, "name")
    }
    return frozenset(key for key in _flat(defaults_tree(RunConfig)[group]) if key.split(".")[0] in names)


@cache
def _files(group: str) -> dict[str, dict[str, Any]]:
    from omegaconf import OmegaConf

    trees = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        trees[path.stem] = _flat(tree)
    return trees


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"subset": {"share": 0.1}} as {"subset.share": 0.1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _text(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, str) and (
        value.lower() in ("null", "true", "false", "nan", "inf") or not _WORD.fullmatch(value)
    ):
        return quoted(value)
    return str(value)


def quoted(text: str) -> str:
    """A text between quotes of Hydra's grammar, where backslashes count only before a quote."""
    inner = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", inner) + "'"

"""Frozen configuration classes as schemas: built from plain trees, written back, and how they enter an
identity.

Standard library only, and it knows no class of ours: `train.config`, `sweep.config` and `analysis.config` do.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from train.errors import ConfigError

MANDATORY = "???"  # OmegaConf's word for "no default: say it"


class Tree(dict[str, Any]):
    """A mapping inside a frozen configuration: JSON values, never changed, and hashable like the rest of it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def how(default: Any) -> Any:
    """A field that never changes the result, and so never enters the fingerprint. A mapping is copied."""
    if isinstance(default, Mapping):
        return field(default_factory=lambda: Tree(default), metadata={"identity": "how"})
    return field(default=default, metadata={"identity": "how"})


def neutral(default: Any, neutral_value: Any) -> Any:
    """A field left out of the fingerprint while it equals `neutral_value`."""
    return field(default=default, metadata={"identity": "science", "neutral": neutral_value})


def config_to_dict(config: Any) -> dict[str, Any]:
    """A plain tree of JSON values; `run_config_from_dict` is its inverse."""
    return {
        item.name: config_to_dict(value)
        if dataclasses.is_dataclass(value := getattr(config, item.name))
        else _plain(value)
        for item in dataclasses.fields(config)
    }


def defaults_tree(schema: type) -> dict[str, Any]:
    """The schema as a plain tree for Hydra: defaults filled in, MANDATORY where there is none."""
    hints = typing.get_type_hints(schema)
    tree: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[item.name]):
            tree[item.name] = defaults_tree(hints[item.name])
        else:
            default = _default_of(item)
            tree[item.name] = _plain(default)
    return tree


def _plain(value: Any) -> Any:
    """A value as JSON and OmegaConf know it."""
    if isinstance(value, Tree):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


_HINTS: dict[type, dict[str, Any]] = {}  # get_type_hints costs 100 us a class; 10,000 cells ask 7 each


def build(schema: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Any of this project's configuration classes from a plain tree; ConfigError says what is wrong."""
    if not isinstance(values, Mapping):
        place = prefix.rstrip(".") or "the configuration"
        raise ConfigError(f"{place}={values!r} is not a group", "keys and values")
    hints = _HINTS.setdefault(schema, typing.get_type_hints(schema))
    names = [item.name for item in dataclasses.fields(schema)]
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), names, n=1)
            raise ConfigError(
                f"unknown key {prefix}{key}",
                f"one of {', '.join(names)}",
                f"did you mean {prefix}{near[0]}?" if near else "",
            )
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        hint = hints[item.name]
        if item.name not in values or values[item.name] == MANDATORY:
            if isinstance(hint, type) and dataclasses.is_dataclass(hint) and item.name not in values:
                arguments[item.name] = build(hint, {}, f"{prefix}{item.name}.")
            elif _default_of(item) == MANDATORY:
                raise ConfigError(
                    f"{prefix}{item.name} is not set", _describe(hint), f"add {prefix}{item.name}=..."
                )
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            arguments[item.name] = build(hint, values[item.name], f"{prefix}{item.name}.")
        else:
            arguments[item.name] = _convert(hint, values[item.name], prefix + item.name)
    return schema(**arguments)


def _default_of(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return MANDATORY if item.default is dataclasses.MISSING else item.default


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as `hint` asks, or ConfigError. A whole float is an int, an int a float, a bool neither."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, key)
    if origin is Literal:
        if value in typing.get_args(hint) and not isinstance(value, bool):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            inner = typing.get_args(hint)[0]
            return tuple(_convert(inner, element, f"{key}[{index}]") for index, element in enumerate(value))
    elif origin is Mapping:
        if isinstance(value, Mapping):
            inner = typing.get_args(hint)[1]
            return Tree(
                (str(name), one if inner is Any else _convert(inner, one, f"{key}.{name}"))
                for name, one in value.items()
            )
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
            raise ConfigError(f"{key}={value}", "a finite number", f"set {key} to a number")
    elif isinstance(value, str):
        return value
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # YAML reads a revision such as 1234567 as a number
    raise ConfigError(f"{key}={value!r} has the wrong type", _describe(hint), f"set {key} to such a value")


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(
            "null" if option is type(None) else _describe(option) for option in typing.get_args(hint)
        )
    if origin is tuple:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    if origin is Mapping:
        return "a mapping"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return words.get(hint, str(hint))


def check_at_least(key: str, value: int, least: int) -> None:
    """The value is `least` or more."""
    if value < least:
        raise ConfigError(
            f"{key}={value}", f"a whole number of at least {least}", f"set {key}={least} or more"
        )


def check_positive(key: str, value: float) -> None:
    """The value is above 0."""
    if not value > 0:
        raise ConfigError(f"{key}={value:g}", "a number above 0", f"set {key} above 0")


def check_not_negative(key: str, value: float) -> None:
    """The value is 0 or more."""
    if not value >= 0:
        raise ConfigError(f"{key}={value:g}", "a number of at least 0", f"set {key}=0 or more")


def check_share(key: str, value: float) -> None:
    """The value is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{key}={value:g}", "a share from 0 to 1", f"set {key} between 0 and 1")

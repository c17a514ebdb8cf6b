"""The axes of a grid: their names and the one form of each value. Pure.

Short words name what every grid has; any other axis is a full key (train.learning_rate) or a group whose
values are files (train: [paper, lora]).
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from sweep.errors import GridError
from train.config import RunConfig, defaults_tree
from train.keys import leaf_keys, nearest_key

WEIGHT_AXES = ("prompt_weight", "response_weight")
SHORT_AXES = (*WEIGHT_AXES, "seed", "model", "dataset")
# Their values are names of files in conf/.
GROUP_AXES = ("model", "dataset", "train", "eval", "tracking", "preference", "dpo")
_SHORT_NAMES = {
    "objective.prompt_weight": "prompt_weight",
    "objective.response_weight": "response_weight",
}


@cache
def configuration_keys() -> tuple[str, ...]:
    """Every full key of a run's configuration."""
    return tuple(leaf_keys(defaults_tree(RunConfig)))


def short_name(axis: Any) -> Any:
    """prompt_weight for objective.prompt_weight; other names as they are."""
    return _SHORT_NAMES.get(axis, axis)


def axis_name(axis: Any, place: str) -> str:
    """The axis in its short form; GridError with the nearest one if there is no such axis."""
    name = short_name(axis)
    known = (*SHORT_AXES, *GROUP_AXES, *(key for key in configuration_keys() if key != "stage"))
    if name not in known:
        raise GridError(
            f"{place} names {axis!r}, which is no axis",
            f"one of {', '.join(SHORT_AXES)} or a full key such as train.learning_rate",
            did_you_mean(str(axis), known),
        )
    return name


def axis_value(axis: str, value: Any) -> Any:
    """The value in its one form; GridError if the axis can't take it."""
    if axis in WEIGHT_AXES:
        if not _is_number(value) or not math.isfinite(value) or value < 0:
            raise GridError(
                f"{axis}={value!r} is no weight", "a finite number of at least 0", f"write {axis}: [0, 1]"
            )
        return float(value) + 0.0  # -0.0 + 0.0 is 0.0
    if axis == "seed":
        if not _is_number(value) or not float(value).is_integer() or value < 0:
            raise GridError(
                f"seed={value!r} is no seed", "a whole number of at least 0", "say grid.seeds=[0,1,2]"
            )
        return int(value)
    if axis in GROUP_AXES:
        if not isinstance(value, str) or not value:
            raise GridError(
                f"{axis}={value!r} is no name",
                f"the name of a file of conf/{axis}",
                f"write {axis}: [embedded]",
            )
        return value
    return _setting(axis, value)


def _setting(axis: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        raise GridError(
            f"{axis}={cast(Any, value)!r} is no single value",
            "a number, a word, true, false or null",
            "name a full key such as train.learning_rate",
        )
    if isinstance(value, list | tuple):
        return tuple(cast(Sequence[Any], value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise GridError(f"{axis}={value!r}", "a finite number", f"write {axis}: [1]")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A question about the nearest known word; empty if none is near."""
    near = nearest_key(word, known)
    return f"did you mean {near}?" if near else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

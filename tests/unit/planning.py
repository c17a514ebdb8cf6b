"""What the tests of planning share: from words to cells or a plan, with identities that need no files."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sweep.arguments import parse_arguments
from sweep.compose import ComposedSweep, compose_sweep
from sweep.config import GridConfig, grid_config_from_dict
from sweep.grid import expand_cells
from sweep.plan import make_plan
from sweep.spec import Cell, Plan
from train.config import RunConfig, run_config_from_dict
from train.errors import UserError

SQUARE = {
    "product": {"prompt_weight": [0, 0.25, 0.5, 0.75, 1], "response_weight": [0, 0.25, 0.5, 0.75, 1]},
    "exclude": [{"prompt_weight": 0, "response_weight": 0}],
}


def grid_of(cells: Any = SQUARE, **values: Any) -> GridConfig:
    return grid_config_from_dict({"name": "test", "cells": cells, **values})


def cells_of(cells: Any = SQUARE, **values: Any) -> tuple[Cell, ...]:
    return expand_cells(grid_of(cells, **values), default_model="embedded", default_dataset="embedded")


@cache  # one composition takes 65 ms, and what it gives is frozen
def _composed(*words: str) -> ComposedSweep:
    return compose_sweep(parse_arguments(words))


def composed(*words: str, config_dirs: Sequence[str] = ()) -> ComposedSweep:
    folders = [word for folder in config_dirs for word in ("--config-dir", folder)]
    return _composed(*words, *folders)


def refusal(*words: str) -> str:
    """The one line with which the words are refused."""
    with pytest.raises(UserError) as caught:
        composed(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fake_identities(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Replace content hashes by names; the dictionary counts the questions asked."""
    asked = {"model": 0, "dataset": 0}

    def identity(kind: str):
        def ask(config: Any, **_: Any) -> str:
            asked[kind] += 1
            return f"{kind}:{config.name}:{config.path}"

        return ask

    monkeypatch.setattr("train.identity.model_identity", identity("model"))
    monkeypatch.setattr("train.identity.dataset_identity", identity("dataset"))
    return asked


def planned(monkeypatch: pytest.MonkeyPatch, *words: str) -> Plan:
    fake_identities(monkeypatch)
    return make_plan(composed(*words), cache_folder=Path("unused"))


def run_config(**changes: Any) -> RunConfig:
    """A valid run; changes are full keys with __ for the dot."""
    values: dict[str, Any] = {
        "model": {"name": "embedded", "source": "embedded"},
        "dataset": {"name": "embedded", "source": "embedded"},
        "objective": {"prompt_weight": 0.25, "response_weight": 1.0},
        "seed": 0,
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        part = values
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    return run_config_from_dict(values)

"""The sweep's values: what was asked (cells), what must be trained (runs), and what joins them (the plan).

A *cell* is a question: a point of the grid. A *run* is one training under one complete configuration. Several
cells may be answered by one run (see `sweep.rays`): the others are *aliases*. All values are frozen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from train.config import RunConfig

Settings = tuple[tuple[str, Any], ...]  # further axes: (configuration key, value), sorted by key


@dataclass(frozen=True, slots=True)
class Cell:
    """A question: two weights, a seed, a model, a dataset, and the values of any further axes."""

    model: str
    dataset: str
    prompt_weight: float
    response_weight: float
    seed: int
    settings: Settings = ()

    @property
    def group(self) -> tuple[str, str, Settings]:
        """What all cells of one plane share."""
        return self.model, self.dataset, self.settings


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What must be trained: a complete configuration under its fingerprint; `run_id` is for people."""

    run_id: str
    fingerprint: str
    config: RunConfig
    model_identity: str
    dataset_identity: str
    parent_fingerprint: str = ""  # of the run it starts from; "" if it starts from the base model
    preference_identity: str = ""


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell and the run that answers it. `is_alias`: that run was trained for another cell of the same ray."""

    cell: Cell
    fingerprint: str
    is_alias: bool


@dataclass(frozen=True, slots=True)
class PlannedBase:
    """The untouched base model of one plane: its (0, 0) corner, measured but not trained."""

    model: str
    dataset: str
    settings: Settings
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything asked and everything needed. Runs are in execution order, without duplicates, bases first.

    question: what a search is about, so that a plan which it extends is known for the same; "" without one.
    stops: fingerprint -> the share of its steps at which a run is measured and paused; others train to the end.
    """

    name: str
    cells: tuple[PlannedCell, ...]
    bases: tuple[PlannedBase, ...]
    runs: tuple[RunSpec, ...]
    question: str = ""
    stops: Mapping[str, float] = field(default_factory=dict[str, float])

    def spec(self, fingerprint: str) -> RunSpec:
        """The run of that fingerprint; KeyError if the plan has none."""
        for run in self.runs:
            if run.fingerprint == fingerprint:
                return run
        raise KeyError(fingerprint)


class Status(StrEnum):
    """What the ledger knows of a run. `train` knows only finished and failed."""

    PLANNED = "planned"  # nobody has claimed it
    RUNNING = "running"  # claimed by a living worker
    INTERRUPTED = "interrupted"  # its worker gave it back with a checkpoint; planned again
    LOST = "lost"  # its worker died without a word; planned again
    PAUSED = "paused"  # measured at the rung where its plan stops it; goes on if the plan says so
    FAILED = "failed"  # its last attempt failed; waits for action=retry
    FINISHED = "finished"  # record.json is in place


SETTLED = (Status.FINISHED, Status.FAILED, Status.PAUSED)  # nothing happens to it by itself

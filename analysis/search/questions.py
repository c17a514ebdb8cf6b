"""What a search is asked, as values: a plane's runs, where it may go, and how much is wanted. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.table import AnalysisError
from sweep.candidates import Weights
from sweep.search_config import Range
from train.metrics import SELECTION_PREFERENCE, Metric, is_selectable, metric, ordered, selection_metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One run. metrics: of a finished one. rungs: share of its steps -> metrics where it was paused."""

    weights: Weights
    settings: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    rungs: Mapping[float, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Everything a sampler may know. candidates: pairs to choose from, where the ratio isn't free."""

    plane: str
    kind: str
    candidates: tuple[Weights, ...]
    ranges: tuple[Range, ...] = ()
    told: tuple[Told, ...] = ()
    pending: tuple[Told, ...] = ()
    wanted: int = 1
    metrics: tuple[str, ...] = ()
    epsilon: float | None = None
    confidence: float = 0.9
    pilot_runs: int = 5
    seed: int = 0


def question_from_dict(values: Mapping[str, Any]) -> Question:
    """The inverse of what `sweep.searching` writes."""
    search = values["search"]
    return Question(
        plane=" ".join(map(str, values["plane"][:2])),
        kind=search["kind"],
        candidates=tuple((float(p), float(r)) for p, r in values["candidates"]),
        ranges=tuple(
            Range(
                axis=one["axis"],
                low=one["low"],
                high=math.inf if one["high"] is None else one["high"],
                is_whole=one["is_whole"],
            )
            for one in search["ranges"]
        ),
        told=tuple(map(_told, values["told"])),
        pending=tuple(map(_told, values["pending"])),
        wanted=values["wanted"],
        metrics=tuple(search["metrics"]),
        epsilon=search["epsilon"],
        confidence=search["confidence"],
        pilot_runs=search["pilot_runs"],
        seed=search["seed"],
    )


def chosen_metrics(asked: Sequence[str], told: Sequence[Told]) -> tuple[Metric, ...]:
    """The metrics that choose: what was asked, or the first preferred one that every finished run has.

    Raises   AnalysisError for a name that can't choose, or that the runs don't have.
    """
    finished = [one for one in told if one.metrics]
    on_record = set.intersection(*(set(one.metrics) for one in finished)) if finished else set()
    available = [name for name in ordered(on_record) if is_selectable(name)]
    for name in asked:
        if not is_selectable(name) or (finished and name not in available):
            why = "is on no run" if is_selectable(name) else "can't choose"
            raise AnalysisError(
                f"search.metrics holds {name}, which {why}",
                f"one of {', '.join(available) or 'the validation metrics'}",
                "change search.metrics",
            )
    if asked:
        return tuple(map(metric, asked))
    chosen = selection_metric(available) or next(map(metric, available), None)
    if chosen is None and finished:
        raise AnalysisError("the runs have no validation metric", "one that chooses", "set search.metrics")
    return (chosen or metric(SELECTION_PREFERENCE[0]),)


def _told(values: Mapping[str, Any]) -> Told:
    return Told(
        weights=(float(values["weights"][0]), float(values["weights"][1])),
        settings=values.get("settings", {}),
        seed=values.get("seed", 0),
        metrics=values.get("metrics", {}),
        rungs={float(share): found for share, found in values.get("rungs", {}).items()},
    )

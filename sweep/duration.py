"""How long runs take, from those that are finished. Pure; no history, no number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweep.ledger import RunState
from sweep.spec import SETTLED, RunSpec, Status
from train.record import RunRecord

Kind = tuple[str, str, str]  # stage, model, dataset: what decides how long a run takes


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds until done, and the range it would be if every run were as quick or as slow as any seen."""

    seconds: float
    low: float
    high: float


def run_seconds(record: RunRecord) -> float:
    """All the time a run took."""
    return record.setup_s + record.training_s + record.evaluation_s


def kind_of(spec: RunSpec) -> Kind:
    """Runs of one kind take about as long as each other."""
    return spec.config.stage, spec.config.model.name, spec.config.dataset.name


def seconds_by_kind(runs: Sequence[tuple[Kind, RunRecord]]) -> dict[Kind, list[float]]:
    """What runs of each kind took, shortest first."""
    found: dict[Kind, list[float]] = {}
    for kind, record in runs:
        found.setdefault(kind, []).append(run_seconds(record))
    return {kind: sorted(seconds) for kind, seconds in found.items()}


def remaining_time(
    runs: Sequence[RunSpec],
    states: Mapping[str, RunState],
    history: Mapping[Kind, Sequence[float]],
    num_slots: int,
    now: float,
) -> Estimate | None:
    """How long the unfinished `runs` take on `num_slots` workers; None while a kind of run has no history."""
    totals, longest = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for spec in runs:
        state = states[spec.fingerprint]
        if state.status in SETTLED:
            continue
        seen = history.get(kind_of(spec)) or _extrapolated(state, now)
        if not seen:
            return None
        left = 1.0 - share_done(state)
        for index, seconds in enumerate((median(seen), seen[0], seen[-1])):
            totals[index] += seconds * left
            longest[index] = max(longest[index], seconds * left)
    # Work shared evenly, but no run is quicker than itself.
    middle, low, high = (
        max(total / max(1, num_slots), one) for total, one in zip(totals, longest, strict=True)
    )
    return Estimate(middle, low, high)


def share_done(state: RunState) -> float:
    """The share of a running run's steps that is done."""
    if state.status is not Status.RUNNING or state.heartbeat is None or state.heartbeat.num_steps <= 0:
        return 0.0
    return min(1.0, state.heartbeat.step / state.heartbeat.num_steps)


def median(values: Sequence[float]) -> float:
    """The middle of sorted values."""
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def duration_text(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def estimate_text(estimate: Estimate | None) -> str:
    """An estimate with its range; "unknown until the first run is finished" without history."""
    if estimate is None:
        return "unknown until the first run is finished"
    text = duration_text(estimate.seconds)
    low, high = duration_text(estimate.low), duration_text(estimate.high)
    return f"about {text}" if low == high else f"about {text} ({low} to {high})"


def _extrapolated(state: RunState, now: float) -> list[float]:
    """A first run's own pace, once a tenth of it is done."""
    done = share_done(state)
    if state.owner is None or done < 0.1:
        return []
    return [(now - state.owner.claimed_at) / done]

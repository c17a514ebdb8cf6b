"""What a sweep will cost, before it is launched, and what it did cost. Pure; from finished runs of the same kind.

A run is charged for all its time: start-up, training, evaluation. Its interval is the middle 80 % of the runs of its
kind that were seen; the sweep's adds the runs' own spread and the doubt about their mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sweep.duration import Kind, kind_of
from sweep.ledger import RunState
from sweep.spec import RunSpec, Status

_Z80 = 1.2816  # of a normal distribution: 80 % lie within so many standard deviations
_ONE_RUN_SPREAD = 0.25  # of its time, where only one run was seen


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """gpu_hours: more than that isn't launched without yes=true. The rates are the site's, per device and hour."""

    gpu_hours: float | None = None
    price_per_hour: float | None = None
    kg_co2e_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Device-hours (processor-hours where no device is used) of the runs that are left. None: never measured."""

    hours: float | None
    low: float | None
    high: float | None
    worst: float  # by the time limits
    unit: str
    suggested_min: int | None = None  # the 95th percentile of a run


def forecast(
    runs: Sequence[RunSpec],
    states: Mapping[str, RunState],
    history: Mapping[Kind, Sequence[float]],
    room_of: Callable[[RunSpec], tuple[int, int]],
) -> Forecast:
    """room_of: a run's devices and its time limit in minutes. history: seconds of finished runs, shortest first."""
    left = [spec for spec in runs if states[spec.fingerprint].status not in (Status.FINISHED, Status.FAILED)]
    rooms = {spec.fingerprint: room_of(spec) for spec in left}
    unit = "GPU" if any(gpus for gpus, _ in rooms.values()) else "CPU"
    worst = sum(max(gpus, unit == "CPU") * minutes / 60 for gpus, minutes in rooms.values())
    total, variance, longest = 0.0, 0.0, 0.0
    by_kind: dict[tuple[Kind, int], int] = {}
    for spec in left:
        place = kind_of(spec), max(rooms[spec.fingerprint][0], unit == "CPU")
        by_kind[place] = by_kind.get(place, 0) + 1
    for (kind, devices), number in by_kind.items():
        seen = history.get(kind)
        if not seen:
            return Forecast(hours=None, low=None, high=None, worst=worst, unit=unit)
        mean = sum(seen) / len(seen)
        spread = (
            math.sqrt(sum((value - mean) ** 2 for value in seen) / (len(seen) - 1))
            if len(seen) > 1
            else _ONE_RUN_SPREAD * mean
        )
        total += number * mean * devices
        variance += (number + number**2 / len(seen)) * (spread * devices) ** 2
        longest = max(longest, quantile(seen, 0.95))
    half = _Z80 * math.sqrt(variance)
    return Forecast(
        hours=total / 3600,
        low=max(0.0, total - half) / 3600,
        high=(total + half) / 3600,
        worst=worst,
        unit=unit,
        suggested_min=max(1, math.ceil(longest / 60)) if left else None,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between sorted values."""
    position = share * (len(values) - 1)
    lower = int(position)
    upper = min(lower + 1, len(values) - 1)
    return values[lower] + (position - lower) * (values[upper] - values[lower])


def forecast_lines(found: Forecast, budget: BudgetConfig) -> list[str]:
    """For `plan`."""
    unit = f"{found.unit}-hours"
    worst = f"at most {found.worst:.4g} by the time limits"
    if found.hours is None:
        return [f"forecast: unknown until a run of each kind is finished; {worst} {unit}"]
    lines = [f"forecast: {found.hours:.3g} {unit} (80 %: {found.low:.3g} to {found.high:.3g}), {worst}"]
    rates = []
    if budget.price_per_hour is not None:
        rates.append(f"price {found.hours * budget.price_per_hour:.2f}")
    if budget.kg_co2e_per_hour is not None:
        rates.append(f"{found.hours * budget.kg_co2e_per_hour:.3g} kg CO2e")
    if rates:
        lines.append(f"  {', '.join(rates)}")
    if found.suggested_min is not None:
        lines.append(
            f"  95 % of runs take at most {found.suggested_min} min: model.timeout_min may be as low"
        )
    return lines


def exceeds(found: Forecast, budget: BudgetConfig) -> bool:
    """Whether it is above the budget; what was never measured is judged by its time limits."""
    hours = found.worst if found.hours is None else found.hours
    return budget.gpu_hours is not None and hours > budget.gpu_hours

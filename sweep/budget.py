"""What a sweep may cost, and its forecast for people: hours, money, carbon dioxide. Pure."""

from dataclasses import dataclass

from sweep.duration import duration_text
from sweep.forecast import Forecast, Share
from train.schema import check_at_least, check_not_negative, check_positive

_RATES = ("price_per_gpu_hour", "kg_co2_per_gpu_hour", "price_per_cpu_hour", "kg_co2_per_cpu_hour")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """gpu_hours: more than that isn't launched without yes=true; processor-hours where no device is used.

    The rates are the site's. pilot_runs, of each model and dataset, are trained by action=pilot for pilot_min minutes
    each at most; what they did is not done again.
    """

    gpu_hours: float | None = None
    price_per_gpu_hour: float | None = None
    kg_co2_per_gpu_hour: float | None = None
    price_per_cpu_hour: float | None = None
    kg_co2_per_cpu_hour: float | None = None
    pilot_runs: int = 4
    pilot_min: float = 10.0

    def __post_init__(self) -> None:
        for name in ("gpu_hours", *_RATES):
            if (value := getattr(self, name)) is not None:
                check_not_negative(f"budget.{name}", value)
        check_at_least("budget.pilot_runs", self.pilot_runs, 1)
        check_positive("budget.pilot_min", self.pilot_min)


def exceeds(found: Forecast, budget: BudgetConfig) -> bool:
    """Whether it is above the budget; what was never measured is judged by its time limits."""
    hours = found.worst if found.hours is None else found.hours
    return budget.gpu_hours is not None and hours is not None and hours > budget.gpu_hours


def forecast_lines(found: Forecast, budget: BudgetConfig, *, has_limits: bool = True) -> list[str]:
    """For `plan`: the sum, a line for each kind of run, money, and how long a run takes.

    has_limits: whether workers have time limits, which can be set.
    """
    unit = f"{found.unit}-hours"
    worst = "" if found.worst is None else f"at most {found.worst:.4g} {unit} by the time limits"
    if found.hours is None or found.low is None or found.high is None:
        lines = [
            f"forecast: unknown, as nothing like {', '.join(found.unknown)} was measured under this root"
        ]
        lines += [f"  {worst}"] if worst else []
        return lines + [f"  {line}" for line in _table(found.shares, unit)]
    lines = [f"forecast: {_range(found.hours, found.low, found.high)} {unit}{f', {worst}' if worst else ''}"]
    lines += [f"  {line}" for line in _table(found.shares, unit)]
    if found.start_s:
        number = found.num_workers
        lines.append(
            f"  start-up and loading: {_seconds(found.start_s)} for each of {number} "
            f"{'worker' if number == 1 else 'workers'}"
        )
    rates = _rates(found, budget)
    lines += [f"  {rates}"] if rates else []
    if found.high_95_s is not None:
        setting = f": model.timeout_min={found.suggested_min} would do" if has_limits else ""
        lines.append(f"  95 % of runs take at most {_seconds(found.high_95_s)}{setting}")
    return lines


def spent_lines(spent: float, left: Forecast | None, unit: str, budget: BudgetConfig) -> list[str]:
    """For `status`: what was spent and what is left. left None: nothing is."""
    text = f"spent: {spent:.3g} {unit}-hours"
    if left is not None and left.hours is not None and left.low is not None and left.high is not None:
        text += f"; left: {_range(left.hours, left.low, left.high)}"
    if budget.gpu_hours is not None:
        text += f"; budget: {budget.gpu_hours:g}"
    return [text]


def actual_line(forecast: float, low: float, high: float, took: float, unit: str) -> str:
    """What was forecast, in hours, and what it took."""
    return f"took {took:.3g} {unit}-hours, {took / forecast - 1:+.0%} of the forecast {_range(forecast, low, high)}"


def _table(shares: tuple[Share, ...], unit: str) -> list[str]:
    rows = [["model", "dataset", "runs", "one run (80 %)", "tokens/s", f"{unit} (80 %)"]]
    for share in shares:
        work, one = share.workload, share.seconds
        suffix = {"base": ", untrained", "dpo": ", then dpo", "evaluate": ", benchmarks"}.get(work.stage, "")
        known = (
            one is not None and share.hours is not None and share.low is not None and share.high is not None
        )
        rows.append(
            [
                work.model,
                f"{work.dataset}{suffix}",
                f"{share.runs:.3g}",
                f"{_seconds(one.mean)} ({_seconds(one.low)} to {_seconds(one.high)})"
                if one
                else "not measured",
                f"{share.tokens_per_s:,.0f}" if share.tokens_per_s else "-",
                f"{share.hours:.3g} ({share.low:.3g} to {share.high:.3g})" if known else "-",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _rates(found: Forecast, budget: BudgetConfig) -> str:
    is_gpu = found.unit == "GPU"
    price = budget.price_per_gpu_hour if is_gpu else budget.price_per_cpu_hour
    carbon = budget.kg_co2_per_gpu_hour if is_gpu else budget.kg_co2_per_cpu_hour
    ends = [value for value in (found.hours, found.low, found.high) if value is not None]
    parts = []
    if price is not None:
        parts.append("price {:.2f} (80 %: {:.2f} to {:.2f})".format(*(value * price for value in ends)))
    if carbon is not None:
        parts.append("{:.3g} kg CO2 (80 %: {:.3g} to {:.3g})".format(*(value * carbon for value in ends)))
    return ", ".join(parts)


def _range(middle: float, low: float, high: float) -> str:
    return f"{middle:.3g} (80 %: {low:.3g} to {high:.3g})"


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else duration_text(value)

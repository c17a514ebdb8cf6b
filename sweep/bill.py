"""What a launch was forecast to take, and what it took: one value for `status`, the end of a run and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sweep.budget import BudgetConfig
from sweep.folder import SweepFolder
from sweep.forecast import spent_hours
from sweep.ledger import RunState
from sweep.spec import SETTLED
from sweep.timesheets import Shift, shifts
from train.files import read_json

FORECAST_FILE = "forecast.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Device-hours (unit GPU), or processor-hours where no device is used (CPU). low, high: 80 % of the forecast."""

    unit: str
    took: float
    forecast: float
    low: float
    high: float

    @property
    def is_within(self) -> bool:
        """Whether what it took lies in the interval."""
        return self.low <= self.took <= self.high

    def costs(self, budget: BudgetConfig) -> "tuple[tuple[str, Bill], ...]":
        """Hours, money and carbon dioxide, by name, as far as the site says what an hour costs."""
        is_gpu = self.unit == "GPU"
        price = budget.price_per_gpu_hour if is_gpu else budget.price_per_cpu_hour
        carbon = budget.kg_co2_per_gpu_hour if is_gpu else budget.kg_co2_per_cpu_hour
        rates = ((f"{self.unit}-hours", 1.0), ("price", price), ("kg CO2", carbon))
        return tuple((name, self._times(rate)) for name, rate in rates if rate is not None)

    def _times(self, rate: float) -> "Bill":
        values = {name: rate * getattr(self, name) for name in ("took", "forecast", "low", "high")}
        return replace(self, **values)


def bill_of(
    folder: SweepFolder, states: Mapping[str, RunState], history: Sequence[Shift] | None = None
) -> Bill | None:
    """Of the last launch; None where nothing was forecast, or part of it isn't done yet."""
    values = read_json(folder.path / FORECAST_FILE)
    if values is None or any(
        name not in states or states[name].status not in SETTLED for name in values["runs"]
    ):
        return None
    history = shifts(folder.root) if history is None else history
    return Bill(
        unit=values["unit"],
        took=spent_hours(history, folder.name, values["unit"], values["made_at"]),
        forecast=values["hours"],
        low=values["low"],
        high=values["high"],
    )

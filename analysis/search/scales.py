"""A metric's own unit and the points (0 to 100, higher better) in which the surface thinks. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.metrics import Metric

POINTS_PER_SHARE = 100.0
TYPICAL_SPREAD = 2.0  # points between cells, to which scores without a natural scale are stretched
EPSILON_POINTS = 1.0  # of one benchmark; region.md, section 2


@dataclass(frozen=True, slots=True)
class Scale:
    """points_per_unit is negative where lower is better."""

    points_per_unit: float

    def points(self, value: float) -> float:
        """A score in points."""
        return value * self.points_per_unit

    def difference(self, points: float) -> float:
        """A size in points as one in the metric's unit, without its sign."""
        return points / abs(self.points_per_unit)


def scale_of(metric: Metric, scores: Sequence[float]) -> Scale:
    """Shares are percentages; other scores are stretched until their spread is typical of a plane's."""
    sign = -1.0 if metric.better == "lower" else 1.0
    if metric.unit.startswith("share"):
        return Scale(sign * POINTS_PER_SHARE)
    spread = float(np.std(scores)) if len(scores) > 1 else 0.0
    return Scale(sign * (TYPICAL_SPREAD / spread if spread > 0 else 1.0))

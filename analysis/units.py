"""From a metric's unit to points, higher better, in which the priors are said. Pure.

    points = factor * value,  factor < 0 where lower is better

A share is 100 points, a rating of 1 to 10 is 10 (as papers print MT-Bench), points stay. Other units (nats/token,
perplexity, tokens) have no natural size, so their factor makes the middle spread of the scores with a response weight
SPREAD points: priors then speak of ratios between surface and noise only, and a change of unit changes nothing.
epsilon is said in the metric's own unit: below it a difference is of no interest to anyone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.kernels import AVERAGE, BENCHMARK, Floats, Priors
from train.metrics import Metric

SPREAD = 2.0  # points; between the prior's run-to-run s.d. of one benchmark and its signal
_EPSILON_POINTS = 1.0  # of one benchmark; of an average of several half of it
_EPSILON: Mapping[str, float] = {"nats/token": 0.01, "bits/byte": 0.005, "perplexity": 0.1}


@dataclass(frozen=True, slots=True)
class Scale:
    """How scores of one metric become points."""

    factor: float  # points per unit; negative where lower is better
    epsilon: float  # metric's unit, positive
    priors: Priors

    @property
    def epsilon_points(self) -> float:
        """epsilon as the surface sees it."""
        return abs(self.factor) * self.epsilon

    def points(self, values: Floats) -> Floats:
        """Scores, or differences of scores, as points."""
        return self.factor * values

    def size(self, points: float) -> float:
        """A standard deviation or another size without direction, in the metric's unit."""
        return points / abs(self.factor)

    def value(self, points: float) -> float:
        """Points as a score or a difference in the metric's unit and direction."""
        return points / self.factor


def scale_of(metric: Metric, scores: Floats, epsilon: float | None = None) -> Scale:
    """The scale of a metric whose scores on one plane (prompt-only runs left out) are these; NaN is skipped.

    Raises   ValueError for a metric without direction.
    """
    if metric.better == "none":
        raise ValueError(f"{metric.name} has no direction")
    sign = 1.0 if metric.better == "higher" else -1.0
    is_average = metric.name.endswith(".mean")
    size = _points_per_unit(metric.unit)
    if size is None:
        size = SPREAD / _spread(scores)
        default = _EPSILON.get(metric.unit, 0.25 * SPREAD / size)
    else:
        default = _EPSILON_POINTS * (0.5 if is_average else 1.0) / size
    return Scale(sign * size, default if epsilon is None else epsilon, AVERAGE if is_average else BENCHMARK)


def _points_per_unit(unit: str) -> float | None:
    if unit.startswith("share"):
        return 100.0
    return 10.0 if unit == "rating of 1 to 10" else 1.0 if unit.startswith("point") else None


def _spread(scores: Floats) -> float:
    """A robust standard deviation, or the best there is of one; 1 for equal scores."""
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        return 1.0
    for spread in (1.4826 * float(np.median(np.abs(finite - np.median(finite)))), float(finite.std())):
        if spread > 1e-9 * max(float(np.abs(finite).max()), math.ulp(1.0)):
            return spread
    return 1.0

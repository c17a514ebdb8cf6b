"""The next run's time, and the sum of many, from those that were seen. Pure; standard library only.

Few runs: their logarithms are taken for normal, and the spread for unknown, so that four runs give a wide interval
(Student's t; a weak prior says that like runs differ by a tenth). Ten and more: the quantiles that the next of
exchangeable runs falls between with the stated probability, k / (n + 1), whatever the distribution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

NOMINAL = 0.8  # of runs, and of sweeps, lie within
_Z = {0.9: 1.2815515655, 0.95: 1.6448536270}
_T_OF_FEW = {  # Student's t by degrees of freedom; Abramowitz and Stegun, table 26.10
    0.9: (3.078, 1.886, 1.638, 1.533, 1.476),
    0.95: (6.314, 2.920, 2.353, 2.132, 2.015),
}
_PRIOR_SPREAD, _PRIOR_RUNS = 0.1, 2.0  # of the logarithm, and how many runs that belief is worth
_ENOUGH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Of the next value. high_95: 95 % are below. mean_variance: doubt about the mean itself, with its freedom."""

    mean: float
    low: float
    high: float
    high_95: float
    variance: float
    mean_variance: float
    freedom: float


def predict(values: Sequence[float]) -> Prediction | None:
    """From values that are not negative; None from none."""
    if not values:
        return None
    seen = sorted(values)
    number, mean = len(seen), sum(seen) / len(seen)
    logarithms = [math.log(max(value, 1e-9)) for value in seen]
    middle = sum(logarithms) / number
    squares = sum((value - middle) ** 2 for value in logarithms)
    freedom = number - 1 + _PRIOR_RUNS
    spread = math.sqrt((squares + _PRIOR_RUNS * _PRIOR_SPREAD**2) / freedom)
    wide = spread * math.sqrt(1 + 1 / number)
    if number >= _ENOUGH:
        low, high = exchangeable(seen, (1 - NOMINAL) / 2), exchangeable(seen, (1 + NOMINAL) / 2)
    else:
        low = math.exp(middle - student(0.9, freedom) * wide)
        high = math.exp(middle + student(0.9, freedom) * wide)
    variance = (mean * spread) ** 2
    return Prediction(
        mean=mean,
        low=low,
        high=high,
        high_95=max(high, math.exp(middle + student(0.95, freedom) * wide)),
        variance=variance,
        mean_variance=variance / number,
        freedom=freedom,
    )


def interval(total: float, variance: float, freedom: float) -> tuple[float, float]:
    """Four fifths of sums lie within, if the variance was estimated with so much freedom. Not below zero."""
    half = student((1 + NOMINAL) / 2, freedom) * math.sqrt(variance)
    return max(0.0, total - half), total + half


def exchangeable(seen: Sequence[float], share: float) -> float:
    """The value below which the next of exchangeable ones falls with that probability; seen: sorted.

    Source   order statistics: P(next <= k-th of n) = k / (n + 1). Hyndman and Fan's sixth quantile.
    """
    position = min(max(share * (len(seen) + 1) - 1, 0.0), len(seen) - 1.0)
    lower = int(position)
    upper = min(lower + 1, len(seen) - 1)
    return seen[lower] + (position - lower) * (seen[upper] - seen[lower])


def student(share: float, freedom: float) -> float:
    """The quantile of Student's t at share 0.9 or 0.95.

    Source   Abramowitz and Stegun 26.7.5 (two terms); their table 26.10 below six degrees of freedom.
    """
    if freedom < 6:
        few = _T_OF_FEW[share]
        lower = min(max(int(freedom), 1), 5)
        upper = min(lower + 1, 5)
        return few[lower - 1] + (max(freedom, 1.0) - lower) * (few[upper - 1] - few[lower - 1])
    z = _Z[share]
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)

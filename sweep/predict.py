"""The next run's time, and the sum of many, from those that were seen. Pure; standard library only.

Few runs: their logarithms are taken for normal, and the spread for unknown, so that four runs give a wide interval
(Student's t, and a weak belief). Ten and more: the quantiles that the next of exchangeable runs falls between with the
stated probability, k / (n + 1), whatever the distribution. But runs of one sweep are more alike than those of another
day, when the machine is a little slower: both intervals are widened by the spread between sweeps.
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
# Beliefs about logarithms, measured on the embedded grid, and how many runs or sweeps each is worth.
_PRIOR_SPREAD, _PRIOR_RUNS = 0.07, 2.0
_PRIOR_SWEEP_SPREAD, _PRIOR_SWEEPS = 0.03, 2.0
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


def predict(values: Sequence[float], sweeps: Sequence[str] | None = None) -> Prediction | None:
    """From values that are not negative; None from none. sweeps: which each is from, one for all if not said."""
    if not values:
        return None
    seen, number, mean = sorted(values), len(values), sum(values) / len(values)
    logarithms = [math.log(max(value, 1e-9)) for value in values]
    middle = sum(logarithms) / number
    squares = sum((value - middle) ** 2 for value in logarithms)
    freedom = number - 1 + _PRIOR_RUNS
    variance = (squares + _PRIOR_RUNS * _PRIOR_SPREAD**2) / freedom
    drift, num_sweeps = _between(logarithms, sweeps or [""] * number)
    # The variance already holds drift * (1 - 1 / sweeps); the next one's mean is off by drift * (1 + 1 / sweeps).
    drift_more = 2 * drift / num_sweeps
    if number >= _ENOUGH:
        stretch = math.sqrt(1 + drift_more / variance)
        centre = exchangeable(seen, 0.5)
        low, high, high_95 = (
            centre + stretch * (exchangeable(seen, share) - centre)
            for share in ((1 - NOMINAL) / 2, (1 + NOMINAL) / 2, 0.95)
        )
    else:
        wide = math.sqrt(variance * (1 + 1 / number) + drift_more)
        low, high, high_95 = (
            math.exp(middle + sign * student(share, freedom) * wide)
            for sign, share in ((-1, 0.9), (1, 0.9), (1, 0.95))
        )
    return Prediction(
        mean=mean,
        low=max(0.0, low),
        high=high,
        high_95=max(high, high_95),
        variance=mean**2 * variance,
        mean_variance=mean**2 * (variance / number + drift * (1 + 1 / num_sweeps)),
        freedom=freedom,
    )


def _between(logarithms: Sequence[float], sweeps: Sequence[str]) -> tuple[float, int]:
    """The variance between sweeps' means, and how many sweeps there are."""
    by_sweep: dict[str, list[float]] = {}
    for value, sweep in zip(logarithms, sweeps, strict=True):
        by_sweep.setdefault(sweep, []).append(value)
    means = [sum(found) / len(found) for found in by_sweep.values()]
    middle = sum(means) / len(means)
    squares = sum((mean - middle) ** 2 for mean in means)
    belief = _PRIOR_SWEEPS * _PRIOR_SWEEP_SPREAD**2
    return (squares + belief) / (len(means) - 1 + _PRIOR_SWEEPS), len(means)


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

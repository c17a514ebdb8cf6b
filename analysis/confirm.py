"""The gain that may be quoted: fresh seeds at two settings that were chosen before those seeds ran. Pure.

Letters: H hyper-parameter settings.

Choosing the best of many makes its own runs look better than they are; runs trained after the choice know nothing of
it, so their contrast is unbiased. Its mean is the plain difference of means. Its width needs the noise of one run,
which three seeds alone say badly, so the sweep's posterior of s is used, updated with the fresh runs:

    d ~ N(gain, (1/n + 1/m) (v + s^2))      weight_h <- weight_h (v + s_h^2)^(-f/2) exp(-SS / (2 (v + s_h^2)))

with SS the squares of the fresh runs around their means and f their degrees of freedom. Where both settings ran the
same seeds the differences are taken seed by seed, and what a seed shares cancels. The interval is the central 95 % of
that mixture of normals with a flat prior on the gain: the sweep's own scores don't enter it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.surface import Posterior


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A contrast of fresh runs, points, higher better."""

    mean: float
    low: float  # 95 % interval
    high: float
    num_of: int
    num_over: int
    is_paired: bool

    @property
    def is_above_zero(self) -> bool:
        """Whether the interval lies above 0: together with the posterior's P(gain > 0), what a claim needs."""
        return self.low > 0


def confirmed_difference(
    of: ArrayLike, over: ArrayLike, posterior: Posterior, variance: float = 0.0, *, is_paired: bool = False
) -> Confirmed:
    """Fresh runs of one setting minus those of another; `variance` is the known one of a run in a contrast.

    is_paired   the runs of equal index share their seed. ValueError if their numbers differ, or one has none.
    """
    first, second = np.asarray(of, dtype=float), np.asarray(over, dtype=float)
    if not first.size or not second.size or (is_paired and first.size != second.size):
        raise ValueError("a contrast needs fresh runs of both settings, as many of each if they are paired")
    if is_paired:
        squares = float(((first - second - (first - second).mean()) ** 2).sum()) / 2
        freedom = first.size - 1
    else:
        squares = float(((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum())
        freedom = first.size + second.size - 2
    variance_H = variance + np.array([setting.hyper["run"][0] ** 2 for setting in posterior.settings])
    log_H = np.log([setting.share for setting in posterior.settings])
    log_H = log_H - 0.5 * freedom * np.log(variance_H) - 0.5 * squares / variance_H
    weight_H = np.exp(log_H - log_H.max())
    weight_H /= weight_H.sum()
    error_H = np.sqrt((1 / first.size + 1 / second.size) * variance_H)
    mean = float(first.mean() - second.mean())
    half = _quantile(0.975, error_H, weight_H)
    return Confirmed(mean, mean - half, mean + half, first.size, second.size, is_paired)


def _quantile(level: float, error_H: np.ndarray, weight_H: np.ndarray) -> float:
    """Of a mixture of centred normals, above 0, by bisection."""
    low, high = 0.0, 10 * float(error_H.max())
    for _ in range(80):
        middle = (low + high) / 2
        is_below = weight_H @ special.ndtr(middle / error_H) < level
        low, high = (middle, high) if is_below else (low, middle)
    return high

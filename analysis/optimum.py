"""From possible surfaces to answers: where the best may be, how sure, how much better. Pure, numpy only.

Letters: K draws of the surface, Q places. Draws are in points, higher better, as `analysis.surface` gives them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.kernels import Floats

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Optimum:
    """Sets of places, from joint draws of the surface.

    near_best_Q   P(f >= max f - epsilon)
    median_Q      the region: places where that is at least 0.5 (the Vorob'ev median of the random set)
    inner_Q       "surely good": the largest superlevel set that lies within the random set with P >= level
    outer_Q       "can't be ruled out": the smallest superlevel set that contains it with P >= level
    optimum_Q     the smallest set that holds the very best place with P >= 0.95
    Source        Bolin and Lindgren 2015 (excursion sets), by Monte Carlo.
    """

    near_best_Q: Floats
    is_best_Q: Floats  # P(this place is the best one)
    median_Q: Mask
    inner_Q: Mask
    outer_Q: Mask
    optimum_Q: Mask
    mean_Q: Floats
    best: int  # of the posterior mean: least expected regret
    regret: float  # expected, of choosing `best`
    sure: float  # P(regret of `best` <= epsilon)


def find_optimum(draws_KQ: Floats, epsilon: float, level: float = 0.9) -> Optimum:
    """All sets of one epsilon (points)."""
    highest_K = draws_KQ.max(axis=1)
    is_near_KQ = draws_KQ >= highest_K[:, None] - epsilon
    near_best_Q = is_near_KQ.mean(axis=0)
    is_best_Q = np.bincount(draws_KQ.argmax(axis=1), minlength=draws_KQ.shape[1]) / len(draws_KQ)
    mean_Q = draws_KQ.mean(axis=0)
    best = int(mean_Q.argmax())
    regret_K = highest_K - draws_KQ[:, best]
    inner_Q, outer_Q = _excursion_sets(near_best_Q, is_near_KQ, level)
    return Optimum(
        near_best_Q,
        is_best_Q,
        near_best_Q >= 0.5,
        inner_Q,
        outer_Q,
        _smallest_set(is_best_Q, 0.95),
        mean_Q,
        best,
        float(regret_K.mean()),
        float((regret_K <= epsilon).mean()),
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """One place minus another, points."""

    mean: float
    low: float  # 95 % interval
    high: float
    positive: float  # P(> 0); half of an exact tie
    relevant: float  # P(> epsilon)
    negligible: float  # P(|.| < epsilon)


def difference(draws_KQ: Floats, of: int, over: int, epsilon: float) -> Difference:
    """The posterior of f(of) - f(over)."""
    gain_K = draws_KQ[:, of] - draws_KQ[:, over]
    low, high = np.quantile(gain_K, (0.025, 0.975))
    return Difference(
        float(gain_K.mean()),
        float(low),
        float(high),
        float((gain_K > 0).mean() + 0.5 * (gain_K == 0).mean()),
        float((gain_K > epsilon).mean()),
        float((np.abs(gain_K) < epsilon).mean()),
    )


def _smallest_set(probability_Q: Floats, level: float) -> Mask:
    order = np.argsort(-probability_Q, kind="stable")
    number = int(np.searchsorted(np.cumsum(probability_Q[order]), level - 1e-12)) + 1
    chosen_Q = np.zeros(probability_Q.size, dtype=bool)
    chosen_Q[order[:number]] = True
    return chosen_Q


def _excursion_sets(near_best_Q: Floats, is_near_KQ: Mask, level: float) -> tuple[Mask, Mask]:
    order = np.argsort(-near_best_Q, kind="stable")
    ordered_KQ = is_near_KQ[:, order]
    inner_Q, outer_Q = np.zeros(order.size, dtype=bool), np.zeros(order.size, dtype=bool)
    inside_Q = np.logical_and.accumulate(ordered_KQ, axis=1).mean(axis=0)
    inner_Q[order[: int((inside_Q >= level).sum())]] = True
    last_K = order.size - 1 - np.argmax(ordered_KQ[:, ::-1], axis=1)
    outer_Q[order[: int(np.quantile(last_K, level, method="higher")) + 1]] = True
    return inner_Q, outer_Q

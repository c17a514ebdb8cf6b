"""Knowledge gradient on the surface's posterior: which run teaches most about where the best weights are. Pure.

Letters: C candidates, Q quantiles of a standard normal.

With the posterior of the surface at the candidates ~ N(m, S) and a run's noise variance s^2, running candidate i moves
the mean to m + S_i / sqrt(S_ii + s^2) Z, Z ~ N(0, 1). What it is worth is how much the best mean is expected to rise:

    KG(i) = E max_c (m_c + S_ci / sqrt(S_ii + s^2) Z) - max_c m_c      >= 0, in points

A batch is chosen one by one: a run that is chosen, or that is pending, lowers S as if its score were known to be what
is expected, S <- S - S_i S_i' / (S_ii + s^2), which doesn't depend on the score.
Source   Frazier, Powell and Dayanik 2009, equation 7; batches as in Wu and Frazier, arXiv:1606.04414, greedily.
Differs  The posterior is a mixture over models and hyper-parameters; its first two moments stand for it.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

from analysis.kernels import Floats

_JITTER = 1e-9  # points squared
_QUANTILES = 63  # midpoints of equal shares: the error of E max is below 1 % of the largest slope


def knowledge_gradient(mean_C: Floats, covariance_CC: Floats, noise_variance: float) -> Floats:
    """The expected rise of the best mean for one more run at each candidate, points."""
    variance_C = np.diag(covariance_CC) + noise_variance
    slope_CC = covariance_CC / np.sqrt(variance_C)[:, None]  # row i: what a run at i moves
    normal_Q = special.ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    best_CQ = (mean_C[None, None, :] + normal_Q[None, :, None] * slope_CC[:, None, :]).max(axis=2)
    return best_CQ.mean(axis=1) - mean_C.max()


def after_run(covariance_CC: Floats, index: int, noise_variance: float) -> Floats:
    """The covariance once one more run at a candidate is known."""
    column_C = covariance_CC[:, index]
    return covariance_CC - np.outer(column_C, column_C) / (covariance_CC[index, index] + noise_variance)


def batch(
    mean_C: Floats, covariance_CC: Floats, noise_variance: float, pending: Sequence[int], wanted: int
) -> list[tuple[int, float]]:
    """The next runs, each given those before it: candidate and what it is worth, points."""
    for index in pending:
        covariance_CC = after_run(covariance_CC, index, noise_variance)
    chosen: list[tuple[int, float]] = []
    for _ in range(wanted):
        worth_C = knowledge_gradient(mean_C, covariance_CC, noise_variance)
        # Where no single run can change the best mean any more, the one that endless repeats would change most.
        best = int(np.argmax(worth_C + 1e-6 * knowledge_gradient(mean_C, covariance_CC, _JITTER)))
        chosen.append((best, max(0.0, float(worth_C[best]))))
        covariance_CC = after_run(covariance_CC, best, noise_variance)
    return chosen

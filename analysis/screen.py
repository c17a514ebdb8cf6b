"""Runs that collapsed: found by leaving runs out, and kept from setting the surface. Pure.

Two collapsed runs hide each other, because together they pass for noise. So every run that the others find unlikely
(CANDIDATE on either side) is distrusted at once, its variance grown by (8 times the prior's run-to-run s.d.)^2; the
surface is fitted without them; and only those are suspects that this surface finds very unlikely (SURPRISING) as
ordinary runs. Runs that now look unlikely join the candidates, and it repeats. The mending is to train a suspect's
cell again with a new seed; until then it hardly counts.

Measured (tests/bench/bench_region.py): 5 % of runs losing 5 points on average at a noise of 0.8, nine in ten of those
that lost over 3 are found, where testing each run once finds half; about one good run in thirty planes is suspected.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.gaussian import Points
from analysis.kernels import AVERAGE, MODELS, Priors
from analysis.surface import FULL, Effort, Posterior, fit_surface

CANDIDATE, SURPRISING = 0.01, 0.00025  # leave-one-out probability of a score as low, or as high
MAX_SHARE = 0.3  # more candidates than that aren't collapsed runs but a wrong model
_SCREENING = Effort(128, 128, 40, max_rounds=1)
_MAX_FITS = 3


@dataclass(frozen=True, slots=True)
class Screened:
    """A surface, the runs it was made to distrust, and the surface that trusts all of them."""

    posterior: Posterior
    suspect_N: NDArray[np.bool_]
    naive: Posterior


def fit_screened(
    points: Points,
    priors: Priors = AVERAGE,
    seed: int = 0,
    *,
    models: Sequence[str] = MODELS,
    effort: Effort = FULL,
) -> Screened:
    """`fit_surface` without its suspects. Costs one fit for a plane without candidates."""
    naive = fit_surface(points, priors, seed, models=models, effort=effort)
    grown = (8 * priors.run[0]) ** 2
    suspect_N = _suspects(points, naive, grown, priors, seed, models)
    if not suspect_N.any():
        return Screened(naive, suspect_N, naive)
    distrusting = replace(points, variances=points.variances + grown * suspect_N)
    return Screened(fit_surface(distrusting, priors, seed, models=models, effort=effort), suspect_N, naive)


def _suspects(
    points: Points, naive: Posterior, grown: float, priors: Priors, seed: int, models: Sequence[str]
) -> NDArray[np.bool_]:
    suspect_N = np.zeros(len(points), dtype=bool)
    candidate_N = _tail(naive.surprise_N) < CANDIDATE
    for _ in range(_MAX_FITS):
        if not candidate_N.any() or candidate_N.sum() > MAX_SHARE * len(points):
            break
        distrusting = replace(points, variances=points.variances + grown * candidate_N)
        without = fit_surface(distrusting, priors, seed, models=models, effort=_SCREENING)
        tail_N = _tail(without.surprise(grown * candidate_N))
        suspect_N = candidate_N & (tail_N < SURPRISING)
        if not ((tail_N < CANDIDATE) & ~candidate_N).any():
            break
        candidate_N |= tail_N < CANDIDATE
    return suspect_N


def _tail(probability_N: np.ndarray) -> np.ndarray:
    return np.minimum(probability_N, 1 - probability_N)

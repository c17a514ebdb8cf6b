"""The provisional region: every ray within some standard errors of the seed-averaged best. Pure, numpy only.

Letters: Y rays (distinct runs per seed), S seeds.

The rule is deliberately simple and says so wherever it is shown: it isn't corrected for having chosen the
best among Y rays. `least_coverage` states what that costs. A later rule takes a Plane and returns a Region.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.plane import Floats, Plane, mean_over_seeds

LABEL = (
    "Provisional region: every cell within {k:g} standard errors of the seed-averaged best; "
    "not yet corrected for having chosen the best among {n}"
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Seed noise pooled over rays; NaN where nothing was measured twice. Units of the metric.

    With three seeds the standard deviation of one ray has two degrees of freedom and is often off by
    half; pooled over 13 rays it has about 24. The price is the assumption that all rays are equally noisy.
    """

    seed: float  # s.d. of one run around its ray's mean
    seed_freedom: int
    difference: float  # s.d. of the difference of two runs with the same seed, pooled over all pairs of rays
    difference_freedom: int

    @property
    def is_paired(self) -> bool:
        """Whether runs of different rays share seeds, so that differences can be taken seed by seed."""
        return math.isfinite(self.difference)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds, or a mean of paired differences. NaN: not measured."""

    mean: float
    standard_error: float
    num_seeds: int


@dataclass(frozen=True, slots=True)
class Region:
    """The rays not told from the best. `members_Y` None: no region, and `why_none` says why."""

    best: int | None  # index of the ray
    estimates: tuple[Estimate, ...]  # of each ray
    members_Y: NDArray[np.bool_] | None
    undecided_Y: NDArray[np.bool_]  # asked, and no run finished yet
    spread: Spread
    standard_errors: float
    coverage: (
        float  # the least share of simulated planes whose true best ray is a member; NaN without a region
    )
    why_none: str
    method: str


def seed_spread(scores_YS: Floats) -> Spread:
    """Pooled seed noise, within rays and between paired runs.

    Shapes   scores (Y, S), NaN where absent.
    Units    those of the scores.
    Exact    for complete scores `difference**2` is twice the residual mean square of the two-way layout
             (ray + seed), and the degrees of freedom given are that layout's.
    Note     Pairing matters: the same seed means the same data order, so part of the noise is common to all
             rays and cancels in a difference.
    """
    there = np.isfinite(scores_YS)
    if not there.any():
        return Spread(math.nan, 0, math.nan, 0)
    centred = np.where(there, scores_YS - scores_YS[there].mean(), 0.0)
    count_Y = there.sum(axis=1)
    squares_Y = (centred**2).sum(axis=1) - centred.sum(axis=1) ** 2 / np.maximum(count_Y, 1)
    freedom = int(np.maximum(count_Y - 1, 0).sum())
    seed = math.sqrt(max(squares_Y.sum(), 0.0) / freedom) if freedom else math.nan
    # all pairs at once: sums of differences and of their squares over the seeds both have
    mask = there.astype(float)
    count_YY = mask @ mask.T
    sum_YY = centred @ mask.T - mask @ centred.T
    square_YY = (centred**2) @ mask.T + mask @ (centred**2).T - 2 * centred @ centred.T
    pairs = np.triu(count_YY >= 2, k=1)
    if not pairs.any():
        return Spread(_clean(seed, scores_YS[there]), freedom, math.nan, 0)
    squares = (square_YY - sum_YY**2 / np.maximum(count_YY, 1))[pairs].sum()
    difference = math.sqrt(max(squares, 0.0) / (count_YY[pairs] - 1).sum())
    seeds_used, rays_used = int((there.sum(axis=0) > 0).sum()), int((count_Y > 0).sum())
    difference_freedom = max(int(there.sum()) - seeds_used - rays_used + 1, 1)
    return Spread(
        _clean(seed, scores_YS[there]), freedom, _clean(difference, scores_YS[there]), difference_freedom
    )


def difference_between(first_S: Floats, second_S: Floats, spread: Spread) -> Estimate:
    """first - second: over the seeds both have, or of the two means if they share none.

    The standard error comes from the pooled spread; NaN if nothing was measured twice.
    """
    common = np.isfinite(first_S) & np.isfinite(second_S)
    if count := int(common.sum()):
        mean = float((first_S[common] - second_S[common]).mean())
        if spread.is_paired:
            return Estimate(mean, spread.difference / math.sqrt(count), count)
        return Estimate(mean, spread.seed * math.sqrt(2 / count), count)
    num_first, num_second = int(np.isfinite(first_S).sum()), int(np.isfinite(second_S).sum())
    if not num_first or not num_second:
        return Estimate(math.nan, math.nan, 0)
    mean = float(np.nanmean(first_S) - np.nanmean(second_S))
    return Estimate(mean, spread.seed * math.sqrt(1 / num_first + 1 / num_second), 0)


def estimate_rays(scores_YS: Floats, spread: Spread) -> tuple[Estimate, ...]:
    """Mean, standard error (from the pooled seed spread) and number of seeds of each ray."""
    means_Y, counts_Y = mean_over_seeds(scores_YS), np.isfinite(scores_YS).sum(axis=1)
    return tuple(
        Estimate(float(mean), spread.seed / math.sqrt(count) if count else math.nan, int(count))
        for mean, count in zip(means_Y, counts_Y, strict=True)
    )


def best_region(plane: Plane, standard_errors: float = 2.0) -> Region:
    """The best ray, and the rays within `standard_errors` standard errors of the difference to it.

    Raises   ValueError for a metric without direction.
    Note     The best is sought among the rays with the most finished seeds, so that one lucky seed of a
             half-finished ray can't win; the others may still be members.
    """
    if plane.metric.better == "none":
        raise ValueError(f"{plane.metric.name} has no direction")
    scores_YS = plane.scores_YS
    spread = seed_spread(scores_YS)
    estimates = estimate_rays(scores_YS, spread)
    undecided_Y = np.array([estimate.num_seeds == 0 for estimate in estimates], dtype=bool)
    best = _best_ray(estimates, plane.metric.better)
    why_none = _why_none(estimates, best, spread)
    members_Y, coverage = None, math.nan
    if best is not None and not why_none:
        sign = 1.0 if plane.metric.better == "higher" else -1.0
        members_Y = np.zeros(len(estimates), dtype=bool)
        for index, scores_S in enumerate(scores_YS):
            behind = difference_between(scores_YS[best], scores_S, spread)
            members_Y[index] = (
                index == best or sign * behind.mean <= standard_errors * behind.standard_error + 1e-12
            )
        coverage = least_coverage(int((~undecided_Y).sum()), estimates[best].num_seeds, standard_errors)
    method = _method(spread, standard_errors, int((~undecided_Y).sum())) if not why_none else ""
    return Region(
        best, estimates, members_Y, undecided_Y, spread, standard_errors, coverage, why_none, method
    )


@functools.cache
def least_coverage(num_rays: int, num_seeds: int, standard_errors: float, num_planes: int = 1000) -> float:
    """How often the rule keeps the ray that is truly best, at worst: when all rays are equally good.

    Simulated with normal noise, equal in all rays and independent between runs, from a fixed seed; the Monte
    Carlo error is about 0.01. NaN for one seed, where the rule gives nothing.
    Note     For one comparison it is the 0.977 of a one-sided interval; with 13 rays it is less, because the
             best observed of many equals is a lucky one, and the true best is compared with it.
    """
    if num_seeds < 2 or num_rays < 2:
        return math.nan
    generator = np.random.default_rng(2507_07817)
    kept = 0
    for _ in range(num_planes):
        scores_YS = generator.standard_normal((num_rays, num_seeds))
        means_Y = scores_YS.mean(axis=1)
        residual = scores_YS - means_Y[:, None] - scores_YS.mean(axis=0) + means_Y.mean()
        variance = (residual**2).sum() / ((num_rays - 1) * (num_seeds - 1))
        kept += means_Y.max() - means_Y[0] <= standard_errors * math.sqrt(2 * variance / num_seeds)
    return float(kept / num_planes)


def _best_ray(estimates: tuple[Estimate, ...], better: str) -> int | None:
    most = max((estimate.num_seeds for estimate in estimates), default=0)
    complete = [index for index, estimate in enumerate(estimates) if most and estimate.num_seeds == most]
    if not complete:
        return None
    sign = 1.0 if better == "higher" else -1.0
    return max(complete, key=lambda index: (sign * estimates[index].mean, -index))


def _why_none(estimates: tuple[Estimate, ...], best: int | None, spread: Spread) -> str:
    if best is None:
        return "no run has finished"
    if sum(estimate.num_seeds > 0 for estimate in estimates) < 2:
        return "only one distinct run has finished, so there is nothing to compare it with"
    if not math.isfinite(spread.seed):
        return "one seed only, so the noise is unknown and neither a region nor a spread can be given"
    return ""


def _method(spread: Spread, standard_errors: float, num_rays: int) -> str:
    label = LABEL.format(k=standard_errors, n=f"{num_rays} distinct runs") + ". "
    if spread.is_paired:
        return label + (
            "The standard error of a difference comes from paired runs (same seed, same data order): "
            "the standard deviation of the seed-by-seed differences, pooled over all pairs of distinct runs "
            f"({spread.difference_freedom} degrees of freedom), divided by the root of the number of seeds"
        )
    return label + (
        "The standard error of a difference comes from the seed standard deviation, pooled over "
        f"distinct runs ({spread.seed_freedom} degrees of freedom), because no two of them share two seeds"
    )


def _clean(spread: float, scores_N: Floats) -> float:
    """Zero for what is only rounding: identical scores must not look like noise of 1e-17."""
    scale = float(np.abs(scores_N).max())
    return 0.0 if math.isfinite(spread) and spread <= 1e-9 * scale else spread

"""The region of one plane: the settings that may well be as good as the best one. Pure.

Letters: Y rays (distinct runs per seed), S seeds.

A setting belongs to it if the posterior of the plane's surface (`analysis.landscape`) puts it within epsilon of the
best setting with probability 1/2 or more. Beside it stand the raw means of seeds, which assume no surface.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.invariance import Invariance, invariance_of, models_for
from analysis.landscape import Landscape, make_landscape, runs_of
from analysis.noise import Noise, check_deviation, two_way_deviation
from analysis.optimum import Difference
from analysis.plane import Floats, Plane, mean_over_seeds
from analysis.units import scale_of

CONVENTIONAL = (0.0, 1.0)  # instruction tuning: the loss on responses only
METHOD = (
    "Gaussian-process surface over the weights: flat, ratio-only, nearly ratio-only and Cartesian surfaces averaged "
    "by their evidence, every hyper-parameter integrated out, known evaluation variance plus an inferred run-to-run "
    "standard deviation. A setting is in the region if it is within epsilon of the best one with probability 1/2 or "
    "more"
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
    """The answer for one plane. Indices are rays. `members_Y` None: no region, and `why_none` says why."""

    best: int | None  # of the posterior mean; of the seed means where there is no surface
    recommended: int | None  # best, or (0, 1) unless the gain over it is all but sure
    estimates: tuple[Estimate, ...]  # raw means of each ray
    members_Y: (
        NDArray[np.bool_] | None
    )  # within epsilon of the best with probability 1/2 or more; best included
    undecided_Y: NDArray[np.bool_]  # asked, and no run finished yet
    spread: Spread
    noise: Noise
    landscape: Landscape | None
    invariance: Invariance | None
    why_none: str
    method: str

    def gain(self, ray: int | None) -> Difference | None:
        """Posterior gain of a ray over (0, 1), points, higher better; None without surface or either ray."""
        return None if self.landscape is None or ray is None else self.landscape.gains_Y[ray]


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


def best_region(
    plane: Plane,
    epsilon: float | None = None,
    variances: dict[tuple[int, int, bool], float] | None = None,
    clipped: tuple[float, float] | None = None,
) -> Region:
    """The surface of the plane, its region and its noise.

    epsilon      what nobody would care about, metric's unit; None: by unit (see `analysis.units`).
    variances    known evaluation variances, see `make_landscape`.
    clipped      least and largest share of clipped steps, of the plane's runs; None: no clip.
    Raises       ValueError for a metric without direction.
    """
    scores_YS = plane.scores_YS
    scale = scale_of(plane.metric, _typical(plane, scores_YS), epsilon)
    spread = seed_spread(scores_YS)
    estimates = estimate_rays(scores_YS, spread)
    undecided_Y = np.array([estimate.num_seeds == 0 for estimate in estimates], dtype=bool)
    best = _best_ray(estimates, plane.metric.better)
    why_none = _why_none(estimates, best)
    conventional = plane.ray_at(*CONVENTIONAL)
    # A clip and merged rays go together only where the loss itself knows no scale (objective.normalisation).
    is_merged = any(len(ray.cells) > 1 for ray in plane.rays)
    models = models_for(None if is_merged else clipped)
    landscape = None if why_none else make_landscape(plane, scale, conventional, variances, models=models)
    noise = noise_of(plane, landscape, variances)
    if landscape is None:
        return Region(best, best, estimates, None, undecided_Y, spread, noise, None, None, why_none, "")
    members_Y = landscape.of_rays(landscape.optimum.median_Q)
    members_Y[landscape.best] = True
    return Region(
        landscape.best,
        landscape.recommended,
        estimates,
        members_Y,
        undecided_Y,
        spread,
        noise,
        landscape,
        invariance_of(plane, landscape, noise, clipped),
        "",
        METHOD,
    )


def noise_of(
    plane: Plane, landscape: Landscape | None, variances: dict[tuple[int, int, bool], float] | None
) -> Noise:
    """Every estimate of the noise beside each other; NaN for those that the runs can't give."""
    seed, freedom = two_way_deviation(plane.scores_YS)
    runs = {(run.ray, run.seed): run.score for run in runs_of(plane) if not run.is_check}
    check, num_checks = check_deviation(
        [check.score - runs.get((check.ray, check.seed), math.nan) for check in plane.checks]
    )
    known = [value for value in (variances or {}).values() if math.isfinite(value)]
    evaluation = math.sqrt(sum(known) / len(known)) if known else math.nan
    if landscape is None:
        return Noise(
            evaluation,
            seed,
            freedom,
            check,
            num_checks,
            math.nan,
            math.nan,
            math.nan,
            seed if freedom else math.nan,
        )
    size, posterior = landscape.scale.size, landscape.posterior
    inferred = size(posterior.run_deviation)
    low, high = (size(value) for value in posterior.run_deviation_interval)
    run = math.hypot(inferred, evaluation if known else 0.0)
    return Noise(evaluation, seed, freedom, check, num_checks, inferred, low, high, run)


def _best_ray(estimates: tuple[Estimate, ...], better: str) -> int | None:
    most = max((estimate.num_seeds for estimate in estimates), default=0)
    complete = [index for index, estimate in enumerate(estimates) if most and estimate.num_seeds == most]
    if not complete:
        return None
    sign = 1.0 if better == "higher" else -1.0
    return max(complete, key=lambda index: (sign * estimates[index].mean, -index))


def _why_none(estimates: tuple[Estimate, ...], best: int | None) -> str:
    if best is None:
        return "no run has finished"
    means = {estimate.mean for estimate in estimates if estimate.num_seeds}
    if sum(estimate.num_seeds > 0 for estimate in estimates) < 2:
        return "only one distinct run has finished, so there is nothing to compare it with"
    if len(means) == 1:
        return "all scores are equal, so nothing can be distinguished"
    return ""


def _typical(plane: Plane, scores_YS: Floats) -> Floats:
    """Seed means of the rays with a response weight: what sets the size of a metric without natural one."""
    means_Y = mean_over_seeds(scores_YS)
    chosen = [mean for ray, mean in zip(plane.rays, means_Y.tolist(), strict=True) if ray.response_weight > 0]
    return np.array(chosen if np.isfinite(chosen).any() else means_Y)


def _clean(spread: float, scores_N: Floats) -> float:
    """Zero for what is only rounding: identical scores must not look like noise of 1e-17."""
    scale = float(np.abs(scores_N).max())
    return 0.0 if math.isfinite(spread) and spread <= 1e-9 * scale else spread

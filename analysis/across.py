"""Does it hold across models and datasets? Maps of agreement, a pooled region, and choices judged where unseen. Pure.

Letters: P planes, Q places of the decision grid, K draws. Points of 0 to 100, higher better.

Three populations, never mixed in words: each plane by itself; the mean of these planes; one more plane, of a new
model on a new dataset. A choice is always judged by runs that had no part in it: the planes that were left out, and
their test scores where validation chose.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from analysis.coregional import PooledPlane
from analysis.gaussian import Points
from analysis.kernels import AVERAGE, Floats, Priors
from analysis.optimum import Difference, Optimum, difference, find_optimum
from analysis.pooled import Pooled, fit_pooled
from analysis.surface import Posterior

Pair = tuple[float, float]
CONVENTIONAL: Pair = (0.0, 1.0)
SURE = 0.95  # posterior probability from which a plane counts as better or worse
DECISIONS = np.array([(p / 10, r / 10) for p in range(11) for r in range(11) if p + r])


@dataclass(frozen=True, slots=True)
class PlaneScores:
    """One plane: what validation's runs leave possible, and the scores that judge a choice."""

    name: str
    model: str
    dataset: str
    chosen: Posterior
    judged: Points  # test scores of the same runs; validation's own where there are none
    stretch: float = (
        1.0  # from the posterior's points to those of all planes, where a unit has no natural size
    )

    @property
    def has_convention(self) -> bool:
        """Whether any run is at instruction tuning, under whatever scale: else there is no gain to speak of."""
        return bool((self.judged.prompt_weights == 0).any())


@dataclass(frozen=True, slots=True)
class Gain:
    """A ray's runs minus the convention's, on scores that didn't choose it. Points."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What the choice of all other planes gained on those of one model, one dataset, or on one plane."""

    factor: Literal["model", "dataset", "plane"]
    level: str
    choice: Pair
    gain: Gain
    num_planes: int
    num_positive: int


@dataclass(frozen=True, slots=True)
class Across:
    """Everything said about several planes. `pooled` None: one plane, or none with the convention."""

    planes: tuple[PlaneScores, ...]
    epsilon: float
    places_Q2: Floats  # prompt and response weight of the decisions
    better_Q: Floats  # planes with P(better than (0, 1)) above SURE
    worse_Q: Floats
    near_best_Q: Floats  # mean over planes of P(within epsilon of the best)
    pooled: Pooled | None
    common: Optimum | None  # of the mean surface of these planes
    common_gain: Difference | None
    new: Optimum | None  # of a new model on a new dataset
    new_gain: Difference | None
    left_out: tuple[LeftOut, ...]
    silences: tuple[str, ...]  # what can't be said, and why

    @property
    def recommended(self) -> Pair | None:
        """One pair for all of these planes: where their mean surface is highest; see `steady_best`."""
        if self.common is None:
            return None
        return _pair(self.places_Q2[steady_best(self.places_Q2, self.common.mean_Q, self.epsilon)])


def across_planes(
    planes: Sequence[PlaneScores],
    epsilon: float,
    *,
    places_Q2: Floats = DECISIONS,
    priors: Priors = AVERAGE,
    seed: int = 0,
) -> Across:
    """Compare and pool planes of one metric. Planes without (0, 1) are named and left out.

    places_Q2   the decisions, (0, 1) among them: a lattice, or the edge of the square where rays are merged.
    """
    told = tuple(plane for plane in planes if plane.has_convention)
    silences = [
        f"{plane.name} has no run at (0, 1): no gain can be formed there, so it is left out"
        for plane in planes
        if not plane.has_convention
    ]
    prompt_Q, response_Q = places_Q2.T
    origin = convention_of(places_Q2)
    better_Q, worse_Q, near_Q = np.zeros((3, len(places_Q2)))
    for plane in told:
        draws_KQ = plane.stretch * plane.chosen.draws(prompt_Q, response_Q, 1024)
        gain_KQ = draws_KQ - draws_KQ[:, [origin]]
        better_Q += (gain_KQ > 0).mean(axis=0) > SURE
        worse_Q += (gain_KQ < 0).mean(axis=0) > SURE
        near_Q += find_optimum(draws_KQ, epsilon).near_best_Q / len(told)
    maps = places_Q2, better_Q, worse_Q, near_Q
    if len(told) < 2:
        silences.append(f"{len(told)} plane with (0, 1): nothing can be said across planes")
        nothing = None, None, None, None, None
        return Across(tuple(planes), epsilon, *maps, *nothing, (), tuple(silences))
    pooled = fit_pooled([_pooled_plane(plane) for plane in told], priors, seed)
    draws = pooled.draws(prompt_Q, response_Q)
    mean_KQ = draws.planes_KPQ.mean(axis=1)
    common, new = find_optimum(mean_KQ, epsilon), find_optimum(draws.new_KQ, epsilon)
    best = steady_best(places_Q2, common.mean_Q, epsilon)
    left_out, unsaid = _left_out(told, pooled)
    return Across(
        tuple(planes),
        epsilon,
        *maps,
        pooled,
        common,
        difference(mean_KQ, best, origin, epsilon),
        new,
        difference(draws.new_KQ, best, origin, epsilon),  # the common pair, on a plane that wasn't run
        left_out,
        (*silences, *unsaid),
    )


def convention_of(places_Q2: Floats) -> int:
    """The row of (0, 1)."""
    return int(np.flatnonzero((places_Q2 == CONVENTIONAL).all(axis=1))[0])


def steady_best(places_Q2: Floats, mean_Q: Floats, epsilon: float) -> int:
    """The highest of the decisions; among those within epsilon / 20 of it the largest weights, then the least prompt.

    Scales of one ratio differ by Monte Carlo error only: which of them comes out highest means nothing.
    """
    close = np.flatnonzero(mean_Q >= mean_Q.max() - epsilon / 20)
    return int(min(close, key=lambda q: (-places_Q2[q].max(), places_Q2[q, 0])))


def ray_of(pair: Pair) -> Fraction | None:
    """prompt / response weight; None for prompt only. Decimals as written: 0.2 / 0.6 is 1/3."""
    prompt, response = (Fraction(repr(float(weight))) for weight in pair)
    return prompt / response if response else None


def runs_on_ray(points: Points, pair: Pair) -> list[int]:
    """The runs whose weights have that ratio."""
    wanted = ray_of(pair)
    pairs = zip(points.prompt_weights.tolist(), points.response_weights.tolist(), strict=True)
    return [index for index, own in enumerate(pairs) if ray_of(own) == wanted]


def judged_gain(plane: PlaneScores, pair: Pair) -> Gain | None:
    """Runs on the pair's ray minus runs on the convention's; None if either has none.

    The standard error takes the run-to-run s.d. of the plane's own fit and the runs' known evaluation variance.
    """
    points = plane.judged
    of, over = runs_on_ray(points, pair), runs_on_ray(points, CONVENTIONAL)
    if not of or not over:
        return None
    if set(of) == set(over):
        return Gain(0.0, 0.0)
    (first, first_variance), (second, second_variance) = (
        _weighted_mean(
            points.scores[runs], (plane.stretch * plane.chosen.run_deviation) ** 2 + points.variances[runs]
        )
        for runs in (of, over)
    )
    return Gain(first - second, math.sqrt(first_variance + second_variance))


def _weighted_mean(scores: Floats, variances: Floats) -> tuple[float, float]:
    """By precision: a run suspected of having collapsed hardly counts. Its mean and variance."""
    precision = 1 / variances
    return float(precision @ scores / precision.sum()), float(1 / precision.sum())


def _left_out(planes: Sequence[PlaneScores], pooled: Pooled) -> tuple[tuple[LeftOut, ...], list[str]]:
    found: list[LeftOut] = []
    unsaid: list[str] = []
    names: Mapping[str, Callable[[PlaneScores], str]] = {
        "model": lambda plane: plane.model,
        "dataset": lambda plane: plane.dataset,
        "plane": lambda plane: plane.name,
    }
    candidates = np.array(_common_rays(planes))
    for factor in ("model", "dataset", "plane"):
        levels = list(dict.fromkeys(names[factor](plane) for plane in planes))
        if len(levels) < 2:
            unsaid.append(f"one {factor} only: no leave-one-{factor}-out")
            continue
        if not len(candidates):
            unsaid.append(f"no ratio but (0, 1) was run on every plane: no leave-one-{factor}-out")
            continue
        for level in levels:
            out = [index for index, plane in enumerate(planes) if names[factor](plane) == level]
            mean_Q = pooled.mean_without(out, candidates[:, 0], candidates[:, 1])
            choice = _pair(candidates[int(np.argmax(mean_Q))])
            gains = [gain for index in out if (gain := judged_gain(planes[index], choice)) is not None]
            if not gains:
                continue
            mean = Gain(
                float(np.mean([gain.mean for gain in gains])),
                math.sqrt(sum(gain.standard_error**2 for gain in gains)) / len(gains),
            )
            positive = sum(gain.mean > 0 for gain in gains)
            found.append(LeftOut(factor, level, choice, mean, len(gains), positive))
    return tuple(found), unsaid


def _common_rays(planes: Sequence[PlaneScores]) -> list[Pair]:
    """One pair for every ratio that each plane has runs of, the convention among them; largest weights."""
    rays: dict[Fraction | None, Pair] = {}
    counts: dict[Fraction | None, int] = {}
    for plane in planes:
        pairs = set(
            zip(plane.judged.prompt_weights.tolist(), plane.judged.response_weights.tolist(), strict=True)
        )
        for ray in {ray_of(pair) for pair in pairs}:
            counts[ray] = counts.get(ray, 0) + 1
        for pair in pairs:
            ray = ray_of(pair)
            rays[ray] = max(rays.get(ray, pair), pair)
    shared = [pair for ray, pair in rays.items() if counts[ray] == len(planes)]
    return sorted(shared, key=lambda pair: math.atan2(*pair)) if len(shared) > 1 else []


def _pooled_plane(plane: PlaneScores) -> PooledPlane:
    own, stretch = plane.chosen.points, plane.stretch
    points = replace(own, scores=stretch * own.scores, variances=stretch**2 * own.variances)
    return PooledPlane(plane.model, plane.dataset, points, stretch * plane.chosen.run_deviation)


def _pair(weights: Floats) -> Pair:
    return float(weights[0]), float(weights[1])

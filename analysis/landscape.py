"""One plane's surface and what it says: where the best may be, what each ray gains, what is recommended. Pure.

Letters: N runs, Y rays, S seeds, Q places of the decision grid, K draws.

Places. Where rays are pooled, or every run was trained on the edge of the unit square (its largest weight 1), the
decision grid is that edge: the asked ratios, and ratios between them no farther apart than STEP of a right angle. Else
it is the asked cells and a lattice of LATTICE steps within their bounding box. Prompt-only and response-only places
belong to it only where runs were made there: the surface jumps at both.

A setting is recommended among those that were trained: the best posterior mean, or (0, 1) unless
P(gain over it > 0) >= CONVINCING, because a change of habit needs a reason.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.gaussian import Points
from analysis.kernels import MODELS, Floats
from analysis.optimum import Difference, Optimum, difference, find_optimum
from analysis.plane import Plane
from analysis.screen import Screened, fit_screened
from analysis.surface import Posterior
from analysis.units import Scale

STEP = 1 / 36  # of a right angle: 2.5 degrees
LATTICE = 11
CONVINCING = 0.975
NUM_DRAWS = 2048


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run of a plane, as the surface sees it."""

    ray: int
    seed: int
    weights: tuple[float, float]  # as trained
    score: float  # metric's unit
    is_check: bool


@dataclass(frozen=True, slots=True)
class Landscape:
    """The posterior of one plane on its decision grid. Points, higher better, unless said otherwise."""

    scale: Scale
    runs: tuple[Run, ...]  # in the order of the posterior's points
    screened: Screened
    prompt_Q: Floats
    response_Q: Floats
    place_Y: NDArray[np.int_]  # row of the decision grid that is the ray's; -1: nothing finished
    draws_KQ: Floats
    optimum: Optimum
    best: int  # ray
    recommended: int  # ray
    gains_Y: tuple[Difference | None, ...]  # over (0, 1), of each ray; None if either is absent
    on_edge: bool

    @property
    def posterior(self) -> Posterior:
        """The surface without suspects."""
        return self.screened.posterior

    @property
    def angle_Q(self) -> Floats:
        """Degrees; 0 response only, 45 equal weights, 90 prompt only."""
        return np.degrees(np.arctan2(self.prompt_Q, self.response_Q))

    @property
    def suspects(self) -> tuple[Run, ...]:
        """Runs that the surface distrusts."""
        return tuple(
            run for run, is_suspect in zip(self.runs, self.screened.suspect_N, strict=True) if is_suspect
        )

    def ratios(self, chosen_Q: NDArray[np.bool_]) -> tuple[float, float] | None:
        """Least and largest prompt / response weight of some places; prompt-only ones left out. None if none."""
        there = chosen_Q & (self.response_Q > 0)
        if not there.any():
            return None
        found = self.prompt_Q[there] / self.response_Q[there]
        return float(found.min()), float(found.max())

    def of_rays(self, chosen_Q: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each ray's place is among the chosen ones."""
        return np.array([place >= 0 and bool(chosen_Q[place]) for place in self.place_Y], dtype=bool)


def runs_of(plane: Plane) -> tuple[Run, ...]:
    """Every finished run with a score, checks last."""
    found = []
    for index, (ray, scores_S) in enumerate(zip(plane.rays, plane.scores_YS, strict=True)):
        for seed, score in zip(plane.seeds_S, scores_S, strict=True):
            if math.isfinite(score):
                found.append(Run(index, seed, ray.trained_at, float(score), False))
    for check in plane.checks:
        if math.isfinite(check.score):
            weights = check.prompt_weight, check.response_weight
            found.append(Run(check.ray, check.seed, weights, check.score, True))
    return tuple(found)


def make_landscape(
    plane: Plane,
    scale: Scale,
    conventional: int | None,
    variances: dict[tuple[int, int, bool], float] | None = None,
    seed: int = 0,
    models: Sequence[str] = MODELS,
) -> Landscape | None:
    """The surface of one plane; None with fewer than two rays finished.

    variances: the known evaluation variance of a run by (ray, seed, is a check), metric's unit squared.
    models: the surfaces that are averaged.
    """
    runs = runs_of(plane)
    if len({run.ray for run in runs}) < 2:
        return None
    known = variances or {}
    points = Points.of(
        [run.weights[0] for run in runs],
        [run.weights[1] for run in runs],
        scale.points(np.array([run.score for run in runs])),
        [scale.factor**2 * known.get((run.ray, run.seed, run.is_check), 0.0) for run in runs],
        [run.seed for run in runs],
    )
    screened = fit_screened(points, scale.priors, seed, models=models)
    prompt_Q, response_Q, on_edge = decision_places(plane, runs)
    draws_KQ = screened.posterior.draws(prompt_Q, response_Q, NUM_DRAWS)
    optimum = find_optimum(draws_KQ, scale.epsilon_points)
    finished = {run.ray for run in runs if not run.is_check}
    place_Y = np.array(
        [
            _row(prompt_Q, response_Q, _place(ray.trained_at, on_edge)) if index in finished else -1
            for index, ray in enumerate(plane.rays)
        ]
    )
    there = [index for index in range(len(plane.rays)) if place_Y[index] >= 0]
    best = max(there, key=lambda index: (float(optimum.mean_Q[place_Y[index]]), -index))
    origin = -1 if conventional is None else int(place_Y[conventional])
    gains_Y = tuple(
        None if origin < 0 or place < 0 else difference(draws_KQ, place, origin, scale.epsilon_points)
        for place in place_Y.tolist()
    )
    gain = gains_Y[best]
    recommended = best
    if conventional is not None and gain is not None and gain.positive < CONVINCING:
        recommended = conventional
    return Landscape(
        scale,
        runs,
        screened,
        prompt_Q,
        response_Q,
        place_Y,
        draws_KQ,
        optimum,
        best,
        recommended,
        gains_Y,
        on_edge,
    )


def decision_places(plane: Plane, runs: Sequence[Run]) -> tuple[Floats, Floats, bool]:
    """Prompt and response weights of the decision grid, and whether it is the edge of the unit square."""
    trained = sorted({plane.rays[run.ray].trained_at for run in runs if not run.is_check})
    is_pooled = any(len(ray.cells) > 1 for ray in plane.rays)
    on_edge = is_pooled or all(max(weights) == 1.0 for weights in trained)
    found = list(dict.fromkeys(_place(weights, on_edge) for weights in trained))
    if on_edge:
        angles = sorted(math.atan2(*weights) for weights in trained)
        for low, high in itertools.pairwise(angles):
            number = math.ceil((high - low) / (STEP * math.pi / 2) - 1e-9)
            found += [_on_edge(low + (high - low) * step / number) for step in range(1, number)]
    else:
        ranges = [(min(side), max(side)) for side in zip(*trained, strict=True)]
        sides = [np.linspace(low, high, LATTICE) for low, high in ranges]
        has_zero = [any(weights[side] == 0 for weights in trained) for side in (0, 1)]
        known = np.array(trained)
        for p in sides[0].tolist():
            for r in sides[1].tolist():
                is_new = np.abs(known - (p, r)).max(axis=1).min() > 1e-9
                if is_new and p + r > 0 and (p > 0 or has_zero[0]) and (r > 0 or has_zero[1]):
                    found.append((p, r))
    ordered = sorted(found, key=lambda weights: (math.atan2(*weights), max(weights)))
    prompt_Q, response_Q = np.array(ordered, dtype=float).T
    return prompt_Q, response_Q, on_edge


def _place(weights: tuple[float, float], on_edge: bool) -> tuple[float, float]:
    """Where on the decision grid a run's weights lie."""
    return (weights[0] / max(weights), weights[1] / max(weights)) if on_edge else weights


def _on_edge(angle: float) -> tuple[float, float]:
    p, r = math.sin(angle), math.cos(angle)
    return p / max(p, r), r / max(p, r)


def _row(prompt_Q: Floats, response_Q: Floats, weights: tuple[float, float]) -> int:
    rows = np.flatnonzero((prompt_Q == weights[0]) & (response_Q == weights[1]))
    return int(rows[0]) if rows.size else -1

"""search=adaptive: the knowledge gradient on the report's own surface. Pure.

One metric: the run that is expected to raise the best posterior mean most. Two: of a weighted sum of both surfaces,
whose weight walks from one metric to the other, so that the whole trade-off is explored (ParEGO's idea, Knowles 2006).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.gaussian import Points
from analysis.kernels import BENCHMARK, Floats
from analysis.optimum import Optimum, find_optimum
from analysis.search.knowledge import batch
from analysis.search.questions import Told
from analysis.search.scales import Scale, scale_of
from analysis.surface import QUICK, Effort, Posterior, fit_surface
from sweep.candidates import Weights, van_der_corput
from train.metrics import Metric

NUM_DRAWS = 1024
PLAUSIBLE = 0.1  # posterior weight from which a surface must agree before the region counts as known


@dataclass(frozen=True, slots=True)
class Belief:
    """What the runs say of every candidate, in points, higher better; a posterior for each metric."""

    places: tuple[Weights, ...]
    posteriors: tuple[Posterior, ...]
    scales: tuple[Scale, ...]

    def moments(self, share: float) -> tuple[Floats, Floats, float]:
        """Mean, covariance and a run's noise variance of the metrics' weighted sum."""
        weights = _weights(share, len(self.posteriors))
        parts = [found.moments(*_columns(self.places)) for found in self.posteriors]
        mean = sum(weight * mean for weight, (mean, _) in zip(weights, parts, strict=True))
        covariance = sum(weight**2 * one for weight, (_, one) in zip(weights, parts, strict=True))
        noise = sum(
            weight**2 * (found.run_deviation**2 + float(found.points.variances.mean()))
            for weight, found in zip(weights, self.posteriors, strict=True)
        )
        return np.asarray(mean), np.asarray(covariance), float(noise)

    def draws(self, share: float) -> Floats:
        """Possible surfaces of the weighted sum, one row each."""
        weights = _weights(share, len(self.posteriors))
        rows = [found.draws(*_columns(self.places), NUM_DRAWS) for found in self.posteriors]
        number = min(map(len, rows))
        return np.asarray(sum(weight * row[:number] for weight, row in zip(weights, rows, strict=True)))

    def optimum(self, share: float, epsilon_points: float) -> Optimum:
        """The recommended candidate and how sure it is, for the metrics' weighted sum.

        `sure` is the least of P(regret <= epsilon) over the average and over every surface (flat, ratio only, ...)
        that the runs leave PLAUSIBLE: a search chooses its runs by the same average that would declare it over, and
        averages hide that the runs haven't yet decided between surfaces whose optima differ.
        """
        draws_KC = self.draws(share)
        found = find_optimum(draws_KC, epsilon_points)
        is_near_K = draws_KC.max(axis=1) - draws_KC[:, found.best] <= epsilon_points
        sure = found.sure
        for posterior in self.posteriors:
            model_K = posterior.models_of_draws(NUM_DRAWS)[: len(draws_KC)]
            for model, weight in posterior.model_weights.items():
                if weight >= PLAUSIBLE and (model_K == model).any():
                    sure = min(sure, float(is_near_K[model_K == model].mean()))
        return replace(found, sure=sure)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weighted sums at which an end is judged."""
        return (1.0,) if len(self.posteriors) == 1 else (0.0, 0.5, 1.0)


def believe(
    places: Sequence[Weights],
    told: Sequence[Told],
    metrics: Sequence[Metric],
    seed: int,
    effort: Effort = QUICK,
) -> Belief:
    """The posterior of every metric, from all runs told. One run at least. QUICK is for proposals, not for claims."""
    posteriors, scales = [], []
    for metric in metrics:
        scores = [run.metrics[metric.name] for run in told]
        scale = scale_of(metric, scores)
        points = Points.of(
            *_columns([run.weights for run in told]),
            [scale.points(score) for score in scores],
            0.0,
            [run.seed for run in told],
        )
        posteriors.append(fit_surface(points, BENCHMARK, seed, effort=effort))
        scales.append(scale)
    return Belief(tuple(places), tuple(posteriors), tuple(scales))


def propose(
    belief: Belief, pending: Sequence[Weights], wanted: int, number: int
) -> list[tuple[Weights, float]]:
    """The next runs and what each is worth, in points. number: of runs asked before, which picks the weighted sum."""
    found: list[tuple[Weights, float]] = []
    waiting = [_nearest(belief.places, weights) for weights in pending]
    for index in range(wanted):
        share = 1.0 if len(belief.posteriors) == 1 else van_der_corput(number + index)
        mean_C, covariance_CC, noise_variance = belief.moments(share)
        ((best, worth),) = batch(mean_C, covariance_CC, noise_variance, waiting, 1)
        waiting.append(best)
        found.append((belief.places[best], worth))
    return found


def _columns(pairs: Sequence[Weights]) -> tuple[Floats, Floats]:
    prompt, response = np.array(pairs, dtype=float).reshape(-1, 2).T
    return prompt, response


def _nearest(places: Sequence[Weights], weights: Weights) -> int:
    return min(range(len(places)), key=lambda index: math.dist(places[index], weights))


def _weights(share: float, number: int) -> tuple[float, ...]:
    return (1.0,) if number == 1 else (share, 1.0 - share)

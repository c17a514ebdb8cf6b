"""search=adaptive: the knowledge gradient on the report's own surface, as a sampler of Optuna.

One metric: the run that is expected to raise the best posterior mean most. Two: of a weighted sum of both surfaces,
whose weight walks from one metric to the other, so that the whole trade-off is explored (ParEGO's idea, Knowles 2006).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from analysis.gaussian import Points
from analysis.kernels import BENCHMARK, Floats
from analysis.optimum import Optimum, find_optimum
from analysis.search.knowledge import batch
from analysis.search.questions import Told
from analysis.search.scales import Scale, scale_of
from analysis.search.space import ANGLE, PROMPT, RESPONSE, angle_of
from analysis.surface import QUICK, Posterior, fit_surface
from sweep.candidates import Weights, van_der_corput, weights_at
from train.metrics import Metric

NUM_DRAWS = 1024


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
        """The recommended candidate and how sure it is, for the metrics' weighted sum."""
        return find_optimum(self.draws(share), epsilon_points)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weighted sums at which an end is judged."""
        return (1.0,) if len(self.posteriors) == 1 else (0.0, 0.5, 1.0)


def believe(places: Sequence[Weights], told: Sequence[Told], metrics: Sequence[Metric], seed: int) -> Belief:
    """The posterior of every metric, from all runs told. One run at least."""
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
        posteriors.append(fit_surface(points, BENCHMARK, seed, effort=QUICK))
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


class KnowledgeGradientSampler(BaseSampler):
    """The same for any Optuna study whose parameters are prompt_weight and response_weight, or angle alone.

        study = optuna.create_study(direction="maximize", sampler=KnowledgeGradientSampler(places, metrics))

    places: the pairs to choose from. metrics: of the study's values, in their order.
    """

    def __init__(self, places: Sequence[Weights], metrics: Sequence[Metric], seed: int = 0) -> None:
        self._places, self._metrics, self._seed = tuple(places), tuple(metrics), seed
        self.worth: float | None = None  # of the last suggestion, points

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """The parameters come with the question (`study.ask(distributions)`), not from earlier trials."""
        complete = [one for one in study.get_trials(deepcopy=False) if one.values]
        return complete[-1].distributions if complete else {}

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        """One suggestion, given all that is complete and all that runs."""
        if not search_space:
            return {}
        trials = study.get_trials(deepcopy=False)
        told = [
            Told(
                weights=_weights_in(one.params),
                seed=one.user_attrs.get("seed", 0),
                metrics=dict(zip([metric.name for metric in self._metrics], one.values, strict=True)),
            )
            for one in trials
            if one.state == TrialState.COMPLETE
        ]
        pending = [
            _weights_in(one.params) for one in trials if one.state == TrialState.RUNNING and one.params
        ]
        belief = believe(self._places, told, self._metrics, self._seed)
        ((weights, self.worth),) = propose(belief, pending, 1, len(trials) - 1)
        if ANGLE in search_space:
            return {ANGLE: angle_of(weights)}
        return {PROMPT: weights[0], RESPONSE: weights[1]}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """Before anything is told: the middle of the range."""
        return (param_distribution.low + param_distribution.high) / 2


def _weights_in(params: Mapping[str, float]) -> Weights:
    if ANGLE not in params:
        return params[PROMPT], params[RESPONSE]
    return weights_at(math.inf if params[ANGLE] > 1 - 1e-9 else math.tan(params[ANGLE] * math.pi / 2))


def _columns(pairs: Sequence[Weights]) -> tuple[Floats, Floats]:
    prompt, response = np.array(pairs, dtype=float).reshape(-1, 2).T
    return prompt, response


def _nearest(places: Sequence[Weights], weights: Weights) -> int:
    return min(range(len(places)), key=lambda index: math.dist(places[index], weights))


def _weights(share: float, number: int) -> tuple[float, ...]:
    return (1.0,) if number == 1 else (share, 1.0 - share)

"""The knowledge gradient as a sampler of Optuna."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from analysis.search.adaptive import Belief, believe, propose
from analysis.search.questions import Told
from analysis.search.space import ANGLE, PROMPT, RESPONSE, angle_of
from sweep.candidates import Weights, weights_at
from train.metrics import Metric


class KnowledgeGradientSampler(BaseSampler):
    """The same for any Optuna study whose parameters are prompt_weight and response_weight, or angle alone.

        study = optuna.create_study(direction="maximize", sampler=KnowledgeGradientSampler(places, metrics))

    places: the pairs to choose from. metrics: of the study's values, in their order. belief: of the complete trials,
    where the caller has it already; without one it is made for every suggestion.
    """

    def __init__(
        self,
        places: Sequence[Weights],
        metrics: Sequence[Metric],
        seed: int = 0,
        belief: Belief | None = None,
    ) -> None:
        self._places, self._metrics, self._seed = tuple(places), tuple(metrics), seed
        self._belief = belief
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
        belief = self._belief or believe(self._places, told, self._metrics, self._seed)
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

"""The plane as parameters of an Optuna study, and a suggestion as weights again.

Where candidates differ in their angle only, that is the parameter (0: response only, 1: prompt only); elsewhere both
weights are. A suggestion between candidates becomes the nearest one: the grid stays the grid.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.search.questions import Question, Told
from sweep.candidates import Weights, weights_at
from sweep.search_config import RATIO, Range

NUM_FREE = 64  # steps of a free ratio, evenly by angle, for samplers that choose among places
ANGLE, PROMPT, RESPONSE = "angle", "prompt_weight", "response_weight"
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Space:
    """Where a search may go. free: the range of the ratio, if it isn't bound to candidates."""

    candidates: tuple[Weights, ...]
    free: Range | None
    others: tuple[Range, ...]
    by_angle: bool

    @property
    def places(self) -> tuple[Weights, ...]:
        """Every pair worth looking at: the candidates, or a free ratio in steps."""
        if self.free is None:
            return self.candidates
        low, high = math.atan(self.free.low), math.atan(self.free.high)
        inside = [math.tan(low + (high - low) * step / NUM_FREE) for step in range(1, NUM_FREE)]
        known = [ratio for ratio in (0.0, 1.0) if self.free.low <= ratio <= self.free.high]
        ratios = {self.free.low, self.free.high, *inside, *known}
        return tuple(sorted({weights_at(ratio) for ratio in ratios}, key=angle_of))

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of every parameter."""
        places = self.places
        if self.by_angle:
            columns = {ANGLE: [angle_of(weights) for weights in places]}
        else:
            columns = dict(zip((PROMPT, RESPONSE), map(list, zip(*places, strict=True)), strict=True))
        found = {name: (min(column), max(column)) for name, column in columns.items()}
        return found | {one.axis: (one.low, one.high) for one in self.others}

    def parameters(self) -> dict[str, Any]:
        """Optuna's distributions by name."""
        from optuna.distributions import FloatDistribution, IntDistribution

        found: dict[str, Any] = {}
        ranges = {one.axis: one for one in self.others}
        for name, (low, high) in self.bounds().items():
            one = ranges.get(name)
            if one is not None and one.is_whole:
                found[name] = IntDistribution(int(low), int(high), log=one.is_log)
            else:
                found[name] = FloatDistribution(low, high, log=one is not None and one.is_log)
        return found

    def values_of(self, told: Told) -> dict[str, float]:
        """A run's parameters; {} if it lies outside, as after a range was narrowed: no study can hold it."""
        prompt, response = told.weights
        weights = {ANGLE: angle_of(told.weights)} if self.by_angle else {PROMPT: prompt, RESPONSE: response}
        values = {**weights, **{one.axis: told.settings.get(one.axis, math.nan) for one in self.others}}
        found: dict[str, float] = {}
        for name, (low, high) in self.bounds().items():
            if not low - _ROUNDING <= values[name] <= high + _ROUNDING:
                return {}
            found[name] = min(high, max(low, values[name]))
        return found

    def proposal(self, values: Mapping[str, float]) -> tuple[Weights, dict[str, float]]:
        """Weights and settings of suggested parameters."""
        settings = {one.axis: _rounded(one, values[one.axis]) for one in self.others}
        if not self.by_angle:
            at = (values[PROMPT], values[RESPONSE])
            return min(self.candidates, key=lambda one: math.dist(one, at)), settings
        if self.free is None:
            return min(self.candidates, key=lambda one: abs(angle_of(one) - values[ANGLE])), settings
        ratio = math.inf if values[ANGLE] >= 1 - _ROUNDING else math.tan(values[ANGLE] * math.pi / 2)
        return weights_at(min(self.free.high, max(self.free.low, ratio))), settings


def space_of(question: Question) -> Space:
    """The question's space."""
    free = next((one for one in question.ranges if one.axis == RATIO), None)
    others = tuple(one for one in question.ranges if one.axis != RATIO)
    angles = [round(angle_of(weights), 9) for weights in question.candidates]
    return Space(question.candidates, free, others, free is not None or len(set(angles)) == len(angles))


def angle_of(weights: Weights) -> float:
    """atan2(prompt, response) in quarter turns: 0 response only, 0.5 equal, 1 prompt only."""
    return math.atan2(*weights) / (math.pi / 2)


def _rounded(found: Range, value: float) -> float:
    """The value with four digits, still inside."""
    if found.is_whole:
        return round(value)
    return min(found.high, max(found.low, float(f"{value:.4g}")))

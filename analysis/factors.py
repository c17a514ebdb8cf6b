"""What the best ratio goes with: length of prompts beside responses, number of examples, size of the model. Pure.

Letters: P planes, K draws.
Source   Instruction Modelling (arXiv 2405.14394) says that loss on prompts pays where prompts are long beside
         responses, and where examples are few. Its evidence is two slopes over datasets; this is the same question
         with the uncertainty of every optimum in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.kernels import Floats

FEWEST_LEVELS = 4


@dataclass(frozen=True, slots=True)
class Association:
    """Spearman's correlation of the best angle with one property of the planes."""

    name: str
    num_planes: int
    num_levels: int  # different values of the property
    correlation: float  # posterior median; NaN where the property doesn't vary
    low: float  # 95 % interval: of where the optima are, given these planes
    high: float
    p_value: float  # of no association, by permuting the property's values among its levels

    @property
    def is_told(self) -> bool:
        """Whether there are enough levels for a trend to be more than a coincidence."""
        return self.num_levels >= FEWEST_LEVELS and math.isfinite(self.correlation)


def best_angles(draws_KQ: Floats, prompt_weights_Q: Floats, response_weights_Q: Floats) -> Floats:
    """For each draw the angle of its highest place, degrees: 0 response only, 90 prompt only. Shape (K,)."""
    angles_Q = np.degrees(np.arctan2(prompt_weights_Q, response_weights_Q))
    return angles_Q[draws_KQ.argmax(axis=1)]


def associate(name: str, angles_KP: Floats, values_P: Sequence[float], seed: int = 0) -> Association | None:
    """None if fewer than three planes have the property; a plane without it (NaN) is left out."""
    values = np.asarray(values_P, dtype=float)
    known = np.isfinite(values)
    values, angles_KP = values[known], angles_KP[:, known]
    if len(values) < 3:
        return None
    levels = np.unique(values)
    if len(levels) < 2:
        return Association(name, len(values), len(levels), math.nan, math.nan, math.nan, math.nan)
    rho_K = _spearman(angles_KP, values)
    low, middle, high = np.quantile(rho_K, (0.025, 0.5, 0.975))
    observed = abs(float(_spearman(angles_KP.mean(axis=0)[None], values)[0]))
    generator = np.random.default_rng([seed, 5])
    place = np.searchsorted(levels, values)
    count, number = 0, 2000
    for _ in range(number):  # levels change places as wholes: planes that share one aren't independent
        shuffled = generator.permutation(len(levels)).astype(float)[place]
        count += abs(float(_spearman(angles_KP.mean(axis=0)[None], shuffled)[0])) >= observed - 1e-12
    return Association(
        name, len(values), len(levels), float(middle), float(low), float(high), (count + 1) / (number + 1)
    )


def _spearman(angles_KP: Floats, values_P: Floats) -> Floats:
    """Rank correlation of every row with the values; 0 for a row without variation."""
    ranks_KP = stats.rankdata(angles_KP, axis=1)
    ranks_KP = ranks_KP - ranks_KP.mean(axis=1, keepdims=True)
    other_P = stats.rankdata(values_P)
    other_P = other_P - other_P.mean()
    norm_K = np.sqrt((ranks_KP**2).sum(axis=1) * (other_P**2).sum())
    return np.where(norm_K > 0, ranks_KP @ other_P / np.where(norm_K > 0, norm_K, 1.0), 0.0)

"""Which of a few settings, named before looking, rank higher over many planes: Friedman and Nemenyi. Pure.

Letters: P planes, C settings.
Source   Demsar 2006, sections 3.2.2 to 3.2.4. For all cells at once it has no power: 35 settings on 15 planes have a
         critical difference of 14 ranks, so more than MAX_SETTINGS are refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.kernels import Floats

MAX_SETTINGS = 8


@dataclass(frozen=True, slots=True)
class Ranks:
    """Mean ranks, 1 the best. Settings less than `critical_difference` apart can't be told apart."""

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    num_planes: int
    p_value: float  # Friedman's, of no difference at all; Wilcoxon's signed ranks for two settings
    critical_difference: float  # Nemenyi, at 5 %
    cliques: tuple[tuple[str, ...], ...]  # maximal groups that can't be told apart, best first


def rank_settings(scores_PC: Floats, names: Sequence[str]) -> Ranks | None:
    """Ranks of settings over planes, higher scores better; None for fewer than two settings or three planes.

    Raises   ValueError for more than MAX_SETTINGS settings, and for an absent score: an absent setting has no rank.
    """
    if len(names) > MAX_SETTINGS:
        raise ValueError(f"{len(names)} settings; at most {MAX_SETTINGS} chosen beforehand can be ranked")
    if not np.isfinite(scores_PC).all():
        raise ValueError("a setting without a score on some plane can't be ranked")
    num_planes, num_settings = scores_PC.shape
    if num_settings < 2 or num_planes < 3:
        return None
    ranks_PC = stats.rankdata(-scores_PC, axis=1)
    if (scores_PC == scores_PC[:, :1]).all():
        p_value = 1.0
    elif num_settings == 2:
        _, p_value = stats.wilcoxon(scores_PC[:, 0], scores_PC[:, 1], zero_method="zsplit")
    else:
        _, p_value = stats.friedmanchisquare(*scores_PC.T)
    quantile = float(stats.studentized_range.ppf(0.95, num_settings, np.inf)) / math.sqrt(2)
    critical = quantile * math.sqrt(num_settings * (num_settings + 1) / (6 * num_planes))
    means = ranks_PC.mean(axis=0)
    return Ranks(
        tuple(names),
        tuple(float(value) for value in means),
        num_planes,
        float(p_value),  # pyright: ignore[reportArgumentType]
        critical,
        _cliques(means, names, critical),
    )


def _cliques(means: Floats, names: Sequence[str], critical: float) -> tuple[tuple[str, ...], ...]:
    order = np.argsort(means, kind="stable")
    found: list[tuple[int, int]] = []
    for start in range(len(order)):
        end = max(k for k in range(start, len(order)) if means[order[k]] - means[order[start]] < critical)
        if end > start and not any(first <= start and end <= last for first, last in found):
            found.append((start, end))
    return tuple(tuple(str(names[order[k]]) for k in range(start, end + 1)) for start, end in found)

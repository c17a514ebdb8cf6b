"""What one ability costs another: the curve of weighted optima, and where nothing better on all counts exists. Pure.

Letters: F families of benchmarks, Q places, K draws, W weightings. Gains over (0, 1) in points, higher better.

Families are fitted from the same runs by separate surfaces, whose draws are joined at random: a run that went badly on
all benchmarks at once makes the true uncertainty of a sum larger, of a difference smaller. `residual_correlation`
says how much runs do that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.kernels import Floats

FAMILIES: Mapping[str, tuple[str, ...]] = {  # by benchmark's name, or by the dataset's own measure
    "instruction adherence": ("ifeval", "constraint_adherence"),
    "conversation": ("alpaca_eval", "mt_bench", "preference_accuracy"),
    "knowledge": ("mmlu", "bbh", "exact_answer", "gsm8k", "arc_challenge", "hellaswag", "truthfulqa"),
}
NUM_WEIGHTINGS = 21


@dataclass(frozen=True, slots=True)
class Weighted:
    """The best place when the first family counts `share` and the second the rest."""

    share: float
    place: int
    means: tuple[float, ...]  # gain of each family there
    deviations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Families in order; the curve goes from the second's optimum to the first's."""

    families: tuple[str, ...]
    curve: tuple[Weighted, ...]
    not_dominated_Q: Floats  # P(no place is better by over epsilon / 2 on every family)
    agree: bool  # whether one place is best for all weightings

    @property
    def distinct(self) -> tuple[Weighted, ...]:
        """The curve's places, each once, at the first weighting that chooses it."""
        seen: dict[int, Weighted] = {}
        for weighted in self.curve:
            seen.setdefault(weighted.place, weighted)
        return tuple(seen.values())


def family_of(name: str) -> str | None:
    """The family of a benchmark or of a dataset's measure; None for one that is in none."""
    return next((family for family, members in FAMILIES.items() if name in members), None)


def trade_off(
    gains_by_family: Mapping[str, Floats], epsilon: float, reported: Mapping[str, Floats] | None = None
) -> TradeOff | None:
    """From draws of each family's gain, (K, Q), over the same places; None for fewer than two families.

    reported: the same on scores that chose nothing; the curve's places come from the first, its gains from these.
    """
    families = tuple(family for family in FAMILIES if family in gains_by_family)
    if len(families) < 2:
        return None
    draws_FKQ = np.stack([gains_by_family[family] for family in families])
    judged_FKQ = draws_FKQ if reported is None else np.stack([reported[family] for family in families])
    means_FQ, deviations_FQ = judged_FKQ.mean(axis=1), judged_FKQ.std(axis=1)
    chosen_FQ = draws_FKQ.mean(axis=1)
    curve = []
    for share in np.linspace(0, 1, NUM_WEIGHTINGS):
        best = int(np.argmax(share * chosen_FQ[0] + (1 - share) * chosen_FQ[1]))
        curve.append(
            Weighted(
                float(share),
                best,
                tuple(float(value) for value in means_FQ[:, best]),
                tuple(float(value) for value in deviations_FQ[:, best]),
            )
        )
    return TradeOff(
        families,
        tuple(curve),
        _not_dominated(draws_FKQ, epsilon / 2),
        len({weighted.place for weighted in curve}) == 1,
    )


def residual_correlation(residuals_FN: Sequence[Floats]) -> float:
    """Mean correlation between families of what single runs deviate by; NaN for fewer than three runs."""
    stacked = np.stack(residuals_FN)
    if stacked.shape[1] < 3 or (stacked.std(axis=1) == 0).any():
        return float("nan")
    correlations: Floats = np.atleast_2d(np.corrcoef(stacked))
    return float(correlations[np.triu_indices(len(stacked), 1)].mean())


def _not_dominated(draws_FKQ: Floats, margin: float, most: int = 400) -> Floats:
    """P(no other place beats this one by over `margin` on every family), from at most `most` draws."""
    result_Q = np.zeros(draws_FKQ.shape[2])
    number = min(most, draws_FKQ.shape[1])
    for k in range(number):
        higher_FQQ = draws_FKQ[:, k, :, None] > draws_FKQ[:, k, None, :] + margin
        result_Q += ~higher_FQQ.all(axis=0).any(axis=0)
    return result_Q / number

"""AlpacaEval 2's length-controlled win rate. Pure, numpy only.

Source   Dubois et al. 2024 (arXiv:2404.04475), `glm_winrate.py` of alpaca_eval 0.6: a logistic regression of
         the preference on tanh of the standardised length difference, the instruction's difficulty and the
         model itself; the win rate is its mean prediction at equal lengths.
Differs  Fitted by Newton's method with a trace of ridge, where the released code picks an L1 penalty by
         cross-validation among values that are weak at this number of rows. The caller looks the difficulty up
         by instruction; the released code by position in the list, which misplaces it for models that lack
         rows. Looked up by position, 29 published models come out with a mean error of 0.06 points, at most 0.15.

The difficulty is frozen, estimated by its authors from GPT-4-turbo's preferences over all models. With another
judge, another baseline or a part of the 805 instructions the number is not comparable with the leaderboard.
Letters: N judged instructions, F features (length, difficulty, model).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GAMED_WEIGHT = 0.2 / 2  # regularisation towards two baselines told to be verbose and concise, shared by both
_RIDGE = 1e-6
_MAX_NEWTON_STEPS = 100


@dataclass(frozen=True, slots=True)
class GamedBaselines:
    """The reference model judged against itself, told to be verbose or concise: what length alone is worth."""

    tanh_length_difference: Floats
    difficulty: Floats
    preference: Floats  # share in 0..1


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A win rate as if every answer were as long as the reference's. Shares in 0..1."""

    win_rate: float
    standard_error: float  # over instructions, refitted; the frozen tables are taken as exact
    pseudo_values_N: Floats  # per instruction: their mean is the win rate, their spread its standard error
    coefficients_F: Floats


def length_controlled_win_rate(
    preference_N: Floats,
    reference_length_N: Floats,
    length_N: Floats,
    difficulty_N: Floats,
    gamed: GamedBaselines,
) -> LengthControlled:
    """Win rate over the reference at equal lengths.

    preference_N   share in 0..1 by which the judge prefers the model's answer; finite
    *_length_N     characters
    Error          From the sandwich covariance of the fit and the spread of the predictions: what drawing other
                   instructions would change, the difficulty table given.
    """
    difference_N = np.asarray(reference_length_N, float) - np.asarray(length_N, float)
    spread = float(np.std(difference_N, ddof=1)) if len(difference_N) > 1 else 0.0
    standardised_N = difference_N / spread if spread > 0 else np.zeros_like(difference_N)
    own_NF = np.column_stack([np.tanh(standardised_N), difficulty_N, np.ones(len(difference_N))])
    gamed_NF = np.column_stack(
        [gamed.tanh_length_difference, gamed.difficulty, np.zeros(len(gamed.preference))]
    )
    features_NF = np.vstack([own_NF, gamed_NF])
    target_N = np.concatenate([preference_N, gamed.preference])
    weight_N = np.concatenate([np.ones(len(own_NF)), np.full(len(gamed_NF), GAMED_WEIGHT)])
    coefficients_F, hessian_FF = _fit(features_NF, target_N, weight_N)
    equal_NF = own_NF.copy()
    equal_NF[:, 0] = 0.0
    predicted_N = _logistic(equal_NF @ coefficients_F)
    influence_N = _influence(own_NF, equal_NF, preference_N, predicted_N, coefficients_F, hessian_FF)
    count, win_rate = len(influence_N), float(predicted_N.mean())
    error = float(np.sqrt(np.sum(influence_N**2) * count / (count - 1))) if count > 1 else float("nan")
    return LengthControlled(win_rate, error, win_rate + count * influence_N, coefficients_F)


def _fit(features_NF: Floats, target_N: Floats, weight_N: Floats) -> tuple[Floats, Floats]:
    """Weighted logistic regression on shares; the coefficients and the Hessian of the loss there."""
    ridge_FF = _RIDGE * np.eye(features_NF.shape[1])
    coefficients_F = np.zeros(features_NF.shape[1])
    hessian_FF = ridge_FF
    for _ in range(_MAX_NEWTON_STEPS):
        predicted_N = _logistic(features_NF @ coefficients_F)
        curvature_N = weight_N * predicted_N * (1 - predicted_N)
        hessian_FF = (features_NF * curvature_N[:, None]).T @ features_NF + ridge_FF
        gradient_F = features_NF.T @ (weight_N * (target_N - predicted_N)) - ridge_FF @ coefficients_F
        step_F = np.linalg.solve(hessian_FF, gradient_F)
        coefficients_F = coefficients_F + np.clip(
            step_F, -2, 2
        )  # a model that never wins has no finite optimum
        if float(np.abs(step_F).max()) < 1e-10:
            break
    return coefficients_F, hessian_FF


def _influence(
    own_NF: Floats,
    equal_NF: Floats,
    preference_N: Floats,
    predicted_N: Floats,
    coefficients_F: Floats,
    hessian_FF: Floats,
) -> Floats:
    """What each instruction adds to the win rate, through the fit and through the mean; centred at 0."""
    residual_N = preference_N - _logistic(own_NF @ coefficients_F)
    slope_F = ((predicted_N * (1 - predicted_N))[:, None] * equal_NF).mean(axis=0)
    through_fit_N = (own_NF * residual_N[:, None]) @ np.linalg.solve(hessian_FF, slope_F)
    influence_N = through_fit_N + predicted_N / len(predicted_N)
    return influence_N - influence_N.mean()


def _logistic(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -values))

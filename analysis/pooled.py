"""Several planes at once: what their surfaces share, and what a new model on a new dataset would do. Pure.

    pooled = fit_pooled([PooledPlane("8b", "lima", points, run_deviation), ...])
    pooled.shares["interaction"]                  how much of the surfaces' variance holds for one plane only
    draws = pooled.draws(prompt_weights_Q, response_weights_Q)
    draws.planes_KPQ, draws.new_KQ                these planes, and one of a new model on a new dataset

Letters: P planes, Q places asked for, K draws, H settings of the hyper-parameters, D their number.

The model is that of `analysis.coregional`; its hyper-parameters and shares are integrated out by the population Monte
Carlo of `analysis.sampling`, whose rounds here follow a posterior flattened until enough points carry it: with up to
ten dimensions one lucky point of the prior would else decide.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, special
from scipy.stats import qmc

from analysis.coregional import (
    JointSetting,
    PlaceMeans,
    PooledPlane,
    covariance_of,
    joint_draws,
    joint_log_likelihood,
    place_means,
    shares_of,
    similarity,
)
from analysis.kernels import (
    AVERAGE,
    MODELS,
    Floats,
    Priors,
    distances,
    hyper_names,
    hyper_parameters,
    kernel,
    places,
)
from analysis.sampling import Sample, effective_sample_size, posterior_weights

SHARES = ("common", "model", "dataset", "interaction")
ENOUGH = 50  # effective sample size
_MAX_ROUNDS = 16
_POINTS_PER_DIMENSION = 5  # that a proposal's covariance is made of


@dataclass(frozen=True, slots=True)
class PooledEffort:
    """How much computing a fit may cost: settings of the prior, of each adapted round, and for draws."""

    num_prior: int = 128
    num_adapted: int = 192
    num_settings: int = 48


@dataclass(frozen=True, slots=True)
class PooledDraws:
    """Joint draws over planes and places, points, each plane with its own level."""

    planes_KPQ: Floats
    new_KQ: Floats  # a new model on a new dataset; level 0, so only differences within it mean anything


@dataclass(frozen=True, slots=True)
class Pooled:
    """What several planes say together."""

    planes: tuple[PooledPlane, ...]
    shares: Mapping[str, float]  # posterior means, summing to 1
    share_intervals: Mapping[str, tuple[float, float]]  # 95 %
    model_weights: Mapping[str, float]
    effective_sample_size: float
    seed: int
    _means: PlaceMeans
    _settings: tuple[JointSetting, ...]

    def draws(
        self, prompt_weights: ArrayLike, response_weights: ArrayLike, num_draws: int = 1024
    ) -> PooledDraws:
        """Possible surfaces of every plane and of a new one; equal arguments give equal draws."""
        generator = np.random.default_rng([self.seed, 2])
        total = sum(setting.count for setting in self._settings)
        planes, new = [], []
        for setting in self._settings:
            count = max(1, math.ceil(num_draws * setting.count / total))
            drawn_KPQ = joint_draws(self._means, setting, prompt_weights, response_weights, count, generator)
            planes.append(drawn_KPQ[:, :-1])
            new.append(drawn_KPQ[:, -1])
        return PooledDraws(np.concatenate(planes) + self._means.centre_P[None, :, None], np.concatenate(new))

    def mean_without(
        self, left_out: Sequence[int], prompt_weights: ArrayLike, response_weights: ArrayLike
    ) -> Floats:
        """Posterior mean of the kept planes' mean surface, had the planes left out not been run. Shape (Q,).

        Note     The hyper-parameters are those of all planes; the data of the planes left out aren't used.
        """
        asked = places(prompt_weights, response_weights)
        kept = np.setdiff1d(np.arange(len(self.planes)), left_out)
        rows = np.isin(self._means.plane_N, kept)
        total, result_Q = sum(setting.count for setting in self._settings), np.zeros(asked.prompt.size)
        here = places(self._means.prompt_L, self._means.response_L)
        for setting in self._settings:
            T_PP = similarity(self._means, setting.shares)
            factor = linalg.cho_factor(
                covariance_of(self._means, setting, T_PP)[np.ix_(rows, rows)], lower=True
            )
            solved = linalg.cho_solve(factor, self._means.mean_N[rows])
            to_LQ = kernel(setting.model, setting.hyper, distances(here, asked))[0]
            weights_PL = np.zeros((len(self.planes), len(to_LQ)))
            np.add.at(weights_PL, (self._means.plane_N[rows], self._means.place_N[rows]), solved)
            result_Q += setting.count / total * (T_PP[kept] @ weights_PL @ to_LQ).mean(axis=0)
        return result_Q


def fit_pooled(
    planes: Sequence[PooledPlane],
    priors: Priors = AVERAGE,
    seed: int = 0,
    *,
    effort: PooledEffort | None = None,
    models: Sequence[str] = MODELS,
) -> Pooled:
    """The joint posterior of at least two planes; see the head of this file.

    Raises   ValueError for fewer than two planes.
    Cost     5 CPU-s for 9 planes of 35 cells, 15 CPU-s for 15.
    """
    if len(planes) < 2:
        raise ValueError("pooling needs two planes")
    effort = effort or PooledEffort()
    means = place_means(planes)
    generator = np.random.default_rng([seed, 1])
    samples = {
        model: _JointSample.of_joint_prior(model, means, priors, generator, effort.num_prior)
        for model in models
    }
    weights = posterior_weights(samples, priors)
    for done in range(_MAX_ROUNDS):
        for model, sample in samples.items():
            if done < 2 or float(weights[model].sum()) > 0.01:  # the others can't matter any more
                sample.adapt_joint(means, priors, generator, effort.num_adapted)
        weights = posterior_weights(samples, priors)
        if effective_sample_size(weights) >= ENOUGH:
            break
    shares = np.concatenate([shares_of(samples[model].z_HD) for model in models])
    weight = np.concatenate([weights[model] for model in models])
    return Pooled(
        planes=tuple(planes),
        shares={name: float(weight @ shares[:, k]) for k, name in enumerate(SHARES)},
        share_intervals={name: _interval(shares[:, k], weight) for k, name in enumerate(SHARES)},
        model_weights={model: float(weight_H.sum()) for model, weight_H in weights.items()},
        effective_sample_size=effective_sample_size(weights),
        seed=seed,
        _means=means,
        _settings=_picked(samples, weights, priors, generator, effort.num_settings),
    )


class _JointSample(Sample):
    """Settings of one model's hyper-parameters with the four shares behind them."""

    @classmethod
    def of_joint_prior(
        cls, model: str, means: PlaceMeans, priors: Priors, generator: np.random.Generator, number: int
    ) -> "_JointSample":
        """`number` scrambled Sobol points of the prior."""
        width = len(hyper_names(model, False)) + len(SHARES)
        uniform = qmc.Sobol(width, scramble=True, rng=generator).random(number)
        z_HD = special.ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))
        return cls(model, z_HD, joint_log_likelihood(model, z_HD, means, priors), False)

    def adapt_joint(
        self, means: PlaceMeans, priors: Priors, generator: np.random.Generator, number: int
    ) -> None:
        """One more round."""
        weight_H = _flattened(self.log_weights, _POINTS_PER_DIMENSION * self.z_HD.shape[1])
        mean_D: Floats = weight_H @ self.z_HD
        centred = self.z_HD - mean_D
        covariance = 1.3 * (centred * weight_H[:, None]).T @ centred + 0.03 * np.eye(mean_D.size)
        root: Floats = np.linalg.cholesky(covariance).astype(float)
        new = mean_D + generator.standard_normal((number, mean_D.size)) @ root.T
        self.proposals.append((number, mean_D, root))
        self.z_HD = np.vstack([self.z_HD, new])
        evidence = joint_log_likelihood(self.model, new, means, priors)
        self.evidence_H = np.concatenate([self.evidence_H, evidence])


def _flattened(logs_H: Floats, enough: float) -> Floats:
    """Weights raised to the highest power up to 1 at which they are worth `enough` equal ones."""
    for power in np.geomspace(1.0, 0.02, 40):
        weight_H = np.exp(power * (logs_H - logs_H.max()))
        weight_H /= weight_H.sum()
        if 1 / float((weight_H**2).sum()) >= enough:
            break
    return weight_H  # pyright: ignore[reportPossiblyUnboundVariable]


def _picked(
    samples: Mapping[str, _JointSample],
    weights: Mapping[str, Floats],
    priors: Priors,
    generator: np.random.Generator,
    number: int,
) -> tuple[JointSetting, ...]:
    """Systematic resampling: each setting as often as its weight says."""
    every = [(model, h) for model, sample in samples.items() for h in range(len(sample.z_HD))]
    ends = np.cumsum(np.concatenate([weights[model] for model in samples]))
    positions = (np.arange(number) + generator.random()) / number
    chosen, counts = np.unique(
        np.minimum(np.searchsorted(ends, positions), len(every) - 1), return_counts=True
    )
    settings = []
    for k, count in zip(chosen.tolist(), counts.tolist(), strict=True):
        model, h = every[k]
        z_1D = samples[model].z_HD[h][None]
        hyper = hyper_parameters(model, z_1D, priors, False)
        settings.append(JointSetting(model, hyper, shares_of(z_1D)[0], count))
    return tuple(settings)


def _interval(values_H: Floats, weight_H: Floats) -> tuple[float, float]:
    order = np.argsort(values_H)
    ends = np.cumsum(weight_H[order])
    low, high = (values_H[order[min(int(np.searchsorted(ends, q)), len(order) - 1)]] for q in (0.025, 0.975))
    return float(low), float(high)

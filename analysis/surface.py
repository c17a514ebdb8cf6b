"""The surface over the plane that noisy runs leave possible: a Gaussian process with nothing maximised. Pure.

    posterior = fit_surface(Points.of(prompt_weights, response_weights, scores, variances, seeds), BENCHMARK, seed=0)
    draws_KQ = posterior.draws(prompt_weights_Q, response_weights_Q)     possible surfaces, jointly
    posterior.model_weights["cartesian"], posterior.run_deviation, posterior.effective_sample_size

Letters: N runs, Q places asked for, H hyper-parameter settings, K draws.

The model of one run is in `analysis.gaussian`, the four surfaces and their priors in `analysis.kernels`, the
integration over hyper-parameters in `analysis.sampling`. The four models are averaged by evidence times prior weight;
rounds of sampling are added until the effective sample size is ENOUGH. Draws come from settings picked in proportion
to their weights (systematic resampling), from each an exact Gaussian draw.
Source   Model averaging: Hoeting et al. 1999. The models, priors and their calibration: tests/bench/bench_region.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.gaussian import Grouped, Points, Setting, asked_of, grouped, root_of, solve
from analysis.kernels import AVERAGE, MODELS, Floats, Priors, hyper_names, hyper_parameters
from analysis.sampling import Sample, effective_sample_size, posterior_weights

ENOUGH = 50  # effective sample size
_MANY_PLACES = 48


@dataclass(frozen=True, slots=True)
class Effort:
    """How much computing a fit may cost."""

    num_prior: int = 256  # Sobol points of the prior, for each model; a power of two
    num_adapted: int = 256  # points of each adapted round
    num_settings: int = 64  # hyper-parameter settings that draws come from
    max_rounds: int = 4  # adapted rounds, until the effective sample size is ENOUGH
    max_places: int = 64  # more are merged with their neighbours: the cost is cubic


FULL = Effort()
QUICK = Effort(64, 64, 40, max_rounds=1, max_places=96)  # for proposals, not for claims


@dataclass(frozen=True, slots=True)
class Posterior:
    """What the runs leave possible. Everything in points, higher better."""

    points: Points
    model_weights: Mapping[str, float]
    effective_sample_size: float
    run_deviation: float  # posterior mean of s, the run-to-run s.d. beyond the known variances
    run_deviation_interval: tuple[float, float]  # 95 %
    seed_deviation: float  # posterior mean of what runs of a seed share; NaN where seeds don't cross places
    share_of_scale: float  # posterior mean of q given polar: 0 is scale invariance; NaN without that model
    learned: Mapping[
        str, float
    ]  # nats from prior to posterior of each hyper-parameter, over the models with it
    surprise_N: Floats  # leave-one-out probability of a score below the run's
    log_predictive: float  # mean leave-one-out log density, nats
    seed: int
    data: Grouped
    settings: tuple[Setting, ...]

    def draws(self, prompt_weights: ArrayLike, response_weights: ArrayLike, num_draws: int = 2048) -> Floats:
        """Possible surfaces, shape (K, Q): joint over Q; equal arguments give equal draws.

        K is num_draws, rounded for each setting. A stratum without runs (r = 0 or p = 0) comes out as wide as
        its prior: ask only for places whose strata have runs.
        """
        asked = asked_of(self.data, prompt_weights, response_weights)
        generator = np.random.default_rng([self.seed, 1])
        found = []
        for setting, count in zip(self.settings, self._counts(num_draws), strict=True):
            mean_Q, covariance_QQ = setting.predict(asked)
            normal_KQ = generator.standard_normal((count, mean_Q.size))
            found.append(mean_Q + normal_KQ @ root_of(covariance_QQ).T)
        return np.concatenate(found) + self.data.centre

    def models_of_draws(self, num_draws: int = 2048) -> NDArray[np.str_]:
        """Which of the surfaces each of `draws` comes from, shape (K,)."""
        return np.repeat([setting.model for setting in self.settings], self._counts(num_draws))

    def _counts(self, num_draws: int) -> list[int]:
        return [max(1, round(num_draws * setting.share)) for setting in self.settings]

    def moments(self, prompt_weights: ArrayLike, response_weights: ArrayLike) -> tuple[Floats, Floats]:
        """Mean (Q,) and covariance (Q, Q) over draws and settings, without Monte Carlo error of draws."""
        asked = asked_of(self.data, prompt_weights, response_weights)
        parts = [(s.share, *s.predict(asked)) for s in self.settings]
        mean_Q = sum((share * mean for share, mean, _ in parts), np.zeros(asked.number))
        covariance_QQ = sum(
            (share * (cov + np.outer(m - mean_Q, m - mean_Q)) for share, m, cov in parts),
            np.zeros((mean_Q.size, mean_Q.size)),
        )
        return mean_Q + self.data.centre, covariance_QQ

    def surprise(self, less_N: ArrayLike = 0.0) -> Floats:
        """`surprise_N` with `less_N` taken from the variances of runs: a distrusted run seen as an ordinary one."""
        below_N = np.zeros(len(self.points))
        for setting in self.settings:
            residual_N, variance_N = setting.leave_one_out(self.data)
            below_N += setting.share * special.ndtr(residual_N / np.sqrt(variance_N - np.asarray(less_N)))
        return below_N


def fit_surface(
    points: Points,
    priors: Priors = AVERAGE,
    seed: int = 0,
    *,
    models: Sequence[str] = MODELS,
    effort: Effort = FULL,
) -> Posterior:
    """The posterior over surfaces; see the head of this file.

    Exact    for Gaussian noise, up to Monte Carlo error over hyper-parameters. Deterministic from `seed`.
    Cost     0.08 CPU-s for 35 runs, draws included; 0.3 CPU-s for 600 runs with QUICK.
    """
    data = grouped(points, effort.max_places)
    if data.places_L.prompt.size > _MANY_PLACES:  # cubic cost; rounds are added where it is too little
        effort = replace(effort, num_prior=effort.num_prior // 2, num_adapted=effort.num_adapted // 2)
    generator = np.random.default_rng([seed, 0])
    samples = {model: Sample.of_prior(model, data, priors, generator, effort.num_prior) for model in models}
    weights = posterior_weights(samples, priors)
    for _ in range(effort.max_rounds):
        for sample in samples.values():
            sample.adapt(data, priors, generator, effort.num_adapted)
        weights = posterior_weights(samples, priors)
        if effective_sample_size(weights) >= ENOUGH:
            break
    settings = _picked(samples, weights, data, priors, generator, effort.num_settings)
    surprise_N, log_predictive = _leave_one_out(settings, data)
    hyper = {
        model: hyper_parameters(model, sample.z_HD, priors, sample.has_seeds)
        for model, sample in samples.items()
    }
    run_H = np.concatenate([hyper[model]["run"] for model in samples])
    weight_H = np.concatenate([weights[model] for model in samples])
    polar = weights["polar"] if "polar" in weights else np.zeros(0)
    return Posterior(
        points=points,
        model_weights={model: float(weight_H.sum()) for model, weight_H in weights.items()},
        effective_sample_size=effective_sample_size(weights),
        run_deviation=float(weight_H @ run_H),
        run_deviation_interval=(_quantile(run_H, weight_H, 0.025), _quantile(run_H, weight_H, 0.975)),
        seed_deviation=sum(float(weights[model] @ hyper[model]["seed"]) for model in samples)
        if data.num_seeds
        else math.nan,
        share_of_scale=float(polar @ hyper["polar"]["share"] / polar.sum()) if polar.sum() > 0 else math.nan,
        learned=_learned(samples, weights),
        surprise_N=surprise_N,
        log_predictive=log_predictive,
        seed=seed,
        data=data,
        settings=settings,
    )


def _picked(
    samples: Mapping[str, Sample],
    weights: Mapping[str, Floats],
    data: Grouped,
    priors: Priors,
    generator: np.random.Generator,
    number: int,
) -> tuple[Setting, ...]:
    """Settings in proportion to their weights, by systematic resampling; equal ones are merged."""
    owners = [(model, row) for model in samples for row in range(len(samples[model].z_HD))]
    cumulative = np.cumsum(np.concatenate([weights[model] for model in samples]))
    positions = (np.arange(number) + generator.random()) / number
    picks = np.minimum(np.searchsorted(cumulative, positions * cumulative[-1]), len(owners) - 1)
    found = []
    for pick, count in zip(*np.unique(picks, return_counts=True), strict=True):
        model, row = owners[pick]
        sample = samples[model]
        hyper = hyper_parameters(model, sample.z_HD[row : row + 1], priors, sample.has_seeds)
        found.append(Setting(model, hyper, float(count) / number, solve(model, hyper, data)))
    return tuple(found)


def _leave_one_out(settings: Sequence[Setting], data: Grouped) -> tuple[Floats, float]:
    below_N, log_density_N = np.zeros(data.scores_N.size), []
    for setting in settings:
        residual_N, variance_N = setting.leave_one_out(data)
        below_N += setting.share * special.ndtr(residual_N / np.sqrt(variance_N))
        log_density_N.append(
            math.log(setting.share) - 0.5 * (residual_N**2 / variance_N + np.log(2 * math.pi * variance_N))
        )
    return below_N, float(np.logaddexp.reduce(log_density_N, axis=0).mean())


def _learned(samples: Mapping[str, Sample], weights: Mapping[str, Floats]) -> dict[str, float]:
    """Kullback-Leibler divergence of a Gaussian fitted to each standard-normal coordinate from its prior, nats."""
    values: dict[str, list[tuple[Floats, Floats]]] = {}
    for model, sample in samples.items():
        for column, name in enumerate(hyper_names(model, sample.has_seeds)):
            values.setdefault(name, []).append((sample.z_HD[:, column], weights[model]))
    found = {}
    for name, parts in values.items():
        z_H = np.concatenate([z for z, _ in parts])
        weight_H = np.concatenate([weight for _, weight in parts])
        if not weight_H.sum() > 0:
            continue
        weight_H = weight_H / weight_H.sum()
        mean = float(weight_H @ z_H)
        variance = max(float(weight_H @ (z_H - mean) ** 2), 1e-12)
        found[name] = 0.5 * (mean**2 + variance - 1 - math.log(variance))
    return found


def _quantile(values_H: Floats, weight_H: Floats, level: float) -> float:
    order = np.argsort(values_H)
    cumulative = np.cumsum(weight_H[order])
    return float(values_H[order][min(np.searchsorted(cumulative, level * cumulative[-1]), order.size - 1)])

"""Population Monte Carlo over the hyper-parameters of one model. Pure.

Letters: H settings, D hyper-parameters.

Sobol points of the prior, then rounds from a Gaussian fitted to the weighted sample, its covariance times 1.5. Every
setting is weighted by likelihood times prior over the mixture that all rounds make up, whose sum is the model's
evidence. Source: Cappé, Guillin, Marin and Robert 2004; deterministic mixture: Owen and Zhou 2000.
"""

import functools
import math
from collections.abc import Mapping

import numpy as np
from scipy import linalg, special
from scipy.stats import qmc

from analysis.gaussian import Grouped, log_likelihood
from analysis.kernels import Floats, Priors, hyper_names

_FLAT = 64  # points for the flat model, which has one or two hyper-parameters


@functools.cache
def _sobol(width: int, number: int) -> Floats:
    return qmc.Sobol(width, scramble=False).random(number)


class Sample:
    """Weighted settings of one model's hyper-parameters, from a growing mixture of proposals."""

    def __init__(self, model: str, z_HD: Floats, evidence_H: Floats, has_seeds: bool):
        self.model, self.has_seeds = model, has_seeds
        self.z_HD, self.evidence_H = z_HD, evidence_H
        self.proposals: list[tuple[int, Floats, Floats]] = []  # number, mean, Cholesky factor
        self.num_prior = len(z_HD)

    @classmethod
    def of_prior(
        cls, model: str, data: Grouped, priors: Priors, generator: np.random.Generator, number: int
    ) -> "Sample":
        """`number` Sobol points of the prior, shifted at random."""
        has_seeds = data.num_seeds > 0
        names = hyper_names(model, has_seeds)
        number = number if model != "flat" else min(number, _FLAT)
        uniform = (_sobol(len(names), number) + generator.random(len(names))) % 1.0
        z_HD = special.ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))
        return cls(model, z_HD, log_likelihood(model, z_HD, data, priors), has_seeds)

    def adapt(self, data: Grouped, priors: Priors, generator: np.random.Generator, number: int) -> None:
        """One more round from a Gaussian fitted to the weighted sample."""
        weight_H = np.exp(self.log_weights - self.log_weights.max())
        weight_H /= weight_H.sum()
        mean_D = weight_H @ self.z_HD
        centred = self.z_HD - mean_D
        width = mean_D.size
        covariance = 1.5 * (centred * weight_H[:, None]).T @ centred + 0.05 * np.eye(width)
        root = np.linalg.cholesky(covariance)
        number = number if self.model != "flat" else min(number, _FLAT)
        new = mean_D + generator.standard_normal((number, width)) @ root.T
        self.proposals.append((number, mean_D, root))
        self.z_HD = np.vstack([self.z_HD, new])
        self.evidence_H = np.concatenate([self.evidence_H, log_likelihood(self.model, new, data, priors)])

    @property
    def log_weights(self) -> Floats:
        """Unnormalised; their sum is the evidence."""
        total = len(self.z_HD)
        prior_H = _log_normal(self.z_HD)
        mixture = [prior_H + math.log(self.num_prior / total)]
        for number, mean_D, root in self.proposals:
            scaled = linalg.solve_triangular(root, (self.z_HD - mean_D).T, lower=True).T
            mixture.append(_log_normal(scaled) - np.log(np.diag(root)).sum() + math.log(number / total))
        return self.evidence_H + prior_H - np.logaddexp.reduce(mixture, axis=0) - math.log(total)


def posterior_weights(samples: Mapping[str, Sample], priors: Priors) -> dict[str, Floats]:
    """Posterior weight of every setting of every model; they sum to 1."""
    logs = {
        model: sample.log_weights + math.log(priors.model_weights[model]) for model, sample in samples.items()
    }
    highest = max(float(log_H.max()) for log_H in logs.values())
    raw = {model: np.exp(log_H - highest) for model, log_H in logs.items()}
    total = sum(float(weight_H.sum()) for weight_H in raw.values())
    return {model: weight_H / total for model, weight_H in raw.items()}


def effective_sample_size(weights: Mapping[str, Floats]) -> float:
    """How many equally weighted settings the weighted ones are worth (Kong 1992)."""
    return 1 / sum(float((weight_H**2).sum()) for weight_H in weights.values())


def _log_normal(z_HD: Floats) -> Floats:
    return -0.5 * (z_HD**2).sum(axis=1) - 0.5 * z_HD.shape[1] * math.log(2 * math.pi)

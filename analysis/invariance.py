"""Does only the ratio of the weights matter, as the optimiser promises? Three answers from one plane. Pure."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.landscape import Landscape
from analysis.noise import Noise
from analysis.plane import Plane

MAX_CARTESIAN = 0.1  # P(both weights matter, not only their ratio) below which a whole plane may merge rays
EVIDENCE = 3.0  # Bayes factor for both weights over the ratio: "positive" (Kass and Raftery 1995)


@dataclass(frozen=True, slots=True)
class Invariance:
    """Does only the ratio of the weights matter? Metric's unit, except probabilities."""

    cartesian: float  # posterior probability that both weights matter
    bayes_factor: float  # of that over "the ratio, and maybe the scale a little"
    slope: float  # score per factor 5 of scale, within rays; NaN without two scales on a ray
    slope_error: float
    largest_check: float  # largest difference between a scale check and its ray's run of the same seed
    check_limit: float  # what chance explains of the largest, at 1 %
    num_checks: int

    @property
    def is_broken(self) -> bool:
        """Whether rays must not be pooled: a check differs by more than chance, or the surface says so."""
        differs = self.num_checks > 0 and self.largest_check > self.check_limit
        slopes = abs(self.slope) > 2.576 * self.slope_error  # NaN: no
        return differs or slopes or self.bayes_factor > EVIDENCE


def invariance_of(plane: Plane, landscape: Landscape, noise: Noise) -> Invariance:
    """The report on scale invariance."""
    posterior, prior = landscape.posterior, landscape.scale.priors.model_weights
    weights = posterior.model_weights
    along = weights["ray"] + weights["polar"]
    odds = weights["cartesian"] / max(along, 1e-12) / (prior["cartesian"] / (prior["ray"] + prior["polar"]))
    slope, error = _slope(landscape, noise)
    runs = {(run.ray, run.seed): run.score for run in landscape.runs if not run.is_check}
    gaps = [
        abs(check.score - runs[check.ray, check.seed])
        for check in plane.checks
        if math.isfinite(check.score) and (check.ray, check.seed) in runs
    ]
    limit = float(stats.norm.ppf(1 - 0.005 / len(gaps))) * math.sqrt(2) * noise.run if gaps else math.nan
    return Invariance(weights["cartesian"], odds, slope, error, max(gaps, default=math.nan), limit, len(gaps))


def _slope(landscape: Landscape, noise: Noise) -> tuple[float, float]:
    """Within-ray regression of scores on log5 scale, rays centred; its error from the noise of one run."""
    by_ray: dict[int, list[tuple[float, float]]] = {}
    for run in landscape.runs:
        key = round(math.degrees(math.atan2(*run.weights)) * 1e6)
        by_ray.setdefault(key, []).append((math.log(max(run.weights), 5), run.score))
    cross = square = 0.0
    for pairs in by_ray.values():
        scale, score = np.array(pairs).T
        cross += float(((scale - scale.mean()) * score).sum())
        square += float(((scale - scale.mean()) ** 2).sum())
    return (cross / square, noise.run / math.sqrt(square)) if square > 1e-9 else (math.nan, math.nan)

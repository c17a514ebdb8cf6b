"""Does only the ratio of the weights matter, as the optimiser promises? Three answers from one plane. Pure."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.kernels import MODELS
from analysis.landscape import Landscape
from analysis.noise import Noise
from analysis.plane import Plane

MAX_CARTESIAN = 0.1  # P(both weights matter, not only their ratio) below which a whole plane may merge rays
NEVER, ALWAYS = (
    0.01,
    0.99,
)  # shares of clipped steps up to, and from, which a clip leaves the scale without effect
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
    clipped: tuple[float, float] | None = None  # least and largest share of a run's steps; None: no clip

    @property
    def is_partly_clipped(self) -> bool:
        """Whether the weights' common scale decides how often a gradient is cut: then it is a step size."""
        return is_partly_clipped(self.clipped)

    @property
    def is_broken(self) -> bool:
        """Whether rays must not be pooled: a check differs by more than chance, or the surface says so."""
        differs = self.num_checks > 0 and self.largest_check > self.check_limit
        slopes = abs(self.slope) > 2.576 * self.slope_error  # NaN: no
        return differs or slopes or self.bayes_factor > EVIDENCE


def is_partly_clipped(clipped: tuple[float, float] | None) -> bool:
    """Between never and always: a clip that binds for no step, or for all of all runs, knows no scale."""
    return clipped is not None and clipped[1] > NEVER and clipped[0] < ALWAYS


def models_for(clipped: tuple[float, float] | None) -> tuple[str, ...]:
    """The surfaces that are possible: not that of the ratio alone, once a clip is known to let the scale in."""
    return tuple(model for model in MODELS if model != "ray" or not is_partly_clipped(clipped))


def invariance_of(
    plane: Plane, landscape: Landscape, noise: Noise, clipped: tuple[float, float] | None = None
) -> Invariance:
    """The report on scale invariance."""
    posterior, prior = landscape.posterior, landscape.scale.priors.model_weights
    weights = posterior.model_weights
    along = [model for model in ("ray", "polar") if model in weights]
    odds = weights["cartesian"] / max(sum(weights[model] for model in along), 1e-12)
    odds /= prior["cartesian"] / sum(prior[model] for model in along)
    slope, error = _slope(landscape, noise)
    runs = {(run.ray, run.seed): run.score for run in landscape.runs if not run.is_check}
    gaps = [
        abs(check.score - runs[check.ray, check.seed])
        for check in plane.checks
        if math.isfinite(check.score) and (check.ray, check.seed) in runs
    ]
    limit = float(stats.norm.ppf(1 - 0.005 / len(gaps))) * math.sqrt(2) * noise.run if gaps else math.nan
    largest = max(gaps, default=math.nan)
    return Invariance(weights["cartesian"], odds, slope, error, largest, limit, len(gaps), clipped)


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

"""Four ideas of how a score depends on the two weights, as Gaussian-process kernels with priors. Pure, numpy only.

Letters: H settings of the hyper-parameters, A and B places on the plane, D hyper-parameters of one model.

    flat        f = 0
    ray         S^2 m(|u - u'| / a)                                        the ratio alone matters
    polar       S^2 m(|u - u'| / a) ((1 - q) + q m(|w - w'| / b))          and the common scale a little
    cartesian   S^2 m(hypot((p - p') / c, (r - r') / d))                   both weights, as on any plane

    u = atan2(p, r) / 90 degrees     w = log5 max(p, r)     m(x) = (1 + x' + x'^2 / 3) exp(-x'), x' = sqrt(5) x

To each is added 10^2 where both places are prompt-only (r = 0: another regime, 10 to 25 points lower on two of the
paper's three datasets, which would otherwise set the length scale) and, but for flat, a jump J^2 where both have
p = 0 (the loss's normaliser and the data both jump there). q -> 0 is the scale invariance of `sweep.rays`.

Every hyper-parameter is exp(log median + sd z) with z ~ N(0, 1); q = Phi(z)^2. Scales are points (0 to 100).
Source   Matern 5/2: Rasmussen and Williams, equation 4.17. The priors' centres come from the 15 published planes
         of arXiv 2507.07817: within-ray s.d. 0.14 to 2.2 points, between-cell s.d. 0.7 to 5.3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Hyper = Mapping[str, Floats]  # name -> (H,)

MODELS = ("flat", "ray", "polar", "cartesian")
PROMPT_ONLY_VARIANCE = 10.0**2  # points squared
_NAMES: Mapping[str, tuple[str, ...]] = {
    "flat": ("run",),
    "ray": ("run", "signal", "jump", "angle"),
    "polar": ("run", "signal", "jump", "angle", "scale", "share"),
    "cartesian": ("run", "signal", "jump", "prompt", "response"),
}


@dataclass(frozen=True, slots=True)
class Priors:
    """Medians and log-standard-deviations of the hyper-parameters, and the weights of the four models.

    run, seed: s.d. of a run around its cell, and of what all runs of a seed share, points. signal, jump: s.d. of
    the surface and of the jump at p = 0, points. angle in u, scale in w, prompt and response in weights.
    The default is for an average of several benchmarks; BENCHMARK for a single one, which is noisier.
    """

    run: tuple[float, float] = (0.6, 0.8)
    seed: tuple[float, float] = (0.3, 1.0)
    signal: tuple[float, float] = (1.6, 0.9)
    jump: tuple[float, float] = (0.3, 1.3)
    angle: tuple[float, float] = (0.45, 0.6)
    scale: tuple[float, float] = (1.0, 0.6)
    prompt: tuple[float, float] = (0.6, 0.6)
    response: tuple[float, float] = (0.6, 0.6)
    model_weights: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType(
            {"flat": 0.10, "ray": 0.36, "polar": 0.24, "cartesian": 0.30}
        )
    )


AVERAGE = Priors()
BENCHMARK = Priors(run=(1.2, 1.0), seed=(0.6, 1.0), signal=(3.0, 1.2))


@dataclass(frozen=True, slots=True)
class Places:
    """Points of the plane in every coordinate that a kernel asks for; each of shape (A,)."""

    prompt: Floats
    response: Floats
    angle: Floats  # u, 0 response only, 1 prompt only
    log_scale: Floats  # w, 0 at the edge of the unit square
    is_prompt_only: Floats
    is_response_only: Floats


def places(prompt_weights: ArrayLike, response_weights: ArrayLike) -> Places:
    """Coordinates of pairs of weights; ValueError for (0, 0), which has no angle."""
    p, r = np.asarray(prompt_weights, dtype=float), np.asarray(response_weights, dtype=float)
    if np.any(np.maximum(p, r) <= 0):
        raise ValueError("a pair of weights needs one above 0")
    return Places(
        p,
        r,
        np.arctan2(p, r) / (math.pi / 2),
        np.log(np.maximum(p, r)) / math.log(5),
        (r == 0).astype(float),
        (p == 0).astype(float),
    )


@dataclass(frozen=True, slots=True)
class Distances:
    """What kernels need of two sets of places; each of shape (A, B)."""

    angle: Floats
    log_scale: Floats
    prompt: Floats
    response: Floats
    prompt_only: Floats
    response_only: Floats


def distances(first: Places, second: Places) -> Distances:
    """Between every place of the first and of the second."""
    return Distances(
        np.abs(first.angle[:, None] - second.angle),
        np.abs(first.log_scale[:, None] - second.log_scale),
        first.prompt[:, None] - second.prompt,
        first.response[:, None] - second.response,
        first.is_prompt_only[:, None] * second.is_prompt_only,
        first.is_response_only[:, None] * second.is_response_only,
    )


def hyper_names(model: str, has_seeds: bool) -> tuple[str, ...]:
    """The hyper-parameters of a model, in the order of the columns of z."""
    return (*_NAMES[model], "seed") if has_seeds else _NAMES[model]


def hyper_parameters(model: str, z_HD: Floats, priors: Priors, has_seeds: bool) -> dict[str, Floats]:
    """Standard-normal coordinates -> hyper-parameters, each of shape (H,)."""
    found = {}
    for column, name in enumerate(hyper_names(model, has_seeds)):
        z_H = z_HD[:, column]
        if name == "share":
            found[name] = special.ndtr(z_H) ** 2
        else:
            median, deviation = getattr(priors, name)
            found[name] = median * np.exp(deviation * z_H)
    return found


def kernel(model: str, hyper: Hyper, between: Distances) -> Floats:
    """Prior covariance of f, without mean and noise. Shape (H, A, B), points squared."""
    cliff = PROMPT_ONLY_VARIANCE * between.prompt_only

    def each(name: str) -> Floats:
        return hyper[name][:, None, None]

    if model == "flat":
        return np.broadcast_to(cliff, (hyper["run"].size, *cliff.shape)).copy()
    if model == "cartesian":
        correlation = _matern(
            np.sqrt((between.prompt / each("prompt")) ** 2 + (between.response / each("response")) ** 2)
        )
    else:
        correlation = _matern(between.angle / each("angle"))
        if model == "polar":
            share = each("share")
            correlation *= (1 - share) + share * _matern(between.log_scale / each("scale"))
    correlation *= each("signal") ** 2
    correlation += cliff
    correlation += each("jump") ** 2 * between.response_only
    return correlation


def _matern(distance: Floats) -> Floats:
    scaled = math.sqrt(5) * distance
    return (1 + scaled + scaled * scaled / 3) * np.exp(-scaled)

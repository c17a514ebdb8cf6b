"""The covariance that planes share, the evidence of their place means, and draws of all of them. Pure.

Letters: P planes, L distinct places of all planes, N (plane, place) pairs with runs, Q places asked for, K draws,
H settings of the hyper-parameters, D their number.

The mean over the runs of place l in plane (m, d) is

    y = mean_md + f_md(l) + e,     f_md = g + a_m + b_d + c_md,     e ~ N(0, (v + rho^2 s^2) / runs)

with g, a, b, c independent Gaussian processes of one kernel k (see `analysis.kernels`) and variance shares w on the
simplex, w = softmax(1.5 z): an intrinsic coregionalisation model, cov(f_md(x), f_m'd'(x')) = T k(x, x') with

    T = w_common + w_model [m = m'] + w_dataset [d = d'] + w_interaction [both]

Noise is unequal: rho is each plane's run-to-run s.d. beside the geometric mean of all (from its own fit), s is
inferred, also from the spread of repeated runs. What the runs of a seed share is taken out first, by least squares
of the two-way layout place + seed (exact where every place has every seed). Any grid may be incomplete: absent places
are absent rows, never zeros.

Draws are by Matheron's rule: a prior draw of all surfaces, T^1/2 Z K^1/2, plus the posterior mean of what it lacks.
Source   Bonilla, Chai and Williams 2007 (coregionalisation); Wilson et al. 2020 (pathwise conditioning).
Differs  from the four eigenvalues of T that complete grids of equal noise would allow: exact for any grid, at the cost
         of N^3 for each setting.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from analysis.gaussian import MEAN_VARIANCE, Points
from analysis.kernels import Distances, Floats, Priors, distances, hyper_parameters, kernel, places

_JITTER = 1e-6  # points squared


@dataclass(frozen=True, slots=True)
class PooledPlane:
    """One plane's runs, with the run-to-run s.d. that its own fit found (points)."""

    model: str
    dataset: str
    points: Points
    run_deviation: float


@dataclass(frozen=True, slots=True)
class PlaceMeans:
    """Place means of every plane, centred by plane."""

    prompt_L: Floats
    response_L: Floats
    between_LL: Distances
    plane_N: NDArray[np.int_]
    place_N: NDArray[np.int_]
    mean_N: Floats
    known_N: Floats  # known variance of the mean
    unknown_N: Floats  # rho^2 / runs
    centre_P: Floats
    spread: tuple[
        tuple[float, float, float, int], ...
    ]  # squares, v, rho^2, freedom of repeated runs, by plane
    same_model_PP: Floats
    same_dataset_PP: Floats


@dataclass(frozen=True, slots=True)
class JointSetting:
    model: str
    hyper: Mapping[str, Floats]
    shares: Floats  # (4,)
    count: int  # times it was picked


def place_means(planes: Sequence[PooledPlane]) -> PlaceMeans:
    pairs = sorted(
        {
            pair
            for plane in planes
            for pair in zip(
                plane.points.prompt_weights.tolist(), plane.points.response_weights.tolist(), strict=True
            )
        }
    )
    index = {pair: k for k, pair in enumerate(pairs)}
    prompt_L, response_L = np.array(pairs).T
    overall = math.exp(float(np.mean([math.log(plane.run_deviation) for plane in planes])))
    rows: list[tuple[int, int, float, float, float]] = []
    spread, centres = [], []
    for p, plane in enumerate(planes):
        points, rho2 = plane.points, (plane.run_deviation / overall) ** 2
        place_n = np.array(
            [
                index[pair]
                for pair in zip(points.prompt_weights.tolist(), points.response_weights.tolist(), strict=True)
            ]
        )
        scores_n, taken = _without_seeds(points.scores, place_n, points.seeds)
        centre = float(scores_n.mean())
        squares = 0.0
        for place in np.unique(place_n):
            here = place_n == place
            mean, count = float(scores_n[here].mean()), int(here.sum())
            squares += float(((scores_n[here] - mean) ** 2).sum())
            rows.append(
                (p, int(place), mean - centre, float(points.variances[here].mean()) / count, rho2 / count)
            )
        freedom = max(len(scores_n) - len(np.unique(place_n)) - taken, 0)
        spread.append((squares, float(points.variances.mean()), rho2, freedom))
        centres.append(centre)
    plane_N, place_N, mean_N, known_N, unknown_N = (np.array(column) for column in zip(*rows, strict=True))
    here = places(prompt_L, response_L)
    names = np.array([[plane.model for plane in planes], [plane.dataset for plane in planes]])
    same = (names[:, :, None] == names[:, None, :]).astype(float)
    return PlaceMeans(
        prompt_L,
        response_L,
        distances(here, here),
        plane_N.astype(int),
        place_N.astype(int),
        mean_N,
        known_N,
        unknown_N,
        np.array(centres),
        tuple(spread),
        same[0],
        same[1],
    )


def _without_seeds(
    scores_n: Floats, place_n: NDArray[np.int_], seeds_n: NDArray[np.int_]
) -> tuple[Floats, int]:
    """Scores less what each seed adds to all places, and how many degrees of freedom that took."""
    seeds, seed_n = np.unique(seeds_n, return_inverse=True)
    _, compact_n = np.unique(place_n, return_inverse=True)
    num_places = int(compact_n.max()) + 1
    if len(seeds) < 2 or len(scores_n) <= num_places:
        return scores_n, 0
    design = np.zeros((len(scores_n), num_places + len(seeds)))
    design[np.arange(len(scores_n)), compact_n] = 1.0
    design[np.arange(len(scores_n)), num_places + seed_n] = 1.0
    effects = np.linalg.lstsq(design, scores_n, rcond=None)[0][num_places:]
    rank = int(np.linalg.matrix_rank(design))
    return scores_n - (effects - effects.mean())[seed_n], rank - num_places


def similarity(means: PlaceMeans, shares: Floats) -> Floats:
    return (
        shares[0]
        + shares[1] * means.same_model_PP
        + shares[2] * means.same_dataset_PP
        + shares[3] * np.eye(len(means.same_model_PP))
    )


def covariance_of(means: PlaceMeans, setting: JointSetting, T_PP: Floats) -> Floats:
    """Of the place means, (N, N)."""
    return _assembled(
        means, kernel(setting.model, setting.hyper, means.between_LL)[0], T_PP, setting.hyper["run"][0]
    )


def _assembled(
    means: PlaceMeans, kernel_LL: Floats, T_PP: Floats, run: float, room_2NN: Floats | None = None
) -> Floats:
    """room_2NN: memory to work in, the answer is its first half. Asked of the system anew it costs as much again."""
    planes, at = means.plane_N, means.place_N
    result, other = np.empty((2, len(planes), len(planes))) if room_2NN is None else room_2NN

    def spread(matrix: Floats, over_N: NDArray[np.int_], out: Floats) -> Floats:
        return np.take(matrix[:, over_N], over_N, axis=0, out=out, mode="clip")

    spread(T_PP, planes, result)
    result *= spread(kernel_LL, at, other)
    result += spread(MEAN_VARIANCE * np.eye(len(T_PP)), planes, other)
    result[np.diag_indices_from(result)] += means.known_N + run**2 * means.unknown_N + _JITTER
    return result


def shares_of(z_HD: Floats) -> Floats:
    raised = np.exp(1.5 * (z_HD[:, -4:] - z_HD[:, -4:].max(axis=1, keepdims=True)))
    return raised / raised.sum(axis=1, keepdims=True)


def joint_log_likelihood(model: str, z_HD: Floats, means: PlaceMeans, priors: Priors) -> Floats:
    hyper = hyper_parameters(model, z_HD, priors, False)
    shares_H4 = shares_of(z_HD)
    result, room_2NN = np.empty(len(z_HD)), np.empty((2, means.mean_N.size, means.mean_N.size))
    for start in range(0, len(z_HD), 32):
        part = slice(start, start + 32)
        kernels = kernel(model, {name: value[part] for name, value in hyper.items()}, means.between_LL)
        for offset, kernel_LL in enumerate(kernels):
            h = start + offset
            run = float(hyper["run"][h])
            covariance = _assembled(means, kernel_LL, similarity(means, shares_H4[h]), run, room_2NN)
            # transposed: LAPACK's order, so that nothing is copied
            root = linalg.cholesky(covariance.T, lower=True, overwrite_a=True, check_finite=False)
            solved = linalg.solve_triangular(root, means.mean_N, lower=True, check_finite=False)
            result[h] = -0.5 * solved @ solved - np.log(np.diag(root)).sum() + _spread_term(means, run)
    return result


def _spread_term(means: PlaceMeans, run: float) -> float:
    """What runs repeated at one place say of the run-to-run s.d.; a constant is left out."""
    total = 0.0
    for squares, known, rho2, freedom in means.spread:
        if freedom:
            variance = known + rho2 * run**2
            total -= 0.5 * (freedom * math.log(variance) + squares / variance)
    return total


def joint_draws(
    means: PlaceMeans,
    setting: JointSetting,
    prompt_weights: ArrayLike,
    response_weights: ArrayLike,
    count: int,
    generator: np.random.Generator,
) -> Floats:
    """Draws of the P planes and a new one at Q places, (K, P + 1, Q)."""
    prompt_Q = np.asarray(prompt_weights, dtype=float)
    num_planes, num_places = len(means.centre_P), len(means.prompt_L)
    every = places(
        np.concatenate([means.prompt_L, prompt_Q]),
        np.concatenate([means.response_L, np.asarray(response_weights, dtype=float)]),
    )
    kernel_XX = kernel(setting.model, setting.hyper, distances(every, every))[0]
    T_PP = similarity(means, setting.shares)
    extended = np.full((num_planes + 1, num_planes + 1), setting.shares[0])
    extended[:-1, :-1], extended[-1, -1] = T_PP, 1.0
    normal = generator.standard_normal((count, num_planes + 1, len(kernel_XX)))
    prior_KPX = _root(extended) @ normal @ _root(kernel_XX).T
    run = float(setting.hyper["run"][0])
    noise_N = np.sqrt(means.known_N + run**2 * means.unknown_N + _JITTER)
    levels_KP = math.sqrt(MEAN_VARIANCE) * generator.standard_normal((count, num_planes))
    seen_KN = prior_KPX[:, means.plane_N, means.place_N] + levels_KP[:, means.plane_N]
    seen_KN = seen_KN + noise_N * generator.standard_normal(seen_KN.shape)
    covariance = _assembled(means, kernel_XX[:num_places, :num_places], T_PP, run)
    factor = linalg.cho_factor(covariance, lower=True, check_finite=False)
    solved_NK = linalg.cho_solve(factor, (means.mean_N - seen_KN).T, check_finite=False)
    lacking_KPL = np.zeros((count, num_planes, num_places))
    lacking_KPL[:, means.plane_N, means.place_N] = solved_NK.T
    levels_KP = levels_KP + MEAN_VARIANCE * lacking_KPL.sum(axis=2)
    change_KPQ = extended[:, :-1] @ lacking_KPL @ kernel_XX[:num_places, num_places:]
    drawn_KPQ = prior_KPX[:, :, num_places:] + change_KPQ
    drawn_KPQ[:, :-1] += levels_KP[:, :, None]
    return drawn_KPQ


def _root(covariance: Floats) -> Floats:
    """A root of a covariance that may be singular: places of one ray are one place to a kernel of rays."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.clip(values, 0, None))

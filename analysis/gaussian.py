"""Runs at places of the plane, the Gaussian evidence of a surface for them, and its prediction. Pure.

Letters: N runs, L distinct places, T seeds, Q places asked for, H hyper-parameter settings, D their number.

One run i at place l(i) with seed t(i) scores

    y_i = mean + f(l(i)) + b(t(i)) + e_i      e_i ~ N(0, v_i + s^2)      b ~ N(0, B^2)      mean ~ N(ȳ, 30^2)

f has one of the four kernels of `analysis.kernels`; v_i is the evaluation variance that is known from the items,
s the run-to-run s.d. that is not. b is what all runs of one seed share (the data order): it cancels in differences,
so it is in the model only where seeds and places cross.

Derivation. Let x = (mean + f at L places, b at T seeds) ~ N(0, G G'), G block-diagonal with the Cholesky factor of
the kernel and B I; A the N x (L + T) matrix that reads run i's place and seed; D = diag(v + s^2). With

    P = A' D^-1 A      h = A' D^-1 y      M = I + G' P G      t = G' h

the matrix determinant lemma and Woodbury's identity give

    log p(y) = -1/2 (y' D^-1 y - t' M^-1 t + log det M + log det D + N log 2 pi)
    f at Q | y ~ N(V' M^-1 t, K_QQ - V' V + V' M^-1 V)      V = G^-1 K(places, Q), 0 for the seeds

so the cost is (L + T)^3 for each setting, however many runs repeat a place, and M >= I is never ill-conditioned.
P and h are sums over runs.

Leave-one-out, for each run: with R = (A G G' A' + D)^-1, y_i | others ~ N(y_i - (R y)_i / R_ii, 1 / R_ii).
Source   Rasmussen and Williams, equations 2.25, 2.30 and 5.12.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from analysis.kernels import Distances, Floats, Places, Priors, distances, hyper_parameters, kernel, places

MEAN_VARIANCE = 30.0**2  # of the free mean around the average score, points squared
_BLOCK = 40_000  # numbers in the covariances of the settings that are solved together
_JITTER = 1e-6  # points squared; also breaks exact ties of draws at random


@dataclass(frozen=True, slots=True)
class Points:
    """One row for each run. Scores in points, higher better (see `analysis.units`); all of shape (N,)."""

    prompt_weights: Floats
    response_weights: Floats
    scores: Floats
    variances: (
        Floats  # known evaluation variance of a difference between cells, points squared; 0: none known
    )
    seeds: NDArray[np.int_]

    @classmethod
    def of(
        cls,
        prompt_weights: ArrayLike,
        response_weights: ArrayLike,
        scores: ArrayLike,
        variances: ArrayLike = 0.0,
        seeds: ArrayLike = 0,
    ) -> "Points":
        """Arrays or numbers as points; ValueError for a score that isn't a number, or no run."""
        y = np.asarray(scores, dtype=float)
        if not y.size or not np.isfinite(y).all():
            raise ValueError("a surface needs at least one run, and finite scores only")
        shape = y.shape
        return cls(
            np.broadcast_to(np.asarray(prompt_weights, dtype=float), shape),
            np.broadcast_to(np.asarray(response_weights, dtype=float), shape),
            y,
            np.broadcast_to(np.asarray(variances, dtype=float), shape),
            np.broadcast_to(np.asarray(seeds, dtype=int), shape),
        )

    def __len__(self) -> int:
        return self.scores.size


@dataclass(frozen=True, slots=True)
class Grouped:
    """Runs by place and seed."""

    places_L: Places
    between_LL: Distances
    place_N: NDArray[np.int_]
    seed_N: NDArray[np.int_]  # index of the seed
    num_seeds: int  # 0: seeds don't cross places, and aren't modelled
    centre: float
    scores_N: Floats  # around the centre
    variances_N: Floats


def grouped(points: Points, max_places: int) -> Grouped:
    """Distinct places and crossed seeds.

    Seeds are modelled if two-way residuals have at least two degrees of freedom: with fewer, what a seed shares
    can't be told from what a place does.
    Approximate   Above max_places places, u is rounded to 1/384 (or 1/192, 1/96, 1/48 until they are few enough) and
                  log2 scale to twelve times that: a shift of at most one degree.
    """
    pairs = np.stack([points.prompt_weights, points.response_weights], axis=1)
    distinct, place_N = np.unique(pairs, axis=0, return_inverse=True)
    for steps in (384, 192, 96, 48):
        if len(distinct) <= max_places:
            break
        at = places(pairs[:, 0], pairs[:, 1])
        key = np.stack(
            [
                np.round(at.angle * steps),
                np.round(at.log_scale * math.log2(5) * steps / 12),
                at.is_prompt_only,
                at.is_response_only,
            ],
            axis=1,
        )
        _, first, place_N = np.unique(key, axis=0, return_index=True, return_inverse=True)
        distinct = pairs[first]
    place_N = place_N.reshape(-1)
    seeds, seed_N = np.unique(points.seeds, return_inverse=True)
    combinations = len(set(zip(place_N.tolist(), seed_N.tolist(), strict=True)))
    is_crossed = len(seeds) > 1 and combinations - len(distinct) - len(seeds) + 1 >= 2
    at = places(distinct[:, 0], distinct[:, 1])
    centre = float(points.scores.mean())
    return Grouped(
        at,
        distances(at, at),
        place_N,
        seed_N.reshape(-1) if is_crossed else np.zeros_like(place_N),
        len(seeds) if is_crossed else 0,
        centre,
        points.scores - centre,
        np.array(points.variances, dtype=float),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """Places to predict at: the same for every setting, so their distances are found once."""

    within_QQ: Distances
    from_runs_LQ: Distances

    @property
    def number(self) -> int:
        """Q."""
        return len(self.within_QQ.angle)


def asked_of(data: Grouped, prompt_weights: ArrayLike, response_weights: ArrayLike) -> Asked:
    """Pairs of weights, and where they lie beside the runs' places."""
    asked = places(prompt_weights, response_weights)
    return Asked(distances(asked, asked), distances(data.places_L, asked))


@dataclass(frozen=True, slots=True)
class Solved:
    """A batch of H settings, factorised. Shapes with X = L + T: root_G (H, X, X), root_M, solved_t (H, X)."""

    precision_HN: Floats
    root_G: Floats
    root_M: Floats
    solved_t: Floats

    def log_likelihood(self, data: Grouped) -> Floats:
        """log p(y) under each setting, shape (H,)."""
        squares_H = self.precision_HN @ data.scores_N**2 - (self.solved_t**2).sum(axis=1)
        diagonal = np.arange(self.root_M.shape[1])
        log_det_H = 2 * np.log(self.root_M[:, diagonal, diagonal]).sum(axis=1)
        log_det_H -= np.log(self.precision_HN).sum(axis=1)
        return -0.5 * (squares_H + log_det_H + data.scores_N.size * math.log(2 * math.pi))


def log_likelihood(model: str, z_HD: Floats, data: Grouped, priors: Priors) -> Floats:
    """log p(y) at standard-normal coordinates of a model's hyper-parameters, shape (H,).

    In blocks: a block's covariances stay in the cache, and memory is not asked of the system again and again.
    """
    hyper = hyper_parameters(model, z_HD, priors, data.num_seeds > 0)
    width = data.places_L.prompt.size + data.num_seeds
    block = max(1, _BLOCK // width**2)
    found = []
    for start in range(0, len(z_HD), block):
        part = {name: value_H[start : start + block] for name, value_H in hyper.items()}
        found.append(solve(model, part, data).log_likelihood(data))
    return np.concatenate(found)


def solve(model: str, hyper: Mapping[str, Floats], data: Grouped) -> Solved:
    """Factorise every setting; see the head of this file."""
    num_settings, num_places = hyper["run"].size, data.places_L.prompt.size
    width = num_places + data.num_seeds
    on_places, on_seeds = np.arange(num_places), np.arange(num_places, width)
    covariance = kernel(model, hyper, data.between_LL) + MEAN_VARIANCE
    covariance[:, on_places, on_places] += _JITTER
    root_G = np.zeros((num_settings, width, width))
    root_G[:, :num_places, :num_places] = np.linalg.cholesky(covariance)
    if data.num_seeds:
        root_G[:, on_seeds, on_seeds] = hyper["seed"][:, None]
    precision_HN = 1 / (data.variances_N + (hyper["run"] ** 2)[:, None])
    middle, right = _sums(precision_HN, data, width)
    lower = root_G.transpose(0, 2, 1)
    augmented = np.empty((num_settings, width + 1, width + 1))
    augmented[:, :width, :width] = lower @ middle @ root_G
    augmented[:, np.arange(width), np.arange(width)] += 1.0
    augmented[:, width, :width] = (lower @ right[:, :, None])[:, :, 0]
    augmented[:, width, width] = 1e100  # anything large: only the row before it is read
    root: Floats = np.linalg.cholesky(augmented).astype(float, copy=False)
    return Solved(precision_HN, root_G, root[:, :width, :width], root[:, width, :width])


def _sums(precision_HN: Floats, data: Grouped, width: int) -> tuple[Floats, Floats]:
    """P = A' D^-1 A and h = A' D^-1 y, without ever forming A."""
    num_settings, num_places = len(precision_HN), data.places_L.prompt.size
    middle, right = np.zeros((num_settings, width, width)), np.zeros((num_settings, width))

    def summed(values_HN: Floats, key_N: NDArray[np.int_]) -> tuple[NDArray[np.int_], Floats]:
        order = np.argsort(key_N, kind="stable")
        keys, starts = np.unique(key_N[order], return_index=True)
        return keys, np.add.reduceat(values_HN[:, order], starts, axis=1)

    weighted_HN = precision_HN * data.scores_N
    columns = [data.place_N] + ([num_places + data.seed_N] if data.num_seeds else [])
    for column_N in columns:
        keys, total = summed(precision_HN, column_N)
        middle[:, keys, keys] = total
        keys, total = summed(weighted_HN, column_N)
        right[:, keys] = total
    if data.num_seeds:
        keys, total = summed(precision_HN, data.place_N * data.num_seeds + data.seed_N)
        place, seed = keys // data.num_seeds, num_places + keys % data.num_seeds
        middle[:, place, seed] = total
        middle[:, seed, place] = total
    return middle, right


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting with its share of the posterior."""

    model: str
    hyper: Mapping[str, Floats]  # each of shape (1,)
    share: float
    solved: Solved  # H = 1

    def predict(self, asked: Asked) -> tuple[Floats, Floats]:
        """Mean (Q,) around the centre, and covariance (Q, Q)."""
        prior_QQ = kernel(self.model, self.hyper, asked.within_QQ)[0] + MEAN_VARIANCE
        crossed = kernel(self.model, self.hyper, asked.from_runs_LQ)[0] + MEAN_VARIANCE
        num_places = len(crossed)
        root_G, root_M = self.solved.root_G[0], self.solved.root_M[0]
        v_XQ = np.zeros((len(root_G), crossed.shape[1]))
        v_XQ[:num_places] = _solve_lower(root_G[:num_places, :num_places], crossed)
        w_XQ = _solve_lower(root_M, v_XQ)
        return w_XQ.T @ self.solved.solved_t[0], prior_QQ - v_XQ.T @ v_XQ + w_XQ.T @ w_XQ

    def leave_one_out(self, data: Grouped) -> tuple[Floats, Floats]:
        """For each run, its score minus its prediction from all others, and the prediction's variance; (N,)."""
        root_G, root_M = self.solved.root_G[0], self.solved.root_M[0]
        num_places = data.places_L.prompt.size
        rows_NX = root_G[data.place_N]
        if data.num_seeds:
            rows_NX = rows_NX + root_G[num_places + data.seed_N]
        spread_XN = _solve_lower(root_M, rows_NX.T)
        precision_N = self.solved.precision_HN[0]
        remaining_N = precision_N - precision_N**2 * (spread_XN**2).sum(axis=0)  # R_ii
        pulled_N = precision_N * (data.scores_N - spread_XN.T @ self.solved.solved_t[0])  # (R y)_i
        return pulled_N / remaining_N, 1 / remaining_N


def root_of(covariance: Floats) -> Floats:
    """A lower root of a covariance that may be singular."""
    jitter, symmetric = _JITTER / 10, (covariance + covariance.T) / 2
    for _ in range(4):
        try:
            return linalg.cholesky(
                symmetric + jitter * np.eye(len(symmetric)), lower=True, check_finite=False
            )
        except linalg.LinAlgError:
            jitter *= 10
    values, vectors = np.linalg.eigh(symmetric)
    return vectors * np.sqrt(np.clip(values, 0, None))


def _solve_lower(root: Floats, right: Floats) -> Floats:
    return linalg.solve_triangular(root, right, lower=True, check_finite=False)

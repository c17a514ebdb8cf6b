"""How noisy one run's score is: from items, from seeds, from scale-equivalent cells. Pure, numpy only.

Letters: C runs, I items, G clusters, Y rays, S seeds.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.kernels import Floats


def paired_variances(
    values_CI: ArrayLike, clusters_I: ArrayLike, weights_I: ArrayLike | None = None
) -> Floats:
    """Variance of each run's mean as far as it matters in contrasts between runs, shape (C,), unit squared.

    All runs see the same items, so what an item is to all of them cancels in every difference. With u_ci the item's
    share of run c's mean, w_i (y_ci - ȳ_c.) / sum(w), and ū_.i its mean over runs,

        v_c = C / (C - 1) * G / (G - 1) * sum_g ( sum_{i in g} u_ci - ū_.i )^2

    Items of one cluster (a passage, a conversation, a task) are summed first, because they are not independent.
    NaN     items absent from any run are left out of all; NaN without two runs and two clusters.
    Source  Miller 2024, arXiv 2411.00640 (paired, clustered); the double centring is the two-way residual of run and
            item, so the common part goes into the mean of the plane and a diagonal noise matrix is right up to 1 / C.
    """
    values_CI = np.asarray(values_CI, dtype=float)
    keep_I = np.isfinite(values_CI).all(axis=0)
    weights = np.ones(values_CI.shape[1]) if weights_I is None else np.asarray(weights_I, dtype=float)
    keep_I &= weights > 0
    _, cluster_I = np.unique(np.asarray(clusters_I)[keep_I], return_inverse=True)
    num_runs, num_clusters = len(values_CI), int(cluster_I.max(initial=-1)) + 1
    if num_runs < 2 or num_clusters < 2:
        return np.full(num_runs, math.nan)
    y_CI, w_I = values_CI[:, keep_I], weights[keep_I] / weights[keep_I].sum()
    u_CI = w_I * (y_CI - (y_CI @ w_I)[:, None])
    u_CI -= u_CI.mean(axis=0)
    sums_GC = np.zeros((num_clusters, num_runs))
    np.add.at(sums_GC, cluster_I, u_CI.T)
    scale = num_runs / (num_runs - 1) * num_clusters / (num_clusters - 1)
    return scale * (sums_GC**2).sum(axis=0)


@dataclass(frozen=True, slots=True)
class Noise:
    """What one run's score owes to chance, in the metric's unit; NaN where there is nothing to tell it from."""

    evaluation: float  # s.d. from the items: another set of items like these
    seed: float  # s.d. of runs of one ray around its mean, pooled; what a seed shares with all rays taken out
    seed_freedom: int
    check: float  # s.d. between a scale check and the run that it checks, per run
    num_checks: int
    inferred: float  # run-to-run s.d. of the surface's posterior, beyond the evaluation's
    inferred_low: float
    inferred_high: float
    run: float  # s.d. of one run in a contrast: what every number below rests on

    def resolved(self, num_seeds: int) -> float:
        """The least observed difference of two settings, each with so many seeds, that 95 % of chance stays below."""
        return 1.959964 * self.run * math.sqrt(2 / num_seeds)

    def detected(self, num_seeds: int) -> float:
        """The true difference that so many seeds each find with 80 % power (two-sided 5 %)."""
        return (1.959964 + 0.841621) * self.run * math.sqrt(2 / num_seeds)

    def seeds_needed(self, gain: float) -> int:
        """Seeds for each of two settings that find a true difference of that size with 80 % power."""
        if not gain > 0 or not math.isfinite(self.run):
            raise ValueError(f"no number of seeds finds a gain of {gain:g} at a noise of {self.run:g}")
        return max(2, math.ceil(2 * ((1.959964 + 0.841621) * self.run / gain) ** 2 - 1e-9))


def two_way_deviation(scores_YS: Floats) -> tuple[float, int]:
    """S.d. of one run around ray + seed effects, and its degrees of freedom; NaN and 0 without replicates.

    Least squares of the two-way layout, so absent runs need not be balanced.
    """
    rows, columns = np.nonzero(np.isfinite(scores_YS))
    if not rows.size:
        return math.nan, 0
    used_rows, row = np.unique(rows, return_inverse=True)
    used_columns, column = np.unique(columns, return_inverse=True)
    design = np.zeros((rows.size, used_rows.size + used_columns.size))
    design[np.arange(rows.size), row] = 1
    design[np.arange(rows.size), used_rows.size + column] = 1
    values = scores_YS[rows, columns]
    centred = values - values.mean()
    solution, _, rank, _ = np.linalg.lstsq(design, centred, rcond=None)
    freedom = rows.size - int(rank)
    if freedom < 1:
        return math.nan, 0
    deviation = math.sqrt(float(((centred - design @ solution) ** 2).sum()) / freedom)
    return (0.0 if deviation <= 1e-9 * max(float(np.abs(values).max()), 1e-300) else deviation), freedom


def check_deviation(differences: ArrayLike) -> tuple[float, int]:
    """S.d. of one run from differences between scale checks and their rays' runs of the same seed, and their number."""
    found = np.asarray(differences, dtype=float)
    found = found[np.isfinite(found)]
    return (math.sqrt(float((found**2).mean()) / 2), found.size) if found.size else (math.nan, 0)


def best_set(
    means_Y: Floats, counts_Y: NDArray[np.int_], deviation: float, freedom: int
) -> NDArray[np.bool_]:
    """The rays that can't be told from the best one: 95 % confidence, higher better, no surface assumed.

    A ray stays if no other beats it by more than the upper 5 % point of max_j (t_j - t_i) says, each contrast with its
    own standard error; simulated under equality from a fixed seed (20,000 draws, fewer for many rays). All rays for
    unknown noise. Source: Hsu 1996, multiple comparisons with the best.
    """
    there_Y = counts_Y > 0
    if not math.isfinite(deviation) or there_Y.sum() < 2:
        return there_Y.copy()
    generator = np.random.default_rng(2507_07817)
    counts = counts_Y[there_Y]
    number = min(20_000, 400_000 // counts.size)
    noise = generator.standard_normal((number, counts.size)) / np.sqrt(counts)
    if freedom:
        noise /= np.sqrt(generator.chisquare(freedom, number) / freedom)[:, None]
    means = means_Y[there_Y]
    kept = []
    for index in range(counts.size):
        error = np.sqrt(1 / counts + 1 / counts[index])
        error[index] = math.inf
        limit = np.quantile(((noise - noise[:, [index]]) / error).max(axis=1), 0.95)
        kept.append(bool(((means - means[index]) / error).max() <= limit * deviation + 1e-12))
    result = np.zeros(means_Y.size, dtype=bool)
    result[there_Y] = kept
    return result


def dunnett_least_p(scores_YS: Floats, control: int) -> float:
    """Least two-sided p-value of Dunnett's comparison of all replicated rays with one; NaN without replicates.

    P(max_j |t_j| >= the largest seen) under equality, by simulation from a fixed seed: the joint integral that
    `scipy.stats.dunnett` does takes minutes for a hundred rays. Source: Dunnett 1955.
    """
    counts_Y = np.isfinite(scores_YS).sum(axis=1)
    others = [index for index, count in enumerate(counts_Y) if index != control and count > 1]
    if not others or counts_Y[control] < 2:
        return math.nan
    rows = [control, *others]
    samples = [scores_YS[row][np.isfinite(scores_YS[row])] for row in rows]
    counts = counts_Y[rows]
    freedom = int(counts.sum()) - counts.size
    variance = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in samples) / freedom
    if variance <= (1e-9 * max(float(np.abs(sample).max()) for sample in samples)) ** 2:
        return math.nan
    means = np.array([float(sample.mean()) for sample in samples])
    error = np.sqrt(1 / counts[1:] + 1 / counts[0])
    seen = float((np.abs(means[1:] - means[0]) / error).max()) / math.sqrt(variance)
    number = min(20_000, 400_000 // counts.size)
    generator = np.random.default_rng(2507_07817)
    noise = generator.standard_normal((number, counts.size)) / np.sqrt(counts)
    largest = (np.abs(noise[:, 1:] - noise[:, [0]]) / error).max(axis=1)
    largest /= np.sqrt(generator.chisquare(freedom, number) / freedom)
    return float(((largest >= seen).sum() + 1) / (number + 1))

"""Worlds of several planes whose truth is known, for the simulations of what planes share and of confirmed gains.

Letters: P planes, Q places asked for. Scores in points; a truth is 0 wherever nothing else is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.coregional import PooledPlane
from analysis.gaussian import Points
from analysis.kernels import AVERAGE, Floats
from analysis.pooled import PooledEffort, fit_pooled
from analysis.surface import FULL, Effort, fit_surface

LEVELS = np.round(np.arange(0, 1.01, 0.2), 2)
CELLS = np.array([(p, r) for p in LEVELS for r in LEVELS if p + r > 0])  # 35
FINE = np.round(np.arange(0, 1.01, 0.1), 2)
PLACES = np.array([(p, r) for p in FINE for r in FINE if p + r > 0])  # 120
MID_NOISE = (0.7, 0.5, 0.6)  # s.d. of scoring one run, its correlation between runs, s.d. between runs


def place(weights: tuple[float, float], among: Floats = PLACES) -> int:
    """The index of a pair of weights."""
    return int(np.flatnonzero(np.isclose(among, weights).all(axis=1))[0])


CONVENTION = place((0.0, 1.0))
CELL_PLACES = np.array([place(tuple(cell)) for cell in CELLS])


def angle(weights: Floats = PLACES) -> Floats:
    """Radians: 0 response only."""
    return np.arctan2(weights[:, 0], weights[:, 1])


def ray_bump(degrees: float, width: float, height: float) -> Floats:
    """A surface that only the ratio decides."""
    return height * np.exp(-((angle() - np.radians(degrees)) ** 2) / (2 * np.radians(width) ** 2))


def truths(kind: str, generator: np.random.Generator, num_models: int = 3, num_datasets: int = 3) -> Floats:
    """True surfaces, shape (models, datasets, Q).

    homogeneous, by_dataset, unrelated are the prototype's. Two of our own: `graded` has one optimum, which each
    model follows to its own degree and the smallest one reverses; `off_ray` a common peak that breaks the invariance.
    """
    found = np.zeros((num_models, num_datasets, len(PLACES)))
    for m in range(num_models):
        for d in range(num_datasets):
            wave = 0.3 * np.sin(3 * PLACES[:, 1] + m)
            if kind == "homogeneous":
                found[m, d] = ray_bump(23, 14, 2.0) + wave
            elif kind == "by_dataset":
                found[m, d] = ray_bump((8, 23, 45)[d], 14, 2.0) + wave
            elif kind == "unrelated":
                height = generator.choice([-1, 1]) * generator.uniform(1, 3)
                found[m, d] = ray_bump(generator.uniform(0, 70), 14, height) + wave
            elif kind == "graded":
                found[m, d] = ray_bump(18, 16, (-0.7, 1.2, 2.5)[m])
            elif kind == "off_ray":
                square = ((PLACES - (0.3, 0.7)) ** 2).sum(axis=1)
                found[m, d] = 2.0 * np.exp(-square / (2 * 0.3**2))
            else:
                raise ValueError(kind)
    return found


def observed(
    truth_Q: Floats, generator: np.random.Generator, noise: tuple[float, float, float] = MID_NOISE
) -> Floats:
    """One run of every cell; what runs share of the scoring noise is common to the plane."""
    scoring, correlation, between = noise
    own = np.sqrt((1 - correlation) * scoring**2 + between**2)
    return (
        truth_Q[CELL_PLACES]
        + np.sqrt(correlation) * scoring * generator.standard_normal()
        + own * generator.standard_normal(len(CELLS))
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated study: means over its planes, and what was predicted for a new one."""

    separate_regret: float
    pooled_regret: float
    gain_coverage: float
    new_plane_claim: bool
    new_plane_false: bool
    new_plane_covers: bool
    effective_sample_size: float
    common_share: float


def study(
    kind: str, seed: int, *, present: float = 1.0, unequal: bool = False, is_quick: bool = False
) -> Outcome:
    """3 x 3 planes of 35 single runs at mid noise. present: share of runs that is there; unequal: noise x 1/2 to 2."""
    effort = Effort(64, 64, 24, max_rounds=1) if is_quick else FULL
    pooled_effort = PooledEffort(64, 48, 24) if is_quick else PooledEffort()
    generator = np.random.default_rng([seed, 33, len(kind)])
    truth = truths(kind, generator).reshape(9, -1)
    new_truth = _new_truth(kind, generator)
    known = (1 - MID_NOISE[1]) * MID_NOISE[0] ** 2
    planes, separate = [], []
    for p in range(9):
        between = MID_NOISE[2] * (2.0 ** generator.uniform(-1, 1) if unequal else 1.0)
        scores = observed(truth[p], generator, (MID_NOISE[0], MID_NOISE[1], between))
        kept = generator.random(len(CELLS)) < present
        kept[[place((0.0, 1.0), CELLS)]] = True
        points = Points.of(CELLS[kept, 0], CELLS[kept, 1], scores[kept], known)
        posterior = fit_surface(points, AVERAGE, seed, effort=effort)
        best = int(np.argmax(posterior.draws(PLACES[:, 0], PLACES[:, 1]).mean(axis=0)))
        separate.append(truth[p].max() - truth[p, best])
        planes.append(PooledPlane(f"m{p // 3}", f"d{p % 3}", points, posterior.run_deviation))
    pooled = fit_pooled(planes, AVERAGE, seed, effort=pooled_effort)
    draws = pooled.draws(PLACES[:, 0], PLACES[:, 1])
    regrets, covers = [], []
    for p in range(9):
        best = int(np.argmax(draws.planes_KPQ[:, p].mean(axis=0)))
        regrets.append(truth[p].max() - truth[p, best])
        covers.append(_covers(draws.planes_KPQ[:, p], best, truth[p]))
    best = int(np.argmax((draws.new_KQ - draws.new_KQ[:, [CONVENTION]]).mean(axis=0)))
    gain = draws.new_KQ[:, best] - draws.new_KQ[:, CONVENTION]
    claims = bool(np.quantile(gain, 0.025) > 0.01)
    return Outcome(
        separate_regret=float(np.mean(separate)),
        pooled_regret=float(np.mean(regrets)),
        gain_coverage=float(np.mean(covers)),
        new_plane_claim=claims,
        new_plane_false=claims and bool(new_truth[best] - new_truth[CONVENTION] <= 0),
        new_plane_covers=_covers(draws.new_KQ, best, new_truth),
        effective_sample_size=pooled.effective_sample_size,
        common_share=pooled.shares["common"],
    )


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over repetitions; regret ratio with its standard error by the delta method."""
    separate = np.array([outcome.separate_regret for outcome in outcomes])
    pooled = np.array([outcome.pooled_regret for outcome in outcomes])
    ratio = pooled.mean() / separate.mean()
    spread = (pooled - ratio * separate).std(ddof=1) / separate.mean() / np.sqrt(len(outcomes))
    return {
        "num_repetitions": len(outcomes),
        "separate_regret": float(separate.mean()),
        "pooled_regret": float(pooled.mean()),
        "regret_ratio": float(ratio),
        "regret_ratio_standard_error": float(spread),
        **{
            name: float(np.mean([getattr(outcome, name) for outcome in outcomes]))
            for name in (
                "gain_coverage",
                "new_plane_claim",
                "new_plane_false",
                "new_plane_covers",
                "effective_sample_size",
                "common_share",
            )
        },
    }


def _covers(draws_KQ: Floats, best: int, truth_Q: Floats) -> bool:
    gain = draws_KQ[:, best] - draws_KQ[:, CONVENTION]
    low, high = np.quantile(gain, (0.025, 0.975))
    return bool(low - 0.01 <= truth_Q[best] - truth_Q[CONVENTION] <= high + 0.01)


def _new_truth(kind: str, generator: np.random.Generator) -> Floats:
    """A plane that wasn't run, of the same kind of world: its own draw of whatever differs between planes."""
    if kind == "by_dataset":
        return ray_bump(generator.choice([8.0, 23.0, 45.0]), 14, 2.0)
    if kind == "graded":
        return ray_bump(18, 16, generator.choice([-0.7, 1.2, 2.5]))
    return truths(kind, generator, 1, 1)[0, 0]

"""The analysis of the published grid: the surfaces of its 15 planes, by benchmark and on average, and across planes.

Letters: N cells of a plane, Q places of the decision grid, K draws, P planes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.across import (
    DECISIONS,
    Across,
    Pair,
    PlaneScores,
    across_planes,
    convention_of,
    runs_on_ray,
    steady_best,
)
from analysis.factors import Association, associate, best_angles
from analysis.gaussian import Points
from analysis.kernels import AVERAGE, BENCHMARK, Floats, Priors
from analysis.optimum import Difference, Optimum, difference, find_optimum
from analysis.published import (
    BENCHMARKS,
    BILLION_PARAMETERS,
    NUM_EXAMPLES,
    PublishedFacts,
    PublishedPlane,
    published_facts,
    published_planes,
)
from analysis.ranks import Ranks, rank_settings
from analysis.screen import Screened, fit_screened
from analysis.surface import Effort, Posterior, fit_surface
from analysis.tradeoff import TradeOff, family_of, trade_off

EPSILON = 0.5  # points of an average; one benchmark: twice that
SETTINGS: Mapping[str, Pair] = {  # named before looking, by their ratio
    "(0, 1)": (0.0, 1.0),
    "1 : 5": (0.2, 1.0),
    "1 : 4": (0.25, 1.0),
    "1 : 2": (0.5, 1.0),
    "(1, 1)": (1.0, 1.0),
    "2 : 1": (1.0, 0.5),
    "(1, 0)": (1.0, 0.0),
}
_LIGHT = Effort(num_prior=128, num_adapted=128, num_settings=48, max_rounds=1)
_CONVENTION = convention_of(DECISIONS)


@dataclass(frozen=True, slots=True)
class PlaneAnswer:
    """One published plane on the average of five."""

    plane: PublishedPlane
    screened: Screened
    optimum: Optimum  # over DECISIONS
    gain: Difference  # of the recommended place over (0, 1)
    best_cell: Pair
    naive: float  # points, of the best cell's run over (0, 1)'s
    cell_gain: Difference  # what the surface says of that very cell
    recommended: Pair

    @property
    def name(self) -> str:
        """Model and dataset."""
        return f"{self.plane.model} on {self.plane.dataset}"

    @property
    def convention_score(self) -> float:
        """The run at (0, 1), points."""
        return float(self.plane.average_N[self.plane.index((0.0, 1.0))])

    @property
    def is_told(self) -> bool:
        """Whether the 95 % interval of the gain lies above 0."""
        return self.gain.low > 0 and self.recommended[0] > 0

    @property
    def suspects(self) -> tuple[Pair, ...]:
        """Cells whose runs all others find very unlikely."""
        chosen = self.plane.weights_N2[self.screened.suspect_N]
        return tuple((float(prompt), float(response)) for prompt, response in chosen)


@dataclass(frozen=True, slots=True)
class BenchmarkAnswer:
    """One benchmark over all planes, at the common pair: how many planes gain, how many lose, and by how much."""

    name: str
    mean: float
    low: float
    high: float
    num_better: int
    num_worse: int
    angles: tuple[float, ...]  # posterior mean of the best angle by plane, degrees


@dataclass(frozen=True, slots=True)
class PublishedStudy:
    """Everything the page says."""

    facts: PublishedFacts
    planes: tuple[PlaneAnswer, ...]
    across: Across
    without_ifeval: Difference  # gain of the common pair on the mean of the other four, mean of the planes
    benchmarks: tuple[BenchmarkAnswer, ...]
    trade_off: TradeOff | None
    ranks: Ranks | None
    factors: tuple[Association, ...]

    @property
    def mean_naive_percent(self) -> float:
        """What choosing and reporting the best cell on the same scores claims."""
        return float(np.mean(self.facts.naive_gains_percent))

    @property
    def mean_cell_percent(self) -> float:
        """What the surfaces say of the same cells."""
        return mean_cell_percent(self.planes)

    @property
    def num_told(self) -> int:
        """Planes whose gain at the recommended pair has its interval above 0."""
        return sum(answer.is_told for answer in self.planes)


def mean_cell_percent(answers: Sequence[PlaneAnswer]) -> float:
    """What the surfaces leave of the best cells' gains, percent of the (0, 1) run, mean of the planes."""
    return float(np.mean([100 * answer.cell_gain.mean / answer.convention_score for answer in answers]))


def answer_planes(seed: int = 0) -> tuple[PlaneAnswer, ...]:
    """Each plane by itself, on the average of five. 5 CPU-s."""
    return tuple(_answer(plane, seed) for plane in published_planes())


def study_published(seed: int = 0) -> PublishedStudy:
    """The whole analysis. 20 CPU-s; equal seeds, equal results."""
    planes, answers = published_planes(), answer_planes(seed)
    across = across_planes(
        [
            PlaneScores(
                answer.name,
                answer.plane.model,
                answer.plane.dataset,
                answer.screened.posterior,
                answer.screened.posterior.points,
            )
            for answer in answers
        ],
        EPSILON,
        seed=seed,
    )
    if across.common is None:
        raise AssertionError("15 planes with (0, 1) can be pooled")
    common = steady_best(DECISIONS, across.common.mean_Q, EPSILON)
    by_benchmark = {
        name: [_gains(_fit(plane, plane.scores_NB[:, b], seed, BENCHMARK)) for plane in planes]
        for b, name in enumerate(BENCHMARKS)
    }
    other_four = [_gains(_fit(plane, plane.without_ifeval_N, seed, AVERAGE)) for plane in planes]
    mean_four_KQ = np.mean(other_four, axis=0)
    families: dict[str, list[Floats]] = {}
    for name, gains in by_benchmark.items():
        families.setdefault(str(family_of(name)), []).append(np.mean(gains, axis=0))
    return PublishedStudy(
        facts=published_facts(),
        planes=answers,
        across=across,
        without_ifeval=difference(mean_four_KQ, common, _CONVENTION, EPSILON),
        benchmarks=tuple(_benchmark(name, gains, common) for name, gains in by_benchmark.items()),
        trade_off=trade_off({name: np.mean(draws, axis=0) for name, draws in families.items()}, EPSILON),
        ranks=_ranks(answers),
        factors=_factors(answers, seed),
    )


def _answer(plane: PublishedPlane, seed: int) -> PlaneAnswer:
    points = Points.of(plane.weights_N2[:, 0], plane.weights_N2[:, 1], plane.average_N)
    screened = fit_screened(points, AVERAGE, seed)
    best = int(np.argmax(plane.average_N))
    cell = plane.weights_N2[best]
    prompt = np.append(DECISIONS[:, 0], cell[0])
    draws_KQ = screened.posterior.draws(prompt, np.append(DECISIONS[:, 1], cell[1]))
    optimum = find_optimum(draws_KQ[:, :-1], EPSILON)
    recommended = steady_best(DECISIONS, optimum.mean_Q, EPSILON)
    return PlaneAnswer(
        plane=plane,
        screened=screened,
        optimum=optimum,
        gain=difference(draws_KQ, recommended, _CONVENTION, EPSILON),
        best_cell=(float(cell[0]), float(cell[1])),
        naive=float(plane.average_N[best] - plane.average_N[plane.index((0.0, 1.0))]),
        cell_gain=difference(draws_KQ, len(DECISIONS), _CONVENTION, EPSILON),
        recommended=(float(DECISIONS[recommended, 0]), float(DECISIONS[recommended, 1])),
    )


def _fit(plane: PublishedPlane, scores_N: Floats, seed: int, priors: Priors) -> Posterior:
    points = Points.of(plane.weights_N2[:, 0], plane.weights_N2[:, 1], scores_N)
    return fit_surface(points, priors, seed, effort=_LIGHT)


def _gains(posterior: Posterior) -> Floats:
    """Draws of the gain over (0, 1) at every decision, (K, Q); K is the same for every plane."""
    draws_KQ = posterior.draws(DECISIONS[:, 0], DECISIONS[:, 1], 1024)[:1000]
    generator = np.random.default_rng(posterior.seed + 9)
    draws_KQ = draws_KQ[generator.permutation(len(draws_KQ))]  # settings in no order across planes
    return draws_KQ - draws_KQ[:, [_CONVENTION]]


def _benchmark(name: str, gains: Sequence[Floats], common: int) -> BenchmarkAnswer:
    at_PK = np.array([gain_KQ[:, common] for gain_KQ in gains])
    mean_K = at_PK.mean(axis=0)
    low, high = np.quantile(mean_K, (0.025, 0.975))
    positive_P = (at_PK > 0).mean(axis=1)
    angles = [float(best_angles(gain_KQ, DECISIONS[:, 0], DECISIONS[:, 1]).mean()) for gain_KQ in gains]
    return BenchmarkAnswer(
        name,
        float(mean_K.mean()),
        float(low),
        float(high),
        int((positive_P > 0.975).sum()),
        int((positive_P < 0.025).sum()),
        tuple(angles),
    )


def _ranks(answers: Sequence[PlaneAnswer]) -> Ranks | None:
    """Means over a ray's runs, so that every setting is one experiment."""
    points = [answer.screened.posterior.points for answer in answers]
    shown = {name: pair for name, pair in SETTINGS.items() if all(runs_on_ray(one, pair) for one in points)}
    scores_PC = np.array(
        [[float(one.scores[runs_on_ray(one, pair)].mean()) for pair in shown.values()] for one in points]
    )
    return rank_settings(scores_PC, tuple(shown))


def _factors(answers: Sequence[PlaneAnswer], seed: int) -> tuple[Association, ...]:
    angles_KP = np.stack(
        [
            best_angles(
                answer.screened.posterior.draws(DECISIONS[:, 0], DECISIONS[:, 1], 1024)[:1000],
                DECISIONS[:, 0],
                DECISIONS[:, 1],
            )
            for answer in answers
        ],
        axis=1,
    )
    properties = {
        "number of training examples": [float(NUM_EXAMPLES[answer.plane.dataset]) for answer in answers],
        "model size": [BILLION_PARAMETERS[answer.plane.model] for answer in answers],
        "prompt tokens / response tokens": [math.nan for _ in answers],  # not published
    }
    found = [associate(name, angles_KP, values, seed) for name, values in properties.items()]
    return tuple(one for one in found if one is not None)

"""The published grid of Weighted Instruction Tuning: 15 planes of 35 runs, and what its numbers say by themselves.

A reference for everything else here: facts that need no model (distinct experiments, spread within a ray, how the
average was formed, where the best cells lie) are computed from the table in analysis/data, never stated.

Letters: N cells of a plane, B benchmarks.
Source   arXiv 2507.07817v2, heat maps; caveats in analysis/data/wit_published.md.
"""

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BENCHMARKS = ("mmlu", "bbh", "alpaca_eval", "ifeval", "mt_bench")
POINTS = {"mt_bench": 10.0}  # grades of 1 to 10 become points of 0 to 100; the others are percent already
TITLES = {
    "mmlu": "MMLU",
    "bbh": "BBH",
    "alpaca_eval": "AlpacaEval",
    "ifeval": "IFEval",
    "mt_bench": "MT-Bench \u00d7 10",
}
CONVENTIONAL = (0.0, 1.0)
BILLION_PARAMETERS = {  # from the models' cards; embeddings included
    "Llama-3.2-1B": 1.24,
    "Gemma-2-2B": 2.61,
    "Llama-3.2-3B": 3.21,
    "Mistral-7B": 7.25,
    "Llama-3-8B": 8.03,
}
NUM_EXAMPLES = {
    "lima": 1_030,
    "alpaca-cleaned": 51_760,
    "tulu-v2": 150_000,
}  # the paper's Table 7 and its text
_PRINTED_ROUNDING = 0.0201  # the five scores and the average are rounded to 0.01 each, MT-Bench to 0.1 point


@dataclass(frozen=True, slots=True)
class PublishedPlane:
    """35 runs of one model on one dataset, in points of 0 to 100."""

    model: str
    dataset: str
    weights_N2: Floats  # prompt, response
    scores_NB: Floats
    printed_N: Floats  # the paper's average, as printed
    base_B: Floats

    @property
    def average_N(self) -> Floats:
        """The mean of the five benchmarks: what the paper says that it printed."""
        return self.scores_NB.mean(axis=1)

    @property
    def without_ifeval_N(self) -> Floats:
        """The mean of the other four."""
        return np.delete(self.scores_NB, BENCHMARKS.index("ifeval"), axis=1).mean(axis=1)

    @property
    def rays(self) -> dict[Fraction | None, list[int]]:
        """Cells by prompt weight / response weight (None: prompt only): each is one experiment."""
        found: dict[Fraction | None, list[int]] = defaultdict(list)
        for index, (prompt, response) in enumerate(self.weights_N2.tolist()):
            ratio = Fraction(repr(prompt)) / Fraction(repr(response)) if response else None
            found[ratio].append(index)
        return dict(found)

    def index(self, weights: tuple[float, float]) -> int:
        """The cell of that pair."""
        return int(np.flatnonzero((self.weights_N2 == weights).all(axis=1))[0])


@dataclass(frozen=True, slots=True)
class PublishedFacts:
    """What the printed numbers say without any model. Gains are relative to the (0, 1) cell, in percent."""

    num_runs: int
    num_distinct: tuple[int, ...]  # experiments of each plane
    within_ray_sd: tuple[float, ...]  # of the average of five, points, by plane
    within_ray_sd_by_benchmark: dict[str, float]  # pooled over planes
    num_printed_over_4: int  # cells, bases included, whose printed average is the sum / 4
    num_printed_over_5: int
    num_printed: int
    best_cells: tuple[tuple[float, float], ...]
    naive_gains: tuple[float, ...]  # points, of the average of five
    naive_gains_percent: tuple[float, ...]
    naive_without_ifeval_percent: tuple[float, ...]  # the same cells, the other four benchmarks
    best_without_ifeval_percent: tuple[float, ...]  # the cells that are best on the other four

    @property
    def num_best_on_convention(self) -> int:
        """Best cells on the (0, 1) ray: runs of the convention itself, under another scale."""
        return sum(prompt == 0 for prompt, _ in self.best_cells)


@cache
def published_planes() -> tuple[PublishedPlane, ...]:
    """The 15 planes in the order of the table."""
    text = (resources.files("analysis") / "data" / "wit_published.csv").read_text(encoding="utf-8")
    by_plane: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in csv.DictReader(text.splitlines()):
        by_plane[row["model"], row["dataset"]].append(row)
    planes = []
    for (model, dataset), rows in by_plane.items():
        trained = [row for row in rows if float(row["prompt_weight"]) or float(row["response_weight"])]
        (base,) = [row for row in rows if row not in trained]
        planes.append(
            PublishedPlane(
                model,
                dataset,
                np.array([[float(row["prompt_weight"]), float(row["response_weight"])] for row in trained]),
                np.array([_points(row) for row in trained]),
                np.array([float(row["printed_average"]) for row in trained]),
                np.array(_points(base)),
            )
        )
    return tuple(planes)


def published_facts() -> PublishedFacts:
    """Computed from the table; see the fields."""
    planes = published_planes()
    best = [int(np.argmax(plane.average_N)) for plane in planes]
    over_4, over_5, num_printed = _how_averages_were_formed()
    ifeval_free = [plane.without_ifeval_N for plane in planes]
    return PublishedFacts(
        num_runs=sum(len(plane.weights_N2) for plane in planes),
        num_distinct=tuple(len(plane.rays) for plane in planes),
        within_ray_sd=tuple(within_ray_sd(plane, plane.average_N) for plane in planes),
        within_ray_sd_by_benchmark={
            name: math.sqrt(
                float(np.mean([within_ray_sd(plane, plane.scores_NB[:, b]) ** 2 for plane in planes]))
            )
            for b, name in enumerate(BENCHMARKS)
        },
        num_printed_over_4=over_4,
        num_printed_over_5=over_5,
        num_printed=num_printed,
        best_cells=tuple(
            (float(plane.weights_N2[k, 0]), float(plane.weights_N2[k, 1]))
            for plane, k in zip(planes, best, strict=True)
        ),
        naive_gains=tuple(
            float(plane.average_N[k] - plane.average_N[plane.index(CONVENTIONAL)])
            for plane, k in zip(planes, best, strict=True)
        ),
        naive_gains_percent=tuple(
            _percent(plane, plane.average_N, k) for plane, k in zip(planes, best, strict=True)
        ),
        naive_without_ifeval_percent=tuple(
            _percent(plane, values, k) for plane, values, k in zip(planes, ifeval_free, best, strict=True)
        ),
        best_without_ifeval_percent=tuple(
            _percent(plane, values, int(np.argmax(values)))
            for plane, values in zip(planes, ifeval_free, strict=True)
        ),
    )


def within_ray_sd(plane: PublishedPlane, values_N: Floats) -> float:
    """Spread of runs that differ in the scale of their weights only, pooled over a plane's rays; n - 1.

    A lower bound of the spread between seeds: all of them share seed 23 and so the order of the data.
    """
    squares, freedom = 0.0, 0
    for members in plane.rays.values():
        squares += float(((values_N[members] - values_N[members].mean()) ** 2).sum())
        freedom += len(members) - 1
    return math.sqrt(squares / freedom)


def _points(row: dict[str, str]) -> list[float]:
    return [float(row[name]) * POINTS.get(name, 1.0) for name in BENCHMARKS]


def _percent(plane: PublishedPlane, values_N: Floats, index: int) -> float:
    return 100.0 * float(values_N[index] / values_N[plane.index(CONVENTIONAL)] - 1.0)


def _how_averages_were_formed() -> tuple[int, int, int]:
    """Printed averages that equal the sum of five over 4, over 5, and how many there are."""
    text = (resources.files("analysis") / "data" / "wit_published.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    sums = np.array([sum(_points(row)) for row in rows])
    printed = np.array([float(row["printed_average"]) for row in rows])
    by_4, by_5 = (np.abs(sums / divisor - printed) <= _PRINTED_ROUNDING for divisor in (4, 5))
    return int(by_4.sum()), int(by_5.sum()), len(rows)

"""Scores over prompt weight x response weight: one model, dataset, settings and metric. Pure, numpy only.

Letters: P prompt weights, R response weights, S seeds, Y rays (distinct runs per seed).

Two silences are kept apart: NaN in `scores_PRS` is a run that was asked for and isn't there (yet);
`asked_PR` False is a question nobody asked. A *ray* here is a set of cells that share their runs (see
`sweep.rays`); where the plan shares nothing, every cell is a ray of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.table import Group, Table
from sweep.rays import canonical_objective
from sweep.spec import PlannedCell, Settings
from train.config import ObjectiveConfig
from train.metrics import Metric

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ray:
    """Cells answered by the same runs, named after the one farthest from the origin.

    `trained_at` is the pair of weights the run was given: the ray's representative, which needn't be a cell.
    """

    prompt_weight: float
    response_weight: float
    trained_at: tuple[float, float]
    cells: tuple[tuple[int, int], ...]  # indices (p, r), from the origin outwards

    @property
    def ratio(self) -> float:
        """prompt_weight / response_weight; infinite for prompt-only."""
        return self.prompt_weight / self.response_weight if self.response_weight else math.inf

    @property
    def angle(self) -> float:
        """atan2(prompt_weight, response_weight), degrees: 0 instruction tuning, 45 Instruction Modelling."""
        return math.degrees(math.atan2(self.prompt_weight, self.response_weight))


@dataclass(frozen=True, slots=True)
class ScaleCheck:
    """An alias that was trained all the same, at its own weights: what its ray's run should have scored."""

    prompt_weight: float
    response_weight: float
    seed: int
    ray: int
    score: float  # NaN: absent


@dataclass(frozen=True, slots=True)
class Plane:
    """One metric over the plane. Aliases hold equal numbers, because they are one run.

    Scale checks stand apart: their cells hold the score of their ray's run, like every alias.
    """

    model: str
    dataset: str
    settings: Settings
    metric: Metric
    prompt_weights_P: Floats
    response_weights_R: Floats
    seeds_S: tuple[int, ...]
    scores_PRS: Floats  # NaN: asked and absent, or never asked
    asked_PR: NDArray[np.bool_]
    ray_PR: NDArray[np.int_]  # index into `rays`; -1 where never asked
    rays: tuple[Ray, ...]  # by angle, then by magnitude
    base_score: float  # the untouched base model; NaN if not measured
    checks: tuple[ScaleCheck, ...] = ()

    @property
    def scores_YS(self) -> Floats:
        """Shape (rays, seeds); NaN where the ray's run of that seed is absent."""
        rows = [_first_finite(np.stack([self.scores_PRS[cell] for cell in ray.cells])) for ray in self.rays]
        return np.stack(rows) if rows else np.empty((0, len(self.seeds_S)))

    @property
    def mean_PR(self) -> Floats:
        """The mean over the seeds that are there; NaN where none is."""
        return mean_over_seeds(self.scores_PRS)

    def ray_at(self, prompt_weight: float, response_weight: float) -> int | None:
        """The ray through that cell; None if the cell was never asked."""
        index = self.cell_at(prompt_weight, response_weight)
        return None if index is None or self.ray_PR[index] < 0 else int(self.ray_PR[index])

    def cell_at(self, prompt_weight: float, response_weight: float) -> tuple[int, int] | None:
        """Indices of a pair of weights; None if it isn't on the axes."""
        rows = np.flatnonzero(self.prompt_weights_P == prompt_weight)
        columns = np.flatnonzero(self.response_weights_R == response_weight)
        return (int(rows[0]), int(columns[0])) if rows.size and columns.size else None

    def weights(self, cell: tuple[int, int]) -> tuple[float, float]:
        """Prompt and response weight at indices (p, r)."""
        return float(self.prompt_weights_P[cell[0]]), float(self.response_weights_R[cell[1]])


def make_plane(table: Table, group: Group, metric: Metric) -> Plane:
    """Lay one metric of one group out on its plane."""
    cells = table.cells_by_group[group]
    base = table.base_by_group.get(group)
    prompt_weights = sorted({planned.cell.prompt_weight for planned in cells})
    response_weights = sorted({planned.cell.response_weight for planned in cells})
    seeds = tuple(sorted({planned.cell.seed for planned in cells}))
    row = {weight: index for index, weight in enumerate(prompt_weights)}
    column = {weight: index for index, weight in enumerate(response_weights)}
    depth = {seed: index for index, seed in enumerate(seeds)}
    scores_PRS = np.full((len(row), len(column), len(seeds)), np.nan)
    asked_PR = np.zeros((len(row), len(column)), dtype=bool)
    for planned in cells:
        cell = planned.cell
        index = row[cell.prompt_weight], column[cell.response_weight]
        asked_PR[index] = True
        if planned.fingerprint not in table.checks:
            scores_PRS[(*index, depth[cell.seed])] = _score(table, planned.fingerprint, metric)
    rays = _rays(table, cells, row, column)
    ray_PR = np.full(asked_PR.shape, -1)
    for number, ray in enumerate(rays):
        for index in ray.cells:
            ray_PR[index] = number
    checks = []
    for planned in cells:
        if planned.fingerprint in table.checks:
            cell = planned.cell
            index = row[cell.prompt_weight], column[cell.response_weight]
            ray = int(ray_PR[index])
            score = _score(table, planned.fingerprint, metric)
            checks.append(ScaleCheck(cell.prompt_weight, cell.response_weight, cell.seed, ray, score))
            seed = depth[cell.seed]
            others = [scores_PRS[(*other, seed)] for other in rays[ray].cells if other != index]
            scores_PRS[(*index, seed)] = next((score for score in others if math.isfinite(score)), math.nan)
    return Plane(
        model=group[0],
        dataset=group[1],
        settings=group[2],
        metric=metric,
        prompt_weights_P=np.array(prompt_weights),
        response_weights_R=np.array(response_weights),
        seeds_S=seeds,
        scores_PRS=scores_PRS,
        asked_PR=asked_PR,
        ray_PR=ray_PR,
        rays=rays,
        base_score=_score(table, base.fingerprint, metric) if base is not None else math.nan,
        checks=tuple(checks),
    )


def unpooled(plane: Plane) -> Plane:
    """The plane with what was trained only: aliases are never asked, and scale checks are rays of their own.

    For a plane on which the scale of the weights turned out to matter.
    """
    rays, scores = [], []
    for ray, scores_S in zip(plane.rays, plane.scores_YS, strict=True):
        own = [cell for cell in ray.cells if plane.weights(cell) == ray.trained_at] or [ray.cells[-1]]
        rays.append(Ray(*plane.weights(own[0]), ray.trained_at, (own[0],)))
        scores.append(scores_S)
    taken = {ray.cells[0] for ray in rays}
    for check in plane.checks:
        weights = check.prompt_weight, check.response_weight
        cell = plane.cell_at(*weights)
        if cell is not None and cell not in taken:
            rays.append(Ray(*weights, weights, (cell,)))
            scores.append([check.score if seed == check.seed else math.nan for seed in plane.seeds_S])
    order = sorted(range(len(rays)), key=lambda index: (rays[index].angle, rays[index].cells))
    scores_PRS = np.full_like(plane.scores_PRS, np.nan)
    asked_PR, ray_PR = np.zeros_like(plane.asked_PR), np.full_like(plane.ray_PR, -1)
    for number, index in enumerate(order):
        cell = rays[index].cells[0]
        asked_PR[cell], ray_PR[cell] = True, number
        scores_PRS[cell] = scores[index]
    return replace(
        plane,
        scores_PRS=scores_PRS,
        asked_PR=asked_PR,
        ray_PR=ray_PR,
        rays=tuple(rays[index] for index in order),
        checks=(),
    )


def mean_over_seeds(scores: Floats) -> Floats:
    """The mean over the last axis, ignoring NaN; NaN, without numpy's warning, where nothing is left."""
    there = np.isfinite(scores)
    count = there.sum(axis=-1)
    total = np.where(there, scores, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _score(table: Table, fingerprint: str, metric: Metric) -> float:
    record = table.record_by_fingerprint.get(fingerprint)
    return math.nan if record is None else float(record.metrics.get(metric.name, math.nan))


def _rays(
    table: Table, cells: Sequence[PlannedCell], row: dict[float, int], column: dict[float, int]
) -> tuple[Ray, ...]:
    """Cells joined wherever they share a run; each seed has its own run, so shared ones are merged.

    A scale check joins the ray whose run it checks.
    """
    index_by_fingerprint: dict[str, tuple[int, int]] = {}
    leader: dict[tuple[int, int], tuple[int, int]] = {}
    trained_at: dict[tuple[int, int], tuple[float, float]] = {}

    def find(index: tuple[int, int]) -> tuple[int, int]:
        while leader[index] != index:
            index = leader[index]
        return index

    index_by_objective: dict[ObjectiveConfig, tuple[int, int]] = {}
    for planned in sorted(cells, key=lambda planned: planned.fingerprint in table.checks):  # checks last
        index = row[planned.cell.prompt_weight], column[planned.cell.response_weight]
        leader.setdefault(index, index)
        spec = table.spec_by_fingerprint.get(planned.fingerprint)
        if spec is not None and planned.fingerprint in table.checks:
            checked = canonical_objective(spec.config.objective, spec.config.train)
            leader[find(index)] = find(index_by_objective.get(checked, index))
            continue
        first = index_by_fingerprint.setdefault(planned.fingerprint, index)
        leader[find(index)] = find(first)
        if spec is not None:
            index_by_objective.setdefault(spec.config.objective, index)
        trained_at[index] = (
            (planned.cell.prompt_weight, planned.cell.response_weight)
            if spec is None
            else (spec.config.objective.prompt_weight, spec.config.objective.response_weight)
        )
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index in leader:
        members.setdefault(find(index), []).append(index)
    prompt_weights, response_weights = sorted(row), sorted(column)
    rays = []
    for group in members.values():
        p, r = max(group)
        at = next(trained_at[index] for index in sorted(group, reverse=True) if index in trained_at)
        rays.append(Ray(prompt_weights[p], response_weights[r], at, tuple(sorted(group))))
    return tuple(sorted(rays, key=lambda ray: (ray.angle, ray.cells)))


def _first_finite(scores_CS: Floats) -> Floats:
    """For each seed the first number among a ray's cells: they are one run, so any that is there will do."""
    there = np.isfinite(scores_CS)
    chosen = scores_CS[np.argmax(there, axis=0), np.arange(scores_CS.shape[1])]
    return np.where(there.any(axis=0), chosen, np.nan)

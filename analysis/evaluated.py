"""What the items of a plane's runs say of its noise: known variances for the surface, and the error of a contrast.

Letters: C runs, I items.

Two populations. For *these items* a run differs from a replicate by its own luck, on every item afresh: that part of
the evaluation's variance is in the surface, beside the s.d. that is inferred. For *items like these* a setting also
differs from another in how it suits the items that happened to be drawn, the same for all its seeds: no replicate
shows it, so it widens a quoted gain and nothing else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from analysis.noise import paired_variances
from analysis.plane import Plane
from analysis.table import AnalysisError, Group, Table
from train.items import Items

ItemReader = Callable[[str, str, str], Items | None]  # fingerprint, benchmark, column
RunKey = tuple[int, int, bool]  # ray, seed, is a scale check


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Items of a plane's runs on one metric and split. Metric's unit squared."""

    variances: Mapping[RunKey, float] = field(
        default_factory=dict[RunKey, float]
    )  # of one run, for these items
    num_items: int = 0
    num_clusters: int = 0
    runs: tuple[RunKey, ...] = ()
    values_CI: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    clusters_I: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weights_I: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def setting_variance(self, of: int, over: int) -> float:
        """What another set of items like these adds to the variance of a contrast of two rays; NaN if unknown.

        The clustered variance of the difference of item means over seeds, less what the runs' own luck explains.
        """
        rows = {
            ray: [row for row, key in enumerate(self.runs) if key[0] == ray and not key[2]]
            for ray in (of, over)
        }
        if not rows[of] or not rows[over] or of == over:
            return math.nan
        means_2I = np.stack([self.values_CI[rows[ray]].mean(axis=0) for ray in (of, over)])
        # of two rows, each is half the difference away from their mean: v = Var(difference) / 2 for each
        contrast = 2 * float(paired_variances(means_2I, self.clusters_I, self.weights_I)[0])
        luck = sum(
            sum(self.variances.get(self.runs[row], math.nan) for row in rows[ray]) / len(rows[ray]) ** 2
            for ray in (of, over)
        )
        return max(contrast - luck, 0.0)


def evaluated(table: Table, group: Group, plane: Plane, read: ItemReader | None) -> Evaluated:
    """Items of every finished run of the plane; empty where some run has none.

    Raises   AnalysisError where runs were measured under different protocols: their scores can't be compared.
    """
    if read is None:
        return Evaluated()
    split, benchmark, column = _measure(plane.metric.name)
    found: dict[RunKey, Items] = {}
    for planned in table.cells_by_group[group]:
        cell = planned.cell
        ray = plane.ray_at(cell.prompt_weight, cell.response_weight)
        is_check = planned.fingerprint in table.checks and bool(plane.checks)  # none where rays aren't pooled
        key = (-1 if ray is None else ray, cell.seed, is_check)
        if ray is None or key in found or planned.fingerprint not in table.record_by_fingerprint:
            continue
        items = read(planned.fingerprint, benchmark, column)
        if items is None or column not in items.values:
            return Evaluated()
        found[key] = items
    if not found:
        return Evaluated()
    _check_protocols(plane, found)
    return _variances(found, column, split)


def _measure(name: str) -> tuple[str | None, str, str]:
    """Split (None: all), benchmark and column of a metric: validation_mmlu.accuracy, validation_exact_answer."""
    split, _, rest = name.partition("_")
    benchmark, dot, column = rest.partition(".")
    if not dot:
        return split, "robustness" if split == "robustness" else "dataset", rest
    return None if split == "all" else split, benchmark, column


def _check_protocols(plane: Plane, found: Mapping[RunKey, Items]) -> None:
    by_protocol: dict[str, int] = {}
    for items in found.values():
        by_protocol[items.protocol] = by_protocol.get(items.protocol, 0) + 1
    if len(by_protocol) > 1:
        named = ", ".join(
            f"{protocol[:12]} ({count} runs)" for protocol, count in sorted(by_protocol.items())
        )
        raise AnalysisError(
            f"{plane.metric.name} of {plane.model} on {plane.dataset} was measured under {len(by_protocol)} protocols: "
            f"{named}",
            "one protocol for every run of a plane",
            "measure all runs again under one of them",
        )


def _variances(found: Mapping[RunKey, Items], column: str, split: str | None) -> Evaluated:
    first = next(iter(found.values()))
    if any(items.item_ids != first.item_ids for items in found.values()):
        return Evaluated()
    there = first.rows(None if split == "robustness" else split)
    values_CI = np.stack([items.values[column][there] for items in found.values()])
    there_I = np.isfinite(values_CI).all(axis=0)
    clusters_I = np.array(first.clusters)[there][there_I]
    weights = first.weights.get(column)
    weights_I = np.ones(int(there_I.sum())) if weights is None else weights[there][there_I]
    values_CI, runs = values_CI[:, there_I], tuple(found)
    num_clusters = len(set(clusters_I.tolist()))
    if len(runs) < 2 or num_clusters < 2 or not weights_I.sum() > 0:
        return Evaluated()
    luck = _own_luck(runs, values_CI, clusters_I, weights_I)
    whole_C = paired_variances(values_CI, clusters_I, weights_I)
    variances = {
        key: float(whole) if math.isnan(luck) else luck for key, whole in zip(runs, whole_C, strict=True)
    }
    return Evaluated(variances, values_CI.shape[1], num_clusters, runs, values_CI, clusters_I, weights_I)


def _own_luck(
    runs: tuple[RunKey, ...], values_CI: np.ndarray, clusters_I: np.ndarray, weights_I: np.ndarray
) -> float:
    """Mean paired variance among runs of one ray; NaN without replicates."""
    rows: dict[int, list[int]] = {}
    for row, (ray, _, is_check) in enumerate(runs):
        if not is_check:
            rows.setdefault(ray, []).append(row)
    total, freedom = 0.0, 0
    for members in rows.values():
        if len(members) > 1:
            variances = paired_variances(values_CI[members], clusters_I, weights_I)
            total += float(variances.mean()) * (len(members) - 1)
            freedom += len(members) - 1
    return total / freedom if freedom else math.nan

"""Everything one plane says: its region, what test says of it, the gains, and what was asked. Pure.

Validation chooses, test reports: the region comes from the chosen validation metric, and the same measure on
test is only ever read at cells that validation picked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.config import AnalysisConfig
from analysis.confirm import Confirmed, confirmed_difference
from analysis.diagnostics import Diagnostic, diagnose
from analysis.evaluated import Evaluated, ItemReader, evaluated
from analysis.invariance import Invariance
from analysis.plane import Plane, make_plane, unpooled
from analysis.region import (
    CONVENTIONAL,
    Estimate,
    Region,
    Spread,
    best_region,
    difference_between,
    estimate_rays,
    seed_spread,
)
from analysis.table import Group, Table, choose_metric
from sweep.spec import Status
from train.metrics import Metric, ordered
from train.metrics import metric as metric_of
from train.record import CLIPPED, RunRecord

INSTRUCTION_MODELLING = (1.0, 1.0)
EXPLORATORY = "exploratory: not confirmed with fresh seeds"


@dataclass(frozen=True, slots=True)
class Gain:
    """One ray minus another on one split, paired by seed. Positive means larger, not necessarily better."""

    name: str  # best, instruction_modelling
    split: str
    of: tuple[float, float]
    over: tuple[float, float]
    difference: Estimate
    is_same_ray: bool  # then the difference is 0 by identity, not by measurement


@dataclass(frozen=True, slots=True)
class ConfirmedGain:
    """What fresh seeds say of one setting over another, metric's unit and direction."""

    of: tuple[float, float]
    over: tuple[float, float]
    contrast: Confirmed  # points, higher better
    mean: float
    low: float
    high: float
    is_better: bool  # the 95 % interval lies on the better side of 0


@dataclass(frozen=True, slots=True)
class Study:
    """One model, dataset and settings. `test` is None if the measure isn't on record for it."""

    planes: Mapping[str, Plane]  # every metric on record, selection first
    chosen: Plane
    region: Region
    items: Evaluated
    broken: Invariance | None  # why rays are no longer pooled; None: they are, or never were
    diagnostics: tuple[Diagnostic, ...]
    confirmed: tuple[ConfirmedGain, ...]
    test: Plane | None
    test_estimates: tuple[Estimate, ...] | None
    test_spread: Spread | None
    gains: tuple[Gain, ...]
    num_cells: int  # asked, over all seeds
    num_runs: int  # trained runs that answer them, the base not counted
    num_finished: int
    absent: Mapping[Status, tuple[str, ...]]  # run ids, the base included
    num_silent: int  # finished runs whose record lacks the chosen metric

    @property
    def group(self) -> Group:
        """Model, dataset and further settings."""
        return self.chosen.model, self.chosen.dataset, self.chosen.settings

    @property
    def conventional(self) -> int | None:
        """The ray of instruction tuning, (0, 1); None if it wasn't asked."""
        return self.chosen.ray_at(*CONVENTIONAL)

    @property
    def instruction_modelling(self) -> int | None:
        """The ray of Instruction Modelling, (1, 1); None if it wasn't asked."""
        return self.chosen.ray_at(*INSTRUCTION_MODELLING)

    @property
    def all_equal(self) -> bool:
        """Whether every finished run has the same score, so that nothing can be distinguished."""
        return self.region.why_none.startswith("all scores are equal")

    def gain(self, name: str, split: str) -> Gain | None:
        """The gain of that name on that split; None if it couldn't be formed."""
        return next((gain for gain in self.gains if (gain.name, gain.split) == (name, split)), None)


def make_studies(
    table: Table,
    config: AnalysisConfig,
    read_items: ItemReader | None = None,
    confirming: Table | None = None,
) -> tuple[Study, ...]:
    """One study per plane, in the plan's order; see `choose_metric` and `evaluated` for the errors.

    read_items: where items of runs are found; None: nowhere, and the evaluation's share of the noise is unknown.
    confirming: the runs of action=confirm, which choose nothing.
    """
    metric = choose_metric(table, config.metric)
    return tuple(
        _study(table, group, metric.name, config, read_items, confirming) for group in table.cells_by_group
    )


def _study(
    table: Table,
    group: Group,
    name: str,
    config: AnalysisConfig,
    read_items: ItemReader | None,
    confirming: Table | None,
) -> Study:
    fingerprints = table.fingerprints(group)
    base = table.base_by_group.get(group)
    records = {
        key: table.record_by_fingerprint[key] for key in fingerprints if key in table.record_by_fingerprint
    }
    reported = {metric for record in records.values() for metric in record.metrics} | {name}
    trained = fingerprints - ({base.fingerprint} if base is not None else set())
    names = [name, *(other for other in ordered(reported) if other != name)]
    planes = {metric: make_plane(table, group, metric_of(metric)) for metric in names}
    chosen, test = planes[name], planes.get(name.replace("validation_", "test_"))
    items = evaluated(table, group, chosen, read_items)
    clipped = _clipped([records[key] for key in records if key in trained])
    region = best_region(chosen, config.epsilon, dict(items.variances), clipped)
    pooled = region.invariance
    if pooled is not None and pooled.is_broken and any(len(ray.cells) > 1 for ray in chosen.rays):
        planes = {metric: unpooled(plane) for metric, plane in planes.items()}
        chosen, test = planes[name], planes.get(name.replace("validation_", "test_"))
        items = evaluated(table, group, chosen, read_items)
        region = best_region(chosen, config.epsilon, dict(items.variances), clipped)
    else:
        pooled = None
    test_spread = seed_spread(test.scores_YS) if test is not None else None
    return Study(
        planes=planes,
        chosen=chosen,
        region=region,
        items=items,
        broken=pooled,
        diagnostics=()
        if region.landscape is None or region.invariance is None
        else diagnose(
            chosen, region.landscape, region.noise, pooled or region.invariance, chosen.ray_at(*CONVENTIONAL)
        ),
        confirmed=() if confirming is None else _confirmed(confirming, group, chosen.metric, region),
        test=test,
        test_estimates=None
        if test is None or test_spread is None
        else estimate_rays(test.scores_YS, test_spread),
        test_spread=test_spread,
        gains=_gains(chosen, test, region),
        num_cells=len(table.cells_by_group[group]),
        num_runs=len(trained),
        num_finished=sum(key in records for key in trained),
        absent=table.absent(group),
        num_silent=sum(key in records and name not in records[key].metrics for key in trained),
    )


def _clipped(records: Sequence[RunRecord]) -> tuple[float, float] | None:
    """Least and largest share of clipped steps; None where no run was trained with a clip, or says so."""
    found = [
        one.counts[CLIPPED] / one.num_steps for one in records if CLIPPED in one.counts and one.num_steps
    ]
    return (min(found), max(found)) if found else None


def _confirmed(confirming: Table, group: Group, metric: Metric, region: Region) -> tuple[ConfirmedGain, ...]:
    """Contrasts of the pair that was confirmed with (0, 1) and (1, 1), at the seeds that both finished."""
    landscape = region.landscape
    if landscape is None or group not in confirming.cells_by_group:
        return ()
    scores: dict[tuple[float, float], dict[int, float]] = {}
    for planned in confirming.cells_by_group[group]:
        record = confirming.record_by_fingerprint.get(planned.fingerprint)
        if record is not None and math.isfinite(record.metrics.get(metric.name, math.nan)):
            pair = planned.cell.prompt_weight, planned.cell.response_weight
            scores.setdefault(pair, {})[planned.cell.seed] = record.metrics[metric.name]
    references = (CONVENTIONAL, INSTRUCTION_MODELLING)
    found = []
    for of in [pair for pair in scores if pair not in references] or [INSTRUCTION_MODELLING]:
        for over in references:
            shared = sorted(scores.get(of, {}).keys() & scores.get(over, {}).keys())
            if of == over or not shared:
                continue
            first, second = (
                landscape.scale.points(np.array([scores[pair][seed] for seed in shared]))
                for pair in (of, over)
            )
            variance = float(landscape.posterior.points.variances.min())
            contrast = confirmed_difference(first, second, landscape.posterior, variance, is_paired=True)
            value = landscape.scale.value
            found.append(
                ConfirmedGain(
                    of,
                    over,
                    contrast,
                    value(contrast.mean),
                    value(contrast.low),
                    value(contrast.high),
                    contrast.is_above_zero,
                )
            )
    return tuple(found)


def _gains(chosen: Plane, test: Plane | None, region: Region) -> tuple[Gain, ...]:
    conventional = chosen.ray_at(*CONVENTIONAL)
    if conventional is None:
        return ()
    gains = []
    for split, plane in (("validation", chosen), ("test", test)):
        if plane is None:
            continue
        scores_YS, spread = plane.scores_YS, seed_spread(plane.scores_YS)
        for name, ray in (
            ("best", region.best),
            ("instruction_modelling", chosen.ray_at(*INSTRUCTION_MODELLING)),
        ):
            if ray is None:
                continue
            difference = difference_between(scores_YS[ray], scores_YS[conventional], spread)
            gains.append(
                Gain(
                    name,
                    split,
                    (chosen.rays[ray].prompt_weight, chosen.rays[ray].response_weight),
                    CONVENTIONAL,
                    difference,
                    ray == conventional,
                )
            )
    return tuple(gains)

"""Everything one plane says: its region, what test says of it, the gains, and what was asked. Pure.

Validation chooses, test reports: the region comes from the chosen validation metric, and the same measure on
test is only ever read at cells that validation picked.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.config import AnalysisConfig
from analysis.plane import Plane, make_plane
from analysis.region import (
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
from train.metrics import metric as metric_of
from train.metrics import ordered

CONVENTIONAL = (0.0, 1.0)  # instruction tuning: the loss on responses only
INSTRUCTION_MODELLING = (1.0, 1.0)
EXPLORATORY = "exploratory: chosen on validation, not confirmed with fresh seeds"


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
class Study:
    """One model, dataset and settings. `test` is None if the measure isn't on record for it."""

    planes: Mapping[str, Plane]  # every metric on record, selection first
    chosen: Plane
    region: Region
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
        means = {estimate.mean for estimate in self.region.estimates if estimate.num_seeds}
        return len(means) == 1 and sum(e.num_seeds > 0 for e in self.region.estimates) > 1

    def gain(self, name: str, split: str) -> Gain | None:
        """The gain of that name on that split; None if it couldn't be formed."""
        return next((gain for gain in self.gains if (gain.name, gain.split) == (name, split)), None)


def make_studies(table: Table, config: AnalysisConfig) -> tuple[Study, ...]:
    """One study per plane, in the plan's order; see `choose_metric` for the errors."""
    metric = choose_metric(table, config.metric)
    return tuple(_study(table, group, metric.name, config) for group in table.cells_by_group)


def _study(table: Table, group: Group, name: str, config: AnalysisConfig) -> Study:
    fingerprints = table.fingerprints(group)
    base = table.base_by_group.get(group)
    records = {
        key: table.record_by_fingerprint[key] for key in fingerprints if key in table.record_by_fingerprint
    }
    reported = {metric for record in records.values() for metric in record.metrics} | {name}
    names = [name, *(other for other in ordered(reported) if other != name)]
    planes = {metric: make_plane(table, group, metric_of(metric)) for metric in names}
    chosen, test = planes[name], planes.get(name.replace("validation_", "test_"))
    region = best_region(chosen, config.standard_errors)
    test_spread = seed_spread(test.scores_YS) if test is not None else None
    trained = fingerprints - ({base.fingerprint} if base is not None else set())
    return Study(
        planes=planes,
        chosen=chosen,
        region=region,
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

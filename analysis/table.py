"""Records joined to the plan that asked for them: what is there, and by name what is not. Pure."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sweep.evaluations import answered, is_evaluation, without_evaluations
from sweep.plan import check_fingerprints
from sweep.spec import Plan, PlannedBase, PlannedCell, RunSpec, Settings, Status
from train.errors import ConfigError, UserError
from train.metrics import (
    MEASURES,
    METRICS,
    SELECTION_PREFERENCE,
    Metric,
    is_metric,
    is_selectable,
    metric,
    ordered,
    selection_metric,
)
from train.record import Failure, RunRecord

Group = tuple[str, str, Settings]  # model, dataset, further settings: what the cells of one plane share


class AnalysisError(UserError):
    """Records that can't be analysed: none at all, or none with the metric that was asked for."""


@dataclass(frozen=True, slots=True)
class Table:
    """A plan and what is known of its runs. Every run has a status; a finished one has a record."""

    plan: Plan
    spec_by_fingerprint: Mapping[str, RunSpec]
    record_by_fingerprint: Mapping[str, RunRecord]  # finished runs of this plan only
    failure_by_fingerprint: Mapping[str, Failure]  # why failed runs failed, where that is known
    status_by_fingerprint: Mapping[str, Status]
    cells_by_group: Mapping[Group, tuple[PlannedCell, ...]]
    base_by_group: Mapping[Group, PlannedBase]
    num_unmeasured: int  # evaluations that are asked for and not done
    checks: frozenset[str]  # runs that are scale checks

    @property
    def num_finished(self) -> int:
        """Finished runs, bases included."""
        return len(self.record_by_fingerprint)

    @property
    def num_trained(self) -> int:
        """Finished runs, bases not counted."""
        return sum(record.stage != "base" for record in self.record_by_fingerprint.values())

    @property
    def available(self) -> tuple[str, ...]:
        """Every metric some trained run reports, in the order of `train.metrics`."""
        found = {
            name
            for record in self.record_by_fingerprint.values()
            if record.stage != "base"
            for name in record.metrics
        }
        return ordered(found)

    def absent(self, group: Group | None = None) -> dict[Status, tuple[str, ...]]:
        """Run ids asked for and not finished, by status, in the plan's order; of one plane or of all."""
        wanted = None if group is None else self.fingerprints(group)
        found: dict[Status, list[str]] = {}
        for spec in self.plan.runs:
            status = self.status_by_fingerprint[spec.fingerprint]
            if status is not Status.FINISHED and (wanted is None or spec.fingerprint in wanted):
                found.setdefault(status, []).append(spec.run_id)
        return {status: tuple(found[status]) for status in Status if status in found}

    def fingerprints(self, group: Group) -> set[str]:
        """The runs that answer one plane, its base included."""
        found = {planned.fingerprint for planned in self.cells_by_group[group]}
        if group in self.base_by_group:
            found.add(self.base_by_group[group].fingerprint)
        return found

    def specs(self, group: Group) -> list[RunSpec]:
        """The plane's runs in the plan's order, its base included."""
        wanted = self.fingerprints(group)
        return [spec for spec in self.plan.runs if spec.fingerprint in wanted]


def make_table(
    plan: Plan,
    records: Mapping[str, RunRecord],
    statuses: Mapping[str, Status],
    failures: Mapping[str, Failure] | None = None,
) -> Table:
    """Join by fingerprint. Records of other plans are left out; a run without a status is PLANNED.

    A finished record counts as finished whatever `statuses` says: the record is the fact.
    """
    records = answered(plan, records)
    num_unmeasured = sum(
        spec.fingerprint in statuses and statuses[spec.fingerprint] is not Status.FINISHED
        for spec in plan.runs
        if is_evaluation(spec)
    )
    plan = without_evaluations(plan)
    cells: dict[Group, list[PlannedCell]] = {}
    for planned in plan.cells:
        cells.setdefault(planned.cell.group, []).append(planned)
    _check_protocols(records.values())
    mine = {spec.fingerprint: records[spec.fingerprint] for spec in plan.runs if spec.fingerprint in records}
    finished = {key: record for key, record in mine.items() if record.outcome == "finished"}
    known_failures = {key: record.failure for key, record in mine.items() if record.failure is not None}
    known_failures.update(failures or {})
    status = {}
    for spec in plan.runs:
        known = statuses.get(spec.fingerprint, Status.PLANNED)
        if spec.fingerprint in finished:
            known = Status.FINISHED
        elif known is Status.FINISHED:  # a status without its record: believe the record's absence
            known = Status.PLANNED
        status[spec.fingerprint] = known
    return Table(
        plan=plan,
        spec_by_fingerprint=MappingProxyType({spec.fingerprint: spec for spec in plan.runs}),
        record_by_fingerprint=MappingProxyType(finished),
        failure_by_fingerprint=MappingProxyType(
            {key: failure for key, failure in known_failures.items() if status.get(key) is Status.FAILED}
        ),
        status_by_fingerprint=MappingProxyType(status),
        num_unmeasured=num_unmeasured,
        cells_by_group=MappingProxyType({group: tuple(members) for group, members in cells.items()}),
        base_by_group=MappingProxyType(
            {(base.model, base.dataset, base.settings): base for base in plan.bases}
        ),
        checks=check_fingerprints(plan),
    )


def _check_protocols(records: Iterable[RunRecord]) -> None:
    """AnalysisError if a metric was measured under two protocols, or on two sets of items."""
    known: dict[str, tuple[Any, Any, str]] = {}
    for record in records:
        for name, about in record.measured.items():
            found = about.get("protocol"), about.get("items"), record.run_id
            first = known.setdefault(name, found)
            if first[:2] != found[:2]:
                which = 0 if first[0] != found[0] else 1
                what = ("protocols", "sets of items")[which]
                raise AnalysisError(
                    f"{name} of {first[2]} and of {found[2]} were measured under two {what} "
                    f"({str(first[which])[:12]} and {str(found[which])[:12]})",
                    "one for all runs that are compared",
                    "say eval=NAME as it was measured, or evaluate all under it",
                )


def choose_metric(table: Table, asked: str | None) -> Metric:
    """The metric that selects: what was asked, or the first preferred one on record.

    Raises   ConfigError for a name that isn't a validation metric with a direction; AnalysisError if no
             record holds it. Test metrics are refused on purpose: what chooses can't also judge.
    """
    check_metric(asked)
    if not table.num_trained:
        command = f"python -m sweep +grid={table.plan.name}"
        raise nothing_finished(table.plan.name, len(table.plan.runs), command)
    available = [name for name in table.available if is_selectable(name)]
    if asked is not None and asked not in available:
        raise AnalysisError(
            f"analysis.metric={asked} is on no record of {table.plan.name}",
            f"one of {', '.join(available) or 'none'}",
            "leave analysis.metric out to choose",
        )
    chosen = metric(asked) if asked is not None else selection_metric(available)
    if chosen is None and available:
        chosen = metric(available[0])
    if chosen is None:
        raise AnalysisError(
            f"the records of {table.plan.name} hold no validation metric",
            f"one of {', '.join(SELECTION_PREFERENCE)}",
            "set dataset.num_validation_rows above 0",
        )
    return chosen


def check_metric(asked: str | None) -> None:
    """ConfigError if `asked` may not choose: no metric of a validation split with a direction."""
    if asked is not None and not is_selectable(asked):
        raise _refuse_metric(asked, tuple(filter(is_selectable, METRICS)))


def nothing_finished(name: str, num_asked: int, command: str) -> AnalysisError:
    """No record of any trained run: what to type first."""
    return AnalysisError(
        f"no finished run of {name} among {num_asked:,} asked", "at least one", f"first run: {command}"
    )


def _refuse_metric(asked: str, selectable: Sequence[str]) -> ConfigError:
    if is_metric(asked):
        same = re.sub("^(test|robustness|all)_", "validation_", asked)
        why = "has no direction" if metric(asked).better == "none" else "is for the report, not for choosing"
        fix = f"use analysis.metric={same}" if is_selectable(same) and same != asked else ""
        return ConfigError(f"analysis.metric={asked} {why}", f"one of {', '.join(selectable)}", fix)
    if "." in asked:
        measures = difflib.get_close_matches(asked.rpartition(".")[2], MEASURES, n=2, cutoff=0.4)
        return ConfigError(
            f"unknown metric analysis.metric={asked}",
            "validation_BENCHMARK.MEASURE, such as validation_mmlu.accuracy",
            f"did you mean {' or '.join(f'validation_BENCHMARK.{name}' for name in measures)}?"
            if measures
            else "",
        )
    near = difflib.get_close_matches(asked, selectable, n=2, cutoff=0.4)
    return ConfigError(
        f"unknown metric analysis.metric={asked}",
        f"one of {', '.join(selectable)}",
        f"did you mean {' or '.join(near)}?" if near else "",
    )

"""Fresh seeds at the pair that a report recommends: what makes a selected gain one that may be quoted. Pure.

The best of many cells was chosen for its own luck, too, so its runs can't say how much better it is. The recommended
pair, (0, 1) and (1, 1) are trained again under seeds that no run of the sweep ever had. They lie in a folder of their
own, <root>/<sweep>.confirm, and never enter the selection.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.errors import GridError
from sweep.spec import Cell, Plan, Settings
from sweep.stages import STAGE
from train.record import RunRecord

SUFFIX = ".confirm"  # of the folder's name
REFERENCES = ((0.0, 1.0), (1.0, 1.0))  # instruction tuning; Instruction Modelling
FIRST_SEED = 1000
Group = tuple[str, str, Settings]
Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What a report recommends for one plane: prompt and response weight."""

    group: Group
    pair: Pair


def evidence(plan: Plan, records: Mapping[str, RunRecord]) -> str:
    """A digest of the finished runs that an answer rests on; another run more, and it is another one."""
    digest = hashlib.sha256()
    for name in sorted({spec.fingerprint for spec in plan.runs} & set(records)):
        record = records[name]
        if record.outcome == "finished" and record.stage != "base":
            digest.update(f"{name} {record.parameters_sha256}\n".encode())
    return digest.hexdigest()[:32]


def recommendations(report: Mapping[str, Any] | None, digest: str, again: str) -> list[Recommendation]:
    """The pairs that region.json recommends, but for planes where that is (0, 1) itself.

    digest: `evidence` of the records as they are now. again: the line that makes a new report.
    Raises   GridError without a report, with one of other records, and with nothing to confirm in it.
    """
    if report is None:
        raise GridError(
            "there is no report to confirm", "region.json in the sweep's report", f"first: {again}"
        )
    if report.get("evidence") != digest:
        raise GridError(
            "the report is older than the records", "the answer of all that is finished", f"first: {again}"
        )
    planes = [plane for plane in report.get("planes", ()) if plane.get("recommended")]
    if not planes:
        raise GridError("the report recommends no pair yet", "a plane with a region", f"look at: {again}")
    found = [
        Recommendation(
            (plane["model"], plane["dataset"], _settings(plane.get("settings", {}))),
            (
                float(plane["recommended"]["prompt_weight"]),
                float(plane["recommended"]["response_weight"]),
            ),
        )
        for plane in planes
    ]
    wanted = [one for one in found if one.pair[0] > 0]  # (0, r) is the convention, whatever its scale
    if not wanted:
        raise GridError(
            "the report recommends (0, 1), the convention itself: there is no gain to confirm",
            "a recommended pair with a prompt weight",
            "more seeds resolve smaller gains: add some to grid.seeds",
        )
    return wanted


def fresh_seeds(plan: Plan, number: int) -> tuple[int, ...]:
    """The first seeds from 1000 on that no cell of the sweep has."""
    taken = {planned.cell.seed for planned in plan.cells}
    seeds: list[int] = []
    seed = FIRST_SEED
    while len(seeds) < number:
        if seed not in taken:
            seeds.append(seed)
        seed += 1
    return tuple(seeds)


def confirming_cells(
    wanted: Iterable[Recommendation], prototypes: Mapping[Group, Cell], seeds: Sequence[int]
) -> list[tuple[Group, Cell]]:
    """Each plane's recommended pair and the two references, under every fresh seed, seeds outermost.

    prototypes: a cell of each plane as it is composed, whose names of files may not be the plane's own.
    Raises   GridError for a plane that the sweep no longer asks for.
    """
    wanted = list(wanted)
    for one in wanted:
        if one.group not in prototypes:
            model, dataset, _ = one.group
            raise GridError(
                f"the report recommends a pair for {model} on {dataset}, which the grid doesn't ask",
                "the report of this very question",
                "say the same grid and overrides as before",
            )
    return [
        (
            one.group,
            dataclasses.replace(
                prototypes[one.group], prompt_weight=pair[0], response_weight=pair[1], seed=seed
            ),
        )
        for seed in seeds
        for one in wanted
        for pair in dict.fromkeys((one.pair, *REFERENCES))
    ]


def confirming_plan(plan: Plan, asked: Sequence[tuple[Group, Cell]], name: str) -> Plan:
    """Of a plan over the grid's cells and the confirming ones, the part that confirms, and what it starts from."""
    wanted = {(group, cell.prompt_weight, cell.response_weight, cell.seed) for group, cell in asked}
    cells = tuple(
        planned
        for planned in plan.cells
        for cell in [planned.cell]
        if (cell.group, cell.prompt_weight, cell.response_weight, cell.seed) in wanted
    )
    needed = {planned.fingerprint for planned in cells}
    needed |= {spec.parent_fingerprint for spec in plan.runs if spec.fingerprint in needed}
    return Plan(name, cells, (), tuple(spec for spec in plan.runs if spec.fingerprint in needed))


def without_stage(cell: Cell) -> Cell:
    """The cell as it is composed: the stage is added by `sweep.stages`."""
    return dataclasses.replace(cell, settings=tuple(pair for pair in cell.settings if pair != STAGE))


def _settings(settings: Mapping[str, Any]) -> Settings:
    return tuple(
        sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in settings.items())
    )

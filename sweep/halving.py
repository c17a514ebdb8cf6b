"""Which runs stop at which rung: successive halving over the cells of a plane, where losers pause. Pure.

A rung is judged once every run of the plane that got there is measured: the better `keep` of the cells, by the
mean of their seeds, go on with all their seeds. So the answer doesn't depend on which worker was quicker, every
cell keeps its lowest rung, and the plane stays whole. (0, 1) always goes on: every gain is over it.

Source   Jamieson and Talwalkar, arXiv:1502.07943, algorithm 1 (synchronous); pausing instead of ending is ours.
"""

import math
from collections.abc import Mapping

from sweep.errors import GridError
from sweep.search_config import SearchConfig
from sweep.spec import Plan, Status
from train.metrics import metric, selection_metric

Measured = Mapping[str, Mapping[float, Mapping[str, float]]]  # fingerprint -> share -> metrics
_ALWAYS = (0.0, 1.0)


def stops_of(
    plan: Plan, search: SearchConfig, measured: Measured, statuses: Mapping[str, Status]
) -> dict[str, float]:
    """The share of its steps at which each run pauses; none for those that train to the end."""
    if not search.has_stops:
        return {}
    planes: dict[object, dict[object, list[str]]] = {}
    for planned in plan.cells:
        if not planned.is_alias:
            cell = planned.cell
            key = (cell.prompt_weight, cell.response_weight)
            planes.setdefault(cell.group, {}).setdefault(key, []).append(planned.fingerprint)
    stops: dict[str, float] = {}
    for cells in planes.values():
        stops |= _of_plane(cells, search, measured, statuses)
    return stops


def check_stops(plan: Plan, search: SearchConfig) -> None:
    """GridError for runs that can't pause."""
    for spec in plan.runs if search.has_stops else ():
        if spec.config.stage == "dpo" or spec.config.train.num_ranks > 1:
            what = "preference tuning" if spec.config.stage == "dpo" else "runs over several ranks"
            raise GridError(
                f"search.rungs={list(search.rungs)} with {what}",
                "runs that can be paused",
                "leave out search.rungs",
            )


def _of_plane(
    cells: dict[object, list[str]],
    search: SearchConfig,
    measured: Measured,
    statuses: Mapping[str, Status],
) -> dict[str, float]:
    stops: dict[str, float] = {}
    alive = cells
    for share in search.rungs:
        stops |= {name: share for names in alive.values() for name in names}
        alive = {
            cell: [name for name in names if statuses.get(name) is not Status.FAILED]
            for cell, names in alive.items()
        }
        names = [name for names in alive.values() for name in names]
        is_done = {name: statuses.get(name) is Status.FINISHED for name in names}
        if not all(is_done[name] or share in measured.get(name, {}) for name in names):
            return stops
        alive = _better(alive, share, search, measured)
    return {
        name: share for name, share in stops.items() if not any(name in names for names in alive.values())
    }


def _better(
    cells: dict[object, list[str]], share: float, search: SearchConfig, measured: Measured
) -> dict[object, list[str]]:
    """The cells that go on. One without a number (all its runs failed, or finished before) isn't ranked."""
    found = {
        cell: [measured[name][share] for name in names if share in measured.get(name, {})]
        for cell, names in cells.items()
    }
    available = {one for metrics in found.values() for values in metrics for one in values}
    name = search.metrics[0] if search.metrics else getattr(selection_metric(available), "name", "")
    sign = -1.0 if name and metric(name).better == "lower" else 1.0
    means = {
        cell: sum(values[name] for values in metrics) / len(metrics)
        for cell, metrics in found.items()
        if metrics and all(name in values for values in metrics)
    }
    ranked = sorted(means, key=lambda cell: -sign * means[cell])
    kept = set(ranked[: math.ceil(search.keep * len(ranked))])
    return {
        cell: names for cell, names in cells.items() if cell in kept or cell not in means or cell == _ALWAYS
    }

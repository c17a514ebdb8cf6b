"""A search as a plan that grows: what was asked so far, what is known, and what to ask next.

The sampler chooses weights; which seed, which fingerprint, how many and for which plane is decided here, and a
proposal is a run like any other from the moment it is written down (see `sweep.proposals`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.asking import Ask, Asker
from sweep.candidates import (
    Group,
    Space,
    cells_of,
    group_of,
    next_seed,
    pilot,
    searched_settings,
    spaces,
)
from sweep.compose import ComposedSweep
from sweep.errors import GridError
from sweep.folder import SweepFolder
from sweep.halving import check_stops, stops_of
from sweep.ledger import Ledger, RunState
from sweep.proposals import Batch, check_units, num_batches, read_batches, terms_of, write_batch
from sweep.rays import canonical_objective
from sweep.spec import SETTLED, Cell, Plan, Status
from train.schema import config_to_dict

MOST_AT_ONCE = 5  # larger batches know too little of each other: region.md's simulations stop here

MakePlan = Callable[[ComposedSweep], Plan]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One cell of the search and its run."""

    cell: Cell
    fingerprint: str
    weights: tuple[float, float]  # as trained


def spaces_of(composed: ComposedSweep) -> tuple[Space, ...]:
    """The planes of a sweep's grid."""
    merges = composed.config.grid.collapse != "none"
    trained = [
        canonical_objective(config.objective, config.train) if merges else config.objective
        for config in composed.configs
    ]
    return spaces(composed.cells, [(one.prompt_weight, one.response_weight) for one in trained])


def first_cells(composed: ComposedSweep) -> tuple[Cell, ...]:
    """What is asked before anything is known: the pilot design of every plane; the grid, if it is wanted whole."""
    search = composed.config.search
    pilots = [cell for space in spaces_of(composed) for cell in pilot(space, search)] if search.is_on else []
    whole = composed.cells if not search.is_on or search.exhaustive else ()
    return tuple(dict.fromkeys([*pilots, *whole]))


class Search:
    """One sweep's search, for one command. `plan` is always what the files say."""

    def __init__(
        self, composed: ComposedSweep, make: MakePlan, folder: SweepFolder, ledger: Ledger, ask: Ask
    ) -> None:
        self._grid, self._make, self.folder, self.ledger, self._ask = composed, make, folder, ledger, ask
        self.config = composed.config.search
        self._check()
        self.spaces = spaces_of(composed)
        self._cells = first_cells(composed)
        self.plan = self._planned(self._cells)
        self.question = self._question()
        self.known: dict[Group, str] = {}
        self._num_read = 0
        batches = read_batches(folder.path)
        check_units(batches, self.question, self.config)
        self._take(batches)
        check_stops(self.plan, self.config)
        self._set_stops()

    def extend(self, states: Mapping[str, RunState], num_workers: int) -> bool:
        """Ask for as many runs as are free, and let the better of those at a rung go on; whether the plan grew."""
        before = self.plan
        if num_batches(self.folder.path) != self._num_read:
            self._take(read_batches(self.folder.path))
        if self.config.is_on and not self.config.exhaustive:
            self._ask_for_more(states, num_workers)
        self._set_stops()
        return self.plan != before

    def waits(self, states: Mapping[str, RunState]) -> bool:
        """Whether workers with nothing to do should stay: more may be asked, or go on from a rung."""
        is_open = any(state.status not in SETTLED for state in states.values())
        return not self.is_over or (self.config.has_stops and is_open)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be asked."""
        is_asking = self.config.is_on and not self.config.exhaustive
        return not is_asking or all(map(self._why_over, self.spaces))

    def close(self) -> None:
        """Nothing more will be asked by this command."""
        if isinstance(self._ask, Asker):
            self._ask.close()

    def lines(self) -> list[str]:
        """For people: how many runs each plane took, of how many, and why nothing more is asked."""
        if not self.config.is_on:
            return []
        return [
            f"search={self.config.kind}, {space.group[0]} on {space.group[1]}: {len(self._of(space))} of at most "
            f"{self.config.max_runs or space.num_runs} runs asked"
            + (f"; {why}" if (why := self._why_over(space)) else "")
            for space in self.spaces
        ]

    def question_of(self, space: Space, states: Mapping[str, RunState], wanted: int) -> dict[str, Any]:
        """Everything that is known of a plane, for whoever proposes."""
        told: list[dict[str, Any]] = []
        pending: list[dict[str, Any]] = []
        records = self.ledger.records(states)
        for asked in self._of(space):
            cell = {
                "weights": list(asked.weights),
                "settings": searched_settings(asked.cell, self.config),
                "seed": asked.cell.seed,
            }
            status = states[asked.fingerprint].status if asked.fingerprint in states else Status.PLANNED
            rungs = self.ledger.rungs(asked.fingerprint) if self.config.rungs else {}
            measured = {"rungs": {str(share): dict(found) for share, found in rungs.items()}} if rungs else {}
            if asked.fingerprint in records:
                told.append({**cell, **measured, "metrics": dict(records[asked.fingerprint].metrics)})
            elif status is Status.PAUSED:
                told.append({**cell, **measured})
            elif status is not Status.FAILED:
                pending.append(cell)
        search = {key: value for key, value in config_to_dict(self.config).items() if key != "ranges"}
        return {
            "sweep": self.folder.name,
            "plane": [space.group[0], space.group[1], dict(space.group[2])],
            "search": {**search, "ranges": [_range_to_dict(found) for found in self.config.ranges]},
            "candidates": [list(weights) for weights in space.candidates],
            "told": told,
            "pending": pending,
            "wanted": wanted,
        }

    def _check(self) -> None:
        if self.config.is_on and len(self._grid.config.grid.stages) > 1:
            raise GridError(
                f"search={self.config.kind} with grid.stages={list(self._grid.config.grid.stages)}",
                "one stage: a search needs one score for each proposal",
                "say grid.stages=[sft]",
            )
        axes = {key for cell in self._grid.cells for key, _ in cell.settings}
        both = [found.axis for found in self.config.ranges if found.axis in axes]
        if both:
            raise GridError(
                f"{both[0]} is an axis of the grid and in search.ranges", "one place", "remove it from one"
            )

    def _planned(self, cells: Sequence[Cell]) -> Plan:
        return self._make(self._grid.with_cells(cells))

    def _question(self) -> str:
        """What the search is about: its first runs with all that makes them, and where it may go."""
        firsts = {
            group_of(cell, self.config): planned.fingerprint for cell, planned in reversed(self._pairs())
        }
        tree = [
            sorted(str(name) for name in firsts.values()),
            [[list(space.group[:2]), space.candidates] for space in self.spaces],
            [_range_to_dict(found) for found in self.config.ranges],
        ]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]

    def _pairs(self):
        return list(zip(self._cells, self.plan.cells, strict=True))

    def _take(self, batches: Sequence[Batch]) -> None:
        """Make these batches, and those before them, the search."""
        self._num_read = len(batches)
        ours = [batch for batch in batches if batch.question == self.question]
        for batch in ours:
            if batch.terms == terms_of(self.config):
                self.known |= batch.known
        cells = tuple(dict.fromkeys([*self._cells, *(cell for batch in ours for cell in batch.cells)]))
        if cells != self._cells:
            self._cells = cells
            self.plan = self._planned(cells)
        self.plan = dataclasses.replace(self.plan, question=self.question)

    def _set_stops(self) -> None:
        if not self.config.has_stops:
            return
        names = [spec.fingerprint for spec in self.plan.runs]
        self.ledger.stops = {}
        statuses = {name: state.status for name, state in self.ledger.statuses(names).items()}
        measured = {name: self.ledger.rungs(name) for name in names}
        stops = stops_of(self.plan, self.config, measured, statuses)
        self.plan = dataclasses.replace(self.plan, stops=stops)
        self.ledger.stops = stops

    def _of(self, space: Space) -> list[_Asked]:
        """The plane's runs; cells that share one, once."""
        configs = {spec.fingerprint: spec.config for spec in self.plan.runs}
        found: dict[str, _Asked] = {}
        for cell, planned in self._pairs():
            if group_of(cell, self.config) == space.group and planned.fingerprint not in found:
                objective = configs[planned.fingerprint].objective
                weights = (objective.prompt_weight, objective.response_weight)
                found[planned.fingerprint] = _Asked(cell, planned.fingerprint, weights)
        return list(found.values())

    def _why_over(self, space: Space) -> str:
        if space.group in self.known:
            return self.known[space.group]
        num_runs, most = len(self._of(space)), self.config.max_runs or space.num_runs
        return f"the budget of {most} runs is spent" if num_runs >= most else ""

    def _ask_for_more(self, states: Mapping[str, RunState], num_workers: int) -> None:
        num_open = sum(
            states[asked.fingerprint].status not in SETTLED
            for space in self.spaces
            for asked in self._of(space)
            if asked.fingerprint in states
        )
        room = (self.config.at_once or min(num_workers, MOST_AT_ONCE)) + self.config.ahead - num_open
        shares = self._shares(room)
        cells: list[Cell] = []
        expected: list[float | None] = []
        known: dict[Group, str] = {}
        for space, wanted in shares:
            answer = self._ask(self.question_of(space, states, wanted))
            if answer["is_known"]:
                known[space.group] = str(answer["why"])
                continue
            seeded = self._seeded(space, answer["proposals"])
            for found, new in zip(answer["proposals"], seeded, strict=True):
                cells += new
                expected += [found.get("expected")] * len(new)
        if not cells and not known:
            return
        batch = Batch(
            number=self._num_read + 1,
            question=self.question,
            cells=tuple(cells),
            expected=tuple(expected),
            known=known,
            terms=terms_of(self.config),
            ranges={found.axis: (found.low, found.high) for found in self.config.ranges},
        )
        write_batch(self.folder.path, batch)  # or nothing: of two who asked, the first to write is right
        self._take(read_batches(self.folder.path))

    def _shares(self, room: int) -> list[tuple[Space, int]]:
        """How many runs to ask for in which plane: those with the fewest first."""
        most = {
            index: (self.config.max_runs or space.num_runs) - len(self._of(space))
            for index, space in enumerate(self.spaces)
            if not self._why_over(space)
        }
        wanted = dict.fromkeys(most, 0)
        for _ in range(room):
            open_ = [index for index in most if wanted[index] < most[index]]
            if not open_:
                break
            wanted[min(open_, key=lambda index: wanted[index] - most[index])] += 1
        return [(self.spaces[index], number) for index, number in wanted.items() if number]

    def _seeded(self, space: Space, proposals: Sequence[Mapping[str, Any]]) -> list[tuple[Cell, ...]]:
        """The proposals with seeds that their weights haven't had yet."""
        used: dict[object, set[int]] = {}
        for asked in self._of(space):
            key = (asked.weights, tuple(sorted(searched_settings(asked.cell, self.config).items())))
            used.setdefault(key, set()).add(asked.cell.seed)
        cells: list[tuple[Cell, ...]] = []
        for found in proposals:
            weights = (float(found["weights"][0]), float(found["weights"][1]))
            settings = dict(found.get("settings") or {})
            seeds = used.setdefault((weights, tuple(sorted(settings.items()))), set())
            seed = next_seed(space, seeds)
            seeds.add(seed)
            cells.append(cells_of(space, weights, settings, seed))
        return cells


def _range_to_dict(found: Any) -> dict[str, Any]:
    return {
        "axis": found.axis,
        "low": found.low,
        "high": None if found.high == float("inf") else found.high,
        "is_whole": found.is_whole,
        "is_log": found.is_log,
    }

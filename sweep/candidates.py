"""Where a search may go: the planes of a grid, the settings to choose from, and the first runs. Pure.

A *candidate* is a pair of weights that differs from every other one in what it trains: cells on one ray are one
candidate where scale doesn't matter. With `ratio` among the ranges the weights are free, and lie on the edge
max(prompt, response) = 1.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweep.search_config import RATIO, Range, SearchConfig
from sweep.spec import Cell, Settings

Weights = tuple[float, float]  # prompt, response
Group = tuple[str, str, Settings]  # model, dataset, settings that aren't searched

_FIRST = ((0.0, 1.0), (1.0, 1.0))  # instruction tuning and Instruction Modelling: every answer is beside them


@dataclass(frozen=True, slots=True)
class Space:
    """One plane to search. cells: of each candidate, by angle, the grid's pairs that its run answers.

    num_runs: what the grid would take in it, all seeds counted. seeds: the grid's.
    """

    group: Group
    cells: tuple[tuple[Weights, tuple[Weights, ...]], ...]
    seeds: tuple[int, ...]
    num_runs: int

    @property
    def candidates(self) -> tuple[Weights, ...]:
        """As trained: on the edge, where scale doesn't matter."""
        return tuple(weights for weights, _ in self.cells)


def spaces(cells: Sequence[Cell], trained: Sequence[Weights]) -> tuple[Space, ...]:
    """The planes of a grid. trained: the weights that each cell's run is trained with, in the cells' order."""
    found: dict[Group, dict[Weights, dict[Weights, None]]] = {}
    seeds: dict[Group, dict[int, None]] = {}
    runs: dict[Group, set[tuple[Weights, int]]] = {}
    for cell, weights in zip(cells, trained, strict=True):
        pairs = found.setdefault(cell.group, {}).setdefault(weights, {})
        pairs[cell.prompt_weight, cell.response_weight] = None
        seeds.setdefault(cell.group, {})[cell.seed] = None
        runs.setdefault(cell.group, set()).add((weights, cell.seed))
    return tuple(
        Space(
            group,
            tuple((weights, tuple(found[group][weights])) for weights in sorted(found[group], key=_angle)),
            tuple(seeds[group]),
            len(runs[group]),
        )
        for group in found
    )


def weights_at(ratio: float) -> Weights:
    """The pair of that ratio with the larger weight 1; four digits, so that neighbours can be told apart."""
    if ratio <= 1:
        return round(ratio, 4) + 0.0, 1.0
    return 1.0, (0.0 if math.isinf(ratio) else round(1 / ratio, 4))


def pilot(space: Space, search: SearchConfig) -> tuple[Cell, ...]:
    """The first runs of a plane, one seed each: (0, 1), (1, 1), then always the angle farthest from those there.

    Further ranges are walked through in van der Corput's order: the middle, then the quarters, ...
    """
    free = next((found for found in search.ranges if found.axis == RATIO), None)
    options = list(space.candidates) if free is None else _along(free)
    chosen = [weights for weights in _FIRST if weights in options][: search.pilot_runs]
    chosen = chosen or [options[0]]
    while len(chosen) < min(search.pilot_runs, len(options)):
        left = [weights for weights in options if weights not in chosen]
        chosen.append(max(left, key=lambda one: min(abs(_angle(one) - _angle(other)) for other in chosen)))
    others = [found for found in search.ranges if found.axis != RATIO]
    return tuple(
        cell
        for index, weights in enumerate(chosen)
        for cell in cells_of(
            space,
            weights,
            {found.axis: between(found, van_der_corput(index + 1)) for found in others},
            space.seeds[0],
        )
    )


def between(found: Range, share: float) -> float | int:
    """The value at a share of the range, on its own scale; four digits."""
    if found.is_log:
        value = math.exp(math.log(found.low) + share * (math.log(found.high) - math.log(found.low)))
    else:
        value = found.low + share * (found.high - found.low)
    return round(value) if found.is_whole else float(f"{value:.4g}")


def cells_of(space: Space, weights: Weights, searched: Mapping[str, float], seed: int) -> tuple[Cell, ...]:
    """The cells that one run of these weights answers: the grid's on its ray, else the pair itself."""
    model, dataset, settings = space.group
    settings = tuple(sorted((*settings, *searched.items())))
    pairs = dict(space.cells).get(weights, (weights,))
    return tuple(Cell(model, dataset, *pair, seed, settings) for pair in pairs)


def group_of(cell: Cell, search: SearchConfig) -> Group:
    """The plane a cell is searched in: its group without what is searched."""
    searched = {found.axis for found in search.ranges}
    settings = tuple(pair for pair in cell.settings if pair[0] not in searched)
    return dataclasses.replace(cell, settings=settings).group


def searched_settings(cell: Cell, search: SearchConfig) -> dict[str, float]:
    """The values of the searched axes at a cell."""
    searched = {found.axis for found in search.ranges}
    return {key: value for key, value in cell.settings if key in searched}


def next_seed(space: Space, used: set[int]) -> int:
    """The grid's first seed that isn't used, then those after its largest."""
    free = [seed for seed in space.seeds if seed not in used]
    return free[0] if free else max(used) + 1


def _along(free: Range) -> list[Weights]:
    """Pairs along a range of ratios, evenly by angle, with the two known ones where they are inside."""
    low, high = math.atan(free.low), math.atan(free.high)
    ratios = [math.tan(low + (high - low) * step / 16) for step in range(17)]
    ratios[0], ratios[-1] = free.low, free.high
    known = [ratio for ratio in (0.0, 1.0) if free.low <= ratio <= free.high]
    return sorted({weights_at(ratio) for ratio in (*known, *ratios)}, key=_angle)


def _angle(weights: Weights) -> float:
    return math.atan2(*weights)


def van_der_corput(index: int) -> float:
    """The index-th of 0, 1/2, 1/4, 3/4, 1/8, ...: every beginning of it covers the unit interval evenly."""
    share, base = 0.0, 0.5
    while index:
        share += base * (index & 1)
        index, base = index >> 1, base / 2
    return share

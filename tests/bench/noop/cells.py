"""The cells and the answer of each. Standard library only: every job of every way imports it."""

import hashlib
import itertools
import json
from pathlib import Path

WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)

Cell = tuple[float, float, int]  # prompt weight, response weight, seed


def axes_of(number: int) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    """Weights and seeds of a product of so many cells: 1 to 5, or a multiple of five, or of 25."""
    if number <= 5:
        return WEIGHTS[:number], (1.0,), (0,)
    if number % 25 == 0:
        return WEIGHTS, WEIGHTS, tuple(range(number // 25))
    if number % 5:
        raise ValueError(f"{number} cells are no product of five weights")
    return WEIGHTS, (1.0,), tuple(range(number // 5))


def cells_of(number: int) -> list[Cell]:
    """The product itself."""
    return list(itertools.product(*axes_of(number)))


def answer(prompt_weight: float, response_weight: float, seed: int) -> float:
    """What the cell finds, in no time."""
    digest = hashlib.sha256(f"{prompt_weight:g} {response_weight:g} {seed}".encode()).hexdigest()
    return int(digest[:8], 16) / 2**32


def write_answers(path: Path, found: dict[Cell, float]) -> None:
    """What a way has collected, for the gate."""
    path.write_text(json.dumps([[list(cell), value] for cell, value in found.items()]), encoding="utf-8")


def are_right(path: Path, number: int) -> bool:
    """Whether the collection has every cell once, with its answer, and nothing else."""
    found = [(tuple(cell), value) for cell, value in json.loads(path.read_text(encoding="utf-8"))]
    return sorted(found) == sorted((cell, answer(*cell)) for cell in cells_of(number))

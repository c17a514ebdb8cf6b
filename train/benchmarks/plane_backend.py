"""Runs of one base model as backends over one resident copy of it: their adapters are asked as a stack.

What is bound by calls (writing, a token of each row at a time) is done for as many runs at once as pay and fit; what
is bound by arithmetic (reading thousands of tokens) for one after another. Which is which: `train.stacked.evaluating`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.interface import Choice, Likelihood, Output, Request
from train.model import trainable_parameters
from train.stacked.evaluating import Parameters, cells_that_read, cells_that_write, fill, in_groups


class PlaneBackend:
    """See `train.benchmarks.asking.Backends`. The adapters of N runs, and the model that they belong to.

    may_stack   else one run after another, over the one base

    Exact    the same texts as of a run alone, and likelihoods to 1e-6 nats/token: base layers are one product over
             the rows of all runs, which a library may sum otherwise. Bitwise where a pass holds one run.
    """

    def __init__(self, held: HFBackend, cells: Sequence[Parameters], *, may_stack: bool = True) -> None:
        self._held, self._cells, self._may_stack = held, cells, may_stack
        self._filled: int | None = None
        self._known: dict[tuple[Choice, ...], dict[int, list[Likelihood]]] = {}

    def generate(self, places: Sequence[int], requests: Sequence[Sequence[Request]]) -> list[list[Output]]:
        """What each run writes, some runs at a time."""
        self._filled = None
        num_rows, num_tokens = self._held.size_of_a_batch([row[0] for row in requests])
        at_once = cells_that_write(self._held.model, self._held.device, num_rows, num_tokens)
        columns = in_groups(
            self._held.model,
            "lora",
            [self._cells[place] for place in places],
            at_once if self._may_stack else 1,
            lambda some: self._columns(requests, some),
        )
        return [list(row) for row in zip(*columns, strict=True)]

    def of(self, place: int) -> "CellBackend":
        """One run's."""
        return CellBackend(self, place)

    def _columns(self, requests: Sequence[Sequence[Request]], some: range) -> list[list[Output]]:
        rows = self._held.generate_of_cells([[row[number] for number in some] for row in requests])
        return [list(column) for column in zip(*rows, strict=True)]

    def likelihoods(self, place: int, choices: Sequence[Choice]) -> list[Likelihood]:
        """One run's; what others that share its passes will ask is kept for them."""
        known = self._known.setdefault(tuple(choices), {})
        if place not in known:
            self._filled = None
            at_once = cells_that_read(self._held.device, self._held.tokens_of_a_batch(choices))
            at_once = at_once if self._may_stack else 1
            start = place // at_once * at_once
            group = self._cells[start : start + at_once]
            found = in_groups(
                self._held.model,
                "lora",
                group,
                at_once,
                lambda some: self._held.likelihoods_of_cells(choices, len(some)),
            )
            known |= dict(zip(range(start, start + len(group)), found, strict=True))
        return known.pop(place)

    def model_of(self, place: int) -> nn.Module:
        """The model as this run left it."""
        if self._filled != place:
            fill(trainable_parameters(self._held.model), self._cells[place])
            self._filled = place
        return self._held.model

    @property
    def held(self) -> HFBackend:
        """The model with its tokenizer, whosever parameters it holds."""
        return self._held


class CellBackend:
    """One run of a plane as a backend (`train.benchmarks.interface.Backend`)."""

    def __init__(self, plane: PlaneBackend, place: int) -> None:
        self._plane, self._place = plane, place

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """By itself."""
        return [output for (output,) in self._plane.generate([self._place], [(one,) for one in requests])]

    def likelihoods(self, choices: Sequence[Choice]) -> list[Likelihood]:
        """The likelihood of each continuation, in their order."""
        return self._plane.likelihoods(self._place, choices)

    @property
    def model(self) -> nn.Module:
        """For benchmarks that need the model itself, as are the three below (POSIX)."""
        return self._plane.model_of(self._place)

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self._plane.held.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._plane.held.device

    @property
    def encoder(self) -> Any:
        """Texts in its tokens."""
        return self._plane.held.encoder

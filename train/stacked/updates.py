"""The optimisers of a stack: one for all cells where they step alike, else one for each.

AdamW works element by element, so one call on the stacked tensors is each cell's own step, in its own bits. Cells
that differ in rate or decay, clip by their own norm, or have a step without a target of their own, step one by one
on their views; the state is shared memory, so the one form turns into the other at any time.
"""

from collections.abc import Sequence

import torch

from train.config import RunConfig
from train.model import make_optimizer
from train.stacked.stacking import Stack
from train.step import clip


class Updates:
    """`optimizers[n]` is cell n's own, over its views; complete whenever `expose` was called."""

    def __init__(self, stack: Stack, configs: Sequence[RunConfig]) -> None:
        self._stack = stack
        self.optimizers = [
            make_optimizer(list(cell.values()), config.train)
            for cell, config in zip(stack.cells, configs, strict=True)
        ]
        first = configs[0].train
        self._clip_norm = first.clip_norm
        are_alike = all(config.train == first for config in configs) and self._clip_norm is None
        self._shared = make_optimizer(list(stack.parameters.values()), first) if are_alike else None

    def step(self, rates: Sequence[float | None]) -> list[bool]:
        """One update of all cells, and which were clipped; a rate of None: that cell doesn't learn from this step."""
        if self._shared is not None and None not in rates and len(set(rates)) == 1:
            self._shared.param_groups[0]["lr"] = rates[0]
            self._shared.step()
            return [False] * len(rates)
        self._part()
        self._stack.gather_gradients()
        are_clipped = [False] * len(rates)
        for n, (optimizer, rate) in enumerate(zip(self.optimizers, rates, strict=True)):
            if rate is not None:
                are_clipped[n] = clip(optimizer.param_groups[0]["params"], self._clip_norm)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
        return are_clipped

    def expose(self) -> None:
        """Give every cell's optimiser its state, as views of the shared one."""
        if self._shared is None:
            return
        for name, parameter in self._stack.parameters.items():
            state = self._shared.state.get(parameter, {})
            for n, (cell, optimizer) in enumerate(zip(self._stack.cells, self.optimizers, strict=True)):
                optimizer.state[cell[name]] = {
                    key: value[n] if value.dim() else value.clone() for key, value in state.items()
                }

    def adopt(self) -> None:
        """After the cells' optimisers were restored: their state is the shared one's from here on."""
        if self._shared is None:
            return
        for name, parameter in self._stack.parameters.items():
            states = [
                optimizer.state.get(cell[name], {})
                for cell, optimizer in zip(self._stack.cells, self.optimizers, strict=True)
            ]
            if any(set(state) != set(states[0]) for state in states):
                self._shared = None
                return
            self._shared.state[parameter] = {
                key: torch.stack([state[key] for state in states]) if value.dim() else value.clone()
                for key, value in states[0].items()
            }
        self.expose()

    def clear(self) -> None:
        """No state: as before the first step."""
        for optimizer in [*self.optimizers, *([self._shared] if self._shared is not None else [])]:
            optimizer.state.clear()

    def _part(self) -> None:
        self.expose()
        self._shared = None

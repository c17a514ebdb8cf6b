"""One optimiser step of N cells: the same rows through one model of N cells, then each cell's own update.

The cut into micro-batches, packing, coefficients, head kernel and optimiser are those of a run alone
(`train.step`), cell by cell; only the products of the layers are batched. Losses are summed for one backward pass:
cells share no parameter, so each gets its own gradient and no other.

Letters: N cells, B rows, T positions, H width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from train.batches import TrainingBatch, rows_of_step
from train.config import RunConfig
from train.failures import NonFiniteLossError
from train.heads import LossPath, decoder_of
from train.linear_cross_entropy import weighted_linear_nll
from train.objective import step_scale
from train.schedule import learning_rate
from train.stacked.stacking import Stack
from train.stacked.updates import Updates
from train.step import Engine, LossModule, Stepper, StepResult, StepSums
from train.tokens import TokenSplit


@dataclass(slots=True)
class Cell:
    """One run of the stack. `failure` once its loss stopped being a number; it then learns nothing more."""

    config: RunConfig
    stepper: Stepper
    failure: NonFiniteLossError | None = None
    last_parameters: dict[str, Tensor] | None = None  # of a failed cell, as they were before the step


class StackedStepper:
    """Optimiser steps of all cells of a stack."""

    def __init__(
        self,
        stack: Stack,
        split: TokenSplit,
        configs: Sequence[RunConfig],
        device: torch.device,
        path: LossPath,
        engine: Engine,
    ) -> None:
        self.stack, self.device, self.path = stack, device, path
        self.updates = Updates(stack, configs)
        self.cells: list[Cell] = []
        for config, parameters, optimizer in zip(configs, stack.cells, self.updates.optimizers, strict=True):
            module = LossModule(stack.model, None, path, config)
            stepper = Stepper(module, split, config, device, optimizer, list(parameters.values()), engine)
            self.cells.append(Cell(config, stepper))
        lengths = {tuple(cell.stepper.lengths) for cell in self.cells}
        assert len(lengths) == 1, "runs of a stack end their rows alike"

    def step(self, step: int, steps: int) -> list[StepResult | None]:
        """Do optimiser step `step`; None for a cell that failed, now or before."""
        first = self.cells[0].stepper
        recipe = first.config.train
        rows = rows_of_step(
            step,
            num_rows=len(first.lengths),
            batch_size=recipe.batch_size,
            data_order_seed=first.data_order_seed,
        )
        scales = [
            step_scale(
                cell.stepper.counts_MR, rows, cell.stepper.weights_R, cell.config.objective.normalisation
            )
            for cell in self.cells
        ]
        weighings = [(cell.stepper.weights_R, scale) for cell, scale in zip(self.cells, scales, strict=True)]
        sums = [StepSums(self.device) for _ in self.cells]
        self.stack.clear_gradients()
        for part in first.cut([row for row in rows if first.lengths[row]]):
            batches = first.batches(part, weighings)
            with first.autocast():
                total, losses = self._losses(batches)
            total.backward()
            for kept, batch, (loss, nll_N) in zip(sums, batches, losses, strict=True):
                kept.add(loss, nll_N, torch.zeros_like(nll_N), batch)
        world = first.engine.world
        results: list[StepResult | None] = []
        rates: list[float | None] = []
        for n, (cell, scale, sum_) in enumerate(zip(self.cells, scales, sums, strict=True)):
            totals = sum_.totals(world)
            if cell.failure is None and not math.isfinite(totals[0]):
                cell.failure = NonFiniteLossError(step + 1, [first.split.row_ids[row] for row in rows])
                views = self.stack.cells[n]
                cell.last_parameters = {name: view.detach().clone() for name, view in views.items()}
            rate = learning_rate(cell.config.train, step, steps)
            result = cell.stepper.result(totals, scale.num_targets, rate) if cell.failure is None else None
            results.append(result)
            # What a failed cell makes of its numbers nobody sees, so it may step along with the others.
            rates.append(rate if scale.num_targets else None)
        are_clipped = self.updates.step(rates)
        return [
            result and replace(result, is_clipped=is_clipped)
            for result, is_clipped in zip(results, are_clipped, strict=True)
        ]

    def _losses(self, batches: Sequence[TrainingBatch]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The sum of all losses, with its gradient; each cell's loss and its targets' nll as numbers."""
        first, num_cells = batches[0], len(batches)
        extra = {}
        if first.layout is not None and first.positions_BT is not None:
            extra = {"position_ids": first.positions_BT.expand(num_cells, -1), "packed": first.layout}
        ids = first.ids_BT.repeat(num_cells, 1)
        states = decoder_of(self.stack.model)(input_ids=ids, use_cache=False, **extra).last_hidden_state
        states_NTH = states.reshape(num_cells, -1, states.shape[-1])
        return (self._shared_head if self.stack.head_name is None else self._own_heads)(states_NTH, batches)

    def _own_heads(
        self, states_NTH: Tensor, batches: Sequence[TrainingBatch]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        weights = self.stack.parameters[self.stack.head_name or ""].unbind(0)
        losses, found = [], []
        for states_TH, weight, batch in zip(states_NTH.unbind(0), weights, batches, strict=True):
            loss, nll_N, _ = weighted_linear_nll(
                states_TH[batch.predictors_N],
                replace(self.stack.head, weight_VH=weight),
                batch.targets_N,
                batch.coefficients_N,
                kernel=self.path.kernel,
            )
            losses.append(loss)
            found.append((loss.detach(), nll_N))
        return torch.stack(losses).sum(), found

    def _shared_head(
        self, states_NTH: Tensor, batches: Sequence[TrainingBatch]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Every cell's targets in one call; each row of it is of one cell."""
        stride = states_NTH.shape[1]
        predictors = torch.cat([batch.predictors_N + n * stride for n, batch in enumerate(batches)])
        total, nll, _ = weighted_linear_nll(
            states_NTH.flatten(0, 1)[predictors],
            self.stack.head,
            torch.cat([batch.targets_N for batch in batches]),
            torch.cat([batch.coefficients_N for batch in batches]),
            kernel=self.path.kernel,
        )
        parts = nll.split([len(batch.targets_N) for batch in batches])
        return total, [
            ((part * batch.coefficients_N).sum(), part) for part, batch in zip(parts, batches, strict=True)
        ]

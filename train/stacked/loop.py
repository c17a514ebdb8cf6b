"""The training loop of a stack: what `train.loop` is for one run, step for step, for all cells at once.

Each cell keeps a log and a checkpoint in its own folder, in the form of a run alone. So a stack that dies is gone on
with from its cells, together or one by one, and a cell that was stopped alone can join others at the same step.
"""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from train.attention import packed_attention
from train.checkpoint import Progress, restore_checkpoint, save_checkpoint
from train.config import RunConfig
from train.distributed import World
from train.engine import choose_packing, precision_words
from train.failures import NonFiniteLossError
from train.heads import base_model, choose_path
from train.loop import Hooks, Interrupted, after, event_of, open_events
from train.objective import check_roles
from train.schedule import num_steps
from train.stacked.stacking import Stack, stacked
from train.stacked.step import StackedStepper
from train.step import Engine
from train.step_meter import StepMeter
from train.tokens import TokenSplit


@dataclass(frozen=True, slots=True)
class CellRun:
    """One run of a stack: what it is, where it lies, and who listens.

    Its own `hooks.should_stop` takes it out of the stack, saved; `on_leave` hears of it then.
    """

    config: RunConfig
    fingerprint: str
    folder: Path
    hooks: Hooks
    on_leave: Callable[[Interrupted], None] = lambda why: None


@dataclass(frozen=True, slots=True)
class CellResult:
    """A trained cell: its progress and parameters, or why its loss stopped being a number, or that it left."""

    progress: Progress
    parameters: dict[str, torch.Tensor]
    failure: NonFiniteLossError | Interrupted | None


def train_stacked(
    model: nn.Module,
    split: TokenSplit,
    runs: Sequence[CellRun],
    *,
    device: torch.device,
    should_stop: Callable[[], bool],
) -> list[CellResult]:
    """Train all runs from the model's parameters, or from their checkpoints, to the last step.

    The model is as it was afterwards: the trained parameters are in the results. `cannot_stack` must have said
    nothing. `training_s` is a run's share of the stack's seconds. A cell that leaves is carried along unseen.

    Raises   Interrupted after saving every cell, or once all have left; TemplateError for a weight on tokens that
             aren't there.
    Exact    float32 on CPU: each cell ends in the bits of a run alone (tests/unit/test_stacked.py).
    """
    for run in runs:
        check_roles(split, run.config.objective, run.config.model.template)
    recipe = runs[0].config.train
    steps = num_steps(recipe, len(split.row_ids))
    path = choose_path(model, recipe.head, device)
    packing, reason = choose_packing(model, recipe, device)
    with contextlib.ExitStack() as undo:
        if packing != "pad":
            undo.enter_context(packed_attention(base_model(model)))
        stack = undo.enter_context(stacked(model, len(runs), recipe.method))
        engine = Engine(path, packing, False, World())
        stepper = StackedStepper(stack, split, [run.config for run in runs], device, path, engine)
        how = {
            "head": f"{path.name} ({path.reason})",
            "packing": f"{packing} ({reason})",
            "attention": "sdpa",
            "ranks": 1,
            "precision": precision_words(recipe),
            "stacked": len(runs),
        }
        progress = [replace(each, how=how) for each in _restore(stack, stepper, runs)]
        model.train()
        try:
            progress, left = _run(stack, stepper, runs, progress, steps, device, should_stop)
        finally:
            model.eval()
        return [
            CellResult(
                done,
                cell.last_parameters or {name: view.detach().clone() for name, view in views.items()},
                left.get(n, cell.failure),
            )
            for n, (done, views, cell) in enumerate(zip(progress, stack.cells, stepper.cells, strict=True))
        ]


def _restore(stack: Stack, stepper: StackedStepper, runs: Sequence[CellRun]) -> list[Progress]:
    """From the cells' checkpoints if all stand at one step; else from the start, which costs time only."""
    start = {name: parameter.detach()[0].clone() for name, parameter in stack.parameters.items()}
    found = [
        restore_checkpoint(run.folder, run.fingerprint, views, optimizer)
        for run, views, optimizer in zip(runs, stack.cells, stepper.updates.optimizers, strict=True)
    ]
    if None not in found and len({each.step for each in found if each is not None}) == 1:
        stepper.updates.adopt()
        return [each for each in found if each is not None]
    stepper.updates.clear()
    with torch.no_grad():
        for views in stack.cells:
            for name, view in views.items():
                view.copy_(start[name])
    return [Progress(0, 0.0, None) for _ in runs]


def _run(
    stack: Stack,
    stepper: StackedStepper,
    runs: Sequence[CellRun],
    progress: list[Progress],
    steps: int,
    device: torch.device,
    should_stop: Callable[[], bool],
) -> tuple[list[Progress], dict[int, Interrupted]]:
    """The progress of all cells, and which left."""
    recipe, first = runs[0].config.train, progress[0].step
    started, saved = time.monotonic(), time.monotonic()
    before_s = [each.training_s for each in progress]
    left: dict[int, Interrupted] = {}
    meter = StepMeter(stack.model, device, recipe.precision)
    with contextlib.ExitStack() as files:
        events = [files.enter_context(open_events(run.folder, first, World())) for run in runs]
        for step in range(first, steps):
            results = stepper.step(step, steps)
            speed = meter.numbers(sum(result.num_tokens for result in results if result))
            share_s = (time.monotonic() - started) / len(runs)
            for n, (run, result) in enumerate(zip(runs, results, strict=True)):
                if result is None or n in left:
                    continue
                progress[n] = after(progress[n], result, before_s[n] + share_s)
                event = event_of(step + 1, result) | speed
                events[n].write(json.dumps(event) + "\n")
                run.hooks.tracker.log(step + 1, event)
                run.hooks.on_progress(step + 1, steps)
            words = f"stopped after step {step + 1} of {steps}"
            is_stopping = should_stop()
            leaving = [n for n in range(len(runs)) if n not in left and runs[n].hooks.should_stop()]
            if is_stopping or step + 1 == steps or time.monotonic() - saved > recipe.checkpoint_every_s:
                _save(stack, stepper, runs, progress, set(range(len(runs))) - set(left))
                saved = time.monotonic()
            elif leaving:
                _save(stack, stepper, runs, progress, leaving)
            for n in leaving:
                events[n].flush()
                left[n] = Interrupted(words)
                runs[n].on_leave(left[n])
            if is_stopping or len(left) == len(runs):
                raise Interrupted(words)
    return progress, left


def _save(
    stack: Stack,
    stepper: StackedStepper,
    runs: Sequence[CellRun],
    progress: Sequence[Progress],
    cells: Collection[int],
) -> None:
    stepper.updates.expose()
    for n in sorted(cells):
        if stepper.cells[n].failure is None:
            optimizer = stepper.updates.optimizers[n]
            save_checkpoint(runs[n].folder, runs[n].fingerprint, stack.cells[n], optimizer, progress[n])

"""The training loop: steps in order, a log, and a state that can be continued.

What a step computes is `train.step`; how this run computes it (kernel, packing, ranks) is decided once, in
`train.engine`, and changes nothing but the order of float sums.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from train.checkpoint import Progress
from train.config import RunConfig
from train.distributed import World
from train.engine import prepared
from train.objective import check_roles
from train.rungs import step_of
from train.schedule import num_steps
from train.step import StepResult
from train.step_meter import StepMeter
from train.tokens import TokenSplit
from train.tracking import Tracker

EVENTS_FILE = "events.jsonl"


class Interrupted(Exception):  # not an error: the state is saved and the run goes on elsewhere
    """Training stopped because it was asked to, after a checkpoint."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """How a loop speaks to whoever runs it. `on_progress(step, steps)` after every step."""

    should_stop: Callable[[], bool]
    on_progress: Callable[[int, int], None]
    tracker: Tracker


def train_model(
    model: nn.Module,
    split: TokenSplit,
    config: RunConfig,
    *,
    fingerprint: str,
    folder: Path,
    device: torch.device,
    hooks: Hooks,
    world: World = World(),
    until_share: float = 1.0,
) -> Progress:
    """Train in place from the start, or from the folder's checkpoint, to the last step, or to a rung's.

    Raises   Interrupted after saving a checkpoint; NonFiniteLossError with the step and its rows;
             TemplateError for a weight on tokens that aren't there.
    Exact    The same configuration gives the same bits on CPU, interrupted or not.
    """
    check_roles(split, config.objective, config.model.template)
    steps = num_steps(config.train, len(split.row_ids))
    last = step_of(until_share, steps)
    with prepared(model, split, config, device, world) as training:
        progress = training.restore(folder, fingerprint) or Progress(0, 0.0, None)
        progress = replace(progress, how=training.how)
        started, saved = time.monotonic() - progress.training_s, time.monotonic()
        meter = StepMeter(model, device, config.train.precision)
        training.module.train()
        with open_events(folder, progress.step, world) as events:
            for step in range(progress.step, last):
                result = training.stepper.step(step, steps)
                progress = after(progress, result, time.monotonic() - started)
                if world.rank == 0:
                    event = event_of(step + 1, result) | meter.numbers(result.num_tokens)
                    events.write(json.dumps(event) + "\n")
                    hooks.tracker.log(step + 1, event)
                    hooks.on_progress(step + 1, steps)
                is_last = step + 1 == last  # saved too: dying during the evaluation must not cost it
                age_s = time.monotonic() - saved
                is_stopping, is_due = world.agreed(
                    hooks.should_stop(), is_last or age_s > config.train.checkpoint_every_s
                )
                if is_stopping or is_due:
                    events.flush()
                    training.save(folder, fingerprint, progress)
                    saved = time.monotonic()
                if is_stopping:
                    raise Interrupted(f"stopped after step {step + 1} of {steps}")
        model.eval()
    return progress


def after(progress: Progress, result: StepResult, training_s: float) -> Progress:
    return replace(
        progress,
        step=progress.step + 1,
        training_s=training_s,
        final_train_loss=result.loss,
        num_train_tokens=progress.num_train_tokens + result.num_tokens,
        num_empty_steps=progress.num_empty_steps + (result.num_targets == 0),
        num_clipped_steps=progress.num_clipped_steps + result.is_clipped,
    )


def event_of(step: int, result: StepResult) -> dict[str, float]:
    event = {
        "step": step,
        "train_loss": result.loss,
        **result.nll_by_role,
        "learning_rate": result.learning_rate,
        "num_tokens": result.num_tokens,
    }
    return event if result.divergence is None else event | {"train_divergence": result.divergence}


@contextlib.contextmanager
def open_events(folder: Path, first_step: int, world: World) -> Iterator[TextIO]:
    """The run's log, cut back to the step it continues from, so that no step is ever written twice.

    Rank 0 writes it; the others write nowhere.
    """
    path = folder / EVENTS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    if world.rank:
        path = Path("/dev/null")
    elif first_step and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                if json.loads(line)["step"] <= first_step:
                    kept.append(line)
    with open(path, "w", encoding="utf-8", buffering=1) as stream:
        stream.writelines(line + "\n" for line in kept)
        yield stream

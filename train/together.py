"""What all ranks of a run do together: rank 0 as the run itself, the others as its helpers; one process alone."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.benchmarks.wordings import measure_wordings
from train.checkpoint import Progress
from train.config import RunConfig
from train.distributed import World
from train.evaluate import Evaluation, evaluate
from train.loop import Hooks, Interrupted, train_model
from train.model import add_adapters
from train.rungs import Paused
from train.schedule import num_steps
from train.seeds import seed_of
from train.tokens import TokenData


def fitted(model: nn.Module, config: RunConfig) -> nn.Module:
    """What is trained: the model itself, or adapters around it."""
    if config.train.method == "full" or config.stage == "base":
        return model
    return add_adapters(model, config.train, seed_of(config, "init"))


def train_and_measure(
    model: nn.Module,
    data: TokenData,
    config: RunConfig,
    tokenizer: Any,
    *,
    fingerprint: str,
    folder: Path,
    device: torch.device,
    hooks: Hooks,
    world: World,
    protocol: str = "",
    pause_at: float | None = None,
) -> tuple[Progress | None, Evaluation, float]:
    """Train, where the stage is supervised, and measure.

    pause_at   the share of the steps at which the run is measured and paused; None: it goes to its end
    Raises     Interrupted, Paused or NonFiniteLossError, on every rank.
    Returns    progress (None but for supervised training), what was measured, seconds of measuring
    """
    progress = None
    if config.stage == "sft":
        progress = train_model(
            model,
            data.splits["train"],
            config,
            fingerprint=fingerprint,
            folder=folder,
            device=device,
            hooks=hooks,
            world=world,
            until_share=pause_at or 1.0,
        )
        if progress.step < num_steps(config.train, len(data.splits["train"].row_ids)):
            raise Paused(pause_at or 1.0, _at_rung(model, data, config, tokenizer, device, world))
    if world.agreed(hooks.should_stop())[0]:
        raise Interrupted("stopped before its evaluation")
    started = time.monotonic()
    measured = evaluate(model, data, config.eval, tokenizer, device, world, protocol=protocol)
    measured = with_wordings(measured, model, config, tokenizer, device)
    return progress, measured, time.monotonic() - started


@torch.no_grad()
def with_wordings(
    measured: Evaluation, model: nn.Module, config: RunConfig, tokenizer: Any, device: torch.device
) -> Evaluation:
    """With prompt sensitivity, where the dataset has held-out wordings; every rank does the same."""
    found = measure_wordings(model, tokenizer, config, device)
    if found is None:
        return measured
    scores, items = found
    return Evaluation({**measured.metrics, **scores.metrics}, (*measured.items, items), scores.details)


def _at_rung(
    model: nn.Module,
    data: TokenData,
    config: RunConfig,
    tokenizer: object,
    device: torch.device,
    world: World,
) -> Mapping[str, float]:
    """Validation only: what decides whether a run goes on may not see what it is judged by."""
    seen = {name: split for name, split in data.splits.items() if name == "validation"}
    chosen = dataclasses.replace(data, splits=seen)
    return evaluate(model, chosen, config.eval, tokenizer, device, world).metrics

"""Preference tuning that goes on where it was: our checkpoint and log around TRL's loop."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from train.checkpoint import Progress, generator_states, restore_checkpoint, save_checkpoint
from train.config import RunConfig
from train.failures import NonFiniteLossError
from train.loop import Hooks


class TrainingState:
    """The checkpoint of a loop that is TRL's: parameters, optimiser, generators."""

    def __init__(
        self, folder: Path, fingerprint: str, trainer: Any, parameters: dict[str, nn.Parameter]
    ) -> None:
        self.folder, self.fingerprint, self.trainer, self.parameters = (
            folder,
            fingerprint,
            trainer,
            parameters,
        )

    def save(self, progress: Progress) -> None:
        """Replace the folder's checkpoint."""
        generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state()
        optimizer = inner_optimizer(self.trainer.optimizer)
        save_checkpoint(self.folder, self.fingerprint, self.parameters, optimizer, progress, generators)

    def restore(self) -> Progress | None:
        """Fill parameters and optimiser from the folder's checkpoint, if it has one of this experiment."""
        optimizer = inner_optimizer(self.trainer.optimizer)
        return restore_checkpoint(self.folder, self.fingerprint, self.parameters, optimizer)

    def restore_generators(self) -> None:
        """After the loop has skipped what was done: skipping draws numbers, too."""
        states = generator_states(self.folder)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def resumable(progress: Progress, trainer: Any, scratch: str) -> str | None:
    """What tells TRL's loop how many steps are done: a folder with its own JSON file; None from the start."""
    if not progress.step:
        return None
    from transformers import TrainerState

    rows = trainer.args.per_device_train_batch_size
    state = TrainerState(global_step=progress.step, logging_steps=1, train_batch_size=rows)
    state.save_to_json(f"{scratch}/trainer_state.json")
    return scratch


def make_callback(
    training: TrainingState,
    progress: Progress,
    events: TextIO,
    steps: int,
    hooks: Hooks,
    config: RunConfig,
    tokens_per_step: float,
) -> Any:
    from transformers import TrainerCallback

    started, before_s = time.monotonic(), progress.training_s

    class Callback(TrainerCallback):
        """Our log, progress, checkpoints and requests to stop, at every step of TRL's."""

        def __init__(self) -> None:
            self.progress, self.saved = progress, time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            hooks.on_progress(state.global_step, steps)
            if hooks.should_stop() and state.global_step < steps:
                control.should_training_stop = True
            age_s = time.monotonic() - self.saved
            is_last = state.global_step == steps  # saved too: dying during the evaluation must not cost it
            control.should_save = (
                is_last or control.should_training_stop or age_s > config.train.checkpoint_every_s
            )

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in (logs or {}):  # the summary at the end
                return
            if not math.isfinite(logs["loss"]):
                raise NonFiniteLossError(state.global_step, ["of its pairs"])
            self.progress = replace(
                self.progress,
                step=state.global_step,
                training_s=before_s + time.monotonic() - started,
                final_train_loss=logs["loss"],
                num_train_tokens=round(state.global_step * tokens_per_step),
            )
            event = {
                "step": state.global_step,
                "train_loss": logs["loss"],
                "train_reward_accuracy": logs["rewards/accuracies"],
                "train_reward_margin": logs["rewards/margins"],
                "learning_rate": logs["learning_rate"],
            }
            events.write(json.dumps(event) + "\n")
            hooks.tracker.log(state.global_step, event)

        def save(self) -> None:
            """After the log of the step."""
            events.flush()
            training.save(self.progress)
            self.saved = time.monotonic()

    callback = Callback()
    training.trainer.save_own = callback.save
    training.trainer.restore_generators = training.restore_generators
    return callback

"""The training loop: one objective, one device, exact accumulation, and a state that can be continued.

Seam for more devices: the denominator of a step is counted from the token roles of *all* its rows before the
first backward, so ranks can divide the rows among themselves and need only add gradients.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from train.batches import collate, micro_batches, rows_of_step
from train.checkpoint import Progress, restore_checkpoint, save_checkpoint
from train.config import RunConfig
from train.failures import NonFiniteLossError
from train.loss import active_nll, num_active_targets, weight_by_role
from train.model import make_optimizer, trainable_parameters
from train.schedule import learning_rate, num_steps
from train.seeds import derive_seed, seed_of
from train.spans import Role
from train.step_meter import StepMeter
from train.tokens import TokenSplit
from train.tracking import Tracker

EVENTS_FILE = "events.jsonl"


class Interrupted(Exception):  # noqa: N818 - not an error: the state is saved and the run goes on elsewhere
    """Training stopped because it was asked to, after a checkpoint."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """How a loop speaks to whoever runs it. `on_progress(step, steps)` after every step."""

    should_stop: Callable[[], bool]
    on_progress: Callable[[int, int], None]
    tracker: Tracker


def train_model(model: nn.Module, split: TokenSplit, config: RunConfig, *, fingerprint: str, folder: Path,
                device: torch.device, hooks: Hooks) -> Progress:
    """Train in place from the start, or from the folder's checkpoint, to the last step.

    Raises   Interrupted after saving a checkpoint; NonFiniteLossError with the step and its rows.
    Exact    The same configuration gives the same bits on CPU, interrupted or not.
    """
    recipe = config.train
    steps = num_steps(recipe, len(split.row_ids))
    parameters = trainable_parameters(model)
    optimizer = make_optimizer(list(parameters.values()), recipe)
    progress = restore_checkpoint(folder, fingerprint, parameters, optimizer) or Progress(0, 0.0, None)
    started, saved = time.monotonic() - progress.training_s, time.monotonic()
    stepper = _Stepper(model, split, config, device, optimizer, list(parameters.values()))
    meter = StepMeter(model, device, recipe.precision)
    model.train()
    with _open_events(folder, progress.step) as events:
        for step in range(progress.step, steps):
            loss, num_tokens, rate, nll = stepper.step(step, steps)
            progress = Progress(step + 1, time.monotonic() - started, loss, progress.num_train_tokens + num_tokens)
            event = {"step": step + 1, "train_loss": loss, **nll, "learning_rate": rate, "num_tokens": num_tokens,
                     **meter.numbers(num_tokens)}
            events.write(json.dumps(event) + "\n")
            hooks.tracker.log(step + 1, event)
            hooks.on_progress(step + 1, steps)
            is_stopping = hooks.should_stop()
            if is_stopping or time.monotonic() - saved > recipe.checkpoint_every_s:
                events.flush()
                save_checkpoint(folder, fingerprint, parameters, optimizer, progress)
                saved = time.monotonic()
            if is_stopping:
                raise Interrupted(f"stopped after step {step + 1} of {steps}")
    model.eval()
    return progress


class _Stepper:
    """One optimiser step; holds what doesn't change from step to step."""

    def __init__(self, model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device,
                 optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.model, self.split, self.config, self.device = model, split, config, device
        self.optimizer, self.parameters = optimizer, parameters
        self.weights_R = weight_by_role(config.objective).to(device)
        self.lengths: list[int] = (split.offsets[1:] - split.offsets[:-1]).tolist()
        self.data_order_seed, self.dropout_seed = seed_of(config, "data_order"), seed_of(config, "dropout")

    def step(self, step: int, steps: int) -> tuple[float, int, float, dict[str, float]]:
        """The step's loss (nats per counted token), its real tokens, the learning rate used, and nll by role."""
        recipe = self.config.train
        rows = rows_of_step(step, num_rows=len(self.lengths), batch_size=recipe.batch_size,
                            data_order_seed=self.data_order_seed)
        batches = [collate(self.split, part, self.device)
                   for part in micro_batches(rows, self.lengths, recipe.micro_batch_tokens)]
        denominator = sum(num_active_targets(batch.roles_BT, self.weights_R) for batch in batches)
        rate = learning_rate(recipe, step, steps)
        torch.manual_seed(derive_seed("dropout", self.dropout_seed, step))
        total = torch.zeros((), dtype=torch.float64)
        nll_by_role = _NllByRole(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with self._autocast():
                logits = self.model(input_ids=batch.ids_BT).logits
            nll_N, roles_N = active_nll(logits, batch.ids_BT, batch.roles_BT, self.weights_R)
            numerator: Tensor = (self.weights_R[roles_N] * nll_N).sum()
            (numerator / max(1, denominator)).backward()
            nll_by_role.add(nll_N.detach(), roles_N)
            total += numerator.detach().double().cpu()
        loss = float(total) / max(1, denominator)
        if not math.isfinite(loss):
            raise NonFiniteLossError(step + 1, [self.split.row_ids[row] for row in rows])
        if denominator:  # a step without a counted token has no mean and teaches nothing
            self._update(rate)
        return loss, sum(self.lengths[row] for row in rows), rate, nll_by_role.means()

    def _update(self, rate: float) -> None:
        if self.config.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.train.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.train.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


class _NllByRole:
    """Unweighted nll of a step by role, a by-product of its loss; a role of zero weight isn't measured."""

    def __init__(self, device: torch.device) -> None:
        self.sums_R = torch.zeros(len(Role), dtype=torch.float64, device=device)
        self.counts_R = torch.zeros(len(Role), dtype=torch.int64, device=device)

    def add(self, nll_N: Tensor, roles_N: Tensor) -> None:
        """The active targets of one micro-batch."""
        self.sums_R.index_add_(0, roles_N, nll_N.double())
        self.counts_R += torch.bincount(roles_N, minlength=len(Role))

    def means(self) -> dict[str, float]:
        """train_prompt_nll and train_response_nll, nats per token; one without a target is absent."""
        sums, counts = self.sums_R.tolist(), self.counts_R.tolist()
        return {f"train_{role.name.lower()}_nll": sums[role] / counts[role]
                for role in (Role.PROMPT, Role.RESPONSE) if counts[role]}


def _open_events(folder: Path, first_step: int):
    """The run's log, cut back to the step it continues from, so that no step is ever written twice."""
    path = folder / EVENTS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    if first_step and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                if json.loads(line)["step"] <= first_step:
                    kept.append(line)
    stream = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - the caller closes it
    stream.writelines(line + "\n" for line in kept)
    return stream

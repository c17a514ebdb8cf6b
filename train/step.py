"""One optimiser step: rows to micro-batches, micro-batches to gradients, gradients to an update.

The coefficients of a step's targets come from the token roles of *all* its rows before the first forward
pass, so neither the cut into micro-batches nor the division among ranks changes what is computed."""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.batches import (
    TrainingBatch,
    end_to_end_batches,
    micro_batches,
    rows_of_step,
    share_by_rank,
    training_batch,
    training_batches,
    used_lengths,
)
from train.config import RunConfig
from train.distributed import World
from train.failures import NonFiniteLossError
from train.heads import (
    LossPath,
    Reference,
    base_model,
    head_of,
    hidden_states,
    plain_weighted_nll,
    weighted_linear_nll,
)
from train.noise import noisy_embeddings
from train.objective import StepScale, role_counts, role_weights, step_scale, with_target_roles
from train.schedule import learning_rate
from train.seeds import derive_seed, seed_of
from train.templates import Role
from train.tokens import TokenSplit


@dataclass(frozen=True, slots=True)
class Engine:
    """How a run computes, decided once at its start; none of it changes what is computed.

    packing   pack: rows end to end; pad: right-padded; mixed: whichever a micro-batch's padding suggests
    """

    path: LossPath
    packing: str
    varlen: bool
    world: World


@dataclass(frozen=True, slots=True)
class StepResult:
    """Units: nats per counted token (loss), nats per token (nll_by_role, divergence), tokens computed."""

    loss: float
    num_tokens: int
    num_targets: int
    learning_rate: float
    nll_by_role: dict[str, float]
    divergence: float | None
    is_clipped: bool = False  # the gradient was longer than clip_norm, and was shortened


class LossModule(nn.Module):
    """A model whose forward is the weighted sum of losses of one micro-batch; what FSDP wraps.

    reference   the untouched model for the divergence; None: not wanted, or the adapters are switched off
    """

    def __init__(
        self, model: nn.Module, reference: nn.Module | None, path: LossPath, config: RunConfig
    ) -> None:
        super().__init__()
        self.model, self.reference, self.path = model, reference, path
        self.wants_divergence = config.objective.kl_weight > 0
        self.kl_weight, self.alpha = config.objective.kl_weight, config.train.neftune_alpha
        self.noise_seed = seed_of(config, "noise")

    def forward(self, batch: TrainingBatch, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The loss sum, and nll and divergence of each target (detached)."""
        extra: dict[str, Any] = {}
        if batch.layout is not None:
            extra = {"position_ids": batch.positions_BT, "packed": batch.layout}
        embedding = base_model(self.model).get_input_embeddings()
        pulls_N = batch.kl_coefficients_N * self.kl_weight
        if self.path.kernel is None:
            with noisy_embeddings(embedding, batch, self.alpha, self.noise_seed, step):
                logits_NV = _full_logits(self.model, batch, extra)
            known = None
            if self.wants_divergence:
                with self._untouched() as untouched:
                    known = _full_logits(untouched, batch, extra), pulls_N
            return plain_weighted_nll(logits_NV, batch.targets_N, batch.coefficients_N, known)
        with noisy_embeddings(embedding, batch, self.alpha, self.noise_seed, step):
            hidden_NH = hidden_states(self.model, batch.ids_BT, extra)[batch.predictors_N]
        head = head_of(self.model)
        assert head is not None
        reference = None
        if self.wants_divergence:
            with self._untouched() as untouched:
                known_NH = hidden_states(untouched, batch.ids_BT, extra)[batch.predictors_N]
                known_head = head_of(untouched)
            assert known_head is not None
            reference = Reference(known_NH, known_head, pulls_N)
        return weighted_linear_nll(
            hidden_NH,
            head,
            batch.targets_N,
            batch.coefficients_N,
            reference=reference,
            kernel=self.path.kernel,
        )

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[nn.Module]:
        """The model as it was before training, without gradients and without dropout."""
        with torch.no_grad():
            if self.reference is not None:
                yield self.reference.eval()
                return
            self.model.eval()
            try:
                with self.model.disable_adapter():  # type: ignore[operator]
                    yield self.model
            finally:
                self.model.train()


def reference_model(model: nn.Module, config: RunConfig) -> nn.Module | None:
    """A frozen copy to measure a divergence from, made before training or a checkpoint changes the model."""
    if config.objective.kl_weight == 0 or config.train.method == "lora":
        return None
    return copy.deepcopy(model).requires_grad_(False).eval()


def _full_logits(model: nn.Module, batch: TrainingBatch, extra: dict[str, Any]) -> Tensor:
    return model(input_ids=batch.ids_BT, use_cache=False, **extra).logits.flatten(0, 1)[batch.predictors_N]


def clip(parameters: Sequence[nn.Parameter], norm: float | None) -> bool:
    """Shorten the gradient, of all parameters together, to `norm`; whether it was longer. None: as it is."""
    if norm is None:
        return False
    found = torch.nn.utils.clip_grad_norm_(parameters, norm)
    whole = getattr(found, "full_tensor", lambda: found)()  # under FSDP each rank has a part
    return bool(whole > norm)


class Stepper:
    """One optimiser step after another; holds what doesn't change between them."""

    def __init__(
        self,
        module: nn.Module,
        split: TokenSplit,
        config: RunConfig,
        device: torch.device,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        engine: Engine,
    ) -> None:
        self.module, self.config, self.device, self.engine = module, config, device, engine
        self.optimizer, self.parameters = optimizer, list(parameters)
        self.split = with_target_roles(split, config.objective)
        self.weights_R = role_weights(config.objective)
        self.counts_MR = role_counts(self.split.roles, split.offsets)
        self.lengths = used_lengths(self.split, self.weights_R)
        self.data_order_seed, self.dropout_seed = seed_of(config, "data_order"), seed_of(config, "dropout")

    def step(self, step: int, steps: int) -> StepResult:
        """Do optimiser step `step` of `steps`. NonFiniteLossError names it and its rows."""
        recipe, world = self.config.train, self.engine.world
        rows = rows_of_step(
            step,
            num_rows=len(self.lengths),
            batch_size=recipe.batch_size,
            data_order_seed=self.data_order_seed,
        )
        scale = step_scale(self.counts_MR, rows, self.weights_R, self.config.objective.normalisation)
        shares = share_by_rank([row for row in rows if self.lengths[row]], self.lengths, world.size)
        parts = self.cut(shares[world.rank])
        num_rounds = max(len(self.cut(share)) for share in shares) if world.kind == "fsdp" else len(parts)
        rate = learning_rate(recipe, step, steps)
        of_rank = [world.rank] if world.rank else []
        torch.manual_seed(derive_seed("dropout", self.dropout_seed, step, *of_rank))
        sums = StepSums(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for index in range(num_rounds):
            batch = self.batch(parts[index], scale) if index < len(parts) else self._idle_batch(rows, scale)
            with self.autocast():
                loss, nll_N, divergence_N = self.module(batch, step)
            # FSDP takes the mean over ranks where we want the sum; another factor it can't do with gloo.
            (loss * world.size if world.kind == "fsdp" else loss).backward()
            sums.add(loss, nll_N, divergence_N, batch)
        totals = sums.totals(world)
        if not math.isfinite(totals[0]):
            raise NonFiniteLossError(step + 1, [self.split.row_ids[row] for row in rows])
        # a step without a counted token has no mean and teaches nothing
        is_clipped = self.update(rate) if scale.num_targets else False
        return self.result(totals, scale.num_targets, rate, is_clipped)

    def cut(self, rows: Sequence[int]) -> list[tuple[list[int], bool]]:
        """Micro-batches of some rows, and whether each is laid end to end."""
        limit = self.config.train.micro_batch_tokens
        if self.engine.packing == "pack":
            return [(part, True) for part in end_to_end_batches(rows, self.lengths, limit)]
        padded = [(part, False) for part in micro_batches(rows, self.lengths, limit)]
        if self.engine.packing == "pad":
            return padded
        real = sum(self.lengths[row] for row in rows)
        held = sum(len(part) * self.lengths[part[0]] for part, _ in padded)
        return (
            padded
            if held <= WORTH_PACKING * real
            else [(part, True) for part in end_to_end_batches(rows, self.lengths, limit)]
        )

    def batch(self, part: tuple[list[int], bool], scale: StepScale) -> TrainingBatch:
        """One micro-batch of `cut` on the device."""
        return self.batches(part, [(self.weights_R, scale)])[0]

    def batches(
        self, part: tuple[list[int], bool], weighings: Sequence[tuple[NDArray[numpy.float64], StepScale]]
    ) -> list[TrainingBatch]:
        """The same for other weights too, whose rows end alike."""
        rows, is_packed = part
        return training_batches(
            self.split,
            rows,
            self.lengths,
            weighings,
            self.device,
            is_packed=is_packed,
            varlen=self.engine.varlen,
        )

    def _idle_batch(self, rows: Sequence[int], scale: StepScale) -> TrainingBatch:
        """A batch without a target: under FSDP a rank without more rows still takes part in the gathering."""
        shortest = min(rows, key=lambda row: self.lengths[row] or 2**31)
        return training_batch(
            self.split,
            [shortest],
            [1] * len(self.lengths),
            self.weights_R * 0,
            scale,
            self.device,
            is_packed=self.engine.packing == "pack",
            varlen=self.engine.varlen,
        )

    def update(self, rate: float) -> bool:
        """From the gradients, of all ranks, to the next parameters; whether they were clipped."""
        self.engine.world.add_gradients(self.parameters)
        is_clipped = clip(self.parameters, self.config.train.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return is_clipped

    def result(
        self, totals: list[float], num_targets: int, rate: float, is_clipped: bool = False
    ) -> StepResult:
        """What the sums of a step say."""
        loss, divergence, num_tokens = totals[:3]
        nll_sums, counts = totals[3 : 3 + len(Role)], totals[3 + len(Role) :]
        nll = {
            f"train_{role.name.lower()}_nll": nll_sums[role] / counts[role] for role in Role if counts[role]
        }
        has_divergence = self.config.objective.kl_weight > 0 and num_targets
        return StepResult(
            loss,
            int(num_tokens),
            num_targets,
            rate,
            nll,
            divergence / num_targets if has_divergence else None,
            is_clipped,
        )

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision of products."""
        if self.config.train.precision == "bfloat16" and self.engine.world.kind != "fsdp":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


# Padded over real tokens from which rows are laid end to end where both are possible ("mixed").
WORTH_PACKING = 1.2


class StepSums:
    """By-products of a step: loss, divergence, tokens, unweighted nll and count by role; added over ranks."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(3 + 2 * len(Role), dtype=torch.float64, device=device)

    def add(self, loss: Tensor, nll_N: Tensor, divergence_N: Tensor, batch: TrainingBatch) -> None:
        """One micro-batch."""
        self.values[0] += loss.detach()
        self.values[1] += divergence_N.sum()
        if len(batch.roles_N):
            self.values[2] += batch.num_tokens
        self.values.index_add_(0, batch.roles_N + 3, nll_N.double())
        ones_N = torch.ones_like(nll_N, dtype=torch.float64)
        self.values.index_add_(0, batch.roles_N + (3 + len(Role)), ones_N)

    def totals(self, world: World) -> list[float]:
        """Of all ranks."""
        return world.add(self.values).tolist()

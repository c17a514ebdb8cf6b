"""Direct preference optimisation of a finished run, by TRL's DPOTrainer, on tokens of ours.

TRL tokenizes with the tokenizer's own chat template and finds the prompt's end by comparing two
tokenizations. Here pairs come in the tokens that supervised training would see. The reference is the parent
itself: its log-probabilities are computed once, before the first step, so no second model is held.

Source   Rafailov et al., arXiv 2305.18290, equation 7; loss_type "sigmoid" of TRL.
Differs  Never clipped (TRL clips at 1): the house rule for a sweep whose weights scale gradients.
Note     TRL's own checkpoints hold pickles. Ours take their place: what its loop restores is overridden, so
         that an interrupted run goes on to the same bits.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.checkpoint import Progress
from train.config import DpoConfig, RecipeConfig, RunConfig
from train.distributed import World
from train.dpo_resume import TrainingState, make_callback, resumable
from train.errors import ConfigError
from train.loop import Hooks, Interrupted, open_events
from train.model import trainable_parameters
from train.preferences import TokenPair, TokenPairs
from train.schedule import learning_rate, num_steps
from train.seeds import seed_of
from train.tokenizer import quiet

_PADDED_TOKENS = 4096  # held at once while log-probabilities are computed
_SEEDS = 2**32  # numpy's seeds end here, and TRL sets them too


def tune(
    model: nn.Module,
    pairs: TokenPairs,
    tokenizer: Any,
    config: RunConfig,
    *,
    fingerprint: str,
    folder: Path,
    device: torch.device,
    hooks: Hooks,
) -> tuple[Progress, dict[str, float]]:
    """Tune `model`, which holds its parent's weights, in place; what was done, and the metrics of the pairs.

    Raises   Interrupted, with its state saved; NonFiniteLossError; ConfigError where TRL is missing.
    Exact    The same configuration gives the same bits on CPU, interrupted or not.
    """
    train, validation = pairs.splits["train"], pairs.splits["validation"]
    before = {"train": answer_log_probs(model, train, device)}
    if validation:
        before["validation"] = answer_log_probs(model, validation, device)
    policy: Any = copy.deepcopy(model)  # TRL patches its forward
    steps = num_steps(_recipe(config.dpo), len(train))
    tokens_per_step = sum(map(_num_tokens, train)) / len(train) * config.dpo.batch_size
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, quiet():
        trainer = _make_trainer(policy, train, before["train"], tokenizer, config, steps, device, scratch)
        state = TrainingState(folder, fingerprint, trainer, trainable_parameters(policy))
        progress = state.restore() or Progress(0, 0.0, None)
        with open_events(folder, progress.step, World()) as events:
            callback = make_callback(state, progress, events, steps, hooks, config, tokens_per_step)
            trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint=resumable(progress, trainer, scratch))
        progress = callback.progress
    if progress.step < steps:
        raise Interrupted(f"stopped after step {progress.step} of {steps}")
    tuned = trainable_parameters(policy)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(tuned[name])
    return progress, _metrics(model, validation, before.get("validation"), config.dpo.beta, device)


@torch.no_grad()
def answer_log_probs(model: nn.Module, pairs: Sequence[TokenPair], device: torch.device) -> Tensor:
    """log p(answer | prompt), summed over the answer's tokens.

    Shapes   result (2, N) float64 on the CPU: chosen, rejected.
    Units    nats.
    """
    model.eval()
    rows = [(pair.prompt_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    sums = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]) - len(rows[index][1]))
    while order:
        longest = len(rows[order[0]][0]) + len(rows[order[0]][1])
        chunk, order = order[: max(1, _PADDED_TOKENS // longest)], order[max(1, _PADDED_TOKENS // longest) :]
        ids_BT = torch.zeros(len(chunk), longest, dtype=torch.int64)
        is_answer_BT = torch.zeros(len(chunk), longest, dtype=torch.bool)
        for place, index in enumerate(chunk):
            prompt, answer = rows[index]
            ids_BT[place, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            is_answer_BT[place, len(prompt) : len(prompt) + len(answer)] = True
        logits_BTV = model(input_ids=ids_BT.to(device)).logits[:, :-1].float()
        nll_BT = functional.cross_entropy(
            logits_BTV.transpose(1, 2), ids_BT[:, 1:].to(device), reduction="none"
        )
        sums[chunk] = -(nll_BT.double() * is_answer_BT[:, 1:].to(device)).sum(dim=1).cpu()
    return sums.view(-1, 2).T


def _metrics(
    model: nn.Module, pairs: Sequence[TokenPair], before_2N: Tensor | None, beta: float, device: torch.device
) -> dict[str, float]:
    """How often the better answer is the likelier one, now and in the parent; implicit rewards against it."""
    if before_2N is None:
        return {}
    after_2N = answer_log_probs(model, pairs, device)
    rewards_2N = beta * (after_2N - before_2N)
    return {
        "validation_preference_accuracy": _share(after_2N),
        "validation_parent_preference_accuracy": _share(before_2N),
        "validation_reward_accuracy": _share(rewards_2N),
        "validation_reward_margin": float((rewards_2N[0] - rewards_2N[1]).mean()),
    }


def _share(values_2N: Tensor) -> float:
    return float((values_2N[0] > values_2N[1]).double().mean())


def _recipe(config: DpoConfig) -> RecipeConfig:
    """The parts that the schedule of supervised training knows, too."""
    return RecipeConfig(
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        epochs=config.epochs,
        warmup_ratio=config.warmup_ratio,
        max_steps=config.max_steps,
        batch_size=config.batch_size,
    )


def _num_tokens(pair: TokenPair) -> int:
    return 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def _make_trainer(
    policy: Any,
    pairs: Sequence[TokenPair],
    before_2N: Tensor,
    tokenizer: Any,
    config: RunConfig,
    steps: int,
    device: torch.device,
    scratch: str,
) -> Any:
    from datasets import Dataset

    try:
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer
    except ImportError as error:
        raise ConfigError(
            "stage=dpo needs a library that is missing: trl",
            "trl 1.10 or later",
            "pip install 'weight-sweep[dpo]'",
        ) from error

    class Trainer(DPOTrainer):
        """With pairs that are tokens already, a reference that is computed already, and our checkpoints."""

        save_own: Callable[[], None]
        restore_generators: Callable[[], None]

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _save_checkpoint(self, *_: Any) -> None:
            self.save_own()

        def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
            """Nothing: parameters and optimiser are as they were before the loop begins."""

        def _load_optimizer_and_scheduler(self, *_: Any) -> None:
            """Only the rate, a function of the step: the optimiser's state was restored with the parameters."""
            step = self.state.global_step
            rate = dpo.learning_rate * schedule.lr_lambdas[0](step)
            position = {"last_epoch": step, "_step_count": step + 1, "_last_lr": [rate]}
            schedule.load_state_dict(schedule.state_dict() | position)
            for group in optimizer.param_groups:
                group["lr"] = rate

        def _load_rng_state(self, *_: Any) -> None:
            self.restore_generators()

    dpo = config.dpo
    micro = math.gcd(dpo.batch_size, min(dpo.micro_batch_pairs, dpo.batch_size))
    dataset = Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt_ids for pair in pairs],
            "chosen_ids": [pair.chosen_ids for pair in pairs],
            "rejected_ids": [pair.rejected_ids for pair in pairs],
            "ref_chosen_logps": before_2N[0].tolist(),
            "ref_rejected_logps": before_2N[1].tolist(),
        }
    )
    seed = seed_of(config, "data_order") % _SEEDS
    settings = DPOConfig(
        output_dir=scratch,
        beta=dpo.beta,
        loss_type=["sigmoid"],
        precompute_ref_log_probs=True,
        max_length=None,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=dpo.batch_size // micro,
        max_steps=steps,
        learning_rate=dpo.learning_rate,
        max_grad_norm=0.0,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=config.train.precision != "float32",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        gradient_checkpointing=config.train.activation_checkpointing,
    )
    optimizer = torch.optim.AdamW(
        [parameter for parameter in policy.parameters() if parameter.requires_grad],
        lr=dpo.learning_rate,
        weight_decay=dpo.weight_decay,
        fused=True,
    )
    recipe = _recipe(dpo)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(recipe, step, steps) / recipe.learning_rate
    )
    trainer = Trainer(
        model=policy,
        args=settings,
        train_dataset=dataset,
        processing_class=copy.deepcopy(tokenizer),
        optimizers=(optimizer, schedule),
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer

"""Base weights at a pinned content, and the parameters a recipe trains."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import train.embedded
from train.config import ModelConfig, RecipeConfig
from train.errors import ModelError
from train.products import use_faster_products
from train.seeds import derive_seed

EMBEDDED_MODEL_FOLDER = Path(train.embedded.__file__).parent / "model"


def load_model(config: ModelConfig, device: torch.device) -> nn.Module:
    """The causal language model of `config` in float32 (the master weights), from safetensors only.

    Raises ModelError in one line for a missing, truncated or foreign checkpoint.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = str(EMBEDDED_MODEL_FOLDER) if config.source == "embedded" else str(config.path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=config.revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            local_files_only=config.source != "hub",
        )
    except (OSError, ValueError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model {config.name} can't be loaded from {source}: {reason}",
            "a transformers folder with config.json and model.safetensors",
            "check model.path",
        ) from error
    except Exception as error:  # safetensors raises its own class, which has no public base
        raise ModelError(
            f"model {config.name}: the weights in {source} are corrupt ({error})",
            "whole safetensors files",
            "download or copy the checkpoint again",
        ) from error
    model.config.use_cache = False
    if device.type == "cpu":
        use_faster_products(model)
    return model.to(device).eval()  # type: ignore[arg-type] - transformers' decorator hides torch's signature


def context_length(model: nn.Module) -> int | None:
    """The longest sequence the model was built for, in tokens; None if it doesn't say."""
    config: Any = model.config
    return getattr(config, "max_position_embeddings", None)


def add_adapters(model: nn.Module, recipe: RecipeConfig, init_seed: int) -> nn.Module:
    """The model with fresh LoRA adapters (peft) as its only trainable parameters."""
    import peft

    targets = recipe.lora_targets
    adapters = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets if targets == "all-linear" else targets.split(","),
    )
    torch.manual_seed(derive_seed("adapters", init_seed))
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 by a name on its way out
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.get_peft_model(model, adapters)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, in a fixed order, tied weights once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(parameters: list[nn.Parameter], recipe: RecipeConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser; weight decay applies to every parameter, as in the WIT code."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )

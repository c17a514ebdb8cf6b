"""A model and rows small enough for a test to compute by hand."""

import dataclasses
from pathlib import Path

import numpy
import torch
from torch import nn

from train.config import RunConfig, defaults_tree, run_config_from_dict
from train.spans import Role
from train.tokens import TokenSplit

VOCABULARY = 61


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A two-layer Llama of 61 tokens, random but the same for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.config.use_cache = False
    return model


def tiny_split(num_rows: int = 24, seed: int = 0, has_bos: bool = True) -> TokenSplit:
    """Rows of [BOS] prompt response EOS with random lengths."""
    generator = numpy.random.default_rng(seed)
    ids, roles, offsets, prompt_lengths = [], [], [0], []
    for _ in range(num_rows):
        num_prompt, num_response = int(generator.integers(2, 12)), int(generator.integers(1, 9))
        start = 1 if has_bos else 0
        row = [1] * start + generator.integers(3, VOCABULARY, num_prompt + num_response).tolist() + [2]
        ids += row
        roles += [Role.NONE] * start + [Role.PROMPT] * num_prompt + [Role.RESPONSE] * (num_response + 1)
        offsets.append(offsets[-1] + len(row))
        prompt_lengths.append(start + num_prompt)
    return TokenSplit(
        ids=numpy.array(ids, dtype=numpy.int32),
        roles=numpy.array(roles, dtype=numpy.uint8),
        offsets=numpy.array(offsets, dtype=numpy.int64),
        role_bytes=numpy.ones((num_rows, len(Role)), dtype=numpy.int64),
        prompt_lengths=numpy.array(prompt_lengths, dtype=numpy.int32),
        row_ids=tuple(f"row-{index}" for index in range(num_rows)),
        checks=(None,) * num_rows,
    )


def run_config(
    prompt_weight: float = 1.0, response_weight: float = 1.0, seed: int = 0, **recipe: object
) -> RunConfig:
    """A complete configuration; keyword arguments are recipe fields."""
    tree = defaults_tree(RunConfig)
    tree["model"] |= {"name": "tiny", "source": "embedded"}
    tree["dataset"] |= {"name": "tiny", "source": "embedded"}
    tree["objective"] |= {"prompt_weight": prompt_weight, "response_weight": response_weight}
    tree["seed"] = seed
    tree["train"] |= {"learning_rate": 3e-3, "batch_size": 8, "epochs": 4.0, "warmup_ratio": 0.1} | recipe
    return run_config_from_dict(tree)


def loss_of_first_step(
    config: RunConfig, split: TokenSplit, folder: Path, model: nn.Module | None = None
) -> float:
    """The loss of one optimiser step over all rows, by the loop that trains: nats per counted token."""
    from train.loop import Hooks, train_model
    from train.tracking import NullTracker

    recipe = dataclasses.replace(config.train, max_steps=1, batch_size=len(split.row_ids), warmup_ratio=0.0)
    progress = train_model(
        model if model is not None else tiny_model(),
        split,
        dataclasses.replace(config, train=recipe),
        fingerprint=f"{config.objective}",
        folder=folder,
        device=torch.device("cpu"),
        hooks=Hooks(lambda: False, lambda step, steps: None, NullTracker()),
    )
    assert progress.final_train_loss is not None
    return progress.final_train_loss

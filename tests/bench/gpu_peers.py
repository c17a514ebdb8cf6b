"""Shapes and rows for bench_gpu.py, and other people's trainers and heads on them."""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy
import torch
from tiny import run_config
from torch import Tensor, nn

from train.model import add_adapters
from train.spans import Role
from train.tokens import TokenSplit

SHAPES = {  # hidden, inner, layers, heads, key-value heads, vocabulary
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "8b": (4096, 14_336, 32, 32, 8, 128_256),
    "tiny": (32, 64, 2, 4, 2, 97),
    "small": (32, 64, 2, 4, 2, 768),  # as many tokens as the embedded tokenizer
}


def model_of(shape: str, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A Llama of that shape with random weights: speed doesn't depend on them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape == "1b",
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype)
    model.config.use_cache = False
    return model


def rows_like_lima(num_rows: int, vocabulary: int, longest: int) -> TokenSplit:
    """Rows of log-normal lengths: many short ones, a few that are cut."""
    generator = numpy.random.default_rng(0)
    lengths = numpy.clip(generator.lognormal(5.9, 0.9, num_rows), 8, longest).astype(int)
    return rows_of_lengths(lengths, vocabulary, generator)


def rows_of_lengths(lengths: Any, vocabulary: int, generator: numpy.random.Generator) -> TokenSplit:
    """Random rows, the first quarter of each a prompt."""
    num_rows, prompts = len(lengths), numpy.maximum(2, lengths // 4)
    roles = [
        [Role.PROMPT] * prompt + [Role.RESPONSE] * (length - prompt)
        for length, prompt in zip(lengths, prompts, strict=True)
    ]
    return TokenSplit(
        ids=generator.integers(3, vocabulary, int(lengths.sum())).astype(numpy.int32),
        roles=numpy.concatenate(roles).astype(numpy.uint8),
        offsets=numpy.concatenate([[0], numpy.cumsum(lengths)]).astype(numpy.int64),
        role_bytes=numpy.ones((num_rows, len(Role)), dtype=numpy.int64),
        prompt_lengths=prompts.astype(numpy.int32),
        row_ids=tuple(f"row-{index}" for index in range(num_rows)),
        checks=(None,) * num_rows,
    )


def liger_head(hidden: Tensor, output: Tensor, targets: Tensor) -> Callable[[], None]:
    """Liger's fused linear cross-entropy, where it is installed."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore

    loss = LigerFusedLinearCrossEntropyLoss()

    def work() -> None:
        hidden.grad = output.grad = None
        loss(output, hidden, targets).backward()

    return work


def trl_head(hidden: Tensor, output: Tensor, targets: Tensor) -> Callable[[], None]:
    """TRL's fused head, where this version has one."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # TRL 1.16's; earlier ones have another

    def work() -> None:
        hidden.grad = output.grad = None
        log_probs = ChunkedLogProbFunction.apply(hidden, output, None, targets, 1.0, 32_768, None, 1.0, ())[0]
        (-log_probs).mean().backward()

    return work


def hf_trainer(shape: str, device: torch.device, *, is_lora: bool = False) -> float:
    """Real tokens a second of transformers' Trainer, padded, 4 rows at a time, 64 a step; adapters are PEFT's."""
    from transformers import Trainer, TrainingArguments

    rows, collate = others_rows(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**others_settings(folder, device), remove_unused_columns=False)
        model = model_of(shape, device)
        if is_lora:
            recipe = run_config(method="lora", lora_rank=16, lora_alpha=32).train
            model = add_adapters(model.to(torch.bfloat16), recipe, 0)
        trainer = Trainer(model, arguments, collate, rows)
        return others_rate(trainer, rows)


def trl_trainer(shape: str, device: torch.device) -> float:
    """Real tokens a second of TRL's SFTTrainer with packing."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows, _ = others_rows(shape, device)
    from train.tokenizer import EMBEDDED_MODEL_FOLDER

    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED_MODEL_FOLDER)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        settings = others_settings(folder, device)
        arguments = SFTConfig(**settings, packing=True, max_length=2048 if device.type == "cuda" else 64)
        data = Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
        trainer = SFTTrainer(
            model_of(shape, device), args=arguments, train_dataset=data, processing_class=tokenizer
        )
        return others_rate(trainer, rows)


def others_rows(shape: str, device: torch.device) -> tuple[list[dict[str, Any]], Callable[..., Any]]:
    """The same rows as lists of tokens, and how to pad some of them."""
    split = rows_like_lima(64, SHAPES[shape][-1], 2048 if device.type == "cuda" else 32)
    bounds = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    rows = [{"input_ids": split.ids[start:end].tolist()} for start, end in bounds]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.int64)
        for index, row in enumerate(batch):
            ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[index, : len(row["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    return rows, collate


def others_settings(folder: str, device: torch.device) -> dict[str, Any]:
    """What both of the others are told: 64 rows a step, 4 at once."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 16,
        "max_steps": 4,
        "bf16": True,
        "use_cpu": device.type == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


def others_rate(trainer: Any, rows: list[dict[str, Any]]) -> float:
    """Real tokens a second over steps 2 to 4; the first one warms up."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    return sum(len(row["input_ids"]) for row in rows) / seconds

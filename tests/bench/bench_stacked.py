"""Cells of one plane in one stack, beside the same cells one after another: ours, Trainer + PEFT, and TRL.

    python tests/bench/bench_stacked.py

One thread, process time of a step and cell, the ways interleaved round by round; the ratio is the median of the
rounds', beside the least and the largest. A 0.1 M-parameter Llama with LoRA adapters, 12 cells. First the gate: in
float64 a cell of the stack must end where it ends alone, to 1e-10 of the way (in float32 the distance is shown).
Writes results/stacked.json and exits with 1 where a promise is broken: 5x Trainer + PEFT at 32 tokens a step, 1.8x at
256. Where a step is bound by arithmetic there is nothing to gain, and the last situation shows it.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TRL_EXPERIMENTAL_SILENCE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy
import torch
from tiny import run_config, tiny_split

from train.config import RunConfig
from train.loop import Hooks, train_model
from train.model import add_adapters, trainable_parameters
from train.stacked.loop import CellRun, train_stacked
from train.tokens import TokenSplit
from train.tracking import NullTracker

CPU = torch.device("cpu")
NUM_CELLS, RANK, VOCABULARY = 12, 8, 256
GATE_CELLS, GATE_STEPS, GATE = 3, 24, 1e-10
SITUATIONS = {  # width, layers, tokens of a row, rows of a step, steps, promised ratio to Trainer + PEFT
    "32 tokens a step": (64, 2, 32, 1, 96, 5.0),
    "256 tokens a step": (64, 2, 64, 4, 96, 1.8),
    "512 tokens a step, 0.9 M parameters": (128, 4, 64, 8, 24, None),
}


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results, kept = {}, True
    for name, (width, layers, length, rows, steps, promised) in SITUATIONS.items():
        split, configs = rows_of(length), cells(rows, steps)
        distances = {
            str(dtype).removeprefix("torch."): largest_distance(
                width, layers, split, cells(rows, GATE_STEPS)[:GATE_CELLS], dtype
            )
            for dtype in (torch.float64, torch.float32)
        }
        ways = {
            "stack": partial(stack_seconds, width, layers, split, configs),
            "alone": partial(alone_seconds, width, layers, split, configs[0]),
            "trainer_peft": partial(trainer_seconds, width, layers, split, configs[0]),
            "trl": partial(trl_seconds, width, layers, split, configs[0]),
        }
        seconds = by_round(ways, arguments.rounds if promised else max(1, arguments.rounds // 2))
        ratios = {way: over(seconds[way], seconds["stack"]) for way in ways if way != "stack"}
        results[name] = {
            "steps": steps,
            "milliseconds_per_step_and_cell": {
                way: [round(1e3 * value, 4) for value in values] for way, values in seconds.items()
            },
            "ratio_over_stack": ratios,
            "promised_ratio_trainer_peft": promised,
            "largest_distance_to_alone": distances,
        }
        kept &= distances["float64"] <= GATE
        kept &= promised is None or ratios["trainer_peft"]["median"] >= promised
        shown = ", ".join(f"{way} {ratio['median']:.2f}x" for way, ratio in ratios.items())
        least = 1e3 * min(seconds["stack"])
        print(f"{name}: {least:.2f} ms in the stack; {shown}; apart {distances['float64']:.0e}", flush=True)
    about = {
        "cells": NUM_CELLS,
        "lora_rank": RANK,
        "gate": {"cells": GATE_CELLS, "steps": GATE_STEPS, "largest_distance_in_float64": GATE},
        "situations": results,
        "machine": {"processor": platform.machine(), "threads": 1, "torch": torch.__version__},
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = Path(__file__).parent / "results" / "stacked.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    return 0 if kept else 1


def by_round(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step and cell by way, one for each round: warm once, then in turn."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, measure in ways.items():
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # the trainers chat
                seconds = measure()
            if number:
                found[way].append(seconds)
    return found


def over(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Of the rounds' ratios."""
    ratios = [them / us for them, us in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}


def cells(rows: int, steps: int) -> list[RunConfig]:
    """Rays from (0, 1) to (1, 1)."""
    return [
        run_config(
            n / (NUM_CELLS - 1),
            1.0,
            batch_size=rows,
            epochs=1000.0,
            max_steps=steps,
            method="lora",
            lora_rank=RANK,
            lora_alpha=2 * RANK,
        )
        for n in range(NUM_CELLS)
    ]


def rows_of(length: int, count: int = 64) -> TokenSplit:
    """Rows of equal length, half prompt, half response."""
    generator = numpy.random.default_rng(0)
    half = length // 2
    roles = numpy.tile(numpy.array([0] + [1] * (half - 1) + [2] * (length - half), numpy.uint8), count)
    return dataclasses.replace(
        tiny_split(count),
        ids=generator.integers(3, VOCABULARY, count * length).astype(numpy.int32),
        roles=roles,
        offsets=numpy.arange(count + 1, dtype=numpy.int64) * length,
        prompt_lengths=numpy.full(count, half, numpy.int32),
    )


def make_model(width: int, layers: int) -> Any:
    """A Llama, random but the same every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    model.config.use_cache = False
    return model


def adapted(width: int, layers: int, config: RunConfig) -> Any:
    return add_adapters(make_model(width, layers), config.train, 0)


def _hooks() -> Hooks:
    return Hooks(lambda: False, lambda step, steps: None, NullTracker())


def train_in_stack(model: Any, split: TokenSplit, configs: list[RunConfig]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            CellRun(config, f"{n:032x}", Path(folder) / str(n), _hooks()) for n, config in enumerate(configs)
        ]
        return train_stacked(model, split, runs, device=CPU, should_stop=lambda: False)


def train_alone(model: Any, split: TokenSplit, config: RunConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train_model(
            model, split, config, fingerprint="0" * 32, folder=Path(folder), device=CPU, hooks=_hooks()
        )


def largest_distance(
    width: int, layers: int, split: TokenSplit, configs: list[RunConfig], dtype: torch.dtype
) -> float:
    """Between a cell of the stack and the run alone, over the way both went."""
    start = trainable_parameters(adapted(width, layers, configs[0]).to(dtype))
    together = train_in_stack(adapted(width, layers, configs[0]).to(dtype), split, configs)
    distances = []
    for config, cell in zip(configs, together, strict=True):
        model = adapted(width, layers, config).to(dtype)
        train_alone(model, split, config)
        end = trainable_parameters(model)
        gap = sum(float((end[name] - cell.parameters[name]).detach().norm() ** 2) for name in start) ** 0.5
        way = sum(float((end[name] - start[name]).detach().norm() ** 2) for name in start) ** 0.5
        distances.append(gap / way)
    return max(distances)


def stack_seconds(width: int, layers: int, split: TokenSplit, configs: list[RunConfig]) -> float:
    model = adapted(width, layers, configs[0])
    started = time.process_time()
    train_in_stack(model, split, configs)
    return (time.process_time() - started) / configs[0].train.max_steps / len(configs)


def alone_seconds(width: int, layers: int, split: TokenSplit, config: RunConfig) -> float:
    model = adapted(width, layers, config)
    started = time.process_time()
    train_alone(model, split, config)
    return (time.process_time() - started) / config.train.max_steps


def _examples(split: TokenSplit) -> list[dict[str, list[int]]]:
    bounds = split.offsets.tolist()
    return [
        {"input_ids": split.ids[first:last].tolist(), "roles": split.roles[first:last].tolist()}
        for first, last in itertools.pairwise(bounds)
    ]


def trainer_seconds(width: int, layers: int, split: TokenSplit, config: RunConfig) -> float:
    """transformers.Trainer with PEFT and a weighted loss, as a user would write it."""
    from transformers import Trainer, TrainingArguments

    weights = torch.tensor([0.0, config.objective.prompt_weight, config.objective.response_weight, 0.0, 0.0])

    class Weighted(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].flatten(0, 1)
            weight = weights[inputs["roles"]][:, 1:].flatten()
            nll = torch.nn.functional.cross_entropy(
                logits, inputs["input_ids"][:, 1:].flatten(), reduction="none"
            )
            return (nll * weight).sum() / (weight != 0).sum()

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "roles")}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, **_arguments(config), remove_unused_columns=False, max_grad_norm=0.0
        )
        trainer = Weighted(
            model=adapted(width, layers, config),
            args=arguments,
            train_dataset=_examples(split),  # type: ignore[arg-type]
            data_collator=collate,
        )
        started = time.process_time()
        trainer.train()
        return (time.process_time() - started) / config.train.max_steps


def trl_seconds(width: int, layers: int, split: TokenSplit, config: RunConfig) -> float:
    """TRL's SFTTrainer on completions only: it knows no weights, so this is the most it could be asked."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": row["input_ids"], "completion_mask": [int(role == 2) for role in row["roles"]]}
        for row in _examples(split)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=adapted(width, layers, config),
            args=SFTConfig(output_dir=folder, **_arguments(config), max_length=None, max_grad_norm=0.0),
            train_dataset=Dataset.from_list(rows),
            processing_class=_tokenizer(PreTrainedTokenizerFast),
        )
        started = time.process_time()
        trainer.train()
        return (time.process_time() - started) / config.train.max_steps


def _arguments(config: RunConfig) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": config.train.batch_size,
        "max_steps": config.train.max_steps,
        "learning_rate": config.train.learning_rate,
        "weight_decay": config.train.weight_decay,
        "lr_scheduler_type": "cosine",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
    }


def _tokenizer(kind: Any) -> Any:
    from tokenizers import Tokenizer, models

    words = {f"w{n}": n for n in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return kind(tokenizer_object=inner, eos_token="w2", pad_token="w1", bos_token="w1", unk_token="w0")


if __name__ == "__main__":
    sys.exit(main())

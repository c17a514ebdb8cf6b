"""Planes on one GPU, for bench_gpu.py: N LoRA cells in one stack beside one packed run alone and HF's Trainer + PEFT.

Steps are timed inside `train_stacked` and `train_model` themselves, by their calls of `on_progress`; windows of the
ways are interleaved, and each ratio is the median of its rounds. Only real tokens count, N times for N cells. The
gate, `equivalence`, comes before them.
"""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from gpu_peers import SHAPES, hf_trainer, model_of, rows_of_lengths
from tiny import run_config
from torch import nn

from train.config import RunConfig
from train.loop import Hooks, train_model
from train.model import add_adapters, trainable_parameters
from train.stacked.evaluating import fill
from train.stacked.loop import CellRun, train_stacked
from train.tokens import TokenSplit
from train.tracking import NullTracker

NUM_CELLS = (1, 4, 13, 21)
CORPORA = ("lima", "alpaca")
TOKENS = {"1k": 1024, "16k": 16_384}  # of a cell's step, at least; on a CPU 64 times fewer
LONGEST = {"1b": 2048, "8b": 2048, "tiny": 24}  # tokens of a row
ROOM = {"1b": 65_536, "8b": 16_384, "tiny": 65_536}  # tokens of all cells at once, activations kept
ROUNDS, WARM_UP, STEPS = 3, 2, 3
EQUAL_CELLS, EQUAL_STEPS = 4, 20
EQUAL_TOKENS = {"1b": 8192, "tiny": 512}  # of a step, in four micro-batches


def plane_1b(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """A 1B shape."""
    return plane("1b" if device.type == "cuda" else "tiny", device, result)


def plane_8b(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """An 8B shape."""
    return plane("8b" if device.type == "cuda" else "tiny", device, result)


def plane(shape: str, device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """Rates by corpus, tokens of a step and number of cells, their shares of the ceiling, and memory of a cell."""
    base = model_of(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    flops = 4 * matrices(shape, base)
    model = adapted(base)
    measured: dict[str, Any] = {}
    for corpus, (size, tokens) in itertools.product(CORPORA, TOKENS.items()):
        split = rows_of_tokens(shape, corpus, tokens if device.type == "cuda" else tokens // 64)
        found = one_size(shape, model, split, device)
        for entry in filled(found):
            entry["share_of_ceiling"] = entry["tokens_per_s"] * flops / result["ceiling_flops_per_s"]
        measured[f"{corpus}_{size}"] = found
    measured |= {f"over_solo_{size}": best_ratio(measured, size) for size in TOKENS}
    if device.type == "cuda":
        measured["gb_per_extra_cell"] = gb_per_cell(measured["lima_16k"]["by_cells"])
    try:
        theirs = hf_trainer(shape, device, is_lora=True)
        best = max(entry["tokens_per_s"] for entry in filled(measured["lima_16k"]))
        measured |= {"hf_peft_tokens_per_s": theirs, "over_hf_peft": best / theirs}
    except Exception as error:
        measured["hf_peft"] = {"not_measured": f"{type(error).__name__}: {str(error)[:300]}"}
    return measured


def equivalence(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """How far bfloat16 cells end from their runs alone, over how far these end from themselves with permuted rows.

    A step is all rows, so that another order of the data permutes them within a step and changes nothing but the
    order of float sums. Distances are of the adapters, as shares of the way trained, root mean squares over cells.
    """
    shape = "1b" if device.type == "cuda" else "tiny"
    model = adapted(model_of(shape, device, torch.bfloat16))
    split = rows_of_few_lengths(shape, EQUAL_TOKENS[shape])
    configs = [
        dataclasses.replace(
            config,
            train=dataclasses.replace(
                config.train, max_steps=EQUAL_STEPS, micro_batch_tokens=EQUAL_TOKENS[shape] // 4
            ),
        )
        for config in cells(shape, EQUAL_CELLS, split)
    ]
    permuted = [
        dataclasses.replace(config, seeds=dataclasses.replace(config.seeds, data_order=1))
        for config in configs
    ]
    start = flat(trainable_parameters(model))
    alone, other = (
        [trained_alone(model, split, config, device) for config in which] for which in (configs, permuted)
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            CellRun(config, f"{n:032x}", Path(folder, str(n)), silent()) for n, config in enumerate(configs)
        ]
        results = train_stacked(model, split, runs, device=device, should_stop=lambda: False)
    stacked = [flat(cell.parameters) for cell in results]

    def apart(ways: Sequence[torch.Tensor]) -> list[float]:
        return [
            float((way - one).norm() / (one - start).norm()) for way, one in zip(ways, alone, strict=True)
        ]

    plane, solo = apart(stacked), apart(other)
    if not min(solo) > 0.0:
        raise RuntimeError("permuted rows changed no bit: nothing to compare with")
    return {
        "plane_from_solo": plane,
        "solo_from_permuted_solo": solo,
        "over_permuted": root_mean_square(plane) / root_mean_square(solo),
        "largest_of_a_cell": max(one / two for one, two in zip(plane, solo, strict=True)),
        "rows_of_a_step": len(split.row_ids),
        "steps": EQUAL_STEPS,
    }


def adapted(base: nn.Module) -> nn.Module:
    """With adapters of rank 16."""
    return add_adapters(base, run_config(method="lora", lora_rank=16, lora_alpha=32).train, 0)


def trained_alone(
    model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device
) -> torch.Tensor:
    """The adapters that a run ends with; the model has its own again afterwards."""
    before = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    with tempfile.TemporaryDirectory() as folder:
        train_model(
            model, split, config, fingerprint="0" * 32, folder=Path(folder), device=device, hooks=silent()
        )
    found = flat(trainable_parameters(model))
    fill(trainable_parameters(model), before)
    return found


def silent() -> Hooks:
    return Hooks(lambda: False, lambda step, steps: None, NullTracker())


def flat(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All values, by name, in float64 on the CPU."""
    return torch.cat([parameters[name].detach().double().cpu().flatten() for name in sorted(parameters)])


def root_mean_square(values: Sequence[float]) -> float:
    return statistics.fmean(value**2 for value in values) ** 0.5


def rows_of_few_lengths(shape: str, tokens: int) -> TokenSplit:
    """So many tokens in rows of four lengths: rows of one length lie in the order of the data."""
    generator = numpy.random.default_rng(0)
    longest = min(LONGEST[shape], tokens // 8)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(longest // 4 * int(generator.integers(1, 5)))
    return rows_of_lengths(numpy.array(lengths), SHAPES[shape][-1], generator)


def filled(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the groups that fitted."""
    return [entry for entry in found["by_cells"].values() if "tokens_per_s" in entry]


def gb_per_cell(by_cells: dict[str, Any]) -> float | None:
    """The slope of the most memory held, over groups with the same number of tokens at once: 4 cells and more."""
    peaks = {int(number): entry["peak_gb"] for number, entry in by_cells.items() if "peak_gb" in entry}
    grouped = [number for number in peaks if number >= 4]
    few, many = min(grouped, default=0), max(grouped, default=0)
    return (peaks[many] - peaks[few]) / (many - few) if many > few else None


def best_ratio(measured: dict[str, Any], size: str) -> float:
    """Of the fastest group, as the chooser would take it, on the corpus where it gains less."""
    return min(
        max(entry["over_solo"]["median"] for entry in filled(measured[f"{corpus}_{size}"]))
        for corpus in CORPORA
    )


def matrices(shape: str, base: nn.Module) -> int:
    """Parameters that every token is multiplied with: all matrices but the embedding, and the head."""
    hidden, vocabulary = SHAPES[shape][0], SHAPES[shape][-1]
    inner = sum(
        p.numel()
        for name, p in base.named_parameters()
        if p.ndim == 2 and not any(word in name for word in ("embed_tokens", "lm_head", "lora_"))
    )
    return inner + hidden * vocabulary


def rows_of_tokens(shape: str, corpus: str, tokens: int) -> TokenSplit:
    """As many rows of lengths like the corpus's as make up so many tokens."""
    middle, spread = {"lima": (5.9, 0.9), "alpaca": (4.6, 0.6)}[corpus]
    generator = numpy.random.default_rng(0)
    lengths = numpy.clip(generator.lognormal(middle, spread, tokens), 8, LONGEST[shape]).astype(int)
    needed = int(numpy.searchsorted(numpy.cumsum(lengths), tokens)) + 1
    return rows_of_lengths(lengths[:needed], SHAPES[shape][-1], generator)


def cells(shape: str, number: int, split: TokenSplit) -> list[RunConfig]:
    """Rays from (0, 1) to (1, 1); a step is all rows, cut so that so many cells have room at once."""
    longest = int(numpy.diff(split.offsets).max())
    return [
        run_config(
            n / max(1, number - 1),
            1.0,
            method="lora",
            lora_rank=16,
            lora_alpha=32,
            precision="bfloat16",
            batch_size=len(split.row_ids),
            micro_batch_tokens=max(longest, ROOM[shape] // number),
            epochs=1000.0,
            max_steps=WARM_UP + STEPS,
            schedule="constant",
        )
        for n in range(number)
    ]


def one_size(shape: str, model: nn.Module, split: TokenSplit, device: torch.device) -> dict[str, Any]:
    """All group sizes and the run alone in turns, on the same rows. A group that doesn't fit says so."""
    alone: list[float] = []
    groups: dict[int, list[float]] = {number: [] for number in NUM_CELLS}
    peaks: dict[int, float] = {}
    failed: dict[int, str] = {}
    for _ in range(ROUNDS):
        alone.append(step_seconds(model, split, cells(shape, 1, split), device, is_stacked=False)[0])
        for number in [number for number in groups if number not in failed]:
            try:
                asked = cells(shape, number, split)
                seconds, peaks[number] = step_seconds(model, split, asked, device, is_stacked=True)
                groups[number].append(seconds / number)
            except torch.OutOfMemoryError as error:
                failed[number] = f"{type(error).__name__}: {str(error)[:200]}"
                torch.cuda.empty_cache()
    tokens = int(split.offsets[-1])
    by_cells: dict[str, Any] = {
        str(number): {
            "tokens_per_s": tokens / statistics.median(seconds),
            "over_solo": spread_of([one / two for one, two in zip(alone, seconds, strict=True)]),
            **({"peak_gb": peaks[number]} if device.type == "cuda" else {}),
        }
        for number, seconds in groups.items()
        if number not in failed
    }
    by_cells |= {str(number): {"not_measured": why} for number, why in failed.items()}
    return {
        "tokens_of_a_step": tokens,
        "rows_of_a_step": len(split.row_ids),
        "solo_tokens_per_s": tokens / statistics.median(alone),
        "by_cells": by_cells,
    }


def spread_of(values: list[float]) -> dict[str, float]:
    """Of some rounds."""
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def step_seconds(
    model: nn.Module,
    split: TokenSplit,
    configs: Sequence[RunConfig],
    device: torch.device,
    *,
    is_stacked: bool,
) -> tuple[float, float]:
    """Seconds of a step after the first ones (median), and the most memory held, in GB."""
    ends: list[float] = []

    def on_progress(step: int, steps: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())

    def hooks(number: int) -> Hooks:
        return Hooks(lambda: False, on_progress if number == 0 else lambda step, steps: None, NullTracker())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        if is_stacked:
            runs = [
                CellRun(config, f"{n:032x}", Path(folder, str(n)), hooks(n))
                for n, config in enumerate(configs)
            ]
            train_stacked(model, split, runs, device=device, should_stop=lambda: False)
        else:
            train_model(
                model,
                split,
                configs[0],
                fingerprint="0" * 32,
                folder=Path(folder),
                device=device,
                hooks=hooks(0),
            )
    seconds = [last - first for first, last in itertools.pairwise(ends)][WARM_UP - 1 :]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return statistics.median(seconds), peak / 1e9

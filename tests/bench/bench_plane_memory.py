"""The most memory of a group of LoRA cells in one process, beside a process for each cell. On a CPU.

    python tests/bench/bench_plane_memory.py [--rounds 2]

Each measurement is a process of its own that loads a model, adds adapters (rank 16, all linear layers) and does a few
steps: one run alone (`train_model`), or 1, 4 and 13 cells in a stack (`train_stacked`). Its peak is the kernel's
(VmHWM). What 13 processes take is given twice: 13 peaks, and 13 times what is their own (anonymous) with the pages of
libraries that they share counted once; the least of the truth. Memory of a further cell is the slope from 4 to 13.
The numbers of a GPU are bench_gpu.py's. Writes results/plane_memory.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent / "unit")]

SHAPES = {  # hidden, inner, layers, vocabulary, tokens of a row, rows of a step
    "0.7 M parameters, 256 tokens a step": (128, 384, 3, 768, 32, 8),
    "20 M parameters, 1,024 tokens a step": (384, 1024, 10, 8192, 128, 8),
}
SIZES = (1, 4, 13)
STEPS = 4


def main() -> int:
    """Each measurement in a process, in turns; write."""
    from costs import machine, write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    results = {}
    for name in SHAPES:
        found: dict[int, list[dict[str, float]]] = {number: [] for number in (0, *SIZES)}
        for _ in range(rounds):
            for number, entries in found.items():
                entries.append(in_own_process(name, number))
        results[name] = compared(found)
        print(name, json.dumps(results[name]), flush=True)
    print(write_result("plane_memory", {"cells": results, "steps": STEPS, "machine": machine()}))
    return 0


def in_own_process(shape: str, number: int) -> dict[str, float]:
    """number: cells of the stack; 0 is the run alone."""
    command = [sys.executable, __file__, "measure", shape, str(number)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    return json.loads(subprocess.check_output(command, env=environment))


def compared(found: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """Megabytes: medians over rounds, and what follows from them."""
    middle = {
        number: {key: statistics.median(entry[key] for entry in entries) for key in entries[0]}
        for number, entries in found.items()
    }
    few, many = SIZES[1], SIZES[-1]
    alone, own_mb = middle[0], middle[0]["peak_mb"] - middle[0]["file_mb"]
    return {
        "adapter_mb_of_a_cell": alone["adapter_mb"],
        "peak_mb_alone": alone["peak_mb"],
        "peak_mb_by_cells": {str(number): middle[number]["peak_mb"] for number in SIZES},
        "mb_per_further_cell": round((middle[many]["peak_mb"] - middle[few]["peak_mb"]) / (many - few), 2),
        f"mb_of_{many}_processes": {
            "their_peaks": round(many * alone["peak_mb"], 1),
            "shared_pages_once": round(many * own_mb + alone["file_mb"], 1),
        },
        f"times_of_{many}_in_a_stack": {
            "their_peaks": round(many * alone["peak_mb"] / middle[many]["peak_mb"], 2),
            "shared_pages_once": round((many * own_mb + alone["file_mb"]) / middle[many]["peak_mb"], 2),
        },
        "rounds": {str(number): entries for number, entries in found.items()},
    }


def measure(shape: str, number: int) -> dict[str, float]:
    """In this process: train, and ask the kernel."""
    import numpy
    import torch
    from gpu_peers import rows_of_lengths
    from tiny import run_config
    from transformers import LlamaConfig, LlamaForCausalLM

    from train.loop import Hooks, train_model
    from train.model import add_adapters, trainable_parameters
    from train.stacked.loop import CellRun, train_stacked
    from train.tracking import NullTracker

    torch.set_num_threads(1)
    hidden, inner, layers, vocabulary, length, rows = SHAPES[shape]
    made = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        use_cache=False,
    )
    split = rows_of_lengths(numpy.full(rows, length), vocabulary, numpy.random.default_rng(0))
    configs = [
        run_config(
            n / max(1, number - 1),
            1.0,
            method="lora",
            lora_rank=16,
            lora_alpha=32,
            batch_size=rows,
            epochs=100.0,
            max_steps=STEPS,
        )
        for n in range(max(1, number))
    ]
    model = add_adapters(LlamaForCausalLM(made), configs[0].train, 0)
    adapter_mb = sum(p.numel() * 4 for p in trainable_parameters(model).values()) / 1e6
    hooks, cpu = Hooks(lambda: False, lambda step, steps: None, NullTracker()), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        if number:
            runs = [
                CellRun(config, f"{n:032x}", Path(folder, str(n)), hooks) for n, config in enumerate(configs)
            ]
            train_stacked(model, split, runs, device=cpu, should_stop=lambda: False)
        else:
            train_model(
                model, split, configs[0], fingerprint="0" * 32, folder=Path(folder), device=cpu, hooks=hooks
            )
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {key: int(status[key].split()[0]) for key in ("VmHWM", "RssFile")}
    return {
        "peak_mb": round(kilobytes["VmHWM"] * 1024 / 1e6, 1),
        "file_mb": round(kilobytes["RssFile"] * 1024 / 1e6, 1),
        "adapter_mb": round(adapter_mb, 2),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        sys.exit(main())

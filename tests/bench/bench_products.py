"""Float32 products by oneDNN beside MKL's: single ones, and steps of the embedded experiment.

    python tests/bench/bench_products.py

One thread, process time, the two ways in turns; a ratio is the median of five rounds, beside the least and largest.
Products are a layer's, forwards and backwards; steps are real ones of `+grid=wit_5x5`, alone and in stacks (that the
numbers are the same: tests/unit/test_products.py). Where `train.products` finds nothing to gain (no AMD processor with
AVX-512) it says so and writes nothing. Else it writes results/products.json, and exits with 1 where a stack isn't
faster, or a run alone is more than 2 % slower.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from costs import machine, write_result
from torch import nn

from sweep.arguments import parse_arguments
from sweep.compose import compose_sweep
from train import products
from train.config import RunConfig
from train.stacked.choosing import _alone, _together
from train.tokens import TokenSplit
from train.workbench import Workbench

CPU = torch.device("cpu")
SHAPES = ((207, 128, 128), (207, 128, 384), (207, 384, 128), (1024, 512, 512))
SIZES, WAYS = (1, 6, 13), ("mkl", "onednn")
ROUNDS, STEPS, ALL_STEPS = 5, 12, 112


Way = Callable[[], float]  # seconds of the processor


def main() -> int:
    """Both tables."""
    torch.set_num_threads(1)
    if not products.has_faster_products():
        print("MKL is as fast here: nothing to measure")
        return 0
    singles = {"x".join(map(str, shape)): compared(f"{shape}", *single(*shape)) for shape in SHAPES}
    configs = compose_sweep(parse_arguments(["+grid=wit_5x5"])).configs
    config = next(each for each in configs if each.stage == "sft")
    bench = Workbench(None)
    model = bench.model(config, "model", CPU)
    split = bench.data(config, model, "model", "data").splits["train"]
    steps = {
        str(size): compared(
            f"a step of {size}", *(partial(window, model, split, config, size, way) for way in WAYS)
        )
        for size in SIZES
    }
    kept = all(steps[str(size)]["times_as_fast"]["median"] > (1 if size > 1 else 1 / 1.02) for size in SIZES)
    about = {"products": singles, "steps": steps, "kept": kept, "machine": machine()}
    print(f"kept: {kept}\nwrote {write_result('products', about)}")
    return 0 if kept else 1


def by(way: str) -> None:
    """MKL or oneDNN from here on."""
    products.has_faster_products = lambda: way == "onednn"


def single(rows: int, width: int, out: int) -> list[Way]:
    """One layer forwards and backwards, 200 times."""
    layer = nn.Linear(width, out, bias=False)
    products.use_faster_products(layer)
    x, above = torch.randn(rows, width, requires_grad=True), torch.randn(rows, out)

    def timed(way: str) -> float:
        by(way)
        started = time.process_time()
        for _ in range(200):
            layer(x).backward(above)
            x.grad = layer.weight.grad = None
        return (time.process_time() - started) / 200

    return [partial(timed, way) for way in WAYS]


def window(model: nn.Module, split: TokenSplit, config: RunConfig, size: int, way: str) -> float:
    """Seconds of a step and run, after three that aren't timed."""
    by(way)
    with (_alone if size == 1 else _together)(model, split, config, CPU, size) as step:
        model.train()
        for number in range(3):
            step(number, ALL_STEPS)
        started = time.process_time()
        for number in range(3, 3 + STEPS):
            step(number, ALL_STEPS)
        return (time.process_time() - started) / STEPS / size


def compared(name: str, mkl: Way, onednn: Way) -> dict[str, Any]:
    """Milliseconds of both, and how many times as fast oneDNN is; the first round isn't counted."""
    rounds = [(mkl(), onednn()) if number % 2 else (onednn(), mkl())[::-1] for number in range(ROUNDS + 1)][
        1:
    ]
    ratios = [one / other for one, other in rounds]
    found = {
        "mkl_ms": round(1e3 * statistics.median(one for one, _ in rounds), 3),
        "onednn_ms": round(1e3 * statistics.median(other for _, other in rounds), 3),
        "times_as_fast": {
            "median": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
            "largest": round(max(ratios), 2),
        },
    }
    print(f"{name:>22}  {found}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())

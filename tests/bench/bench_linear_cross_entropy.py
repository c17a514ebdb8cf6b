"""The output layer's loss: what not holding all logits gains, in time and in memory.

    python tests/bench/bench_linear_cross_entropy.py

Process time on one thread, variants interleaved round by round, the fastest of each; memory is the rise of
the process's own peak, each variant in a fresh process. Writes results/linear_cross_entropy.json and exits
with 1 where a promise is broken: 1.1x with a trainable head, 1.25x frozen, 2x with half the rows at zero
weight, a third of the memory.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.nn import functional

from train.linear_cross_entropy import CPU_CHUNK, Head, weighted_linear_nll

NUM_TARGETS, WIDTH, VOCABULARY = 1024, 256, 32000
SITUATIONS = {  # is the head trained, share of targets of non-zero weight, promised ratio
    "trainable head": (True, 1.0, 1.1),
    "frozen head": (False, 1.0, 1.25),
    "half at zero weight": (True, 0.5, 2.0),
}
MOST_MEMORY = 1 / 3


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", choices=["naive", "ours"])  # the fresh process of a memory measurement
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(rise_of_peak_mib(arguments.memory_of))
        return 0
    ratios, seconds = measured_ratios(arguments.rounds)
    memory = {
        variant: float(
            subprocess.run(
                [sys.executable, __file__, "--memory-of", variant], capture_output=True, text=True, check=True
            ).stdout
        )
        for variant in ("naive", "ours")
    }
    share = memory["ours"] / memory["naive"]
    result = {
        "ratio_naive_over_ours": ratios,
        "seconds": seconds,
        "peak_extra_mib": memory,
        "memory_share": share,
        "shape": {"targets": NUM_TARGETS, "width": WIDTH, "vocabulary": VOCABULARY, "chunk_rows": CPU_CHUNK},
        "rounds": arguments.rounds,
        "correctness": differences(),
        "machine": machine(),
    }
    place = Path(__file__).parent / "results" / "linear_cross_entropy.json"
    place.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    is_kept = (
        all(ratios[name] >= promised for name, (_, _, promised) in SITUATIONS.items())
        and share <= MOST_MEMORY
    )
    return 0 if is_kept else 1


def inputs(is_trained: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head weight, targets, coefficients; the same every time."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(NUM_TARGETS, WIDTH, generator=generator).requires_grad_()
    weight_VH = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.05).requires_grad_(is_trained)
    targets_N = torch.randint(VOCABULARY, (NUM_TARGETS,), generator=generator)
    return hidden_NH, weight_VH, targets_N, torch.rand(NUM_TARGETS, generator=generator) / NUM_TARGETS


def once(variant: str, tensors: tuple[Tensor, Tensor, Tensor, Tensor], share: float) -> Tensor:
    """Loss and gradients; the naive variant multiplies by weights of zero, ours leaves such rows out."""
    hidden_NH, weight_VH, targets_N, coefficients_N = tensors
    num = int(NUM_TARGETS * share)
    if variant == "ours":
        loss = weighted_linear_nll(hidden_NH[:num], Head(weight_VH), targets_N[:num], coefficients_N[:num])[0]
    else:
        masked_N = torch.where(torch.arange(NUM_TARGETS) < num, coefficients_N, 0.0)
        nll_N = functional.cross_entropy(functional.linear(hidden_NH, weight_VH), targets_N, reduction="none")
        loss = (nll_N * masked_N).sum()
    loss.backward()
    return loss.detach()


def measured_ratios(rounds: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Fastest naive over fastest ours, and the seconds behind it."""
    seconds: dict[str, dict[str, float]] = {}
    for name, (is_trained, share, _) in SITUATIONS.items():
        fastest = {"naive": float("inf"), "ours": float("inf")}
        for _ in range(rounds + 1):  # the first round warms up
            for variant in fastest:
                tensors = inputs(is_trained)
                started = time.process_time()
                once(variant, tensors, share)
                fastest[variant] = min(fastest[variant], time.process_time() - started)
        seconds[name] = fastest
    return {name: value["naive"] / value["ours"] for name, value in seconds.items()}, seconds


def rise_of_peak_mib(variant: str) -> float:
    """How far one call lifts the process's peak of resident memory (VmHWM) over what the inputs take."""
    tensors = inputs(is_trained=True)
    small = tuple(tensor.detach()[:64].clone() for tensor in tensors)
    hidden_NH, weight_VH = small[0].requires_grad_(), small[1].requires_grad_()
    functional.cross_entropy(
        hidden_NH @ weight_VH.t(), small[2] % 64
    ).backward()  # the libraries' own buffers
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = peak_mib()
    once(variant, tensors, 1.0)
    return peak_mib() - before


def peak_mib() -> float:
    """VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def differences() -> dict[str, float]:
    """Relative differences of loss and gradients, ours against naive."""
    results = {}
    for variant in ("naive", "ours"):
        tensors = inputs(is_trained=True)
        results[variant] = (once(variant, tensors, 1.0), tensors[0].grad, tensors[1].grad)
    names = ("loss", "hidden_gradient", "weight_gradient")
    return {
        name: float((ours - naive).norm() / naive.norm())
        for name, naive, ours in zip(names, results["naive"], results["ours"], strict=True)
    }


def machine() -> dict[str, object]:
    """What the numbers belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads_used": 1,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": "none in this measurement",
    }


if __name__ == "__main__":
    sys.exit(main())

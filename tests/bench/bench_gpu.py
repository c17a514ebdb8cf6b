"""What one GPU does with the head, whole steps, planes and other people's trainers, as shares of its own ceiling.

    python tests/bench/bench_gpu.py                    on a GPU: real shapes; a quarter of an hour or so
    python tests/bench/bench_gpu.py --parts equivalence plane_1b plane_8b whole_plane     planes alone
    python tests/bench/bench_gpu.py --device cpu       tiny shapes: whether every part runs, no number of worth

Every ratio is of one process, parts interleaved where they compete; only real tokens count. The ceiling is the
best bfloat16 matrix product measured at the start. Writes results/gpu_<name of the GPU>.json, which says what
couldn't be measured and why, and exits with 1 where a promise of PROMISES is broken; on a CPU, that of `equivalence`.
"""

import argparse
import gc
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for _place in (HERE.parents[1], HERE.parent / "unit", HERE):
    sys.path.insert(0, str(_place))

import torch  # noqa: E402
from gpu_peers import SHAPES, hf_trainer, liger_head, model_of, rows_like_lima, trl_head, trl_trainer  # noqa: E402
from gpu_planes import equivalence, plane_1b, plane_8b  # noqa: E402
from gpu_whole_plane import whole_plane  # noqa: E402
from tiny import run_config  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from train.distributed import World  # noqa: E402
from train.engine import prepared  # noqa: E402
from train.linear_cross_entropy import EAGER, Head, weighted_linear_nll  # noqa: E402
from train.linear_cross_entropy_triton import fastest_kernel  # noqa: E402
from train.model import add_adapters  # noqa: E402

WHERE_INSTALLED = ("head.over_liger", "head.over_trl")
PROMISES = {
    **dict.fromkeys(WHERE_INSTALLED, 1.0),
    "head.share_of_ceiling": 0.66,
    "full_1b.share_of_ceiling": 0.50,
    "lora_8b.share_of_ceiling": 0.55,
    "full_1b.over_hf_trainer": 4.0,
    "full_1b.over_trl": 1.15,
    "plane_1b.over_solo_16k": 1.0,
    "plane_1b.over_solo_1k": 3.0,
    "plane_1b.over_hf_peft": 5.0,
    "plane_8b.over_solo_16k": 1.0,
}
LIMITS = {"plane_1b.gb_per_extra_cell": 0.2, "equivalence.over_permuted": 2.0}  # at most


def main() -> int:
    """Measure each part; a part that fails says why and costs no other its number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="*", default=list(PARTS))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("skipped: PyTorch sees no GPU here")
        return 0
    device = torch.device(arguments.device)
    result: dict[str, Any] = {"machine": machine(device), "ceiling_flops_per_s": ceiling(device)}
    for name in arguments.parts:
        started = time.monotonic()
        try:
            result[name] = PARTS[name](device, result)
        except Exception as error:
            result[name] = {"not_measured": f"{type(error).__name__}: {str(error)[:300]}"}
        result[name]["seconds_of_this_part"] = time.monotonic() - started
        release()
        print(name, json.dumps(result[name]), flush=True)
    gates = {name: part for name, part in result.items() if name == "equivalence"}
    broken = broken_promises(
        gates if device.type == "cpu" else result
    )  # of a CPU's numbers only equality counts
    result["broken_promises"] = broken
    place = HERE / "results" if device.type == "cuda" else Path(tempfile.mkdtemp())
    path = place / f"gpu_{re.sub(r'[^A-Za-z0-9]+', '_', result['machine']['device'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{path}: {', '.join(broken) or 'no promise broken'}")
    return 1 if broken else 0


def broken_promises(result: dict[str, Any]) -> list[str]:
    """Promises that weren't kept; one that couldn't be measured is named, too."""
    found = []
    for name, promised in (PROMISES | LIMITS).items():
        part, key = name.split(".")
        if part not in result:  # not asked for
            continue
        value = result[part].get(key)
        if value is None and name in WHERE_INSTALLED:
            continue
        if value is None or (value > promised if name in LIMITS else value < promised):
            found.append(f"{name} is {value}, not {promised}")
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers belong to."""
    import transformers

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def ceiling(device: torch.device) -> float:
    """The best rate of a bfloat16 matrix product, in operations a second."""
    sizes = (8192, 16_384) if device.type == "cuda" else (256,)
    rates = []
    for size in sizes:
        left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        right = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        rates.append(2 * size**3 / fastest(lambda a=left, b=right: a @ b, device, 10))
    return max(rates)


def fastest(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Seconds of the fastest of some rounds, after two to warm up."""
    return min(timed(work, device, rounds))


def timed(work: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Seconds of each round, after two to warm up."""
    seconds = []
    for index in range(rounds + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        if index >= 2:
            seconds.append(time.perf_counter() - started)
    return seconds


def synchronize(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give the device's memory back between parts."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def head(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradients of the output layer alone: ours, Liger's, TRL's; equality first."""
    is_gpu = device.type == "cuda"
    num, width, size = (16_384, 4096, 131_072) if is_gpu else (64, 16, 97)
    kernel, why = (
        fastest_kernel(Head(weight(size, width, device)), device, "auto") if is_gpu else (EAGER, "cpu")
    )
    measured: dict[str, Any] = {"kernel": kernel.name, "why": why, "difference": difference(device, kernel)}
    hidden = torch.randn(num, width, device=device, dtype=torch.bfloat16).requires_grad_()
    output = weight(size, width, device).requires_grad_()
    targets = torch.randint(size, (num,), device=device)
    coefficients = torch.full((num,), 1.0 / num, device=device)

    def ours(which: Any) -> Callable[[], None]:
        def work() -> None:
            hidden.grad = output.grad = None
            weighted_linear_nll(hidden, Head(output), targets, coefficients, kernel=which)[0].backward()

        return work

    variants = {"ours": ours(kernel), "eager": ours(EAGER)}
    for name, make in (("liger", liger_head), ("trl", trl_head)):
        try:
            variants[name] = make(hidden, output, targets)
        except (ImportError, AttributeError) as error:
            measured[name] = {"not_measured": str(error)}
    seconds = {}
    for name, work in variants.items():
        try:
            seconds[name] = fastest(work, device, 5)
        except Exception as error:
            measured[name] = {"not_measured": f"{type(error).__name__}: {str(error)[:200]}"}
    floor_s = 6 * num * width * size / result["ceiling_flops_per_s"]
    measured |= {"seconds": seconds, "share_of_ceiling": floor_s / seconds["ours"]}
    return measured | {f"over_{name}": value / seconds["ours"] for name, value in seconds.items()}


def weight(size: int, width: int, device: torch.device) -> Tensor:
    """An output layer's weight."""
    return torch.randn(size, width, device=device, dtype=torch.bfloat16) * 0.02


def difference(device: torch.device, kernel: Any) -> dict[str, float]:
    """Ours against full logits in float32: relative, of loss and gradients."""
    generator = torch.Generator(device).manual_seed(0)
    found = []
    for is_ours in (False, True):
        hidden = torch.randn(96, 64, generator=generator.manual_seed(1), device=device).requires_grad_()
        output = torch.randn(1031, 64, generator=generator, device=device).requires_grad_()
        targets = torch.randint(1031, (96,), generator=generator, device=device)
        coefficients = torch.rand(96, generator=generator, device=device) / 96
        if is_ours:
            loss = weighted_linear_nll(hidden, Head(output), targets, coefficients, kernel=kernel)[0]
        else:
            nll = functional.cross_entropy(hidden @ output.t(), targets, reduction="none")
            loss = (nll * coefficients).sum()
        loss.backward()
        found.append((loss.detach(), hidden.grad, output.grad))
    names = ("loss", "hidden_gradient", "weight_gradient")
    return {
        name: float((ours - naive).norm() / naive.norm())
        for name, naive, ours in zip(names, *found, strict=True)
    }


def our_step(
    shape: str, device: torch.device, method: str, tokens: int, world: World = World(), kind: str = "none"
) -> tuple[float, float]:
    """Tokens a second of our own steps over 64 rows, and operations per token that they need."""
    is_gpu = device.type == "cuda"
    split = rows_like_lima(64, SHAPES[shape][-1], 2048 if is_gpu else 32)
    config = run_config(
        0.2,
        1.0,
        method=method,
        precision="bfloat16",
        batch_size=64,
        micro_batch_tokens=tokens,
        distributed=kind,
        activation_checkpointing=method == "lora" and is_gpu,
        schedule="constant",
    )
    model = model_of(shape, device, torch.bfloat16 if method == "lora" else torch.float32)
    matrices = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name
    )
    if shape == "1b":  # the head is tied to the embedding, and is a product all the same
        matrices += SHAPES[shape][0] * SHAPES[shape][-1]
    if method == "lora":
        model = add_adapters(model, config.train, 0)
    with prepared(model, split, config, device, world) as training:
        training.module.train()
        seconds = timed(lambda: training.stepper.step(0, 100), device, 3)
    num_tokens = int(split.offsets[-1])
    return num_tokens / statistics.median(seconds), (6 if method == "full" else 4) * matrices


def full_1b(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """A full fine-tuning step of a 1B shape, beside HF's trainer with padding and TRL's with packing."""
    shape = "1b" if device.type == "cuda" else "tiny"
    rate, flops = our_step(shape, device, "full", 16_384)
    measured: dict[str, Any] = {
        "tokens_per_s": rate,
        "share_of_ceiling": rate * flops / result["ceiling_flops_per_s"],
    }
    for name, other in (("hf_trainer", hf_trainer), ("trl", trl_trainer)):
        release()
        try:
            theirs = other(shape, device)
            measured |= {f"{name}_tokens_per_s": theirs, f"over_{name}": rate / theirs}
        except Exception as error:
            measured[name] = {"not_measured": f"{type(error).__name__}: {str(error)[:300]}"}
    return measured


def lora_8b(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """A LoRA step of an 8B shape."""
    rate, flops = our_step("8b" if device.type == "cuda" else "tiny", device, "lora", 16_384)
    return {"tokens_per_s": rate, "share_of_ceiling": rate * flops / result["ceiling_flops_per_s"]}


def one_rank(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """NCCL (or gloo) with one rank: FSDP in bfloat16 takes the same step as no FSDP."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend)
    try:
        rates = {
            kind: our_step("tiny", device, "full", 256, World(0, 1, kind), kind)[0]
            for kind in ("none", "fsdp")
        }
    finally:
        torch.distributed.destroy_process_group()
    return {"backend": backend, "tokens_per_s": rates}


def varlen(device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """Whether packed rows take the varlen kernel here, and lose nothing by lying end to end."""
    split = rows_like_lima(8, SHAPES["tiny"][-1], 32)
    losses, how = {}, {}
    for packing in ("on", "off"):
        config = run_config(0.2, 1.0, packing=packing, precision="bfloat16", batch_size=8)
        with prepared(model_of("tiny", device), split, config, device, World()) as training:
            losses[packing] = training.stepper.step(0, 10).loss
            how[packing] = training.how["attention"]
    return {"attention": how, "losses": losses, "difference": abs(losses["on"] / losses["off"] - 1)}


PARTS: dict[str, Callable[[torch.device, dict[str, Any]], dict[str, Any]]] = {
    "head": head,
    "varlen": varlen,
    "one_rank": one_rank,
    "full_1b": full_1b,
    "lora_8b": lora_8b,
    "equivalence": equivalence,
    "plane_1b": plane_1b,
    "plane_8b": plane_8b,
    "whole_plane": whole_plane,
}

if __name__ == "__main__":
    sys.exit(main())

# pyright: reportMissingImports=false, reportOptionalMemberAccess=false, reportInvalidTypeForm=false
"""The softmax gradient of `train.linear_cross_entropy` as one Triton kernel, and the choice between the two.

Eager PyTorch passes over a chunk's logits about five times in float32; this kernel reads them twice and
writes once, in the products' own 16 bits. Which is faster on the device at hand is measured when a run
starts, with the head's own shape, after both gave the same numbers; the record says who won and by how much.

Importable without Triton; then `fastest_kernel` answers eager.
"""

from typing import Any

import torch
from torch import Tensor

from train.linear_cross_entropy import EAGER, Head, Kernel, weighted_linear_nll

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

_BLOCK = 4096  # columns held by one program at once
_PROBE_ROWS, _REPEATS = 1024, 3

if triton is not None and tl is not None:

    @triton.jit
    def _capped(z, softcap, HAS_CAP: tl.constexpr):
        # tanh(x) = 1 - 2 / (e^2x + 1): right at both infinities, and no library call
        return softcap * (1.0 - 2.0 / (tl.exp(2.0 * z / softcap) + 1.0)) if HAS_CAP else z

    @triton.jit
    def _softmax_gradient(
        logits, stride, targets, nll, size, softcap, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr
    ):
        """One program per row: online maximum and sum, then p - onehot in place of the logits."""
        row = tl.program_id(0).to(tl.int64)
        start = logits + row * stride
        target = tl.load(targets + row)
        target_logit = _capped(tl.load(start + target).to(tl.float32), softcap, HAS_CAP)
        highest = float("-inf")
        total = 0.0
        for offset in range(0, size, BLOCK):
            columns = offset + tl.arange(0, BLOCK)
            is_inside = columns < size
            z = _capped(tl.load(start + columns, mask=is_inside, other=0.0).to(tl.float32), softcap, HAS_CAP)
            z = tl.where(is_inside, z, float("-inf"))
            higher = tl.maximum(highest, tl.max(z, axis=0))
            total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), axis=0)
            highest = higher
        tl.store(nll + row, highest + tl.log(total) - target_logit)
        for offset in range(0, size, BLOCK):
            columns = offset + tl.arange(0, BLOCK)
            is_inside = columns < size
            z = _capped(tl.load(start + columns, mask=is_inside, other=0.0).to(tl.float32), softcap, HAS_CAP)
            gradient = tl.exp(z - highest) / total - tl.where(columns == target, 1.0, 0.0)
            if HAS_CAP:
                gradient = gradient * (1.0 - (z / softcap) * (z / softcap))
            tl.store(start + columns, gradient.to(logits.dtype.element_ty), mask=is_inside)


def softmax_gradient_triton(logits_CV: Tensor, targets_C: Tensor, softcap: float | None) -> Tensor:
    """As `softmax_gradient_eager`, from logits of any floating type, in place and in that type."""
    nll_C = torch.empty(len(logits_CV), dtype=torch.float32, device=logits_CV.device)
    _softmax_gradient[(len(logits_CV),)](  # type: ignore[name-defined]
        logits_CV,
        logits_CV.stride(0),
        targets_C,
        nll_C,
        logits_CV.shape[1],
        softcap or 1.0,
        HAS_CAP=softcap is not None,
        BLOCK=_BLOCK,
        num_warps=16,
    )
    return nll_C


TRITON = Kernel("triton", softmax_gradient_triton, takes_half=True)


def fastest_kernel(head: Head | None, device: torch.device, asked: str) -> tuple[Kernel, str]:
    """The kernel for this head on this CUDA device, and why: measured, or the only one that works.

    Note     Never raises for want of Triton or a compiler: a run is worth more than its speed.
    """
    if triton is None or head is None:
        return EAGER, "no triton here"
    try:
        seconds = {kernel.name: _seconds(head, device, kernel) for kernel in (EAGER, TRITON)}
        difference = _difference(head, device)
    except Exception as error:  # Triton fails in as many ways as there are drivers
        return EAGER, f"triton fails here ({type(error).__name__})"
    if difference > 2e-2:
        return EAGER, f"triton's gradient is {difference:.1e} off here"
    times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    is_triton = asked == "triton" or seconds["triton"] < seconds["eager"]
    return (TRITON if is_triton else EAGER), f"{times} for {_PROBE_ROWS} rows"


def _inputs(head: Head, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    size, width = head.weight_VH.shape
    hidden_NH = torch.randn(_PROBE_ROWS, width, device=device, generator=generator)
    targets_N = torch.randint(size, (_PROBE_ROWS,), device=device, generator=generator)
    return hidden_NH.bfloat16().requires_grad_(), targets_N, torch.full((_PROBE_ROWS,), 1e-3, device=device)


def _once(head: Head, inputs: tuple[Tensor, Tensor, Tensor], kernel: Kernel) -> Any:
    with torch.enable_grad():
        frozen = Head(head.weight_VH.detach(), head.bias_V, head.scale, head.softcap)
        loss = weighted_linear_nll(inputs[0], frozen, inputs[1], inputs[2], kernel=kernel)[0]
        return torch.autograd.grad(loss, inputs[0])[0]


def _seconds(head: Head, device: torch.device, kernel: Kernel) -> float:
    """The fastest of a few calls, after one that compiles."""
    inputs = _inputs(head, device)
    _once(head, inputs, kernel)
    fastest = float("inf")
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _once(head, inputs, kernel)
        end.record()
        torch.cuda.synchronize(device)
        fastest = min(fastest, begin.elapsed_time(end) / 1e3)
    return fastest


def _difference(head: Head, device: torch.device) -> float:
    inputs = _inputs(head, device)
    eager, ours = (_once(head, inputs, kernel).float() for kernel in (EAGER, TRITON))
    return float((ours - eager).norm() / eager.norm())

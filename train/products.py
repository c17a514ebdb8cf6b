"""Float32 matrix products by oneDNN where MKL leaves half of a processor unused.

PyTorch carries both libraries and gives float32 products to MKL, which on AMD's processors with AVX-512 does half of
what oneDNN does (tests/bench/bench_products.py). PyTorch has no switch for it, so linear layers call oneDNN there, by
the operator that torch.compile calls. What is small stays with MKL, and so does the loss.

oneDNN makes a kernel for every new shape, which takes longer than a small product. Rows are padded with zeros to full
blocks, so that there are few shapes. Which library it is depends on processor and shapes alone, never on a timing: a
run has the same bits every time, and a cell of a stack those of a run alone.

Letters: N cells, M rows, F and G widths in and out.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEWEST_ROWS = 48  # below, and below so many multiplications, a call of oneDNN costs more than it saves
_FEWEST_MULTIPLICATIONS = 2**22
_BLOCKS = ((512, 32), (4096, 128))  # up to so many rows, padded to a multiple of so many


@functools.cache
def has_faster_products() -> bool:
    """Whether float32 products of this machine's processor are oneDNN's."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in about[:1000] and _multiplies()


def are_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether x (..., M, F) times weight (..., G, F) of one cell is oneDNN's."""
    num_rows, width = x.shape[-2:]
    return (
        num_rows >= _FEWEST_ROWS
        and num_rows * width * weight.shape[-2] >= _FEWEST_MULTIPLICATIONS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and has_faster_products()
    )


def products(x_NMF: Tensor, weight_NGF: Tensor) -> Tensor:
    """x_n w_n^T for every cell n, (N, M, G); in autocast's type where it is on. No second derivatives."""
    kind = x_NMF.device.type
    if torch.is_autocast_enabled(kind) and x_NMF.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x_NMF, weight_NGF = x_NMF.to(dtype), weight_NGF.to(dtype)
    return (_Faster if are_faster(x_NMF, weight_NGF) else _Batched).apply(x_NMF, weight_NGF)


class Linear(nn.Linear):
    """nn.Linear whose product is oneDNN's where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        flat_MF = input.reshape(-1, input.shape[-1])
        if not are_faster(flat_MF, self.weight) or type(self.weight.data) is not Tensor:
            return super().forward(input)
        y_MG = _Faster.apply(flat_MF[None], self.weight[None])[0]
        if self.bias is not None:
            y_MG = y_MG + self.bias
        return y_MG.reshape(*input.shape[:-1], len(self.weight))


def use_faster_products(model: nn.Module) -> None:
    """Make the model's plain linear layers ours, for good; parameters and their names stay."""
    if has_faster_products():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


class _Batched(torch.autograd.Function):
    """By bmm. autograd's own gradient lies transposed, and is copied into the weights' layout; this is made in it."""

    @staticmethod
    def forward(ctx: Any, x_NMF: Tensor, weight_NGF: Tensor) -> Tensor:
        ctx.save_for_backward(x_NMF, weight_NGF)
        return torch.bmm(x_NMF, weight_NGF.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient_NMG: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_NMF, weight_NGF = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        return (
            torch.bmm(gradient_NMG, weight_NGF) if to_x else None,
            torch.bmm(gradient_NMG.transpose(1, 2), x_NMF) if to_weight else None,
        )


class _Faster(torch.autograd.Function):
    """By oneDNN, one cell after another."""

    @staticmethod
    def forward(ctx: Any, x_NMF: Tensor, weight_NGF: Tensor) -> Tensor:
        padded = [_padded(x_MF) for x_MF in x_NMF.unbind(0)]
        ctx.save_for_backward(weight_NGF, *padded)
        return _stacked(zip(padded, weight_NGF.unbind(0), strict=True), x_NMF.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient_NMG: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight_NGF, *padded = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        gradients = [_padded(gradient_MG) for gradient_MG in gradient_NMG.unbind(0)]
        num_rows, num_weights = gradient_NMG.shape[1], weight_NGF.shape[1]
        of_x = ((g_MG, w_GF.t()) for g_MG, w_GF in zip(gradients, weight_NGF.unbind(0), strict=True))
        of_weight = ((g_MG.t(), x_MF.t()) for g_MG, x_MF in zip(gradients, padded, strict=True))
        return (
            _stacked(of_x, num_rows) if to_x else None,
            _stacked(of_weight, num_weights) if to_weight else None,
        )


def _stacked(pairs: Iterable[tuple[Tensor, Tensor]], num_rows: int) -> Tensor:
    """left right^T of each pair, without the rows that pad."""
    found = [_product(left, right)[:num_rows] for left, right in pairs]
    return found[0][None] if len(found) == 1 else torch.stack(found)


def _product(left_MF: Tensor, right_GF: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left_MF, right_GF, None, "none", [], "")


def _padded(x_MF: Tensor) -> Tensor:
    block = next((block for most, block in _BLOCKS if len(x_MF) <= most), 1)
    short = -len(x_MF) % block
    return functional.pad(x_MF, (0, 0, 0, short)) if short else x_MF


def _multiplies() -> bool:
    """Whether the operator, which is not public, is there and multiplies."""
    left, right = (
        torch.linspace(-1, 1, 64 * 48).reshape(64, 48),
        torch.linspace(2, -1, 32 * 48).reshape(32, 48),
    )
    try:
        found = _product(left, right)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return bool(torch.allclose(found, left @ right.t(), atol=1e-4, rtol=1e-4))

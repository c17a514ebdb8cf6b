"""NEFTune: uniform noise on a training row's embeddings, the same noise wherever the row is computed.

The noise of a row is a function of the noise seed, the step and the row: not of the micro-batch, the
packing, the rank or how much of the row is computed, so a resumed or differently cut run sees the same. On
CUDA it is the device's own generator, so CPU and CUDA differ."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train.batches import TrainingBatch
from train.seeds import derive_seed


def row_noise(alpha: float, length: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Uniform in +-alpha / sqrt(L d), L the row's tokens.

    Shapes   result (length, width), float32.
    Source   NEFTune, arXiv 2310.05914, algorithm 1.
    """
    generator = torch.Generator(device).manual_seed(seed)
    half_width = alpha / math.sqrt(length * width)
    return (torch.rand(length, width, generator=generator, device=device) * 2 - 1) * half_width


@contextmanager
def noisy_embeddings(
    embedding: nn.Module | None, batch: TrainingBatch, alpha: float, seed: int, step: int
) -> Iterator[None]:
    """Inside, the embedding's output carries the batch's noise; padding stays clean."""
    if not alpha or embedding is None:
        yield
        return

    def add_noise(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        noise = torch.zeros_like(output)
        for row, whole_length, index, where in batch.places():
            whole = row_noise(
                alpha, whole_length, output.shape[-1], derive_seed("noise", seed, step, row), output.device
            )
            noise[index, where] = whole[: where.stop - where.start].to(output.dtype)
        return output + noise

    handle = embedding.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()

"""Layers that hold the parameters of N cells and treat N blocks of rows with one product each.

Rows come cell by cell: x (N * B, T, F) is N blocks of B rows. A layer of N cells sees (N, B * T, F) and multiplies
block n by its own weight in one batched product. What has no parameters (attention, activations, rotary tables,
residual sums) works on N * B rows as on any batch, so the model's own code runs unmodified.

Letters: N cells, B rows of each, T positions, F and G widths in and out, R rank, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.products import are_faster, products


class StackedLinear(nn.Module):
    """N linear layers; weight (N, G, F), bias (N, G) or None."""

    def __init__(self, weight_NGF: nn.Parameter, bias_NG: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight_NGF, bias_NG

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.reshape(len(self.weight), -1, x.shape[-1])
        if self.bias is None:
            y = products(blocks, self.weight)
        elif are_faster(blocks, self.weight):
            y = products(blocks, self.weight) + self.bias[:, None]
        else:
            y = torch.baddbmm(self.bias[:, None], blocks, self.weight.transpose(1, 2))
        return y.reshape(*x.shape[:-1], y.shape[-1])


class StackedEmbedding(nn.Module):
    """N tables (N, V, F) looked up by ids (N * B, T)."""

    def __init__(self, weight_NVF: nn.Parameter, original: nn.Embedding) -> None:
        super().__init__()
        self.weight = weight_NVF
        self._scale = getattr(original, "embed_scale", None)  # Gemma's tables are scaled as they are read

    def forward(self, ids: Tensor) -> Tensor:
        num_cells, size, _ = self.weight.shape
        first = torch.arange(num_cells, device=ids.device).repeat_interleave(len(ids) // num_cells) * size
        found = functional.embedding(ids + first[:, None], self.weight.flatten(0, 1))
        return found if self._scale is None else found * torch.as_tensor(self._scale).to(found)


class StackedNorm(nn.Module):
    """N norms with a learnt scale (N, F) and shift: the model's own norm with the neutral scale, then each cell's.

    own        the model's module, whose weight must be neutral while this stands in its place
    offset     what the module adds to its weight before it multiplies: 1 for Gemma's, else 0
    """

    def __init__(
        self, own: nn.Module, weight_NF: nn.Parameter, bias_NF: nn.Parameter | None, offset: float
    ) -> None:
        super().__init__()
        self._own = [own]  # in a list: not a submodule, its parameters are not ours
        self.weight, self.bias, self._offset = weight_NF, bias_NF, offset

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        plain = self._own[0](x, *others, **named)
        blocks = plain.reshape(len(self.weight), -1, plain.shape[-1])
        scale = self.weight if not self._offset else self.weight + self._offset
        y = blocks * scale[:, None].to(blocks.dtype)
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.reshape(plain.shape)


class StackedLayerNorm(nn.Module):
    """N nn.LayerNorm, one call each: its fused kernel rounds otherwise than scaling afterwards does."""

    def __init__(self, own: nn.LayerNorm, weight_NF: nn.Parameter, bias_NF: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias, self._epsilon = weight_NF, bias_NF, own.eps

    def forward(self, x: Tensor) -> Tensor:
        count, width = self.weight.shape
        weights = self.weight.unbind(0)
        biases = [None] * count if self.bias is None else self.bias.unbind(0)
        blocks = x.reshape(count, -1, width).unbind(0)
        found = [
            functional.layer_norm(block, (width,), weight, bias, self._epsilon)
            for block, weight, bias in zip(blocks, weights, biases, strict=True)
        ]
        return torch.stack(found).reshape(x.shape)


class StackedLora(nn.Module):
    """N low-rank adapters beside one frozen linear layer: y = base(x) + scaling * (x A_n) B_n.

    Shapes   down (N, R, F), up (N, G, R). The base layer is one product over all N * B * T rows.
    """

    def __init__(self, base: nn.Module, down_NRF: nn.Parameter, up_NGR: nn.Parameter, scaling: float) -> None:
        super().__init__()
        self._base = [base]
        self.down, self.up, self._scaling = down_NRF, up_NGR, scaling

    def forward(self, x: Tensor) -> Tensor:
        y = self._base[0](x)
        blocks = x.reshape(len(self.down), -1, x.shape[-1]).to(self.down.dtype)
        change = products(products(blocks, self.down), self.up)
        return y + (change * self._scaling).reshape(y.shape).to(y.dtype)

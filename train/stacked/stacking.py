"""A model turned into N models for a while, and each cell's parameters as an ordinary run would hold them.

Full fine-tuning stacks every parameter; LoRA stacks the adapters and keeps the base. A cell's parameters are views
into the stacked tensors under the names they have in a run of its own, so that checkpoint, optimiser, export and
evaluation of one cell are those of any run. What can't be stacked is named (`cannot_stack`), and trained alone.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.config import RunConfig
from train.heads import base_model, decoder_of, head_of
from train.linear_cross_entropy import Head
from train.model import trainable_parameters
from train.products import Linear
from train.stacked.company import in_common, trained_alone
from train.stacked.modules import (
    StackedEmbedding,
    StackedLayerNorm,
    StackedLinear,
    StackedLora,
    StackedNorm,
)

_PROBE_LENGTHS = (6, 6)


@dataclass(frozen=True, slots=True)
class Stack:
    """N cells in one model. `parameters[name]` (N, ...) is trained; `cells[n][name]` is its view of cell n."""

    model: nn.Module
    num_cells: int
    parameters: dict[str, nn.Parameter]
    cells: tuple[dict[str, nn.Parameter], ...]
    head: Head  # as it was before: its scale and cap, and its weight where all cells share it
    head_name: str | None  # of the stacked output layer's weight; None: one frozen head for all

    def gather_gradients(self) -> None:
        """Point each cell's views at its slice of the stacked gradients."""
        for name, parameter in self.parameters.items():
            for n, cell in enumerate(self.cells):
                cell[name].grad = None if parameter.grad is None else parameter.grad[n]

    def clear_gradients(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = None
            for cell in self.cells:
                cell[name].grad = None


def cannot_stack(model: nn.Module, configs: Sequence[RunConfig]) -> str:
    """Why these runs can't share a pass; empty if they can. `model` as it is trained, adapters included."""
    if reason := next(filter(None, map(trained_alone, configs)), ""):
        return reason
    if len({in_common(config) for config in configs}) > 1:
        return "the runs differ in more than weights, learning rate and weight decay"
    recipe = configs[0].train
    if recipe.method == "lora" and hasattr(base_model(model).get_output_embeddings(), "lora_A"):
        return "lm_head is among the LoRA targets"
    decoder, head = decoder_of(model), head_of(model)
    if decoder is None or head is None:
        return "the model has no decoder and plain output layer to be found"
    if recipe.method == "lora":
        named = dict(model.named_modules())
        for name in trainable_parameters(model):
            owner = named[name.rpartition(".lora_")[0]] if ".lora_" in name else None
            if owner is None or type(owner).__name__ != "Linear" or name.endswith("bias"):
                return f"its trainable {name} is no adapter of a linear layer"
        return ""
    return next((reason for reason in map(_cannot_hold, *zip(*_owners(model), strict=True)) if reason), "")


@contextlib.contextmanager
def stacked(model: nn.Module, num_cells: int, method: str) -> Iterator[Stack]:
    """Inside, `model` is N cells that all start from its parameters; afterwards it is as it was.

    Raises   AssertionError for what `cannot_stack` names.
    """
    head = head_of(model)
    assert head is not None
    with contextlib.ExitStack() as undo:
        make = _stack_adapters if method == "lora" else _stack_everything
        parameters = make(model, num_cells, undo)
        cells = tuple(
            {name: nn.Parameter(parameter.data[n]) for name, parameter in parameters.items()}
            for n in range(num_cells)
        )
        head_name = None if method == "lora" else _head_name(model, parameters)
        yield Stack(model, num_cells, parameters, cells, head, head_name)


def _owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module that owns parameters of its own, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def _cannot_hold(name: str, module: nn.Module) -> str:
    if type(module) in (nn.Linear, Linear, nn.LayerNorm):
        return ""
    is_table = type(module) is nn.Embedding or type(module).__name__.endswith("ScaledWordEmbedding")
    if is_table and module.max_norm is None:
        return ""
    own = dict(module.named_parameters(recurse=False))
    is_norm = "norm" in type(module).__name__.lower()
    if is_norm and set(own) <= {"weight", "bias"} and all(each.dim() == 1 for each in own.values()):
        return (
            ""
            if _offset(module) is not None
            else f"{name} ({type(module).__name__}) scales in an unknown way"
        )
    return f"{name} ({type(module).__name__}) holds {', '.join(own)}"


def _offset(module: nn.Module) -> float | None:
    """What a norm adds to its weight, found by trying it: 0 for most, 1 for Gemma's; None for neither."""
    weight = module.weight
    width = len(weight)  # type: ignore[arg-type]
    x = torch.linspace(-1, 2, width, device=weight.device)[None, None]  # type: ignore[arg-type]
    kept = {key: value.detach().clone() for key, value in module.named_parameters(recurse=False)}
    with torch.no_grad():
        try:
            results = {}
            for value in (0.0, 1.0, 2.0):
                for key, parameter in module.named_parameters(recurse=False):
                    parameter.fill_(value if key == "weight" else 0.0)
                results[value] = module(x).clone()
        finally:
            for key, parameter in module.named_parameters(recurse=False):
                parameter.copy_(kept[key])
    if torch.allclose(results[2.0], 2 * results[1.0], atol=1e-5) and not results[0.0].any():
        return 0.0
    if torch.allclose(results[1.0], 2 * results[0.0], atol=1e-5) and results[0.0].any():
        return 1.0
    return None


def _stack_everything(
    model: nn.Module, num_cells: int, undo: contextlib.ExitStack
) -> dict[str, nn.Parameter]:
    parameters = {
        name: nn.Parameter(_copies(parameter, num_cells))
        for name, parameter in trainable_parameters(model).items()
    }
    by_original = {id(original): parameters[name] for name, original in trainable_parameters(model).items()}
    for name, module in _owners(model):
        weight = by_original[id(module.weight)]  # type: ignore[arg-type]
        bias = getattr(module, "bias", None)
        bias = None if bias is None else by_original[id(bias)]
        if isinstance(module, nn.Linear):
            stand_in: nn.Module = StackedLinear(weight, bias)
        elif isinstance(module, nn.Embedding):
            stand_in = StackedEmbedding(weight, module)
        elif type(module) is nn.LayerNorm:
            stand_in = StackedLayerNorm(module, weight, bias)
        else:
            offset = _offset(module)
            assert offset is not None, name
            undo.enter_context(_neutral(module, offset))
            stand_in = StackedNorm(module, weight, bias, offset)
        undo.enter_context(_replaced(model, name, stand_in))
    return parameters


def _stack_adapters(model: nn.Module, num_cells: int, undo: contextlib.ExitStack) -> dict[str, nn.Parameter]:
    trainable = trainable_parameters(model)
    parameters = {name: nn.Parameter(_copies(parameter, num_cells)) for name, parameter in trainable.items()}
    named = dict(model.named_modules())
    for place in dict.fromkeys(name.rpartition(".lora_")[0] for name in trainable):
        module: Any = named[place]
        (adapter,) = module.lora_A
        stand_in = StackedLora(
            module.base_layer,
            parameters[f"{place}.lora_A.{adapter}.weight"],
            parameters[f"{place}.lora_B.{adapter}.weight"],
            module.scaling[adapter],
        )
        undo.enter_context(_replaced(model, place, stand_in))
    return parameters


def _copies(parameter: Tensor, num_cells: int) -> Tensor:
    return parameter.detach()[None].expand(num_cells, *parameter.shape).clone()


def _head_name(model: nn.Module, parameters: dict[str, nn.Parameter]) -> str | None:
    """The stacked output layer by name: its own, or the embedding it is tied to."""
    layer = base_model(model).get_output_embeddings()
    return next(name for name, parameter in parameters.items() if parameter is layer.weight)


@contextlib.contextmanager
def _replaced(model: nn.Module, name: str, stand_in: nn.Module) -> Iterator[None]:
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name) if parent_name else model
    original = getattr(parent, child)
    setattr(parent, child, stand_in)
    stand_in.train(original.training)
    try:
        yield
    finally:
        setattr(parent, child, original)


@contextlib.contextmanager
def _neutral(module: nn.Module, offset: float) -> Iterator[None]:
    """The norm with a scale of 1 and no shift, its own parameters put aside."""
    kept = {name: parameter.detach().clone() for name, parameter in module.named_parameters(recurse=False)}
    asked = {name: parameter.requires_grad for name, parameter in module.named_parameters(recurse=False)}
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(False)
            parameter.fill_(1.0 - offset if name == "weight" else 0.0)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(kept[name])
                parameter.requires_grad_(asked[name])

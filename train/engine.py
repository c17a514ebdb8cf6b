"""How one run computes: the kernel of its loss, packing, precision, ranks. Decided once, undone at the end.

A model is shared by the runs of a process (train.workbench), so everything done to it here is taken back.
None of it changes what is computed, `precision` excepted; what was decided is in the record's environment."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.attention import NAME, choose_varlen, make_layout, packed_attention
from train.checkpoint import Progress, restore_checkpoint, save_checkpoint
from train.config import RecipeConfig, RunConfig
from train.distributed import World
from train.errors import ConfigError
from train.heads import base_model, choose_path, decoder_of
from train.model import make_optimizer, trainable_parameters
from train.step import Engine, LossModule, Stepper, reference_model
from train.tokens import TokenSplit


@dataclass(frozen=True, slots=True)
class Training:
    """A run ready to step: `how` says what was decided, for the record."""

    module: nn.Module
    stepper: Stepper
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    world: World
    how: Mapping[str, Any]

    def restore(self, folder: Path, fingerprint: str) -> Progress | None:
        """Continue from the folder's checkpoint, if it has one of this experiment."""
        if self.world.kind == "fsdp":
            from train.sharding import restore_shards

            return restore_shards(folder, fingerprint, self.parameters, self.optimizer)
        return restore_checkpoint(folder, fingerprint, self.parameters, self.optimizer)

    def save(self, folder: Path, fingerprint: str, progress: Progress) -> None:
        """Replace the folder's checkpoint; every rank must call it."""
        if self.world.kind == "fsdp":
            from train.sharding import save_shards

            save_shards(folder, fingerprint, self.parameters, self.optimizer, progress, self.world)
        elif self.world.rank == 0:
            save_checkpoint(folder, fingerprint, self.parameters, self.optimizer, progress)
        self.world.barrier()


@contextlib.contextmanager
def prepared(
    model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device, world: World
) -> Iterator[Training]:
    """The model set up for training; afterwards in float32 and with its own attention again."""
    recipe = config.train
    with contextlib.ExitStack() as undo:
        if recipe.precision == "paper_bf16":
            undo.enter_context(_bfloat16_weights(model))
        path = choose_path(model, recipe.head, device)
        packing, reason = choose_packing(model, recipe, device)
        if packing != "pad":
            undo.enter_context(packed_attention(base_model(model), is_compiled=recipe.compile))
        varlen = packing != "pad" and choose_varlen(
            base_model(model).config, device, _compute_type(recipe), recipe.dropout
        )
        # Whatever a checkpoint will change, the reference is what the model is now.
        module = LossModule(model, reference_model(model, config), path, config)
        if world.kind == "fsdp":
            from train.sharding import sharded

            module = undo.enter_context(sharded(module, recipe, device, world))
        undo.enter_context(_layers(module.model, recipe))
        parameters = trainable_parameters(module.model)
        optimizer = make_optimizer(list(parameters.values()), recipe)
        engine = Engine(path, packing, varlen, world)
        stepper = Stepper(module, split, config, device, optimizer, list(parameters.values()), engine)
        how = {
            "head": f"{path.name} ({path.reason})",
            "packing": f"{packing} ({reason})",
            "attention": "varlen" if varlen else "sdpa",
            "ranks": world.size,
            "precision": precision_words(recipe),
        }
        yield Training(module, stepper, parameters, optimizer, world, how)


def choose_packing(model: nn.Module, recipe: RecipeConfig, device: torch.device) -> tuple[str, str]:
    """pack, pad or mixed, and why.

    Raises   ConfigError for train.packing=on where the model mixes neighbouring rows.
    """
    if recipe.packing == "off":
        return "pad", "asked for"
    if recipe.packing == "auto" and recipe.dropout:
        return "pad", "with dropout, whose masks follow the shape"
    reason = _cannot_pack(model)
    if reason and recipe.packing == "on":
        raise ConfigError(
            f"train.packing=on: {reason}",
            "a model of transformers' attention interface",
            "set train.packing=auto",
        )
    if reason:
        return "pad", reason
    if recipe.packing == "on" or device.type == "cuda":
        return "pack", "asked for" if recipe.packing == "on" else "no padding to compute"
    return "mixed", "by each step's padding"


@torch.no_grad()
def _cannot_pack(model: nn.Module) -> str:
    """Why rows of this model can't be laid end to end; empty if each comes out as it does alone."""
    decoder, inner = decoder_of(model), base_model(model)
    if decoder is None:
        return "the model names no decoder"
    device = next(model.parameters()).device
    size = inner.get_input_embeddings().weight.shape[0]
    rows = [torch.arange(length, device=device) * 7 % size for length in (6, 4, 4, 1)]
    was_training = model.training
    model.eval()
    try:
        alone = [decoder(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
        with packed_attention(inner):
            lengths = [len(row) for row in rows]
            together = decoder(
                input_ids=torch.cat(rows)[None],
                use_cache=False,
                packed=make_layout(lengths, device),
                position_ids=torch.cat([torch.arange(length, device=device) for length in lengths])[None],
            ).last_hidden_state[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError) as error:
        return f"the model refuses {NAME} attention ({type(error).__name__})"
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float()
    tolerance = (1e-4 if alone[0].dtype == torch.float32 else 5e-2) * float(expected.nan_to_num().abs().max())
    is_same = torch.allclose(together.float(), expected, atol=tolerance, rtol=0, equal_nan=True)
    return "" if is_same else "rows laid end to end come out differently than alone"


@contextlib.contextmanager
def _layers(model: nn.Module, recipe: RecipeConfig) -> Iterator[None]:
    """Activation checkpointing and torch.compile on the decoder's layers, while it lasts."""
    inner = base_model(model)
    layers = list(getattr(decoder_of(model), "layers", []))
    if recipe.activation_checkpointing:
        _checkpointing(inner, "enable")({"use_reentrant": False})
    if recipe.compile:
        for layer in layers:
            layer.compile(dynamic=True)
    try:
        yield
    finally:
        if recipe.activation_checkpointing:
            _checkpointing(inner, "disable")()
        for layer in layers if recipe.compile else ():
            layer._compiled_call_impl = None


def _checkpointing(model: Any, what: str) -> Callable[..., None]:
    """transformers' switch; 5.23 renamed it."""
    name = f"activation_checkpointing_{what}"
    return getattr(model, name, None) or getattr(model, name.replace("activation", "gradient"))


@contextlib.contextmanager
def _bfloat16_weights(model: nn.Module) -> Iterator[None]:
    """Parameters in bfloat16, buffers (rotary tables) as they are; afterwards the same values in float32.

    Source   The released WIT script for one device per copy: weights loaded in bfloat16, torch AdamW on them,
             so that its states are bfloat16 too. At a rate of 2e-5 an update is below half a unit in the last
             place of most weights.
    """
    print(
        "precision=paper_bf16: weights and optimiser states in bfloat16, as published; "
        "most updates at small rates round away",
        flush=True,
    )
    _cast(model, torch.bfloat16)
    try:
        yield
    finally:
        _cast(model, torch.float32)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)


def _compute_type(recipe: RecipeConfig) -> torch.dtype:
    return torch.float32 if recipe.precision == "float32" else torch.bfloat16


def precision_words(recipe: RecipeConfig) -> str:
    """What the record says of it."""
    return {
        "float32": "float32",
        "bfloat16": "bfloat16 products, float32 master weights",
        "paper_bf16": "bfloat16 weights and optimiser states",
    }[recipe.precision]

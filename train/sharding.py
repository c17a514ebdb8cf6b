"""Fully sharded data parallelism: every rank holds a slice of each weight, its gradient and its optimiser
state.

A sharded copy is trained, and its weights are gathered into every rank's model at the end, so that what comes
after training knows nothing of shards. Checkpoints are written by all ranks, each its own slices, and read
back by any number of ranks: safetensors with offsets rather than torch.distributed.checkpoint, whose index
is a pickle."""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from train.checkpoint import FOLDER_NAME, Progress, progress_from_dict, progress_to_dict
from train.config import RecipeConfig
from train.distributed import World
from train.files import read_json, write_json_atomic
from train.heads import decoder_of
from train.step import LossModule

_COMPLETE = "complete.json"  # written last, by rank 0


@contextlib.contextmanager
def sharded(
    module: LossModule, recipe: RecipeConfig, device: torch.device, world: World
) -> Iterator[LossModule]:
    """A sharded copy of the module, one group per decoder layer; afterwards each rank's model has its weights.

    Exact    Gradients are averaged in float32 (train.step makes it a sum); products run in bfloat16 with
             precision=bfloat16.
    Note     Each rank holds the whole model once while the copy is made.
    """
    mesh = init_device_mesh(device.type, (world.size,))
    is_half = recipe.precision == "bfloat16"
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if is_half
        else MixedPrecisionPolicy()
    )
    copied = copy.deepcopy(module)
    for model in (copied.model, copied.reference):
        for layer in getattr(decoder_of(model), "layers", ()) if model is not None else ():
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(copied, mesh=mesh, mp_policy=policy)
    yield copied
    _gather(copied.model, module.model)


@torch.no_grad()
def _gather(source: nn.Module, target: nn.Module) -> None:
    own = dict(target.named_parameters())
    for name, parameter in source.named_parameters():
        if parameter.requires_grad:
            own[name].copy_(parameter.full_tensor() if isinstance(parameter, DTensor) else parameter)


def save_shards(
    folder: Path,
    fingerprint: str,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    world: World,
) -> None:
    """Every rank writes its slices; the last word is rank 0's, and only then do older checkpoints go."""
    place = folder / FOLDER_NAME / f"step-{progress.step}"
    if world.rank == 0:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    world.barrier()
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for name, tensor in _state(parameters, optimizer).items():
        local, start = _local(tensor)
        if isinstance(tensor, DTensor) or world.rank == 0:
            tensors[name] = local.detach().cpu().contiguous().clone()
            about[name] = {"start": start, "shape": list(tensor.shape)}
    path = place / f"rank-{world.rank}.safetensors"
    save_file(tensors, path, metadata={"about": json.dumps(about)})
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    world.barrier()
    if world.rank == 0:
        values = progress_to_dict(progress, fingerprint) | {"num_ranks": world.size}
        write_json_atomic(place / _COMPLETE, values)
        for other in place.parent.glob("step-*"):
            if other != place:
                shutil.rmtree(other, ignore_errors=True)


def restore_shards(
    folder: Path, fingerprint: str, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Continue from the newest whole checkpoint, whatever number of ranks wrote it; None if there is none."""
    complete = [
        (values["step"], path.parent, values)
        for path in (folder / FOLDER_NAME).glob(f"step-*/{_COMPLETE}")
        if (values := read_json(path)) and values.get("fingerprint") == fingerprint
    ]
    if not complete:
        return None
    _, place, values = max(complete, key=lambda item: item[0])
    try:
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(place / f"rank-{rank}.safetensors", framework="pt"))
                for rank in range(values["num_ranks"])
            ]
            _fill(files, parameters, optimizer)
    except (OSError, SafetensorError, KeyError):
        return None
    return progress_from_dict(values)


@torch.no_grad()
def _fill(files: list[Any], parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    abouts = [json.loads(stream.metadata()["about"]) for stream in files]
    shapes = {name: tuple(entry["shape"]) for about in abouts for name, entry in about.items()}
    if any(f"parameter/{name}" not in shapes for name in parameters):
        raise KeyError("another model's checkpoint")
    for name, shape in shapes.items():
        kind, _, rest = name.partition("/")
        if kind == "parameter":
            _read(files, abouts, name, parameters[rest])
            continue
        key, _, parameter_name = rest.partition("/")
        parameter = parameters[parameter_name]
        is_alike = shape == tuple(parameter.shape) and bool(shape)
        empty = torch.zeros_like(parameter) if is_alike else torch.zeros(shape)
        _read(files, abouts, name, empty)
        optimizer.state[parameter][key] = empty


def _read(files: list[Any], abouts: list[dict[str, Any]], name: str, target: Tensor) -> None:
    """The target's own rows, from whichever files hold them."""
    local, first = _local(target)
    for stream, about in zip(files, abouts, strict=True):
        if name not in about:
            continue
        piece = stream.get_slice(name)
        if not piece.get_shape():
            local.copy_(stream.get_tensor(name))
            continue
        start, count = about[name]["start"], piece.get_shape()[0]
        low, high = max(first, start), min(first + local.shape[0], start + count)
        if low < high:
            local[low - first : high - first].copy_(piece[low - start : high - start])


def _state(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {f"parameter/{name}": parameter for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    return tensors


def _local(tensor: Tensor) -> tuple[Tensor, int]:
    """This rank's rows of a tensor, and the first one's number; a plain tensor is whole everywhere."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    if tuple(tensor.placements) != (Shard(0),):
        raise RuntimeError(f"expected rows dealt to ranks, not {tensor.placements}")
    rows_per_rank = -(-tensor.shape[0] // tensor.device_mesh.size())
    return tensor.to_local(), min(tensor.device_mesh.get_local_rank() * rows_per_rank, tensor.shape[0])

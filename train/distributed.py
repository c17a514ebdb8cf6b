"""Several processes, one run: who I am among them, and sums over all of them.

Rows of a step are divided among the ranks; coefficients are computed by every rank from the whole step's
roles (train.objective), so gradients and by-products need only be added. The result is that of one process
up to the order of float sums. `train.launch` starts such a run."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor, nn

_PATIENCE = timedelta(
    hours=1
)  # with a rank that tokenises or generates; a dead one is its starter's to notice
_BUCKET_ELEMENTS = 2**25  # of gradients added at once: 128 MiB in float32


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of its run."""

    rank: int = 0
    size: int = 1
    kind: Literal["none", "ddp", "fsdp"] = "none"

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum every parameter's gradient over the ranks, after the last backward.

        A parameter without a gradient on any rank stays without.

        Note   A few large sums after the last micro-batch instead of DistributedDataParallel's hooks during
               it: ranks may hold different numbers of micro-batches, or none, and no sum waits for another.
        """
        if self.size == 1 or self.kind == "fsdp":
            return
        device = parameters[0].device
        has_gradient = torch.tensor([int(parameter.grad is not None) for parameter in parameters])
        anywhere = self.add(has_gradient.to(device)).cpu().tolist()
        used = [parameter for parameter, count in zip(parameters, anywhere, strict=True) if count]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        bucket: list[Tensor] = []
        for index, parameter in enumerate(used):
            assert parameter.grad is not None
            bucket.append(parameter.grad)
            is_last = index + 1 == len(used)
            if is_last or sum(gradient.numel() for gradient in bucket) >= _BUCKET_ELEMENTS:
                flat = self.add(torch.cat([gradient.flatten() for gradient in bucket]))
                parts = flat.split([gradient.numel() for gradient in bucket])
                for gradient, part in zip(bucket, parts, strict=True):
                    gradient.copy_(part.view_as(gradient))
                bucket = []

    def agreed(self, *wishes: bool) -> tuple[bool, ...]:
        """Each wish that any rank has, so that all ranks do the same."""
        if self.size == 1:
            return wishes
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        counts = self.add(torch.tensor(wishes, dtype=torch.int32, device=device))
        return tuple(count > 0 for count in counts.tolist())

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            torch.distributed.barrier()


@contextmanager
def world_of(kind: Literal["none", "ddp", "fsdp"], device: torch.device) -> Iterator[World]:
    """The world this process was started into by torchrun; one rank, with a warning, where it wasn't."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if kind == "none":
        yield World()
        return
    if size == 1:
        warnings.warn(
            f"train.distributed={kind} with one rank: the run goes on in this process; "
            "train.num_ranks=2, model.gpus=2 or torchrun would start more",
            stacklevel=3,
        )
        yield World()
        return
    if torch.distributed.is_initialized():
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), kind)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), kind)
    finally:
        torch.distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """This rank's own GPU; on a CPU the CPU."""
    if device.type != "cuda" or device.index is not None:
        return device
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(local)
    return local

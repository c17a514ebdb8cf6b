"""A training state on disk: one safetensors file, whole or not there, that continues to the same bits.

It holds the trainable parameters, the optimiser's tensors, the step and the sums behind the log. Schedule, data
order and dropout are functions of seed and step, so nothing else is needed to go on exactly. safetensors rather
than torch.save: no pickle is ever loaded.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

FOLDER_NAME, FILE_NAME = "checkpoint", "state.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: `step` optimiser steps are done; `training_s` seconds were spent on them."""

    step: int
    training_s: float
    final_train_loss: float | None
    num_train_tokens: int = 0
    num_empty_steps: int = 0  # without a counted target: zero loss, nothing learned
    num_clipped_steps: int = 0  # whose gradient was longer than clip_norm
    how: Mapping[str, Any] = field(default_factory=dict)  # what train.engine decided; not stored


def progress_to_dict(progress: Progress, fingerprint: str) -> dict[str, Any]:
    """JSON values; `progress_from_dict` is its inverse."""
    return {
        "fingerprint": fingerprint,
        "step": progress.step,
        "training_s": progress.training_s,
        "final_train_loss": progress.final_train_loss,
        "num_train_tokens": progress.num_train_tokens,
        "num_empty_steps": progress.num_empty_steps,
        "num_clipped_steps": progress.num_clipped_steps,
    }


def progress_from_dict(values: Mapping[str, Any]) -> Progress:
    """Where the run of these values stood."""
    return Progress(
        values["step"],
        values["training_s"],
        values["final_train_loss"],
        values["num_train_tokens"],
        values.get("num_empty_steps", 0),
        values.get("num_clipped_steps", 0),
    )


def save_checkpoint(
    folder: Path,
    fingerprint: str,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    generators: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Replace the run folder's checkpoint, atomically and flushed to the disk.

    generators   states of random generators, for a loop that isn't ours and draws from them as it goes
    """
    tensors = {f"generator/{name}": state for name, state in (generators or {}).items()}
    tensors |= {f"parameter/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    metadata = progress_to_dict(progress, fingerprint)
    folder = folder / FOLDER_NAME
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE_NAME}.{os.getpid()}.tmp"
    try:
        save_file(
            {name: tensor.contiguous().cpu().clone() for name, tensor in tensors.items()},
            temporary,
            metadata={"progress": json.dumps(metadata)},
        )
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, folder / FILE_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def restore_checkpoint(
    folder: Path, fingerprint: str, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Continue from the folder's checkpoint: fills parameters and optimiser in place.

    None, with nothing touched, if there is no checkpoint, it is damaged, or it belongs to another experiment:
    then the run starts from its beginning, which costs time and never correctness.
    """
    path = folder / FOLDER_NAME / FILE_NAME
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            metadata = json.loads((stream.metadata() or {}).get("progress", "{}"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except Exception:  # FileNotFoundError, or safetensors' own error class without a public base
        return None
    if metadata.get("fingerprint") != fingerprint or any(
        f"parameter/{name}" not in tensors for name in parameters
    ):
        return None
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            suffix = f"/{name}"
            state = {
                key.removeprefix("optimizer/").removesuffix(suffix): value
                for key, value in tensors.items()
                if key.startswith("optimizer/") and key.endswith(suffix) and key.count("/") == 2
            }
            if state:
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    return progress_from_dict(metadata)


def saved_step(folder: Path, fingerprint: str) -> int:
    """The step that the folder's checkpoint of this experiment stands at; 0 without one."""
    try:
        with safetensors.safe_open(folder / FOLDER_NAME / FILE_NAME, framework="pt") as stream:
            metadata = json.loads((stream.metadata() or {}).get("progress", "{}"))
    except Exception:  # see `restore_checkpoint`
        return 0
    return int(metadata.get("step", 0)) if metadata.get("fingerprint") == fingerprint else 0


def generator_states(folder: Path) -> dict[str, torch.Tensor]:
    """What `save_checkpoint` was given of random generators; empty where there is no checkpoint."""
    try:
        with safetensors.safe_open(folder / FOLDER_NAME / FILE_NAME, framework="pt") as stream:
            names = [name for name in stream.keys() if name.startswith("generator/")]  # noqa: SIM118
            return {name.removeprefix("generator/"): stream.get_tensor(name) for name in names}
    except Exception:  # see `restore_checkpoint`
        return {}


def remove_checkpoint(folder: Path) -> None:
    """After the record is safe, and not before: the state is no longer needed."""
    shutil.rmtree(folder / FOLDER_NAME, ignore_errors=True)

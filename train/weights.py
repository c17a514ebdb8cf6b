"""A run's trained weights as a standard folder: written, found again, loaded, and proved to be the record's.

Full fine-tuning leaves a transformers checkpoint, LoRA a PEFT adapter; both in safetensors, with tokenizer.
One file beside them says which run they are and which parameters its hash is over.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from train.config import RunConfig, config_to_dict
from train.errors import ModelError
from train.files import read_json, write_json_atomic
from train.kept import ABOUT, FOLDER
from train.model import trainable_parameters


def save_weights(
    model: nn.Module, tokenizer: Any, config: RunConfig, run_folder: Path, about: Mapping[str, Any]
) -> None:
    """Write the run's weights below its folder: whole, or not at all.

    about   run_id, fingerprint, identities, parameters_sha256: what names the run
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    temporary = run_folder / f".{FOLDER}.{secrets.token_hex(4)}.tmp"
    try:
        with _cache_in_use(model):
            # peft would otherwise look whether the embeddings were resized, for which it asks the hub.
            model.save_pretrained(
                temporary,
                **(
                    {"save_embedding_layers": False}  # type: ignore[operator]
                    if hasattr(model, "peft_config")
                    else {}
                ),
            )
        tokenizer.save_pretrained(temporary)
        write_json_atomic(
            temporary / ABOUT,
            {**about, "config": config_to_dict(config), "parameters": sorted(trainable_parameters(model))},
        )
        shutil.rmtree(run_folder / FOLDER, ignore_errors=True)
        os.rename(temporary, run_folder / FOLDER)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill the trainable parameters of `model` from such a folder, in place. ModelError if any is missing."""
    missing = trainable_parameters(model)
    with torch.no_grad():
        for name, tensor in _tensors(folder, list(missing)):
            missing.pop(name).copy_(tensor)
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} parameters, first {min(missing)}",
            "the weights of a run of the same base and method",
            "name another parent=",
        )


def saved_sha256(folder: Path) -> str:
    """The hash of a folder's parameters, as a record has it."""
    names = (read_json(folder / ABOUT) or {}).get("parameters") or []
    tensors = dict.fromkeys(names, b"")
    digest = hashlib.sha256()
    places = dict(_places(folder))
    for name in tensors:  # sorted when it was written; one tensor at a time is held
        if _key(name) not in places:
            raise ModelError(
                f"{folder} lacks the parameter {name}", "every parameter of the run", "export it again"
            )
        with safetensors.safe_open(places[_key(name)], framework="pt") as stream:
            digest.update(name.encode())
            digest.update(stream.get_tensor(_key(name)).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(folder: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    places = dict(_places(folder))
    for name in names:
        if _key(name) in places:
            with safetensors.safe_open(places[_key(name)], framework="pt") as stream:
                yield name, stream.get_tensor(_key(name))


def _places(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 - no mapping
                yield key, path


def _key(name: str) -> str:
    """A parameter's name in the file: peft leaves out the adapter's."""
    return name.replace(".default.", ".")


@contextlib.contextmanager
def _cache_in_use(model: nn.Module) -> Iterator[None]:
    """Training switches the cache of keys and values off; whoever loads the folder wants to generate."""
    config: Any = model.config
    before = config.use_cache
    config.use_cache = True
    try:
        yield
    finally:
        config.use_cache = before

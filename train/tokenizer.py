"""The tokenizer of a base checkpoint: fast ones only, because roles are read off character offsets."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.config import ModelConfig
from train.errors import ModelError

EMBEDDED_MODEL_FOLDER = Path(__file__).resolve().parent / "embedded" / "model"


def model_folder(config: ModelConfig) -> Path | None:
    """The folder of an embedded or local checkpoint; None for a hub id."""
    if config.source == "embedded":
        return EMBEDDED_MODEL_FOLDER
    return Path(str(config.path)) if config.source == "local" else None


def load_tokenizer(config: ModelConfig) -> Any:
    """A `transformers` fast tokenizer with an EOS token.

    Raises   ModelError where the folder, the tokenizer or its EOS token is missing, where it has no fast
             version, and where a hub id can be neither downloaded nor found in the local cache.
    """
    folder = model_folder(config)
    if folder is None:
        folder = _hub_folder(config)
    elif not folder.is_dir() and config.source == "embedded":
        raise ModelError(
            f"the embedded model is missing ({folder})",
            "the folder that comes with this package",
            "check out the package again, or use model.source=local model.path=/folder",
        )
    elif not folder.is_dir():
        raise ModelError(
            f"model.path={folder} does not exist",
            "a folder with config.json and tokenizer.json",
            "mend model.path=..., or use model=embedded, which needs no download",
        )
    tokenizer = _load(folder, config)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer of model {config.name} is slow-only ({type(tokenizer).__name__})",
            "a fast tokenizer (tokenizer.json): roles are read off its character offsets",
            "convert it once with transformers' convert_slow_tokenizer and save tokenizer.json",
        )
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of model {config.name} has no EOS token",
            "eos_token in tokenizer_config.json: a response must end somewhere",
            'add "eos_token": "..." to tokenizer_config.json',
        )
    return tokenizer


def _load(folder: Path, config: ModelConfig) -> Any:
    with quiet():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                str(folder), use_fast=True, trust_remote_code=config.trust_remote_code
            )
        except Exception as error:  # OSError, ValueError, KeyError, JSON and Rust errors
            raise ModelError(
                f"model {config.name} has no usable tokenizer in {folder}: {first_line(error)}",
                "tokenizer.json with tokenizer_config.json",
                "save the tokenizer into that folder, or set another model.path=...",
            ) from error


def _hub_folder(config: ModelConfig) -> Path:
    """The local snapshot of the repository's small files; transformers would retry 40 s offline."""
    with quiet():
        import huggingface_hub

        try:
            folder = huggingface_hub.snapshot_download(
                str(config.path),
                revision=config.revision,
                allow_patterns=["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"],
            )
        except Exception as error:  # network, rights, names: a dozen classes, one remedy
            command = f"hf download {config.path}" + (
                f" --revision {config.revision}" if config.revision else ""
            )
            raise ModelError(
                f"model.path={config.path} is not in the local hub cache and can't be downloaded: "
                f"{first_line(error)}",
                "a model id (organisation/name) and a network or a filled cache",
                f"run `{command}` on a machine with network, or use model.source=local model.path=/folder",
            ) from error
    return Path(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' and the hub's advice, which no user of a sweep can act on."""
    names = ("transformers", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough for a line of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

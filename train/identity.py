"""What the data and the model are: content hashes and hub commits, and the checks that need no library.

These functions are the pre-flight of a whole sweep: they run before anything is started, on a machine that
may have neither torch nor a GPU, and so import only the standard library (the hub's client to ask the hub).
A broken checkpoint should cost one line here and not a thousand failed jobs.
"""

import dataclasses
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from train.config import DatasetConfig, ModelConfig, RunConfig
from train.errors import DataError, ModelError
from train.file_hashes import content_hashes
from train.files import read_json
from train.hub import hub_identity
from train.row_files import SUFFIXES, data_files, is_saved_dataset, parse_jsonl, read_file, suffix_of
from train.rows import embedded_row_dicts, usable_rows
from train.templates import template_text
from train.tokenizer import EMBEDDED_MODEL_FOLDER

MAX_PARSED_BYTES = 50_000_000  # of a dataset file, before a sweep starts; of a larger one only the first rows
_NUM_FIRST_LINES = 100
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
_MODEL_FILES = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    *_TOKENIZER_FILES,
)


def dataset_identity(
    config: DatasetConfig,
    *,
    cache_folder: Path | None,
    allow_unresolved: bool = False,
    check_rows: Callable[..., object] = usable_rows,
) -> str:
    """The content of a dataset in one string: "sha256:<hex>" or "hub:<path>@<commit>".

    cache_folder      where hashes are remembered by (path, size, modification time, inode); None: nowhere
    allow_unresolved  "hub:<path>@unresolved" instead of DataError for a revision that can't be looked up
    check_rows        raises DataError if none of a small file's rows can be used
    Raises            DataError where the data is missing, empty or broken

    A subset by scores adds "+scores:<sha256>" of their file.
    """
    identity = _rows_identity(config, cache_folder, allow_unresolved, check_rows)
    if not config.subset.uses_scores:
        return identity
    scores = config.subset.scores_file
    return f"{identity}+scores:{content_hashes([scores], cache_folder, DataError)[scores]}"


def _rows_identity(
    config: DatasetConfig,
    cache_folder: Path | None,
    allow_unresolved: bool,
    check_rows: Callable[..., object],
) -> str:
    if config.source == "embedded":
        return _sha256_of_json(embedded_row_dicts(config))
    if config.source == "hub":
        return hub_identity(str(config.path), config.revision, "dataset", DataError, allow_unresolved)
    path = Path(str(config.path))
    if not path.exists():
        raise DataError(
            f"dataset.path={path} does not exist",
            "a data file or folder",
            "mend dataset.path=..., or use dataset=embedded, which needs no file",
        )
    files = _dataset_files(path, config)
    if not is_saved_dataset(path):
        _check_dataset(files, config, check_rows)
    hashes = content_hashes(files, cache_folder, DataError)
    if not path.is_dir():
        return f"sha256:{hashes[path]}"
    return _sha256_of_json([[file.relative_to(path).as_posix(), hashes[file]] for file in files])


def model_identity(config: ModelConfig, *, cache_folder: Path | None, allow_unresolved: bool = False) -> str:
    """The content of a checkpoint and its chat template in one string.

    "sha256:<hex>+template:<t>" or "hub:<path>@<commit>+template:<t>", where <t> is raw, chat (its own, which
    is among its files) or the sha256 of the template's text.

    cache_folder, allow_unresolved   see `dataset_identity`
    Raises   ModelError where files are missing, empty, cut short or without an EOS token; TemplateError
    """
    template = config.template
    if template not in ("raw", "chat"):
        template = f"sha256:{hashlib.sha256(template_text(template, None).encode()).hexdigest()}"
    if config.source == "hub":
        base = hub_identity(str(config.path), config.revision, "model", ModelError, allow_unresolved)
    else:
        base = _folder_identity(config, cache_folder)
    return f"{base}+template:{template}"


def pinned(
    config: RunConfig, model_identity: str, dataset_identity: str, preference_identity: str = ""
) -> RunConfig:
    """The configuration with branch names replaced by the commits of its identities.

    A run loads by revision: under a branch's name it could get newer files than its identity says.
    """
    model, dataset, preference = config.model, config.dataset, config.preference
    if commit := _hub_commit(model_identity):
        model = dataclasses.replace(model, revision=commit)
    if commit := _hub_commit(dataset_identity):
        dataset = dataclasses.replace(dataset, revision=commit)
    if commit := _hub_commit(preference_identity):
        preference = dataclasses.replace(preference, revision=commit)
    return dataclasses.replace(config, model=model, dataset=dataset, preference=preference)


def _hub_commit(identity: str) -> str | None:
    match = re.match(r"hub:[^@]+@([0-9a-f]{40})", identity)
    return match[1] if match else None


def _folder_identity(config: ModelConfig, cache_folder: Path | None) -> str:
    folder = EMBEDDED_MODEL_FOLDER if config.source == "embedded" else Path(str(config.path))
    if not folder.is_dir() and config.source == "embedded":
        raise ModelError(
            f"the embedded model is missing ({folder})",
            "the folder that comes with this package",
            "check out the package again, or use model.source=local model.path=/folder",
        )
    if not folder.is_dir():
        raise ModelError(
            f"model.path={folder} is not a folder",
            "a folder with config.json and tokenizer.json",
            "mend model.path=..., or use model=embedded, which needs no download",
        )
    files = _model_files(folder, config.trust_remote_code)
    _check_model_files(folder, files)
    hashes = content_hashes(files, cache_folder, ModelError)
    return _sha256_of_json([[file.name, hashes[file]] for file in files])


def _model_files(folder: Path, with_code: bool) -> list[Path]:
    """The files that decide what the model is; neither notes nor optimizer states."""
    weights = sorted(folder.glob("*.safetensors"))  # the only weights that are ever loaded: no pickles
    indexes = sorted(folder.glob("*.index.json"))
    code = sorted(folder.glob("*.py")) if with_code else []
    named = [folder / name for name in _MODEL_FILES if (folder / name).is_file()]
    return sorted({*weights, *indexes, *code, *named}, key=lambda path: path.name)


def _check_model_files(folder: Path, files: Iterable[Path]) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json",
            "a checkpoint in the transformers format",
            "set model.path=... to the folder that holds config.json",
        )
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(
            f"{folder} has no weights in safetensors",
            "model.safetensors, or shards with model.safetensors.index.json",
            "save the model with save_pretrained, which writes safetensors",
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer",
            f"one of {', '.join(_TOKENIZER_FILES)}",
            "save the tokenizer into that folder",
        )
    for path in files:
        if path.stat().st_size == 0:
            raise ModelError(f"{path} is empty", "a whole file", "copy or download it again")
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        elif path.suffix == ".json":
            _check_json(path)
        if path.name.endswith(".index.json"):
            _check_shards(path)
    _check_eos(folder)


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{path} line {error.lineno} is broken: {error.msg}", "valid JSON", "copy or download it again"
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise ModelError(f"{path} is broken", "valid JSON", "copy or download it again") from None


def _check_shards(index: Path) -> None:
    shards = {
        name for name in ((read_json(index) or {}).get("weight_map") or {}).values() if isinstance(name, str)
    }
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        raise ModelError(
            f"{index.parent} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}",
            f"the files that {index.name} names",
            "copy or download the checkpoint again",
        )


def _check_safetensors(path: Path) -> None:
    """The header parses and the file is exactly as long as it says: cheap, and every cut copy fails it."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ModelError(
                f"{path} is corrupt: its header is cut short ({size} bytes)",
                "a safetensors file",
                "copy or download it again",
            )
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            raise ModelError(
                f"{path} is corrupt: its header is not valid",
                "a safetensors file",
                "copy or download it again",
            ) from None
    if size != expected:
        raise ModelError(
            f"{path} is corrupt: {size} bytes",
            f"{expected} bytes, as its header says",
            "copy or download it again",
        )


def _check_eos(folder: Path) -> None:
    """An EOS token is named somewhere; the last word is `train.tokenizer`'s, which loads it."""
    config = read_json(folder / "config.json") or {}
    inner = config.get("text_config")
    named = [
        (read_json(folder / "tokenizer_config.json") or {}).get("eos_token"),
        (read_json(folder / "special_tokens_map.json") or {}).get("eos_token"),
        config.get("eos_token_id"),
        inner.get("eos_token_id") if isinstance(inner, Mapping) else None,
    ]
    if all(value is None for value in named):
        raise ModelError(
            f"{folder} names no EOS token",
            "eos_token in tokenizer_config.json",
            'add "eos_token": "..." to tokenizer_config.json: a response must end somewhere',
        )


def _dataset_files(path: Path, config: DatasetConfig) -> list[Path]:
    if not path.is_dir():
        if not suffix_of(path):
            raise DataError(
                f"{path} has an unsupported suffix",
                f"one of {', '.join(SUFFIXES)}",
                "convert the file or set another dataset.path=...",
            )
        return [path]
    if is_saved_dataset(path):
        return sorted(
            file for file in path.rglob("*") if file.suffix in (".arrow", ".json") and file.is_file()
        )
    files = data_files(path, config.hub_split)
    if not files:
        raise DataError(
            f"{path} holds no data file",
            f"files with one of {', '.join(SUFFIXES)}",
            "set dataset.path=... to the file itself",
        )
    return files


def _check_dataset(files: Iterable[Path], config: DatasetConfig, check_rows: Callable[..., object]) -> None:
    """No file is empty, text files parse, some row is usable; of files above 50 MB only the start counts."""
    rows: list[Any] = []
    is_all = True
    for path in files:
        size, suffix = path.stat().st_size, suffix_of(path)
        if size == 0:
            raise DataError(
                f"{path} is empty", "at least one row", "set dataset.path=... to a file with rows"
            )
        if suffix == ".parquet":
            _check_parquet(path)
            is_all = False
        elif size <= MAX_PARSED_BYTES:
            rows += read_file(path)
        else:
            is_all = False
            if suffix == ".jsonl":
                with open(path, encoding="utf-8-sig", errors="replace") as stream:
                    rows += parse_jsonl("".join(islice(stream, _NUM_FIRST_LINES)), str(path))
    if is_all:
        if not rows:
            raise DataError(
                f"{config.path} is empty", "at least one row", "set dataset.path=... to a file with rows"
            )
        check_rows(rows, config.columns, place=str(config.path))


def _check_parquet(path: Path) -> None:
    """The format's mark at both ends: a cut copy lacks the second."""
    with open(path, "rb") as stream:
        first = stream.read(4)
        stream.seek(-min(4, path.stat().st_size), os.SEEK_END)
        is_whole = first == stream.read(4) == b"PAR1"
    if not is_whole:
        raise DataError(f"{path} is not a whole Parquet file", "a Parquet file", "copy or download it again")


def _sha256_of_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

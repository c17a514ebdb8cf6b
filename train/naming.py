"""Names for checkpoints and files that have none but their path. Pure, apart from the current directory."""

import re
from pathlib import Path, PurePath
from typing import Any

from train.config import MANDATORY

_EMPTY_NAMES = (
    "hf",
    "model",
    "checkpoint",
    "checkpoints",
    "final",
    "best",
    "last",
    "latest",
    "main",
    "export",
)
_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".arrow", ".gz", ".zst", ".bz2", ".xz")
_TEMPLATE_WORDS = ("raw", "chat", "tulu", "chatml")


def complete_names(values: dict[str, Any]) -> None:
    """Fill in what a local model or dataset leaves open, in place: its name, and absolute paths.

    Absolute, because a worker may live in another folder than the person who typed the path. Paths are no
    part of a run's identity.
    """
    for group, name_of in (("model", model_name), ("dataset", dataset_name), ("preference", dataset_name)):
        part = values.get(group)
        if not isinstance(part, dict) or part.get("source") != "local":
            continue
        path = part.get("path")
        if isinstance(path, str) and path not in ("", MANDATORY):
            part["path"] = _absolute(path)
            if part.get("name") in (None, MANDATORY):
                part["name"] = name_of(part["path"])
        elif part.get("name") is None:
            part["name"] = "local"  # the missing path is the mistake to report, not the missing name
    model = values.get("model")
    if (
        isinstance(model, dict)
        and "/" in str(model.get("template"))
        and model["template"] not in _TEMPLATE_WORDS
    ):
        model["template"] = _absolute(model["template"])


def model_name(path: str) -> str:
    """A checkpoint's name: its folder's, or the nearest parent's that says something (pythia_70m/hf)."""
    parts = [part for part in PurePath(path).parts if part not in ("/", "\\")]
    for part in reversed(parts):
        if part.startswith("models--"):  # the hub's cache: models--organisation--name/snapshots/commit
            return _sanitised(part.rsplit("--", 1)[-1])
        if part not in (*_EMPTY_NAMES, "snapshots") and not re.fullmatch(r"[0-9a-f]{40}", part):
            return _sanitised(part)
    return "local"


def dataset_name(path: str) -> str:
    """A file's name without its suffixes: mine.jsonl.gz is mine."""
    name = PurePath(path).name
    while name.lower().endswith(_SUFFIXES):
        name = name.rsplit(".", 1)[0]
    return _sanitised(name)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _sanitised(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-") or "local"

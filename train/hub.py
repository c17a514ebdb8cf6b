"""The hub, as far as a run needs it: which commit a branch is, with or without a network."""

import os
import re
from pathlib import Path

from train.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_identity(
    path: str, revision: str | None, kind: str, error: type[UserError], allow_unresolved: bool
) -> str:
    """The identity "hub:<path>@<commit>" of a branch, tag or commit (None: main).

    kind              "model" or "dataset"; `error` is its class of error
    allow_unresolved  "hub:<path>@unresolved" instead of an error, where nobody can say which commit it is
    """
    commit = (
        revision if revision and _COMMIT.fullmatch(revision) else _resolve(path, revision or "main", kind)
    )
    if commit is None and not allow_unresolved:
        flag = "--repo-type dataset " if kind == "dataset" else ""
        raise error(
            f"{kind}.path={path} revision {revision or 'main'} can't be resolved to a commit: the hub "
            "can't be reached (or has no such name) and it isn't in the local cache",
            f"a network, a filled cache, or {kind}.revision=<40 hexadecimal digits>",
            f"run `hf download {flag}{path}` on a machine with network, or use {kind}.source=local "
            f"{kind}.path=/folder",
        )
    return f"hub:{path}@{commit or 'unresolved'}"


def _resolve(path: str, revision: str, kind: str) -> str | None:
    """The commit of a branch or tag: from the hub, or from the local cache where the hub can't be asked."""
    if _is_offline():
        return _cached_commit(path, revision, kind)
    try:
        import huggingface_hub

        info = huggingface_hub.HfApi().repo_info(path, repo_type=kind, revision=revision, timeout=10)
        commit = info.sha
    except Exception:  # network, rights, names, a missing library: the cache may still know
        commit = None
    return commit or _cached_commit(path, revision, kind)


def _is_offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _cached_commit(path: str, revision: str, kind: str) -> str | None:
    """What the hub's local cache last knew: <cache>/models--<organisation>--<name>/refs/<revision>."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    reference = cache.expanduser() / f"{kind}s--{path.replace('/', '--')}" / "refs" / revision
    try:
        commit = reference.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None

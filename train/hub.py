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


def check_reachable(identity: str, kind: str, error: type[UserError]) -> None:
    """Raise `error`, in one line, unless the snapshot of a hub identity is cached here or can be downloaded.

    Asked once before anything is started: a worker that finds out alone costs a failed run each time.
    """
    match = re.match(r"hub:([^@]+)@([0-9a-f]{40})", identity)
    if match is None or (_cache_of(match[1], kind) / "snapshots" / match[2]).is_dir():
        return
    path = match[1]
    flag = "--repo-type dataset " if kind == "dataset" else ""
    download = (
        f"run `hf download {flag}{path} --revision {match[2]}` where there is a network and copy the cache, "
        f"or use {kind}.source=local {kind}.path=/folder"
    )
    if _is_offline():
        raise error(
            f"{kind}.path={path} is not in the hub cache, and there is no network (HF_HUB_OFFLINE)",
            "a network or a filled cache",
            download,
        )
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        huggingface_hub.HfApi().auth_check(path, repo_type=kind)
    except GatedRepoError as refused:
        raise error(
            f"{kind}.path={path} is gated, and this account may not read it",
            "an accepted licence and a token",
            f"accept it on the hub's page of {path}, then `hf auth login`",
        ) from refused
    except RepositoryNotFoundError as missing:
        raise error(
            f"{kind}.path={path} is not on the hub, or is private",
            "organisation/name",
            "mend it, or `hf auth login`",
        ) from missing
    except Exception as failure:  # httpx, requests and OS errors alike: no answer
        raise error(
            f"{kind}.path={path} is not in the hub cache, and there is no network to the hub",
            "a network or a filled cache",
            download,
        ) from failure


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


def _cache_of(path: str, kind: str) -> Path:
    """The repository's folder in the hub's local cache: <cache>/models--<organisation>--<name>."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    return cache.expanduser() / f"{kind}s--{path.replace('/', '--')}"


def _cached_commit(path: str, revision: str, kind: str) -> str | None:
    """What the hub's local cache last knew of a branch or tag."""
    reference = _cache_of(path, kind) / "refs" / revision
    try:
        commit = reference.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None

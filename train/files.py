"""Files that are whole or not there: the few disk primitives that runs and the ledger share.

A reader never sees half of a file written here: content goes to a temporary name in the same folder, is
flushed to the disk and renamed (or hard-linked, where the first writer must win) into place. Both steps are
atomic on POSIX file systems, NFS included.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def to_json(value: Any, *, indent: int | None = 1) -> str:
    """Strict JSON: NaN and infinities raise ValueError, because an absent number is an absent key."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`, whole or not at all."""
    temporary = _write_temporary(path, text)
    os.replace(temporary, path)


def write_json_atomic(path: Path, value: Any) -> None:
    """Replace `path` by `value` as strict JSON, whole or not at all."""
    write_text_atomic(path, to_json(value))


def write_json_exclusive(path: Path, value: Any) -> bool:
    """Create `path` with its whole content; False if somebody else's was there first.

    A hard link instead of O_EXCL: exclusive creation would show an empty file until its content is written.
    """
    temporary = _write_temporary(path, to_json(value))
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """The mapping in `path`; None if the file is absent, half written or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Whether no other process is inside with the same lock file; it goes with its process, however that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _write_temporary(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary

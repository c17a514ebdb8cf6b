"""Files that are whole or not there: the few disk primitives that runs and the ledger share.

A reader never sees half of a file written here: content goes to a temporary name in the same folder, is
flushed to the disk and renamed (or hard-linked, where the first writer must win) into place. Both steps are
atomic on POSIX file systems, NFS included.
"""

import json
import os
import secrets
from collections.abc import Mapping
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

"""The content of files as hashes, remembered between commands: a checkpoint of 15 GB is read once."""

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from train.errors import UserError
from train.files import read_json, write_json_atomic

_RACY_S = 2.0  # a file changed this recently may change again within the clock's resolution: not remembered


def content_hashes(
    files: Iterable[Path], cache_folder: Path | None, error: type[UserError]
) -> dict[Path, str]:
    """The sha256 of each file's content, remembered while size, modification time and inode stay."""
    memo_path = None if cache_folder is None else cache_folder / "hashes.json"
    memo = dict(read_json(memo_path) or {}) if memo_path is not None else {}
    hashes: dict[Path, str] = {}
    is_changed = False
    for path in files:
        try:
            stat = path.stat()
            key, facts = str(path.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            known = memo.get(key)
            if (
                isinstance(known, list)
                and len(known) == 4
                and known[:3] == facts
                and isinstance(known[3], str)
            ):
                hashes[path] = known[3]
                continue
            with open(path, "rb") as stream:
                hashes[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise error(
                f"{path} can't be read: {problem.strerror}", "a readable file", "check its rights"
            ) from None
        if time.time() - stat.st_mtime > _RACY_S:
            memo[key] = [*facts, hashes[path]]
            is_changed = True
    if memo_path is not None and is_changed:
        memo_path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(memo_path, memo)
    return hashes

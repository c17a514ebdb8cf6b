"""The code that workers run: a copy of the tree at the moment of submission, named by its content.

<root>/.code/<hash>/ holds our packages and conf/, changes and new files that nobody has committed included, and
says in snapshot.json what it was. Whoever edits the checkout while runs wait changes none of them.
"""

import hashlib
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

from sweep.launch import CHECKOUT
from train.files import write_json_atomic

SNAPSHOT_FILE = "snapshot.json"
_PARTS = ("train", "sweep", "analysis", "conf", "pyproject.toml")
_LEFT_OUT = ("__pycache__",)


def freeze(root: Path | str, checkout: Path = CHECKOUT) -> Path:
    """The folder with a copy of `checkout` as it is now; made once for each content."""
    files = {path.relative_to(checkout): path.read_bytes() for path in _files(checkout)}
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    place = Path(root).absolute() / ".code" / digest.hexdigest()[:32]
    if place.exists():
        return place
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    for name, content in files.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    commit, changed = (
        _git(checkout, "rev-parse", "HEAD"),
        _git(checkout, "status", "--porcelain", "--", *_PARTS),
    )
    write_json_atomic(
        temporary / SNAPSHOT_FILE,
        {
            "code": place.name,
            "time": time.time(),
            "git_commit": "".join(commit) or None,
            "git_has_changes": bool(changed),
            "changed_files": sorted(line[3:] for line in changed),
        },
    )
    try:
        os.rename(temporary, place)  # whole or not there; a second writer of the same content finds it
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not place.exists():
            raise
    return place


def _files(checkout: Path) -> list[Path]:
    found: list[Path] = []
    for part in _PARTS:
        path = checkout / part
        found += (
            [path]
            if path.is_file()
            else [
                file
                for file in path.rglob("*")
                if file.is_file() and not set(file.parts) & set(_LEFT_OUT) and not file.name.startswith(".")
            ]
        )
    return found


def _git(checkout: Path, *words: str) -> list[str]:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()

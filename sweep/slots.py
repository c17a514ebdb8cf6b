"""Slots: how many workers a machine may run at once, whatever was started, and how often.

A slot is a file lock under <root>/.slots that a worker holds for as long as it lives; the kernel gives it
back at death, however sudden. The file's content says who holds it, so that others can look without touching
the lock: a reader that took the lock for a moment could turn a starting worker away.
"""

import fcntl
import json
import os
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from sweep.claims import Owner, is_alive, owner_from_dict, this_process
from train.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The living worker in one slot of this machine. job: the number its launcher knows it by."""

    slot: int
    sweep: str
    job: str
    owner: Owner


def take_slot(root: Path | str, sweep: str, slot: int, job: str = "") -> IO[str] | None:
    """Hold slot number `slot` of this machine until this process dies; None if a living worker has it."""
    path = _folder(root) / f"{_host()}-{slot}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the process dies
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    stream.truncate(0)
    stream.write(json.dumps({"sweep": sweep, "job": job, "owner": asdict(this_process(f"{_host()}-{slot}"))}))
    stream.flush()
    return stream


def holders(root: Path | str) -> dict[int, Holder]:
    """The living workers of this machine, of every sweep of this root, by slot."""
    found: dict[int, Holder] = {}
    try:
        names = os.listdir(_folder(root))
    except FileNotFoundError:
        return {}
    for name in names:
        match = re.fullmatch(re.escape(_host()) + r"-(\d+)\.lock", name)
        values = read_json(_folder(root) / name) if match else None
        owner = owner_from_dict(values.get("owner")) if values else None
        if match and values and owner and is_alive(owner, lambda: float("inf")):
            found[int(match[1])] = Holder(
                slot=int(match[1]), sweep=str(values.get("sweep")), job=str(values.get("job")), owner=owner
            )
    return found


def _folder(root: Path | str) -> Path:
    return Path(root) / ".slots"


def _host() -> str:
    return socket.gethostname().replace("/", "_") or "localhost"

"""The files that attempts at a run leave, read without judging them; `sweep.ledger` draws the conclusions."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from train.files import read_json
from train.record import RunRecord, record_from_dict

_ATTEMPT_FILE = re.compile(
    r"(\d{4,})\.(json|heartbeat|failure\.json|lost\.json|released|paused|retry|cancel\.json)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How far an attempt came, and when it said so (seconds since 1970)."""

    step: int
    num_steps: int
    time: float


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The heartbeat in `path`; None if there is none to be read."""
    values = read_json(path) or {}
    try:
        return Heartbeat(
            step=int(values["step"]), num_steps=int(values["num_steps"]), time=float(values["time"])
        )
    except (KeyError, TypeError, ValueError):
        return None


def tail(path: Path, num_lines: int) -> list[str]:
    """The last lines with something in them; [] if there is no such file."""
    try:
        with open(path, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 65536))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()][-num_lines:]


def attempts_in(folder: Path) -> dict[int, set[str]]:
    """Which files each attempt has; attempts without a claim file aren't any."""
    files: dict[int, set[str]] = {}
    try:
        names = os.listdir(folder / "attempts")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for name in names:
        if match := _ATTEMPT_FILE.fullmatch(name):
            files.setdefault(int(match[1]), set()).add(match[2])
    return {attempt: kinds for attempt, kinds in files.items() if "json" in kinds}


def believed_record(path: Path, fingerprint: str) -> RunRecord | None:
    """The record in `path`, if it is whole, of a version we can read, and of that run."""
    values = read_json(path)
    record = record_from_dict(values) if values is not None else None
    return record if record is not None and record.fingerprint == fingerprint else None

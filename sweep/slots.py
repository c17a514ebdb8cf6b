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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from sweep.claims import Owner, is_alive, owner_from_dict, this_process
from train.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The living worker in one slot of this machine. job: the number its launcher knows it by.

    ranks: of the runs that it trains; it holds as many slots, if there are so many.
    """

    slot: int
    sweep: str
    job: str
    owner: Owner
    ranks: int = 1


def take_slots(
    root: Path | str, sweep: str, first: int, job: str, ranks: int, num_slots: int
) -> dict[int, IO[str]] | None:
    """Slots for a worker whose runs have so many ranks, from number `first` on; all of them or None."""
    width, held = min(ranks, num_slots), dict[int, IO[str]]()
    for number in range(num_slots):
        slot = (first + number) % num_slots
        if (lock := take_slot(root, sweep, slot, job, ranks)) is not None:
            held[slot] = lock
        if len(held) == width:
            return held
        if first not in held:  # it's somebody's: we were started by mistake
            break
    for lock in held.values():
        lock.truncate(0)
        lock.close()
    return None


def places_to_start(
    claimable: Mapping[int, int], present: Mapping[int, int], free: Sequence[int], num_slots: int
) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Which workers to start: by the ranks of their runs, the slots of each. Pure.

    claimable   runs that wait, by their ranks; present: workers for such runs that are free or starting
    The widest come first, and what is free is kept for them: narrow ones would never let them in.
    """
    found: list[tuple[int, list[tuple[int, ...]]]] = []
    for ranks in sorted(claimable, reverse=True):
        width, num_lacking = min(ranks, num_slots), claimable[ranks] - present.get(ranks, 0)
        number = max(0, min(len(free) // width, num_lacking))
        if number:
            found.append((ranks, [tuple(free[k * width : (k + 1) * width]) for k in range(number)]))
            free = free[number * width :]
        if num_lacking > number:
            break
    return found


def devices_of(slots: Collection[int], gpus: Sequence[str], num_slots: int, ranks: int) -> list[str]:
    """The devices of a worker in those slots; slot k has device k modulo their number.

    What a run of several ranks lacks, because there are fewer slots than devices or more, is filled up from
    devices that belong to no slot, then from any.
    """
    if not gpus:
        return []
    own = [gpus[slot % len(gpus)] for slot in slots]
    return list(dict.fromkeys([*own, *gpus[num_slots:], *gpus]))[:ranks]


def take_slot(root: Path | str, sweep: str, slot: int, job: str = "", ranks: int = 1) -> IO[str] | None:
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
    owner = asdict(this_process(f"{_host()}-{slot}"))
    stream.write(json.dumps({"sweep": sweep, "job": job, "owner": owner, "ranks": ranks}))
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
                slot=int(match[1]),
                sweep=str(values.get("sweep")),
                job=str(values.get("job")),
                owner=owner,
                ranks=int(values.get("ranks", 1)),
            )
    return found


def _folder(root: Path | str) -> Path:
    return Path(root) / ".slots"


def _host() -> str:
    return socket.gethostname().replace("/", "_") or "localhost"

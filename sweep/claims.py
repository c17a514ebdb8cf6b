"""Who holds a run, and whether that process still lives.

A claim is one file with its whole content from the first moment on, never renewed and never deleted. A dead
claim N is taken over by creating claim N+1: one winner, and no name ever means two things (no ABA). On the
same machine liveness is a fact (the process exists and started when the claim says), never an age: a worker
that is stopped, swapped out or asleep for an hour is alive. Only for a claim of another machine, whose
processes nobody here can see, does the age of its heartbeat decide.
"""

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOB_VARIABLE = "WEIGHT_SWEEP_JOB"
FOREIGN_SILENCE_S = 300.0  # a claim of another machine without a heartbeat for so long is dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process, named so that no other process at any time or place has the same name."""

    host: str
    boot_id: str  # changes when the machine starts
    pid_namespace: str  # process numbers mean something only inside one
    pid: int
    process_start: str  # clock ticks since the machine started; "" where /proc is absent
    worker: str = ""  # for people
    claimed_at: float = 0.0  # seconds since 1970
    job: str = ""  # of a scheduler, see `sweep.slurm.jobs`; "" for a process of its own
    num_oom_kills: int = 0  # of the machine, since it started

    @property
    def place(self) -> tuple[str, str, str]:
        """Where its process number can be looked up."""
        return self.host, self.boot_id, self.pid_namespace


def this_process(worker: str = "") -> Owner:
    """The calling process as an owner."""
    host, boot_id, pid_namespace = _this_place()
    return Owner(
        host=host,
        boot_id=boot_id,
        pid_namespace=pid_namespace,
        pid=os.getpid(),
        process_start=process_start(os.getpid()) or "",
        worker=worker,
        claimed_at=time.time(),
        job=os.environ.get(JOB_VARIABLE, ""),
        num_oom_kills=num_oom_kills(),
    )


def owner_from_dict(values: Mapping[str, Any] | None) -> Owner | None:
    """The owner in `values`; None if it isn't one this code can read."""
    if values is None:
        return None
    names = {item.name for item in dataclasses.fields(Owner)}
    try:
        return Owner(**{name: value for name, value in values.items() if name in names})
    except TypeError:
        return None


def is_alive(owner: Owner, silence_s: Callable[[], float]) -> bool:
    """Whether the owner may still be working. silence_s: asked only for an owner of another machine.

    A scheduler's job lives until somebody who asked the scheduler writes down that it doesn't.
    """
    if owner.job:
        return True
    if not is_of_this_machine(owner):
        return silence_s() < FOREIGN_SILENCE_S
    return process_lives(owner.pid, owner.process_start)


def is_of_this_machine(owner: Owner) -> bool:
    """Whether its process could be seen from here."""
    return owner.place == _this_place()


def process_lives(pid: int, start: str) -> bool:
    """Whether the process `pid` that started at `start` exists here and isn't a zombie."""
    if start:
        return process_start(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def process_start(pid: int) -> str | None:
    """When the process started, in clock ticks; None if there is none, it is a zombie, or /proc is absent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rfind(")") + 2 :].split()  # the name, in brackets, may hold anything
    if len(fields) < 20 or fields[0] in ("Z", "X", "x"):
        return None
    return fields[19]


def num_oom_kills() -> int:
    """How many processes the kernel has ended for lack of memory, here or in our control group."""
    total = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                if line.startswith("oom_kill "):
                    total += int(line.split()[1])
    return total


_PLACE: list[tuple[str, str, str]] = []  # it can't change while a process lives


def _this_place() -> tuple[str, str, str]:
    if not _PLACE:
        try:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            pid_namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            boot_id, pid_namespace = "", ""
        _PLACE.append((socket.gethostname(), boot_id, pid_namespace))
    return _PLACE[0]

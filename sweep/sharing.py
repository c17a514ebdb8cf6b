"""What a worker knows of the others on its device, and what a task has for all of them. See `sweep.packs`."""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.spec import RunSpec
from sweep.workloads import workload_of
from train.files import read_json, write_json_atomic
from train.record import RunRecord

PACKED_OOM = "packed_oom"  # a loss that memory shared with other runs is to blame for
CROWDED = 5  # what a worker returns that ran out of memory among others
_READ_EVERY_S = 0.5


@dataclass(slots=True)
class Shared:
    """A worker's view of the task it is one worker of; without a file, a task of its own."""

    path: Path | None = None
    ledger: Ledger | None = None
    _read_at: float = -1e9
    _values: Mapping[str, Any] = field(default_factory=dict)

    def runs_at_once(self) -> int:
        """How many runs share the device now."""
        return int(self._state().get("runs_at_once", 1))

    def may_claim(self, spec: RunSpec) -> bool:
        """Among others, only runs that are known to fit, and that didn't run out of memory there before."""
        if self.path is None or self.ledger is None or self.runs_at_once() == 1:
            return True
        shapes = self._state().get("shapes")
        if shapes is not None and workload_of(spec).shape not in shapes:
            return False
        return PACKED_OOM not in self.ledger.losses(spec.fingerprint)

    def described(self, record: RunRecord) -> RunRecord:
        """The record, saying with how many it shared its device, and why so many."""
        if self.path is None:
            return record
        pack = {
            key: self._state()[key] for key in ("runs_at_once", "why", "measured") if key in self._state()
        }
        return replace(record, environment={**record.environment, "pack": pack})

    def _state(self) -> Mapping[str, Any]:
        if self.path is not None and time.monotonic() - self._read_at > _READ_EVERY_S:
            self._read_at, self._values = time.monotonic(), read_json(self.path) or {}
        return self._values


ALONE = Shared()


def pack_path(folder: SweepFolder, task: str) -> Path:
    """Where the task of that name (a job's number, or host and slot) says how it packs."""
    return folder.path / "packs" / f"{task}.json"


def undo_of_dead(folder: SweepFolder, task: str, why: str) -> bool:
    """Whether a task that was ended for its memory had packed its runs; if so, no later one packs."""
    path = pack_path(folder, task)
    values = read_json(path) or {}
    if int(values.get("runs_at_once", 1)) > 1:
        values = {**values, "runs_at_once": 1, "undone": why, "ended_packed": True}
        write_json_atomic(path, values)
    return bool(values.get("ended_packed"))


def memory_of_this_task(share: int = 1) -> float | None:
    """GiB that this task may use: what SLURM or the control group allows, else its part of what is free."""
    found: list[float] = []
    with contextlib.suppress(KeyError, ValueError):
        found.append(float(os.environ["SLURM_MEM_PER_NODE"]) / 1024)
    with contextlib.suppress(KeyError, ValueError):
        per_cpu = float(os.environ["SLURM_MEM_PER_CPU"])
        found.append(per_cpu * float(os.environ["SLURM_CPUS_PER_TASK"]) / 1024)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(path).read_text(encoding="ascii")) / 2**30)
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(free.split()[1]) / 2**20 / share)
    return min(found, default=None)


def resident_gb(pid: int) -> float:
    """What a process holds in memory now, in GiB, libraries shared with others included; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30

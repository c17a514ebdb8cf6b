"""Several runs at once on one device: a task that measures its first run, starts more workers, and takes it back.

    <root>/<sweep>/packs/<task>.json    how many at once and why, what was measured, what undid it

A run is trained by the same code, alone in its process, with the same threads: packed or not, its bits are the same.
With pack=auto the first run of each shape (`sweep.workloads`) is trained alone and measured; then as many workers run
as `sweep.packing` says. Where memory runs out all the same, the task goes back to one run at a time, and the run that
was lost is trained by a task that trains nothing else. That loss (packed_oom) is the packing's and not the run's.
"""

import contextlib
import ctypes
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from sweep.attempts import tail
from sweep.claims import num_oom_kills
from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.ledger import CLAIMABLE, Ledger
from sweep.packing import Footprint, Place, footprint, runs_at_once
from sweep.sharing import CROWDED, PACKED_OOM, Shared, pack_path, resident_gb
from sweep.slurm.evidence import failure_class
from sweep.spec import RunSpec, Status
from sweep.timesheets import Entry, Timesheet, shifts
from sweep.workloads import workload_of
from train.files import read_json, write_json_atomic

NOTHING_LEFT, SAME_FAILURE = 0, 4  # as `sweep.worker` has them
DISK_FULL = 7  # what a worker's process ends with that found no room to write
POLL_S, LOOK_EVERY_S = 0.1, 1.0
NUM_DEATHS = 3  # of workers, for no cause that is known
_SHORT = 0.75  # of the memory: somebody who is killed while so much is taken was killed for it


class Pack:
    """One task's workers. number: None to measure, else so many at once."""

    def __init__(
        self,
        ledger: Ledger,
        folder: SweepFolder,
        stop: Flag,
        *,
        task: str,
        class_name: str,
        number: int | None,
        place: Place,
        num_threads: int,
        make_worker: Callable[[int, Shared], Any],
        is_ours: Callable[[RunSpec], bool] = lambda spec: True,
    ) -> None:
        """make_worker(index, shared) makes, in its own process, one that has `run`. is_ours: which runs it may take."""
        self.ledger, self.folder, self.stop, self.number, self.place = ledger, folder, stop, number, place
        self._num_threads, self._make_worker, self._is_ours = num_threads, make_worker, is_ours
        self._path, self._class_name = pack_path(folder, task), class_name
        self._children: dict[int, int] = {}  # pid -> index
        self._runs_at_once, self._why, self._undone, self._num_deaths = 1, "measuring", "", 0
        self._measured: dict[str, Any] = {}
        self._shapes: list[str] | None = []
        self._codes: list[int] = []
        self._num_oom_kills, self._resident_gb = num_oom_kills(), 0.0
        self._timesheet = Timesheet(
            folder.root, folder.name, f"{task}, all", gpus=place.gpus, cores=place.cores
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._recall()
        self._write()

    def run(self) -> int:
        """Until no run is left that this task may take, or it is asked to stop; what its workers returned.

        Raises   OSError for a full disk, as one worker alone does, once all have ended.
        """
        self._start(0)
        next_look = next_signal = time.monotonic() + LOOK_EVERY_S
        while self._children:
            time.sleep(POLL_S)
            self._reap()
            if time.monotonic() >= next_look:
                self._timesheet.beat()
                started = time.monotonic()
                self._look()
                next_look = time.monotonic() + max(LOOK_EVERY_S, 5 * (time.monotonic() - started))
            if self.stop.is_set() and time.monotonic() >= next_signal:
                self._signal_all()
                next_signal = time.monotonic() + 1.0
            if not self._children and self._has_more():
                self._change(1, self._why)  # what is left must be measured first, or be alone
                self._start(0)
        self._timesheet.beat()
        if DISK_FULL in self._codes:
            raise OSError(errno.ENOSPC, "packed runs found no room on the disk; they can be continued")
        return SAME_FAILURE if SAME_FAILURE in self._codes else next(filter(None, self._codes), NOTHING_LEFT)

    def _recall(self) -> None:
        """What is known from the start: the number asked for, or that packing was undone before."""
        others = [read_json(path) or {} for path in sorted(self._path.parent.glob("*.json"))]
        undone = [
            values["undone"]
            for values in others
            if values.get("undone") and values.get("class_name") == self._class_name
        ]
        if undone:
            self._undone, self._why, self._shapes = undone[0], f"packing was undone: {undone[0]}", None
        elif self.number is not None:
            self._runs_at_once, self._why, self._shapes = self.number, "launcher.pack", None

    def _look(self) -> None:
        """Measure, and start the workers that fit and have something to do."""
        self._resident_gb = sum(map(resident_gb, self._children))
        if self.stop.is_set() or self._undone or self._codes:
            return
        runs = [spec for spec in self._open_runs() if not self._is_marked(spec)]
        if self.number is None:
            runs = self._decide(runs)
        wanted = min(self._runs_at_once, len(self._children) + len(runs))
        for index in sorted(set(range(wanted)) - set(self._children.values())):
            if len(self._children) < wanted:
                self._start(index)

    def _decide(self, runs: list[RunSpec]) -> list[RunSpec]:
        """The open runs that may run among others; the first of a shape that was measured says how many do."""
        shapes = {spec.fingerprint: workload_of(spec).shape for spec in runs}
        seen = self._footprints(set(shapes.values()))
        known = [shapes[spec.fingerprint] for spec in runs if shapes[spec.fingerprint] in seen]
        if not known:
            return []
        numbers = {shape: runs_at_once(one, self.place) for shape, one in seen.items()}
        number, why = numbers[known[0]]
        if self._runs_at_once > 1:
            number, why = self._runs_at_once, self._why
        fitting = {shape for shape in known if numbers[shape][0] >= number}
        if number > 1 and sorted(fitting) != self._shapes:
            self._shapes = sorted(fitting)
            self._measured = {
                name: round(value, 3)
                for name in ("memory_gb", "cores", "device_gb", "device_share", "device_total_gb")
                if (value := getattr(seen[known[0]], name)) is not None
            }
            self._change(number, why)
        elif number == 1:
            self._why = why
        return [spec for spec in runs if shapes[spec.fingerprint] in fitting] if number > 1 else []

    def _footprints(self, shapes: set[str]) -> dict[str, Footprint]:
        """Of runs of these shapes, on such a device and alone on it, in any sweep of this root."""
        found: dict[str, list[Entry]] = {}
        for shift in shifts(self.folder.root):
            if bool(shift.gpus_used) == bool(self.place.gpus):
                for entry in shift.entries:
                    if entry.workload.shape in shapes and (entry.pack == 1 or not self.place.gpus):
                        found.setdefault(entry.workload.shape, []).append(entry)
        measured = {shape: footprint(entries, self._num_threads) for shape, entries in found.items()}
        return {shape: one for shape, one in measured.items() if one is not None}

    def _open_runs(self) -> list[RunSpec]:
        plan = self.folder.plan()
        if plan is None:
            return []
        self.ledger.stops = plan.stops
        runs = [spec for spec in plan.runs if self._is_ours(spec)]
        states = self.ledger.statuses(spec.fingerprint for spec in runs)
        return [spec for spec in runs if states[spec.fingerprint].status in CLAIMABLE]

    def _is_marked(self, spec: RunSpec) -> bool:
        return PACKED_OOM in self.ledger.losses(spec.fingerprint)

    def _has_more(self) -> bool:
        """Whether runs are left that no worker among others may take."""
        if (
            self.stop.is_set()
            or {SAME_FAILURE, DISK_FULL} & set(self._codes)
            or self._num_deaths >= NUM_DEATHS
        ):
            return False
        if self._undone and CROWDED in self._codes:
            self._codes = [code for code in self._codes if code != CROWDED]
            return bool(self._open_runs())
        return self._runs_at_once > 1 and bool(self._open_runs())

    def _start(self, index: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()  # nothing heavy is loaded yet, and no thread runs
        if pid:
            self._children[pid] = index
            return
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, lambda *_: self.stop.set())
            _die_with_parent()
            shared = Shared(self._path, self.ledger)
            code = self._make_worker(index, shared).run()
        except BaseException as error:
            is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            code = DISK_FULL if is_full else 1
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _reap(self) -> None:
        for pid, index in list(self._children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self._children[pid]
            code = os.waitstatus_to_exitcode(status)
            if code == CROWDED:
                self._codes.append(CROWDED)
                self._undo(f"worker {index} ran out of memory among {self._runs_at_once}")
            elif code < 0 or code == 1:
                self._bury(pid, index, code)
            elif code != NOTHING_LEFT:
                self._codes.append(code)
                self._signal_all()

    def _bury(self, pid: int, index: int, code: int) -> None:
        """A worker that died: for lack of memory among others, or for a cause of its own."""
        how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        held = self._held_by(pid)
        text = "\n".join(
            line
            for name, attempt in held
            for line in tail(self.ledger.attempt_path(name, attempt, "log"), 20)
        )
        is_memory = self._is_memory_short() or failure_class("", text) in ("host_oom", "cuda_oom")
        if self._runs_at_once > 1 and is_memory:
            why = f"worker {index} of {self._runs_at_once} at once: {how}"
            for name, attempt in held:
                self.ledger.give_up(name, attempt, PACKED_OOM, why)
            self._codes.append(CROWDED)
            self._undo(why)
            return
        for name, attempt in held:
            self.ledger.give_up(name, attempt, "killed", f"its worker: {how}")
        self._num_deaths += 1
        if self._num_deaths >= NUM_DEATHS or self._runs_at_once == 1:
            self._codes.append(1)
            self._signal_all()

    def _is_memory_short(self) -> bool:
        """Whether the kernel has ended processes for it since the last look, or nearly all of it was taken."""
        kills, self._num_oom_kills = self._num_oom_kills, num_oom_kills()
        limit = self.place.memory_gb
        return self._num_oom_kills > kills or (limit is not None and self._resident_gb > _SHORT * limit)

    def _held_by(self, pid: int) -> list[tuple[str, int]]:
        plan = self.folder.plan()
        states = self.ledger.statuses(spec.fingerprint for spec in plan.runs) if plan else {}
        host = os.uname().nodename
        return [
            (name, state.attempt)
            for name, state in states.items()
            if state.status in (Status.RUNNING, Status.LOST)
            and state.owner is not None
            and (state.owner.pid, state.owner.host) == (pid, host)
        ]

    def _undo(self, why: str) -> None:
        """Back to one run at a time: the others save, give back, and one goes on."""
        self._undone = why
        print(f"packing undone, one run at a time from here on: {why}", flush=True)
        self._change(1, f"packing was undone: {why}")
        self._signal_all()

    def _change(self, number: int, why: str) -> None:
        if number > self._runs_at_once:
            print(f"{number} runs at once: {why}", flush=True)
        self._runs_at_once, self._why = number, why
        self._write()

    def _write(self) -> None:
        values = {
            "class_name": self._class_name,
            "runs_at_once": self._runs_at_once,
            "why": self._why,
            "measured": self._measured,
            "shapes": self._shapes,
            "undone": self._undone,
        }
        with contextlib.suppress(OSError):  # a full disk: nobody may be left alone for it
            write_json_atomic(self._path, values)

    def _signal_all(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _die_with_parent() -> None:
    """If the task is killed, its workers save and end."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, on Linux

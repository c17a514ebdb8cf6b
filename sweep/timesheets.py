"""What workers spent their time on, written down as they work: what forecasts, bills and packing stand on.

    <root>/.timesheets/<host>-<pid>-<start>.jsonl      one file for each worker's life, shared by all sweeps of a root
        {"worker": ..., "started_at": ..., ...}        the shift: whose, since when, on what
        {"ready_s": ...}                               once it could train: interpreter, imports
        {"fingerprint": ..., "seconds": ..., ...}      a line for each attempt at a run, whatever became of it

The file's time of last change is when its worker was last seen alive, so a worker that is killed is billed, too.
Lines are appended and never flushed to the disk: what a power cut takes from a bill is no result.
"""

import contextlib
import dataclasses
import json
import os
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.evaluations import is_evaluation
from sweep.spec import RunSpec
from sweep.workloads import Workload, workload_from_dict, workload_of
from train.record import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One attempt at a run. Seconds since the one before, so that nothing of a worker's life is left out.

    is_first: the worker had to load the model or the data; `setup_s` is mostly that. steps: those done in this
    attempt. num_steps: those of the whole run. pack: runs at once on the worker's device. memory_gb: the most the
    process ever held; device_gb, device_share: of the device's memory and time, where there is one. demand:
    processor cores the run wanted on average, waiting for one included.
    """

    fingerprint: str
    workload: Workload
    outcome: str
    seconds: float
    setup_s: float
    training_s: float
    evaluation_s: float
    steps: int
    num_steps: int
    num_tokens: int
    is_first: bool
    pack: int = 1
    memory_gb: float | None = None
    demand: float | None = None
    device_gb: float | None = None
    device_share: float | None = None
    device_total_gb: float | None = None

    @property
    def own_s(self) -> float:
        """The run's own time: without what its worker does once for many."""
        return max(0.0, self.seconds - self.setup_s) if self.is_first else self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One worker's life. gpus, cores: what it is billed for; none where the worker is one of several of a task."""

    sweep: str
    worker: str
    started_at: float  # seconds since 1970
    seen_at: float
    gpus: float
    cores: float
    gpus_used: int = 0  # whoever pays
    ready_s: float | None = None
    entries: tuple[Entry, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it was at work."""
        return max(0.0, self.seen_at - self.started_at)


class Timesheet:
    """The writer's side, for one worker at a time."""

    def __init__(
        self, root: Path | str, sweep: str, worker: str, *, gpus: float, cores: float, gpus_used: int = 0
    ) -> None:
        self.started_at = process_started_at()
        self._path = (
            Path(root) / ".timesheets" / f"{os.uname().nodename}-{os.getpid()}-{self.started_at:.2f}.jsonl"
        )
        self._last, self._loaded, self._spec, self._is_ready = time.monotonic(), "", None, False
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():  # another worker of this process, whose life goes on
            return
        self._write(
            sweep=sweep,
            worker=worker,
            started_at=self.started_at,
            gpus=gpus,
            cores=cores,
            gpus_used=gpus_used or int(gpus),
        )

    def begin(self, spec: RunSpec) -> None:
        """A run is about to be trained."""
        self._spec, self._steps, self._used = spec, [], _processor_s()
        self._begun = time.monotonic()

    def ready(self) -> None:
        """What trains is loaded: all before was the worker's start."""
        if not self._is_ready:
            self._is_ready = True
            self._last = self._begun = time.monotonic()
            self._write(ready_s=time.time() - self.started_at)
            self._used = _processor_s()

    def progress(self, step: int, num_steps: int) -> None:
        """The run came so far. What an evaluation counts, outputs of slabs, are no steps of a pace."""
        if self._spec is not None and is_evaluation(self._spec):
            return
        if len(self._steps) > 1:
            self._steps.pop()
        self._steps.append((step, num_steps, time.monotonic()))

    def beat(self) -> None:
        """The worker lives."""
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def end(self, outcome: str, record: RunRecord | None, pack: int = 1) -> None:
        """The attempt is over; `record` if there is one."""
        if self._spec is None:
            return
        now = time.monotonic()
        parts = self._parts(now, record)
        self._note(self._spec, outcome, record, now - self._last, parts, now, pack)
        self._last, self._spec = now, None

    def end_together(self, runs: Sequence[tuple[RunSpec, str, RunRecord | None]]) -> None:
        """Attempts that were one are over: run, outcome, record. Each has an even share, the first the set-up."""
        now = time.monotonic()
        parts = self._parts(now, None)
        records = [record for *_, record in runs if record is not None]
        if records and not self._steps:  # evaluations
            setup_s, evaluation_s = (
                sum(getattr(record, name) for record in records) for name in ("setup_s", "evaluation_s")
            )
            parts = setup_s, 0.0, evaluation_s, 0, 0
        setup_s, training_s, evaluation_s, steps, num_steps = parts
        share = 1.0 / len(runs)
        for index, (spec, outcome, record) in enumerate(runs):
            own_setup_s = 0.0 if index else setup_s
            seconds = own_setup_s + share * (now - self._last - setup_s)
            parts = own_setup_s, share * training_s, share * evaluation_s, steps, num_steps
            self._note(spec, outcome, record, seconds, parts, now, 1)
        self._last, self._spec = now, None

    def _note(
        self,
        spec: RunSpec,
        outcome: str,
        record: RunRecord | None,
        seconds: float,
        parts: tuple[float, float, float, int, int],
        now: float,
        pack: int,
    ) -> None:
        setup_s, training_s, evaluation_s, steps, num_steps = parts
        loaded = f"{spec.model_identity} {spec.dataset_identity}"
        how = record.environment if record is not None else {}
        tokens_per_s = record.tokens_per_s if record is not None else None
        entry = Entry(
            fingerprint=spec.fingerprint,
            workload=workload_of(spec),
            outcome=outcome,
            seconds=seconds,
            setup_s=setup_s,
            training_s=training_s,
            evaluation_s=evaluation_s,
            steps=steps,
            num_steps=num_steps,
            num_tokens=round(tokens_per_s * record.training_s) if tokens_per_s and record else 0,
            is_first=loaded != self._loaded,
            pack=pack,
            memory_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # KiB on Linux
            demand=(_processor_s() - self._used) / max(now - self._begun, 1e-3),
            device_gb=how.get("device_memory_gb"),
            device_share=how.get("device_share"),
            device_total_gb=how.get("device_total_gb"),
        )
        self._loaded = loaded
        self._write(**dataclasses.asdict(entry))

    def _parts(self, now: float, record: RunRecord | None) -> tuple[float, float, float, int, int]:
        """Set-up, training, evaluation in seconds; steps of this attempt and of the run."""
        if not self._steps:
            if record is None:
                return now - self._begun, 0.0, 0.0, 0, 0
            return record.setup_s, record.training_s, record.evaluation_s, 0, record.num_steps
        (first, num_steps, first_at), (last, _, last_at) = self._steps[0], self._steps[-1]
        pace_s = (last_at - first_at) / max(1, last - first)
        setup_s = record.setup_s if record is not None else max(0.0, first_at - self._begun - pace_s)
        training_s = max(0.0, last_at - self._begun - setup_s)
        evaluation_s = now - last_at if last >= num_steps else 0.0
        return setup_s, training_s, evaluation_s, last - first + 1, num_steps

    def _write(self, **values: Any) -> None:
        with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")  # a full disk must not cost a run


def shifts(root: Path | str) -> list[Shift]:
    """Every worker's life below a root, oldest first; lines of another version are left out."""
    found: list[Shift] = []
    for path in _files(Path(root)):
        with contextlib.suppress(OSError, TypeError, KeyError, ValueError):
            lines = [_values(line) for line in path.read_text(encoding="utf-8").splitlines()]
            head, rest = lines[0], lines[1:]
            found.append(
                Shift(
                    **head,
                    seen_at=path.stat().st_mtime,
                    ready_s=next((line["ready_s"] for line in rest if "ready_s" in line), None),
                    entries=tuple(_entry(line) for line in rest if "fingerprint" in line),
                )
            )
    return sorted(found, key=lambda shift: shift.started_at)


def process_started_at() -> float:
    """When this process, or the job that it is all of, began (seconds since 1970)."""
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as stream:
            ticks = int(stream.read().rpartition(")")[2].split()[19])
        age_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - ticks / os.sysconf(
            "SC_CLK_TCK"
        )
        return time.time() - age_s
    except (OSError, ValueError, IndexError):  # no /proc: the imports before this line go unbilled
        return time.time()


def _processor_s() -> float:
    """Processor seconds this process used or waited for: what it would use if it were alone."""
    used = time.process_time()
    for path in _files(Path("/proc/self/task"), pattern="*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            used += int(path.read_text(encoding="ascii").split()[1]) / 1e9
    return used


def _files(folder: Path, pattern: str = "") -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.glob(pattern) if pattern else (folder / ".timesheets").glob("*.jsonl")


def _values(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:  # half written
        return {}
    return value if isinstance(value, dict) else {}


def _entry(values: Mapping[str, Any]) -> Entry:
    return Entry(**{**values, "workload": workload_from_dict(values["workload"])})

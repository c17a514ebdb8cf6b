"""`python -m train.mirror PID`: the process beside a worker that repeats its runs to W&B or trackio.

A mirror reads the run's own events.jsonl and repeats its lines to a *sink*. Training never speaks to a sink: it
only writes its file, as it does without any mirror. What a sink hears is what is on disk, so a mirror that starts
late, resumes, or comes back after its server did, catches up by reading. Rejected: logging from the training loop
(a client that blocks, blocks training), a queue (lost with the process, while the file isn't), and a thread of the
training process (it shares the interpreter with the steps: 6 % of a run of 45 steps a second).

The worker (`train.tracking`) writes requests to standard input, a JSON object a line, with a number for each run:

    {"run": 1, "open": {...}}      what `_open` takes
    {"run": 1, "begin": true}      its events.jsonl is this attempt's: cut to its checkpoint, then only growing
    {"run": 1, "finish": {...}}    its record; null: it goes on elsewhere

and hears on standard output {"run": 1, "say": text} and, once, {"run": 1, "lack": text}: what the mirror lacks.
When the worker is gone, so is this process: what a dead worker's run lacks, its next attempt sends.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from train.record import RunRecord, record_from_dict
from train.tracking_values import MirroredRun, one_line

POLL_S = 0.7  # with the sinks' own flushing below one second in all: what a SIGKILL may cost a mirror
WORKER_S = 2.0  # between two looks whether the worker lives, for pipes that its children hold open
EXIT_S = 5.0  # at most, for W&B to end its service
_FRUGAL = {"GOMAXPROCS": "1", "GOGC": "400"}  # W&B's service, in Go: a third less CPU than on several threads
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Sink(Protocol):
    """One place that shows runs. Any call may raise, and may take for ever."""

    def open(self) -> int:
        """Connect; the last step that is there already, 0 for none."""
        ...

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """One step's numbers, steps ascending."""
        ...

    def close(self, record: RunRecord | None) -> str:
        """The final numbers, then the end; what was lost in one line, or ""."""
        ...


class EventReader:
    """The steps of an events.jsonl in order, each once; a half-written last line is read when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self._position, self._rest = path, 0, b""

    def new(self) -> list[dict[str, Any]]:
        """What was written since the last call. A step is a line with a whole number under "step"."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self._position)
                content = stream.read()
        except FileNotFoundError:
            return []
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [event for line in lines if (event := _event(line)) is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("step"), int) else None


class Mirror:
    """Repeats one run's events.jsonl to the first of some sinks that opens, in a thread of its own.

    on_close: called once, with what the mirror lacks, in one line, or "".
    """

    def __init__(
        self,
        sinks: Sequence[Callable[[], Sink]],
        events: Path,
        say: Callable[[str], None],
        on_close: Callable[[str], None],
    ) -> None:
        self._sinks, self._events, self._say, self._on_close = sinks, events, say, on_close
        self._has_begun, self._is_over = threading.Event(), threading.Event()
        self._record: RunRecord | None = None
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def begin(self) -> None:
        """From now on the file is this attempt's."""
        self._has_begun.set()

    def finish(self, record: RunRecord | None) -> None:
        """Read the rest and close; None: the run goes on elsewhere."""
        self._record = record
        self._has_begun.set()
        self._is_over.set()

    def _work(self) -> None:
        try:
            lack = self._repeat()
        except Exception as error:  # a sink may break in any way
            lack = one_line(error)
        self._on_close(lack)

    def _repeat(self) -> str:
        sink, last = self._open()
        reader, is_over = EventReader(self._events), False
        while not is_over:
            is_over = self._is_over.wait(POLL_S)
            if not self._has_begun.is_set():
                continue
            for event in reader.new():
                if event["step"] > last:
                    last = event["step"]
                    sink.log(last, {key: value for key, value in event.items() if key != "step"})
        return sink.close(self._record)

    def _open(self) -> tuple[Sink, int]:
        """The first sink that opens; the last one's failure is raised."""
        *others, last = self._sinks
        for make in others:
            try:
                sink = make()
                return sink, sink.open()
            except Exception as error:
                self._say(f"training goes on without it: {one_line(error)}")
        sink = last()
        return sink, sink.open()


def sinks_of(mode: str, mirrored: MirroredRun, folder: Path, gpu_pid: int | None) -> list[Callable[[], Sink]]:
    """Where a run with tracking=mode is repeated to, in the order of trying.

    gpu_pid: the process whose devices W&B is to watch; None where there are none.
    """
    if mode == "trackio":
        from train.tracking_trackio import TrackioSink

        return [lambda: TrackioSink(mirrored)]
    from train.tracking_wandb import Mode, WandbSink, is_server_trusted

    modes: list[Mode] = ["online", "offline"] if mode == "wandb" and is_server_trusted() else ["offline"]
    return [lambda mode=mode: WandbSink(mirrored, folder, mode, gpu_pid) for mode in modes]


class _Process:
    """Standard input and output as one mirror for each run."""

    def __init__(self, answers: Callable[[Mapping[str, Any]], None]) -> None:
        self._answer = answers
        self.open: dict[int, Mirror] = {}

    def hear(self, request: Mapping[str, Any]) -> None:
        """One request; one for a run that is closed already is none."""
        run = request["run"]
        if "open" in request:
            self.open[run] = self._open(run, **request["open"])
        elif (mirror := self.open.get(run)) is not None:
            if "begin" in request:
                mirror.begin()
            else:
                mirror.finish(record_from_dict(request["finish"] or {}))

    def _open(
        self, run: int, *, mode: str, folder: str, mirrored: Mapping[str, Any], gpu_pid: int | None
    ) -> Mirror:
        def close(lack: str) -> None:
            self.open.pop(run, None)
            self._answer({"run": run, "lack": lack})

        return Mirror(
            sinks_of(mode, MirroredRun(**mirrored), Path(folder), gpu_pid),
            Path(folder) / "events.jsonl",
            lambda text: self._answer({"run": run, "say": text}),
            close,
        )


def main(worker: int) -> None:
    """Serve the worker with that process number, until it closes our standard input."""
    for name in _SIGNALS:  # meant for the worker, who tells us what it makes of them
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    for name, value in _FRUGAL.items():
        os.environ.setdefault(name, value)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):  # W&B's service inherits them
        os.dup2(nothing, number)
    threading.Thread(target=_end_with, args=(worker,), name="worker", daemon=True).start()
    lock = threading.Lock()

    def answer(values: Mapping[str, Any]) -> None:
        with lock, contextlib.suppress(OSError):  # nobody listens any more
            answers.write(json.dumps(values).encode() + b"\n")

    process = _Process(answer)
    for line in requests:
        process.hear(json.loads(line))
    if process.open:
        os._exit(0)
    threading.Thread(target=_end_after, args=(EXIT_S,), name="end", daemon=True).start()


def _end_with(worker: int) -> None:
    while os.getppid() == worker:
        time.sleep(WORKER_S)
    os._exit(0)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

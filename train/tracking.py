"""A mirror of a run, such as W&B. The record is the truth: nothing here may stop, slow or block a run.

A mirror is a thread that reads the run's own events.jsonl and repeats its lines to a *sink* (W&B, trackio).
Training never speaks to a sink: it only writes its file, as it does without any mirror. What a sink hears is
what is on disk, so a mirror that starts late, resumes, or comes back after its server did, catches up by
reading. Rejected: logging from the training loop (a client that blocks, blocks training) and a queue (lost
with the process, while the file isn't).
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from train.config import RunConfig
from train.record import RunRecord
from train.tracking_values import MirroredRun

POLL_S = 0.75  # with the sinks' own flushing below one second in all: what a SIGKILL may cost a mirror
WAIT_S, SERVER_WAIT_S = 30.0, 10.0  # at most, at the end of a run: for a mirror on disk, for one on a server


class Tracker(Protocol):
    """What a run says while it goes on."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of optimiser step `step` are in events.jsonl."""
        ...

    def finish(self, record: RunRecord | None) -> str:
        """Close the mirror; None: the run goes on elsewhere. What the mirror lacks, in one line, or ""."""
        ...


class NullTracker:
    """The default: no mirror."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing to mirror."""

    def finish(self, record: RunRecord | None) -> str:
        """Nothing to close."""
        return ""


class Sink(Protocol):
    """One place that shows runs. Any call may raise, and may take for ever."""

    def open(self) -> int:
        """Connect; the last step that is there already, 0 for none."""
        ...

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """One step's numbers, steps ascending."""
        ...

    def close(self, record: RunRecord | None) -> str:
        """The final numbers, then the end; what was lost, as `Tracker.finish` says it."""
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
    """Repeats events.jsonl to the first of some sinks that opens, in a thread of its own."""

    def __init__(self, sinks: Sequence[Callable[[], Sink]], events: Path, wait_s: float = WAIT_S) -> None:
        self._sinks, self._events, self._wait_s = sinks, events, wait_s
        self._has_begun, self._is_over, self._is_closed = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._record: RunRecord | None = None
        self._lack = ""
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """From its first step on the file is this attempt's: cut to its checkpoint, then only growing."""
        self._has_begun.set()

    def finish(self, record: RunRecord | None) -> str:
        """Wait a moment for the mirror; a mirror that doesn't end is left to itself."""
        self._record = record
        self._has_begun.set()
        self._is_over.set()
        if not self._is_closed.wait(self._wait_s):
            self._lack = f"it did not end within {self._wait_s:g} s"
        if not self._lack:
            return ""
        lack = f"the mirror of this run is incomplete: {self._lack}; events.jsonl and record.json have it all"
        print(lack, flush=True)
        return lack

    def _work(self) -> None:
        try:
            self._lack = self._repeat()
        except Exception as error:  # a sink may break in any way
            self._lack = one_line(error)
        self._is_closed.set()

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
                print(f"training goes on without it: {one_line(error)}", flush=True)
        sink = last()
        return sink, sink.open()


def start_tracker(config: RunConfig, mirrored: MirroredRun, folder: Path) -> Tracker:
    """The tracker the configuration asks for. Returns at once: the mirror's thread does all that is slow."""
    events = folder / "events.jsonl"
    if config.tracking.mode == "trackio":
        from train.tracking_trackio import TrackioSink

        return Mirror([lambda: TrackioSink(mirrored)], events)
    if config.tracking.mode == "none":
        return NullTracker()
    from train.tracking_wandb import Mode, WandbSink, is_server_trusted

    modes: list[Mode] = (
        ["online", "offline"] if config.tracking.mode == "wandb" and is_server_trusted() else ["offline"]
    )
    return Mirror(
        [lambda mode=mode: WandbSink(mirrored, folder, mode) for mode in modes],
        events,
        SERVER_WAIT_S if "online" in modes else WAIT_S,
    )


def one_line(error: BaseException) -> str:
    """An error in one line, its type included where the message is short."""
    text = " ".join(str(error).split())
    return text[:300] if len(text) > 20 else f"{type(error).__name__}: {text}"

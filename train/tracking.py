"""A mirror of a run, such as W&B. The record is the truth: nothing here may stop, slow or block a run.

The mirror is a process of its own (`train.mirror`), one for all the runs that a worker trains one after another.
What a run says to it is that it begins and that it ends; the rest the mirror reads from the run's folder.
"""

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import IO, Any, Protocol, cast

from train.config import RunConfig
from train.record import RunRecord, record_to_dict
from train.secrets import scrub
from train.tracking_values import MirroredRun, one_line

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


class MirrorProcess:
    """A running `train.mirror`, or what a test starts in its place. Raises OSError if it can't be started.

    Two threads wait at its pipes, so that no run ever waits for a mirror that hangs.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        self.owner, self.is_over, self._end = os.getpid(), False, ""
        # what W&B prints: its last words, if it dies
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `_last_words` closes it
        try:
            self._process = subprocess.Popen(
                command or [sys.executable, "-P", "-m", "train.mirror", str(self.owner)],
                env=os.environ | {"PYTHONPATH": _with_checkout(os.environ.get("PYTHONPATH", ""))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                bufsize=0,
                start_new_session=True,
            )
        except OSError:
            self._words.close()
            raise
        self._requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._runs: dict[int, RunMirror] = {}
        self._num_runs = 0
        for work in (self._write, self._read):
            threading.Thread(target=work, name="mirror", daemon=True).start()

    def open(self, request: Mapping[str, Any], wait_s: float) -> "RunMirror":
        """Begin to mirror a run; returns at once."""
        self._num_runs += 1
        run = self._runs[self._num_runs] = RunMirror(self, self._num_runs, wait_s)
        self.send({"run": self._num_runs, "open": request})
        if self.is_over:  # since the caller looked
            run.close(self._end)
        return run

    def send(self, request: Mapping[str, Any]) -> None:
        """Returns at once."""
        self._requests.put(json.dumps(request).encode() + b"\n")

    def forget(self, run: int) -> None:
        """Nobody waits for this run any more."""
        self._runs.pop(run, None)

    def close(self) -> None:
        """Let it end; what runs asked of it before is still sent."""
        self._requests.put(b"")

    def _write(self) -> None:
        with contextlib.suppress(OSError), cast(FileIO, self._process.stdin) as stream:  # `_read` sees it end
            while request := self._requests.get():
                while request:  # a signal may cut a write short
                    request = request[stream.write(request) :]

    def _read(self) -> None:
        rest = b""
        with cast(FileIO, self._process.stdout) as stream:
            while content := stream.read(65536):
                *lines, rest = (rest + content).split(b"\n")
                for line in lines:
                    with contextlib.suppress(ValueError):  # not ours: somebody prints when Python starts
                        self._hear(json.loads(line))
        self._end = self._last_words()
        self.is_over = True
        for run in list(self._runs.values()):
            run.close(self._end)

    def _hear(self, answer: Mapping[str, Any]) -> None:
        run = self._runs.get(answer["run"])
        if run is not None and "say" in answer:
            print(scrub(answer["say"]), flush=True)
        elif run is not None:
            run.close(scrub(answer["lack"]))

    def _last_words(self) -> str:
        code = self._process.wait()
        with self._words as stream:
            stream.seek(0)
            lines = stream.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"its process ended with exit code {code}{': ' if last else ''}{scrub(last)[:200]}"


class RunMirror:
    """The tracker of one run: a number in its worker's mirror process."""

    def __init__(self, process: MirrorProcess, run: int, wait_s: float) -> None:
        self._process, self._run, self._wait_s = process, run, wait_s
        self._has_begun, self._is_closed, self._lack = False, threading.Event(), ""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """From its first step on the file is this attempt's: cut to its checkpoint, then only growing."""
        if not self._has_begun:
            self._has_begun = True
            self._process.send({"run": self._run, "begin": True})

    def close(self, lack: str) -> None:
        """The mirror is done, and lacks this."""
        self._lack = lack
        self._is_closed.set()

    def finish(self, record: RunRecord | None) -> str:
        """Wait a moment for the mirror; a mirror that doesn't end is left to itself."""
        values = None if record is None else record_to_dict(record)
        self._process.send({"run": self._run, "finish": values})
        if not self._is_closed.wait(self._wait_s):
            self._lack = f"it did not end within {self._wait_s:g} s"
        self._process.forget(self._run)
        return lacking(self._lack)


_process: MirrorProcess | None = None


def start_tracker(config: RunConfig, mirrored: MirroredRun, folder: Path) -> Tracker:
    """The tracker the configuration asks for. Returns at once: the mirror's process does all that is slow."""
    global _process
    mode = config.tracking.mode
    if mode == "none":
        return NullTracker()
    request = {
        "mode": mode,
        "folder": str(folder.absolute()),
        "mirrored": dataclasses.asdict(mirrored),
        "gpu_pid": os.getpid() if _has_gpu() else None,
    }
    try:
        if _process is None or _process.is_over or _process.owner != os.getpid():
            _process = MirrorProcess()
    except OSError as error:
        return _LackingTracker(f"its process could not be started: {one_line(error)}")
    return _process.open(request, SERVER_WAIT_S if mode == "wandb" else WAIT_S)


class _LackingTracker(NullTracker):
    """A mirror that could not be."""

    def __init__(self, lack: str) -> None:
        self._lack = lack

    def finish(self, record: RunRecord | None) -> str:
        return lacking(self._lack)


def lacking(lack: str) -> str:
    """What is said, and printed, of a mirror that lacks something; "" of one that doesn't."""
    if not lack:
        return ""
    line = f"the mirror of this run is incomplete: {lack}; events.jsonl and record.json have it all"
    print(line, flush=True)
    return line


def _has_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _with_checkout(paths: str) -> str:
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), paths]))

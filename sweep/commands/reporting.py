"""The report at the end of a run: the analysis as a process of its own, skipped when nothing has changed."""

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sweep.commands.session import Session
from sweep.launch import CHECKOUT, Launch
from sweep.ledger import CLAIMABLE, RunState
from sweep.spec import Status
from train.files import read_json, write_json_atomic


class Reporter:
    """Makes the report of one session; called with every look at the ledger, it gets ready beside the last runs.

    An analysis takes a second to load, which costs nothing on a core for which no run is left. It reads no record
    before it is told to, and ends when this process does.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ready: subprocess.Popen[str] | None = None

    def __call__(self, launch: Launch, states: Mapping[str, RunState]) -> None:
        """Start loading once a worker has nothing left to do."""
        if self._ready is not None or self._session.search is not None:
            return
        running = [state for state in states.values() if state.status is Status.RUNNING]
        workers = {(state.owner.host, state.owner.pid) for state in running if state.owner}
        is_waiting = any(state.status in CLAIMABLE for state in states.values())
        if running and len(workers) < launch.num_slots and not is_waiting:
            with contextlib.suppress(OSError):
                self._ready = _start([*_arguments(self._session), "--when-told"], is_waiting=True)

    def analyse(self) -> tuple[int, str]:
        """The exit code of the analysis and what it prints; its errors go where ours go."""
        code, text, ready = -1, "", self._ready
        if ready is not None:
            self._ready = None
            text, _ = ready.communicate("now\n")
            code = ready.returncode
        if code < 0:  # none was ready, or it was killed
            process = _start(_arguments(self._session))
            text, _ = process.communicate()
            code = process.returncode
        return code, text if code == 0 else f"{text}the report could not be made; every record is safe\n"

    def close(self) -> None:
        """End what got ready in vain."""
        if self._ready is not None:
            self._ready.kill()
            self._ready.communicate()
            self._ready = None


def show_report(session: Session, reporter: Reporter | None = None) -> int:
    """Print the report of what is recorded; the analysis' exit code.

    `analysis` stands on `sweep`, so it is called, not imported.
    """
    folder, arguments = session.folder, _arguments(session)
    saved = folder.report / "printed.json"
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / "report.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two controllers of one sweep end at the same moment
        values = read_json(saved) or {}
        if values.get("arguments") == arguments and _is_newest(saved, session):
            print(values.get("text", ""), end="")
            return 0
        sys.stdout.flush()
        code, text = (reporter or Reporter(session)).analyse()
        print(text, end="", flush=True)
        if code == 0:
            folder.report.mkdir(parents=True, exist_ok=True)
            write_json_atomic(saved, {"arguments": arguments, "text": text})
        return code


def _arguments(session: Session) -> list[str]:
    folders = [word for name in session.arguments.config_dirs for word in ("--config-dir", name)]
    return [*session.arguments.overrides, *folders]


def _start(words: list[str], *, is_waiting: bool = False) -> "subprocess.Popen[str]":
    """An analysis. One that waits is out of reach of the terminal's Ctrl-C, which is ours to hear."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "analysis", *words],
        stdin=subprocess.PIPE if is_waiting else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=is_waiting,
    )


def _is_newest(saved: Path, session: Session) -> bool:
    """Whether the report was made after every record and the plan, and nobody has made another since."""
    moment = saved.stat().st_mtime_ns
    records = (session.ledger.folder(spec.fingerprint) / "record.json" for spec in session.plan.runs)
    for path in (session.folder.plan_path, session.folder.report / "region.json", *records):
        try:
            if path.stat().st_mtime_ns >= moment:
                return False
        except FileNotFoundError:
            continue
    return True

"""The report at the end of a run: the analysis as a process of its own, skipped when nothing has changed."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from sweep.commands.session import Session
from sweep.launch import CHECKOUT
from train.files import read_json, write_json_atomic


def show_report(session: Session) -> None:
    """Print the report of what is recorded. `analysis` stands on `sweep`, so it is called, not imported."""
    folder = session.folder
    folders = [word for name in session.arguments.config_dirs for word in ("--config-dir", name)]
    arguments = [*session.arguments.overrides, *folders]
    saved = folder.report / "printed.json"
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / "report.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two controllers of one sweep end at the same moment
        values = read_json(saved) or {}
        if values.get("arguments") == arguments and _is_newest(saved, session):
            print(values.get("text", ""), end="")
            return
        sys.stdout.flush()
        text = _analyse(arguments)
        if text is not None:
            print(text, end="", flush=True)
            folder.report.mkdir(parents=True, exist_ok=True)
            write_json_atomic(saved, {"arguments": arguments, "text": text})


def _analyse(arguments: list[str]) -> str | None:
    """What the analysis prints; None, with its error shown, if it can't."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    finished = subprocess.run([sys.executable, "-m", "analysis", *arguments], stdout=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL, env=environment, check=False)
    if finished.returncode != 0:
        print(f"{finished.stdout}the report could not be made; every record is safe", flush=True)
        return None
    return finished.stdout


def _is_newest(saved: Path, session: Session) -> bool:
    """Whether the report was made after every record and the plan."""
    moment = saved.stat().st_mtime_ns
    records = (session.ledger.folder(spec.fingerprint) / "record.json" for spec in session.plan.runs)
    for path in (session.folder.plan_path, *records):
        try:
            if path.stat().st_mtime_ns >= moment:
                return False
        except FileNotFoundError:
            continue
    return True

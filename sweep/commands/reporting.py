"""The report at the end of a run: the analysis as a process of its own, skipped when nothing has changed."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from sweep.commands.session import Session
from sweep.launch import CHECKOUT
from train.files import read_json, write_json_atomic


def show_report(session: Session) -> int:
    """Print the report of what is recorded; the analysis' exit code.

    `analysis` stands on `sweep`, so it is called, not imported.
    """
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
            return 0
        sys.stdout.flush()
        code, text = _analyse(arguments)
        print(text, end="", flush=True)
        if code == 0:
            folder.report.mkdir(parents=True, exist_ok=True)
            write_json_atomic(saved, {"arguments": arguments, "text": text})
        return code


def _analyse(arguments: list[str]) -> tuple[int, str]:
    """The exit code of the analysis and what it prints; its errors go where ours go."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    finished = subprocess.run(
        [sys.executable, "-m", "analysis", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    if finished.returncode != 0:
        return finished.returncode, f"{finished.stdout}the report could not be made; every record is safe\n"
    return 0, finished.stdout


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

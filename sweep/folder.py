"""The folder of one sweep: its plan, links to its runs, its workers' files. What runs did is in the ledger.

<root>/<sweep>/plan.json            what was asked and what is needed
               runs/<run_id>        a link into <root>/.runs, as runs are shared by all sweeps of a root
               workers/             submitit's files and the workers' output, until every run is finished
               controller.lock      held by the process that starts workers
               stop                 when somebody last asked to stop
               pilot.json           only in a pilot's folder: how long each run may take
               proposals/           what a search asked for (see `sweep.proposals`); search.log, its errors
               searching            there while a search may still ask for runs
               report/              written by the analysis
               previous/<time>/     the plan and the report of an earlier, different question
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweep.claims import is_alive, owner_from_dict
from sweep.errors import LedgerError
from sweep.plan import plan_from_dict, plan_to_dict
from sweep.spec import Plan
from train.errors import UserError
from train.files import read_json, write_json_atomic

PILOT_FILE = "pilot.json"
_CAUSES = {
    errno.ENOSPC: ("some free space", "free some, or set root= to a folder on another disk"),
    errno.EDQUOT: ("some free quota", "free some, or set root= to a folder on another disk"),
    errno.EROFS: ("a writable file system", "set root= to a folder you may write to"),
    errno.EACCES: ("a folder you may write to", "set root=/another/folder"),
    errno.EPERM: ("a file system with hard links and symbolic links", "set root= to a folder on such a disk"),
    errno.ENOTSUP: ("a file system with links and locks", "set root= to a folder on such a disk"),
    errno.ENOLCK: ("a file system with locks", "set root= to a folder on such a disk"),
    errno.ENOTDIR: ("a folder", "set root=/another/folder"),
    errno.EEXIST: ("a folder", "set root=/another/folder"),
}


class SweepFolder:
    """The files of one sweep below a root."""

    def __init__(self, root: Path | str, name: str) -> None:
        self.root, self.name = Path(root), name
        self.path = self.root / name
        self.plan_path = self.path / "plan.json"
        self.report = self.path / "report"
        self.workers = self.path / "workers"
        self.lock_path = self.path / "controller.lock"
        self.stop_path = self.path / "stop"
        self._searching_path = self.path / "searching"

    def plan(self) -> Plan | None:
        """The plan written here; None if there is none. Raises LedgerError for one of another version."""
        values = read_json(self.plan_path)
        try:
            return plan_from_dict(values) if values is not None else None
        except (KeyError, IndexError, TypeError, UserError) as error:
            raise LedgerError(
                f"{self.plan_path} was written by another version",
                "a plan of this version",
                "run the sweep's command again: it writes a new one",
            ) from error

    def plan_version(self) -> tuple[int, int]:
        """Changes whenever another plan is written."""
        try:
            found = self.plan_path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def run_limit_s(self) -> float | None:
        """In a pilot's folder, how long each of its runs is trained at most; else None."""
        values = read_json(self.path / PILOT_FILE)
        return None if values is None else float(values["run_s"])

    def ask_to_stop(self) -> None:
        """Ask every worker and controller of this sweep, on every machine, to stop."""
        self.stop_path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.stop_path, {"time": time.time()})

    def was_stopped_after(self, moment: float) -> bool:
        """Whether somebody asked to stop after `moment` (seconds since 1970). An old request is none."""
        try:
            return self.stop_path.stat().st_mtime > moment
        except FileNotFoundError:
            return False

    def set_searching(self, is_searching: bool) -> None:
        """Say whether workers that find nothing to do should wait for what a search asks next."""
        if is_searching:
            self._searching_path.touch()
        else:
            self._searching_path.unlink(missing_ok=True)

    def awaits_proposals(self) -> bool:
        """Whether a search goes on: its controller lives, on this machine, and hasn't said that it is over."""
        if not self._searching_path.exists():
            return False
        owner = owner_from_dict(read_json(self.lock_path))
        return owner is None or is_alive(owner, lambda: math.inf)  # None: the lock is just being written

    def write_plan(self, plan: Plan) -> bool:
        """Make `plan` the sweep's; False if it was. A different question's plan and report are set aside."""
        values = json.loads(json.dumps(plan_to_dict(plan)))
        old = read_json(self.plan_path)
        if old == values:
            return False
        self.workers.mkdir(parents=True, exist_ok=True)
        is_longer = bool(plan.question) and (old or {}).get("question") == plan.question
        if old is not None and not is_longer and _runs_of(old) != _runs_of(values):
            self._set_aside()
        write_json_atomic(self.plan_path, values)
        return True

    def link_runs(self, plan: Plan) -> None:
        """A link under each run's readable name to its folder, for those runs that have one."""
        links = self.path / "runs"
        links.mkdir(parents=True, exist_ok=True)
        present, existing = set(os.listdir(links)), _names(self.root / ".runs")
        for spec in plan.runs:
            if spec.run_id not in present and spec.fingerprint in existing:
                link_run(links, spec.run_id, spec.fingerprint)

    def _set_aside(self) -> None:
        moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        previous = self.path / "previous" / moment
        while previous.exists():
            previous = previous.with_name(f"{moment}-{secrets.token_hex(2)}")
        previous.mkdir(parents=True)
        for path in (self.plan_path, self.report):
            if path.exists():
                path.rename(previous / path.name)


def link_run(links: Path, run_id: str, fingerprint: str) -> None:
    """links/<run_id> -> ../../.runs/<fingerprint>."""
    links.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(os.path.join("..", "..", ".runs", fingerprint), links / run_id)


def sweep_names(root: Path | str) -> list[str]:
    """The sweeps that have a plan below `root`."""
    return [
        name
        for name in sorted(_names(Path(root)))
        if not name.startswith(".") and (Path(root) / name / "plan.json").is_file()
    ]


def check_root(root: Path | str) -> None:
    """Find out now, not after an hour of training, whether `root` can hold results."""
    root = Path(root)
    probe = root / f".probe-{secrets.token_hex(4)}"
    try:
        (root / ".runs").mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        _try_everything(probe)
    except OSError as error:
        expected, fix = _CAUSES.get(error.errno or 0, ("a folder for results", "set root=/another/folder"))
        raise LedgerError(f"root={root} can't hold results: {error.strerror}", expected, fix) from error
    finally:
        with contextlib.suppress(OSError):
            for path in probe.iterdir():
                path.unlink()
            probe.rmdir()


def _try_everything(probe: Path) -> None:
    """Every operation the ledger relies on."""
    with open(probe / "file", "wb") as stream:
        stream.write(bytes(65536))
        stream.flush()
        os.fsync(stream.fileno())
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.link(probe / "file", probe / "hard")
    with contextlib.suppress(FileExistsError):
        os.link(probe / "file", probe / "hard")
        raise OSError(errno.ENOTSUP, "two writers may create one file")
    os.symlink("file", probe / "soft")
    os.replace(probe / "hard", probe / "renamed")


def _runs_of(plan: Mapping[str, Any]) -> set[str]:
    return {str(run.get("fingerprint")) for run in plan.get("runs", ()) if isinstance(run, dict)}


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()

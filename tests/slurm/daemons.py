"""Processes that outlive whoever started them, known by pid and start time so that no stranger is ever signalled."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sweep.claims import process_lives, process_start


class Daemons:
    """The processes of one cluster; who they are is in `folder`, one file each."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs = folder, logs

    def names(self) -> list[str]:
        """All that were ever started and not stopped."""
        return sorted(path.stem for path in self.folder.glob("*.process"))

    def pid(self, name: str) -> int | None:
        """Its number, while it lives."""
        try:
            pid, start = (self.folder / f"{name}.process").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return None
        return int(pid) if process_lives(int(pid), start) else None

    def start(self, name: str, command: Sequence[str], **variables: str) -> None:
        """Start it in a session of its own, unless it lives."""
        if self.pid(name) is not None:
            return
        with open(self.logs / f"{name}.out", "ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **variables},
            )
        process.returncode = 0  # it is meant to outlive this object: no ResourceWarning
        (self.folder / f"{name}.process").write_text(
            f"{process.pid} {process_start(process.pid)}", encoding="ascii"
        )

    def stop(self, *names: str, patience_s: float = 5.0) -> None:
        """SIGTERM, patience, SIGKILL."""
        for name in names:
            self.kill(name, signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        while any(self.pid(name) for name in names) and time.monotonic() < deadline:
            time.sleep(0.05)
        for name in names:
            self.kill(name, signal.SIGKILL)
            (self.folder / f"{name}.process").unlink(missing_ok=True)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it lives."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, number)

    def wait_for(self, name: str, is_ready: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until it is ready; RuntimeError with its last words if it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if self.pid(name) is None or time.monotonic() > deadline:
                words = (self.logs / f"{name}.out").read_text(errors="replace").splitlines()[-5:]
                raise RuntimeError(f"{name} is not ready: {' | '.join(words)}")
            time.sleep(0.05)


def free_ports(number: int) -> int:
    """The first of `number` ports in a row that nobody listens on, below those the kernel hands out."""
    for first in range(20000 + os.getpid() % 300 * 30, 32000 - number, number):
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise RuntimeError("no free ports below 32000")


def is_open(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

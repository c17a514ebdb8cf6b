"""Running the product's commands as a user does: in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def run_command(
    module: str, *arguments: str, cwd: Path = PROJECT, timeout_s: float = 900, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments`, its output captured."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **variables}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        timeout=timeout_s,
    )


def start_command(module: str, *arguments: str) -> subprocess.Popen[str]:
    """The same, not waited for; both streams in one, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

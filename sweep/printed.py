"""What a worker prints while it holds a run, in the file of that attempt."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from train.secrets import scrub_file


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Everything this process prints, C libraries included, goes to `path`."""
    saved = [os.dup(1), os.dup(2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _flush()
        for number in (1, 2):
            os.dup2(log, number)
        yield
    finally:
        _flush()
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(log)
        scrub_file(path)  # libraries print what they like; before anybody hears that the attempt is over


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

"""What a worker prints while it holds a run, in the file of that attempt."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from train.scrubbing import scrubbed_file


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Everything this process prints, C libraries included, goes to `path`, its secrets left out on the way."""
    saved = [os.dup(1), os.dup(2)]
    try:
        with scrubbed_file(path) as pipe:
            _flush()
            for number in (1, 2):
                os.dup2(pipe, number)
            try:
                yield
            finally:
                _flush()
                for number, old in zip((1, 2), saved, strict=True):
                    os.dup2(old, number)
    finally:
        for old in saved:
            os.close(old)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

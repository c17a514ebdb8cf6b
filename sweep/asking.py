"""The one who knows what to try next, as a process: questions and answers are lines of JSON.

`analysis` stands on `sweep`, so it is called, not imported; and what it needs (scipy, Optuna, torch) never enters a
planner or a controller. It remembers nothing: every question holds all that is known, so that it may die, and the
next one, here or in another terminal, answers the same.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sweep.attempts import tail
from sweep.errors import SearchError
from sweep.launch import CHECKOUT

NUM_TRIES = 2  # it is started again once: somebody may have killed it


class Ask(Protocol):
    """A question and its answer."""

    def __call__(self, question: Mapping[str, Any]) -> Mapping[str, Any]: ...


class Asker:
    """`python -m analysis.search`, started with the first question and kept for the next ones."""

    def __init__(self, log: Path) -> None:
        self._log, self._process = log, None

    def __call__(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer; SearchError with the one line of its refusal, or with its last words."""
        line = json.dumps(question, allow_nan=False)
        for _ in range(NUM_TRIES):
            answer = self._answer(line)
            if answer:
                values = json.loads(answer)
                if "refusal" in values:
                    raise SearchError(*values["refusal"])
                return values
        words = next(iter(tail(self._log, 1)), "nothing")
        raise SearchError(
            f"the search ended without an answer; it said: {words[:200]}",
            "python -m analysis.search that answers",
            f"see {self._log}; every run and proposal is safe",
        )

    def close(self) -> None:
        """Let it end."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def _answer(self, line: str) -> str:
        if self._process is None:
            self._process = self._start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            self.close()
        return answer

    def _start(self) -> Any:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with open(self._log, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "analysis.search"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is the controller's to hear
            )

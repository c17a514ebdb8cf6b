"""A benchmark's questions put to the judge of its configuration, with what it cost said on the way."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from train.judges.config import JudgeConfig
from train.judges.endpoint import Endpoint, Question, Reply
from train.judges.panel import Judgements, estimate, judge

FOLDER = "judgements"  # beside the requests that all runs of a root share
_SECONDS_BETWEEN_LINES = 30.0

Verdict = TypeVar("Verdict")


def judged(
    context: Any, name: str, questions: Sequence[Question], read: Callable[[Reply], Verdict | None]
) -> Judgements[Verdict]:
    """Verdicts of the judge of `context`; see `train.judges.panel.judge` for the errors."""
    config: JudgeConfig = context.eval.judge
    folder = (context.cache_folder or Path(context.run_folder or ".")) / FOLDER
    endpoint = Endpoint(config, folder)
    try:
        print(f"{name}: {estimate(endpoint, questions)}", flush=True)
        result = judge(endpoint, questions, read, _progress(name))
    finally:
        endpoint.close()
    if result.num_missing:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in result.failures.most_common(3))
        unread = f"{result.num_unparsable} unreadable" if result.num_unparsable else ""
        print(f"{name}: without a verdict: {'; '.join(filter(None, [unread, reasons]))}", flush=True)
    return result


def _progress(name: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{name}: {done:,} of {total:,} judged", flush=True)

    return say

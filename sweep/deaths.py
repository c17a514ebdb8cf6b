"""How often a run took its worker with it. Not every death is its doing.

A worker that is killed from outside dies without a word, and in a storm of such kills before the run's first step,
again and again. A run at fault dies the same way each time, and mostly says so: a segmentation fault in its log
(`faulthandler` sees to it), a signal other than SIGKILL, an exit code, memory that the kernel ran out of, or a step
beyond which it doesn't come. Deaths of that kind count in full; those without a sign end a run after PATIENCE times
as many.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.attempts import read_heartbeat, tail
from sweep.claims import Owner, is_of_this_machine, num_oom_kills, owner_from_dict
from train.files import read_json

PATIENCE = 4
NOT_ITS_FAULT = (
    "cancelled",
    "timeout",
    "preempted",
    "node_fail",
    "cuda_oom",
    "packed_oom",
    "disk_full",
)  # losses that aren't counted at all
_SIGNS = re.compile(
    r"Fatal Python error|terminate called|segmentation fault|bus error|core dumped|double free|free\(\): |corrupt"
    r"|Traceback \(most recent|out of memory|signal (?!9\b)\d+|SIG(?:SEGV|ABRT|BUS|FPE|ILL)|exit code (?!-?9\b)\d+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Deaths:
    """The latest in a row. num_own: those that bear a sign of the run's own doing."""

    num: int
    num_own: int

    def are_enough(self, max_attempts: int) -> bool:
        """Whether the run has failed."""
        return self.num_own >= max_attempts or self.num >= PATIENCE * max_attempts


def deaths_in_a_row(path: Callable[[int, str], Path], files: Mapping[int, set[str]]) -> Deaths:
    """The latest attempts that died without getting further than the next one.

    A run that is killed from outside but gets further each time isn't at fault, however often it happens.

    path     a file of an attempt, by its number and suffix
    files    which files each attempt has
    """
    num, num_own, step_after, next_owner = 0, 0, None, None
    for attempt in sorted(files, reverse=True):
        if files[attempt] & {"retry", "failure.json", "released", "paused"}:
            break
        owner, after = owner_from_dict(read_json(path(attempt, "json"))), next_owner
        next_owner = owner
        loss = read_json(path(attempt, "lost.json")) or {}
        if loss.get("kind") in NOT_ITS_FAULT:
            continue
        heartbeat = read_heartbeat(path(attempt, "heartbeat"))
        step = heartbeat.step if heartbeat else 0
        if step_after is not None and step < step_after:
            break
        num, step_after = num + 1, step
        words = [str(loss.get("evidence", "")), *tail(path(attempt, "log"), 20)]
        num_own += step > 0 or _says_so(words, loss) or _ran_out_of_memory(owner, after)
    return Deaths(num, num_own)


def _says_so(words: list[str], loss: Mapping[str, Any]) -> bool:
    return loss.get("kind") == "host_oom" or any(map(_SIGNS.search, words))


def _ran_out_of_memory(owner: Owner | None, after: Owner | None) -> bool:
    """Whether the kernel ended processes of that machine, for lack of memory, before the next attempt."""
    if owner is None:
        return False
    if after is not None:
        return after.place == owner.place and after.num_oom_kills > owner.num_oom_kills
    return is_of_this_machine(owner) and num_oom_kills() > owner.num_oom_kills

"""What killed a worker, from the scheduler's state and the last lines it printed. Pure.

SLURM's state alone misleads: a step that was killed for its memory leaves a job FAILED, and so does a CUDA error.
The texts are those of SLURM 22.05, Linux, PyTorch and NCCL; the first rule that fits decides.
"""

import re

from train.failures import TEXTS

_RULES = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        *TEXTS.items(),
        ("preempted", r"due to (preemption|job requeue)|\bpreempted\b"),
        ("timeout", r"due to time limit|time limit exhausted|\btimed?[ -]?out\b.*(job|step)"),
        ("nan_loss", r"loss of step \d+ is not finite"),
        ("cancelled", r"cancelled at \S+ (\*\*\*|due to (?!preemption|job requeue|time))|\bscancel\b"),
        ("killed", r"signal 9 \(sigkill\) received|exitcode\s*:\s*-9\b"),  # torchrun's words for a child
    )
)
_BY_STATE = {
    "OUT_OF_MEMORY": "host_oom",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
}


def failure_class(state: str, text: str) -> str:
    """disk_full, cuda_oom, host_oom, node_fail, preempted, timeout, nan_loss, cancelled, code or killed."""
    if state in _BY_STATE:
        return _BY_STATE[state]
    for kind, pattern in _RULES:
        if pattern.search(text):
            return kind
    if state.startswith("CANCELLED"):
        return "cancelled"
    return "code" if "Traceback (most recent call last)" in text else "killed"


def telling_line(kind: str, text: str) -> str:
    """The line that made `failure_class` say so; "" if it was the state."""
    patterns = [pattern for name, pattern in _RULES if name == kind]
    return next(
        (line.strip() for line in text.splitlines() for pattern in patterns if pattern.search(line)), ""
    )

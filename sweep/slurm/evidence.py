"""What killed a worker, from the scheduler's state and the last lines it printed. Pure.

SLURM's state alone misleads: a step that was killed for its memory leaves a job FAILED, and so does a CUDA error.
The texts are those of SLURM 22.05, Linux, PyTorch and NCCL; the first rule that fits decides.
"""

import re

_RULES = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("disk_full", r"no space left on device|disk quota exceeded|errno 28\b|errno 122\b|os error 28"),
        (
            "cuda_oom",
            r"cuda out of memory|outofmemoryerror|cuda error: out of memory|cublas_status_alloc_failed",
        ),
        (
            "host_oom",
            r"oom.?kill|out.of.memory|exceeded (job |step )?memory limit|not enough memory|cannot allocate memory"
            r"|memoryerror|std::bad_alloc",
        ),
        (
            "node_fail",
            r"uncorrectable ecc|ecc error|nccl (error|warn)|ncclsystemerror|ncclremoteerror|nvlink|xid \d+"
            r"|fallen off the bus|cuda-capable device.* busy or unavailable|no cuda-capable device"
            r"|node failure|communication connection failure|stale file handle|device-side hardware"
            r"|input/output error|unspecified launch failure|cuda driver initialization failed",
        ),
        ("preempted", r"due to preemption|\bpreempted\b"),
        ("timeout", r"due to time limit|time limit exhausted|\btimed?[ -]?out\b.*(job|step)"),
        ("nan_loss", r"loss of step \d+ is not finite"),
        ("cancelled", r"cancelled at .* due to (?!preemption|time)|\bscancel\b"),
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

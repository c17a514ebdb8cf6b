"""What went wrong with a run, as a value: a class that policies can act on, one line, and the evidence."""

import errno
import re
import traceback
from pathlib import Path

from train.errors import ConfigError, DataError, ModelError, TemplateError, UserError
from train.record import Failure
from train.secrets import scrub

TEXTS = {  # what Linux, PyTorch, CUDA and NCCL say; the first that fits decides
    "disk_full": r"no space left on device|disk quota exceeded|errno 28\b|errno 122\b|os error (28|122)\b"
    r"|inline_container\.cc:\d+\] \. unexpected pos|pytorchstreamwriter failed writing",  # torch.save's words
    "cuda_oom": r"cuda out of memory|outofmemoryerror|cuda error: out of memory|cublas_status_alloc_failed"
    r"|cudaerrormemoryallocation|cuda failure 2 'out of memory'",
    "host_oom": r"oom.?kill|out.of.memory|exceeded (job |step )?memory limit|not enough memory"
    r"|cannot allocate memory|memoryerror|std::bad_alloc|unable to mmap \d+ bytes",
    "node_fail": r"uncorrectable ecc|ecc error|nccl (error|warn)|nccl(system|remote|internal|unhandledcuda)error"
    r"|unhandled (system|cuda) error|nvlink|xid (\([^)]*\): )?\d+|fallen off the bus"
    r"|cuda-capable device.* busy or unavailable|no cuda-capable device|node failure"
    r"|communication connection failure|stale file handle|device-side hardware|input/output error"
    r"|unspecified launch failure|cuda driver initialization failed|distnetworkerror|distbackenderror"
    r"|watchdog caught collective operation timeout|nccl communicator was aborted|system not yet initialized"
    r"|unable to determine the device handle|gpu is lost",
}
MEMORY = ("cuda_oom", "host_oom")
OF_THE_MACHINE = ("disk_full", "node_fail")  # whatever shares a process, none fares better alone
_TEXTS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in TEXTS.items())
_MISTAKES = (  # in the code, whatever their text mentions
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)
_USER_KINDS = {ConfigError: "config", DataError: "data", ModelError: "model", TemplateError: "template"}


class NonFiniteLossError(Exception):
    """The loss stopped being a number: the run's result, not an accident; it is never retried by itself."""

    def __init__(self, step: int, row_ids: list[str]) -> None:
        super().__init__(f"the loss of step {step} is not finite; rows {', '.join(row_ids[:8])}")


class RankFailedError(Exception):
    """One of a run's processes failed, and left its words: `failure` is what one process would have left."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class RankLostError(Exception):
    """One of a run's processes died without a word, or its peers lost it: the next attempt may fare better.

    kind   killed, or node_fail where a device or the connection between devices broke.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def failure_kind(error: BaseException) -> str:
    """config, data, model, template, nan_loss, cuda_oom, host_oom, disk_full, killed, node_fail or code.

    Libraries wrap what the system says in errors of their own, so the causes and the texts are read as well.
    """
    if isinstance(error, RankLostError):
        return error.kind
    for kind_class, kind in _USER_KINDS.items():
        if isinstance(error, kind_class):
            return kind
    if isinstance(error, UserError):
        return "config"
    if isinstance(error, NonFiniteLossError):
        return "nan_loss"
    chain = _causes(error)
    if any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in chain):
        return "disk_full"
    if type(error).__name__ == "OutOfMemoryError":
        return "cuda_oom"
    if isinstance(error, MemoryError):
        return "host_oom"
    if not isinstance(error, _MISTAKES):
        for kind, pattern in _TEXTS:
            if any(pattern.search(f"{type(one).__name__}: {one}") for one in chain):
                return kind
    return "code"


def _causes(error: BaseException) -> list[BaseException]:
    """The error, then what it was raised from or while handling."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return chain


def failure_from_exception(error: BaseException) -> Failure:
    """The failure behind `error`, with the deepest frame of our own code if it passed through it."""
    if isinstance(error, RankFailedError):
        return error.failure
    frames = traceback.extract_tb(error.__traceback__)
    project = str(Path(__file__).parents[1])
    own = [frame for frame in frames if frame.filename.startswith(project)]
    last = own[-1] if own else frames[-1] if frames else None
    where = (
        f"{Path(last.filename).relative_to(project) if own else last.filename}:{last.lineno} in {last.name}"
        if last
        else ""
    )
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, UserError | NonFiniteLossError):
        message = f"{type(error).__name__}: {message}"
    return Failure(
        kind=failure_kind(error),
        message=scrub(message)[:500],
        last_frame=where,
        traceback=scrub("".join(traceback.format_exception(error))),
    )

"""What went wrong with a run, as a value: a class that policies can act on, one line, and the evidence."""

import errno
import traceback
from pathlib import Path

from train.errors import ConfigError, DataError, ModelError, TemplateError, UserError
from train.record import Failure
from train.secrets import scrub

_USER_KINDS = {ConfigError: "config", DataError: "data", ModelError: "model", TemplateError: "template"}


class NonFiniteLossError(Exception):
    """The loss stopped being a number: the run's result, not an accident; it is never retried by itself."""

    def __init__(self, step: int, row_ids: list[str]) -> None:
        super().__init__(f"the loss of step {step} is not finite; rows {', '.join(row_ids[:8])}")


def failure_kind(error: BaseException) -> str:
    """config, data, model, template, nan_loss, cuda_oom, host_oom, disk_full or code."""
    for kind_class, kind in _USER_KINDS.items():
        if isinstance(error, kind_class):
            return kind
    if isinstance(error, UserError):
        return "config"
    if isinstance(error, NonFiniteLossError):
        return "nan_loss"
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):
        return "cuda_oom"
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "host_oom"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    return "code"


def failure_from_exception(error: BaseException) -> Failure:
    """The failure behind `error`, with the deepest frame of our own code if it passed through it."""
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

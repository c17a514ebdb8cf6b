"""What a run left behind: an immutable value, and strict JSON on disk. An absent metric is an absent key."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RECORD_VERSION = 1
CLIPPED = "clipped_steps"  # among `counts`, where train.clip_norm is set


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a run failed. `kind` is a short class name such as data, model, nan_loss, cuda_oom, crash, code."""

    kind: str
    message: str  # one line
    last_frame: str = ""  # file:line in function, the deepest frame of the traceback
    traceback: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One finished or failed run. Units: seconds in `*_s`, tokens and rows in counts, metrics as in `metrics`."""

    run_id: str
    fingerprint: str
    outcome: Literal["finished", "failed"]
    stage: str
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    counts: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # train_response_tokens, unusable_rows.empty, ...
    final_train_loss: float | None = None  # weighted, nats per counted token: only comparable within one cell
    num_steps: int = 0
    parameters_sha256: str = ""  # of the trained parameters: equal bytes, equal run
    training_s: float = 0.0
    evaluation_s: float = 0.0
    setup_s: float = 0.0
    tokens_per_s: float | None = None
    attempt: int = 1
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])  # host, device, versions, git
    finished_at: float = 0.0  # seconds since 1970, UTC
    failure: Failure | None = None
    # Of benchmarks' metrics: standard_error, num_items, num_clusters, protocol, items (a hash of which they were).
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    version: int = RECORD_VERSION


def record_to_dict(record: RunRecord) -> dict[str, Any]:
    """JSON values; `record_from_dict` is its inverse."""
    return dataclasses.asdict(record)


def record_from_dict(values: Mapping[str, Any]) -> RunRecord | None:
    """The record in `values`; None if it isn't one this code can read."""
    if values.get("version") != RECORD_VERSION:
        return None
    arguments = dict(values)
    if isinstance(arguments.get("failure"), Mapping):
        arguments["failure"] = Failure(**arguments["failure"])
    try:
        return RunRecord(**arguments)
    except TypeError:
        return None

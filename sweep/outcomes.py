"""How runs end, as values: what is written down of a failure, and what several failures say together."""

import time
from pathlib import Path
from typing import Any

from sweep.evaluations import is_training
from sweep.plan import train_command
from sweep.spec import RunSpec
from train.config import config_to_dict
from train.record import Failure, RunRecord

NUM_SAME_FAILURES = 3


def same_failure(outcomes: list[Failure | None]) -> Failure | None:
    """The failure of the first three runs, if all failed in the same line: the code's fault, not theirs."""
    first = outcomes[:NUM_SAME_FAILURES]
    signatures = {(failure.kind, failure.last_frame) if failure else None for failure in first}
    if len(first) == NUM_SAME_FAILURES and len(signatures) == 1 and first[0] and first[0].kind == "code":
        return first[0]
    return None


def counts_as_evidence(spec: RunSpec, failure: Failure | None) -> bool:
    """Whether a run's end says anything about the code that trains: a measured base model doesn't."""
    return failure is not None or is_training(spec)


def writable(failure: Failure) -> Failure:
    """The failure in texts that can be written as UTF-8: messages may hold any bytes of a file's name."""
    texts = {
        name: getattr(failure, name).encode("utf-8", "replace").decode()
        for name in ("kind", "message", "last_frame", "traceback")
    }
    return Failure(**texts)


def failed_record(spec: RunSpec, attempt: int, failure: Failure) -> RunRecord:
    """The record of an attempt that ended in an exception."""
    return RunRecord(
        run_id=spec.run_id,
        fingerprint=spec.fingerprint,
        outcome="failed",
        stage=spec.config.stage,
        attempt=attempt,
        finished_at=time.time(),
        failure=failure,
    )


def spec_to_dict(spec: RunSpec, root: Path | str = "outputs") -> dict[str, Any]:
    """What spec.json says: enough to train the run on another machine next year."""
    return {
        "run_id": spec.run_id,
        "fingerprint": spec.fingerprint,
        "config": config_to_dict(spec.config),
        "model_identity": spec.model_identity,
        "dataset_identity": spec.dataset_identity,
        **(
            {"parent_fingerprint": spec.parent_fingerprint, "preference_identity": spec.preference_identity}
            if spec.parent_fingerprint
            else {}
        ),
        "command": train_command(spec, root),
    }

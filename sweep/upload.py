"""What one run has to tell a W&B server, telling it, and hearing that it was heard. Used by `sync`."""

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweep.evaluations import merged_record
from sweep.ledger import Ledger
from sweep.spec import RunSpec, Status
from train.mirror import EventReader
from train.record import RunRecord
from train.tracking_values import STEP, SWEEP_TAG, Asked, MirroredRun, mirrored_run
from train.tracking_wandb import end_run, start_run

CONFIRM_AFTER_S = (0.0, 0.5, 1.0, 2.0, 4.0)  # seconds: servers take a moment to agree with themselves


@dataclass(frozen=True, slots=True)
class News:
    """What a run has to tell. digest: of its record, or of its failure; "" while it has neither."""

    events: list[dict[str, Any]]
    record: RunRecord | None
    digest: str

    @property
    def last_step(self) -> int:
        return self.events[-1]["step"] if self.events else 0


def news_of(ledger: Ledger, spec: RunSpec, evaluation: RunSpec | None = None) -> News:
    """Steps and end of one run, as the ledger has them now, with what its evaluation measured."""
    folder, state = ledger.folder(spec.fingerprint), ledger.status(spec.fingerprint)
    events: dict[int, dict[str, Any]] = {
        event["step"]: event for event in EventReader(folder / "events.jsonl").new()
    }
    record, digest = ledger.record(spec.fingerprint), ""
    if record is not None:
        digest = hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()
        measured = ledger.record(evaluation.fingerprint) if evaluation is not None else None
        if evaluation is not None and measured is not None:
            record, digest = merged_record(record, measured), f"{digest} {evaluation.fingerprint}"
    elif state.status is Status.FAILED and state.failure is not None:
        record = RunRecord(
            run_id=spec.run_id,
            fingerprint=spec.fingerprint,
            outcome="failed",
            failure=state.failure,
            stage=spec.config.stage,
            attempt=state.attempt,
        )
        digest = f"failure {state.attempt}"
    return News([events[step] for step in sorted(events)], record, digest)


def mirrored_for_sync(
    spec: RunSpec, asked: Asked, record: RunRecord | None, sweeps: list[str]
) -> MirroredRun:
    """The run as its worker would have mirrored it; the group is the first sweep's that sent it."""
    commit = record.environment.get("git_commit") if record is not None else None
    identities = {"model_identity": spec.model_identity, "dataset_identity": spec.dataset_identity}
    mirrored = mirrored_run(spec.config, spec.run_id, spec.fingerprint, identities, commit, asked)
    tags = dict.fromkeys([*mirrored.tags, *((SWEEP_TAG + name)[:64] for name in sweeps)])
    return replace(mirrored, group=sweeps[0] if sweeps else mirrored.group, tags=tuple(tags))


def upload(mirrored: MirroredRun, news: News, scratch: Path, **settings: Any) -> tuple[int, str]:
    """Send what the server hasn't; how many points that were, and the run's path on the server."""
    run = start_run(
        mirrored,
        scratch,
        "online",
        finish_timeout=120.0,
        x_disable_stats=True,
        x_skip_transaction_log=True,
        **settings,
    )
    path = f"{run.entity}/{run.project}/{run.id}"  # after the end, asking the run would block
    last = run.starting_step - 1 if run.resumed else 0
    new = [event for event in news.events if event["step"] > last]
    for event in new:
        run.log(
            {STEP: event["step"], **{key: value for key, value in event.items() if key != "step"}},
            step=event["step"],
            commit=True,
        )
    end_run(run, news.record)
    return len(new), path


def is_confirmed(path: str, news: News) -> bool:
    """Whether the server itself says that it has the last step and the record."""
    import wandb

    api = wandb.Api(timeout=30)
    for wait_s in CONFIRM_AFTER_S:
        time.sleep(wait_s)
        run = api.run(path)
        run.load(force=True)
        # either may lag behind the other by seconds
        last = max(run.lastHistoryStep or 0, run.summary_metrics.get(STEP) or 0)
        has_steps = last >= news.last_step
        if has_steps and (news.record is None or run.summary_metrics.get("outcome") == news.record.outcome):
            return True
    return False

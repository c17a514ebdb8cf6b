"""Runs that start from other runs: when they may begin, what becomes of them if that one failed."""

import dataclasses

from sweep.evaluations import is_evaluation
from sweep.ledger import Ledger, RunState
from sweep.spec import Plan, RunSpec, Status
from sweep.stages import children
from train.kept import has_weights, remove_weights
from train.record import Failure

PARENT_EVERY_S = 1.0  # how often a worker with nothing else to do looks whether a parent is finished


def parent_state(spec: RunSpec, ledger: Ledger) -> RunState | None:
    """What is known of the run that an unfinished one starts from; None if it needs none."""
    if not spec.parent_fingerprint or ledger.record(spec.fingerprint) is not None:
        return None
    return ledger.status(spec.parent_fingerprint)


def must_wait(parent: RunState | None) -> bool:
    """Whether the parent is still to come."""
    return parent is not None and parent.status not in (Status.FINISHED, Status.FAILED)


def blocked_by(spec: RunSpec, parent: RunState | None, plan: Plan) -> Failure | None:
    """Why a run can't begin at all: its parent failed. It isn't waited for, but retried with its parent."""
    if parent is None or parent.status is not Status.FAILED:
        return None
    name = next(
        (run.run_id for run in plan.runs if run.fingerprint == spec.parent_fingerprint),
        spec.parent_fingerprint,
    )
    why = parent.failure.message if parent.failure else "no reason was written down"
    return Failure(kind="blocked", message=f"blocked by parent {name}, which failed: {why}"[:500])


def measurable(plan: Plan, ledger: Ledger) -> tuple[Plan, tuple[str, ...]]:
    """The plan without evaluations that can't be made, and the ids of their runs: finished without weights.

    A base model needs none, and with eval.retrain=true a supervised run is trained again.
    """
    specs = {spec.fingerprint: spec for spec in plan.runs}
    left_out: dict[str, str] = {}
    for spec in filter(is_evaluation, plan.runs):
        run = specs[spec.parent_fingerprint]
        needs_weights = run.config.stage == "dpo" or (
            run.config.stage == "sft" and not spec.config.eval.retrain
        )
        if (
            needs_weights
            and ledger.record(run.fingerprint) is not None
            and ledger.record(spec.fingerprint) is None
            and not has_weights(ledger.folder(run.fingerprint))
        ):
            left_out[spec.fingerprint] = run.run_id
    if not left_out:
        return plan, ()
    kept = tuple(spec for spec in plan.runs if spec.fingerprint not in left_out)
    return dataclasses.replace(plan, runs=kept), tuple(left_out.values())


def release_parent(spec: RunSpec, plan: Plan, ledger: Ledger) -> None:
    """Give up the parent's weights, if they were kept for its children only and all of them are finished."""
    parent = next((run for run in plan.runs if run.fingerprint == spec.parent_fingerprint), None)
    if parent is None or parent.config.keep != "until_dpo":
        return
    states = ledger.statuses(child.fingerprint for child in children(plan.runs, parent.fingerprint))
    if all(state.status is Status.FINISHED for state in states.values()):
        remove_weights(ledger.folder(parent.fingerprint))

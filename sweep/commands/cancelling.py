"""cancel: stop a sweep's workers gracefully, wherever they were started; or only some of its runs."""

import sys
import time
from collections.abc import Callable

from sweep.arguments import Arguments
from sweep.commands.choosing import chosen_runs
from sweep.commands.clustering import cancel_jobs, tender_of
from sweep.commands.elsewhere import is_on_a_cluster
from sweep.commands.session import Session, open_session
from sweep.controller import PATIENCE_S, stop_workers
from sweep.errors import LaunchError
from sweep.ledger import CLAIMABLE, RunState
from sweep.outcomes import failed_record, spec_to_dict
from sweep.slots import holders
from sweep.slurm.classes import class_of
from sweep.spec import SETTLED, RunSpec, Status
from train.files import write_json_exclusive
from train.record import Failure

POLL_S = 0.3


def cancel(arguments: Arguments) -> int:
    """All workers save their runs and end, and the sweep stays resumable; or only the chosen runs end, until retry."""
    session = open_session(arguments, allow_unresolved=True)
    if arguments.run is not None or arguments.filters:
        return _cancel_runs(session)
    num_workers = sum(holder.sweep == session.config.name for holder in holders(session.config.root).values())
    num_running = sum(state.status is Status.RUNNING for state in session.states().values())
    if not _may_stop(session, num_running):
        return 0
    if num_waiting := cancel_jobs(session):
        print(f"{num_waiting} waiting {_workers(num_waiting)} taken out of the queue")
    if not num_workers and not num_running:
        if num_waiting:
            session.folder.ask_to_stop()  # for one that started at this moment
        else:
            print(f"nothing to stop: nobody is working on {session.config.name}")
        return 0
    num_left = stop_workers(
        session.folder,
        on_wait=lambda number: print(
            f"waiting for {number} {_workers(number)} to save their state", flush=True
        ),
    )
    num_left += _wait_for_nodes(session)
    states = session.states().values()
    num_finished = sum(state.status is Status.FINISHED for state in states)
    num_given_back = sum(state.status is Status.INTERRUPTED for state in states)
    if num_left:
        print(f"{num_left} {_workers(num_left)} still saving their state; they end by themselves")
    print(
        f"stopped: {num_finished} of {len(states)} runs finished"
        + (f", {num_given_back} given back with a checkpoint" if num_given_back else "")
        + f". Continue with: {session.command()}"
    )
    return 0


def _wait_for_nodes(session: Session) -> int:
    """Until jobs have given back what they hold, or patience runs out; how many haven't. They look every second."""

    def num_held() -> int:
        states = session.states().values()
        return sum(
            state.status is Status.RUNNING and bool(state.owner and state.owner.job) for state in states
        )

    if number := num_held():
        print(f"waiting for {number} {_workers(number)} on nodes to save their state", flush=True)
    return _wait(num_held, PATIENCE_S)


def _cancel_runs(session: Session) -> int:
    arguments, ledger = session.arguments, session.ledger
    states = session.states()
    if is_on_a_cluster(states):
        tender = tender_of(session)
        tender.bury(tender.look())
        states = session.states()
    classes = {
        spec.fingerprint: _classes(session, spec, states[spec.fingerprint]) for spec in session.plan.runs
    }
    chosen = chosen_runs(session.plan, arguments.run, arguments.filters, classes)
    open_runs = [spec for spec in chosen if states[spec.fingerprint].status not in SETTLED]
    if not open_runs:
        print(f"nothing to cancel: {len(chosen)} {_runs(len(chosen))} match, all finished or failed before")
        return 0
    num_running = sum(states[spec.fingerprint].status is Status.RUNNING for spec in open_runs)
    if not _may_stop(session, num_running):
        return 0
    message = (
        f"cancelled with: {session.command('cancel', *filter(None, [arguments.run]), *arguments.filters)}"
    )

    def num_left() -> int:
        found = ledger.statuses(spec.fingerprint for spec in open_runs)
        for spec in open_runs:
            _end(session, spec, found[spec.fingerprint], message)
        return sum(state.status not in SETTLED for state in found.values())

    if num_running:
        print(f"waiting for {num_running} {_workers(num_running)} to save and give back", flush=True)
    left = _wait(num_left, PATIENCE_S)
    states = session.states()
    num_failed = sum(states[spec.fingerprint].status is Status.FAILED for spec in open_runs)
    num_finished = sum(states[spec.fingerprint].status is Status.FINISHED for spec in open_runs)
    print(
        f"cancelled {num_failed} {_runs(num_failed)}"
        + (f", {num_finished} finished meanwhile" if num_finished else "")
        + (f", {left} not yet: asked, their workers end them" if left else "")
    )
    if not any(state.status in CLAIMABLE for state in states.values()) and (number := cancel_jobs(session)):
        print(f"{number} waiting {_workers(number)} taken out of the queue: nothing is left for them")
    print(f"Take them up again with: {session.command('retry')}")
    return 0


def _end(session: Session, spec: RunSpec, state: RunState, message: str) -> None:
    """Make a run failed by our wish: at once if nobody has it, else by asking who has it."""
    ledger = session.ledger
    if state.status is Status.RUNNING:
        path = ledger.attempt_path(spec.fingerprint, state.attempt, "cancel.json")
        write_json_exclusive(path, {"message": message, "time": time.time()})
    elif state.status in CLAIMABLE and (claim := ledger.claim(spec.fingerprint, "cancel")) is not None:
        ledger.write_spec(spec.fingerprint, spec_to_dict(spec, ledger.root))
        claim.fail(failed_record(spec, claim.attempt, Failure(kind="cancelled", message=message)))


def _classes(session: Session, spec: RunSpec, state: RunState) -> list[str]:
    """The resource class of a run, and the class of what it was lost to last."""
    losses = session.ledger.losses(spec.fingerprint) if state.attempt else []
    return [class_of(spec.config, session.config.launcher, losses.count("host_oom")).name, *losses[-1:]]


def _may_stop(session: Session, num_running: int) -> bool:
    """Whether running work may be stopped: as said, or as answered. Raises LaunchError where nobody can answer."""
    if not num_running or session.arguments.yes:
        return True
    question = f"{num_running} running {_runs(num_running)} of {session.config.name}"
    if not sys.stdin.isatty():
        raise LaunchError(
            f"cancel would stop {question}, and nobody can be asked here", "yes=true", "add yes=true"
        )
    print(f"Stop {question}? They can be continued. [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was stopped")
    return False


def _wait(num_left: Callable[[], int], patience_s: float) -> int:
    deadline = time.monotonic() + patience_s
    while (number := num_left()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return number


def _workers(number: int) -> str:
    return "worker" if number == 1 else "workers"


def _runs(number: int) -> str:
    return "run" if number == 1 else "runs"

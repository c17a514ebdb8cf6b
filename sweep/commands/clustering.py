"""run, watch, collect and repair on a cluster: each looks once or again, and nothing of ours stays behind."""

import dataclasses
import time
from collections import Counter

from sweep.arguments import Arguments
from sweep.commands.elsewhere import LOOK_EVERY_S, is_on_a_cluster
from sweep.commands.session import Session, history, open_session, time_left
from sweep.controller import Ending, Interrupts
from sweep.errors import LaunchError, LedgerError, StoppedError
from sweep.folder import check_root
from sweep.notify import Notifier
from sweep.show import make_view
from sweep.slurm.batches import batches
from sweep.slurm.tend import Look, Tender, queue_lines
from sweep.spec import SETTLED, Status
from train.errors import UserError

POLL_S = 2.0


def submit(session: Session) -> int:
    """Send the workers that lack and return: nobody has to stay logged in."""
    tender = tender_of(session)
    found = tender.tend(is_asked=True)
    if found.is_over:
        return _finish(session, tender, found)
    print("\n".join(_where_things_stand(found)))
    print(f"Nothing of this needs your terminal. Look again with: {session.command('status')}")
    print(f"Stay and see: {session.command('watch')}; results: {session.command('collect')}")
    return 0


def watch(session: Session) -> int:
    """Look every half minute, put right what can be, until all is done; two at once do no harm."""
    tender, view = tender_of(session), make_view(session.ledger)
    tender.say = view.say
    try:
        with Interrupts().listening() as interrupts:
            found = _watch(session, tender, view, interrupts)
    except KeyboardInterrupt:
        found = None
    finally:
        view.close()
    if found is None:
        print(f"no longer watching; the jobs go on. Stop them with: {session.command('cancel')}")
        return 130
    return _finish(session, tender, found)


def collect(arguments: Arguments) -> int:
    """One look from files and the queue, lost runs sent again, and the report of what is there."""
    session = open_session(arguments)
    if session.config.launcher.kind != "slurm":
        raise LaunchError(
            "collect without launcher=slurm has nothing to collect",
            "a sweep on a cluster",
            f"say: {session.command('status')}",
        )
    tender = tender_of(session)
    found = tender.tend()
    if not found.is_over:
        print("\n".join(_where_things_stand(found)))
    return _finish(session, tender, found)


def repair(arguments: Arguments) -> int:
    """Put claims and orphans right without starting anything, and say what was done."""
    session = open_session(arguments)
    lines = tender_of(session).repair()
    print("\n".join(lines) if lines else "nothing to repair")
    return 0


def tender_of(session: Session) -> Tender:
    """Who looks after this session's sweep."""
    return Tender(
        session.plan, session.ledger, session.folder, session.config.launcher, search=session.search
    )


def status_of_queue(session: Session) -> tuple[Look | None, list[str]]:
    """What the scheduler adds to the ledger's states; None where the sweep isn't on a cluster."""
    if session.config.launcher.kind != "slurm" and not is_on_a_cluster(session.states()):
        return None, []
    found = tender_of(session).look()
    return found, [*queue_lines(found), *class_lines(session, found), *_pause_lines(session, found)]


def _pause_lines(session: Session, found: Look) -> list[str]:
    if found.is_over:
        return []
    try:
        check_root(session.config.root)
    except LedgerError as error:
        return [f"paused: {error}"]
    return []


def class_lines(session: Session, found: Look) -> list[str]:
    """How often what went wrong: runs that failed, and losses of those that aren't finished."""
    counts: Counter[str] = Counter()
    for name, state in found.states.items():
        if state.failure is not None:
            counts[state.failure.kind] += 1
        elif state.attempt and state.status is not Status.FINISHED:
            counts.update(session.ledger.losses(name))
    counts.update(death.kind for death in found.dead)
    return (
        [f"failures: {', '.join(f'{number} {kind}' for kind, number in counts.most_common())}"]
        if counts
        else []
    )


def cancel_jobs(session: Session) -> int:
    """Take waiting workers out of the queue; those at work hear of it by the sweep's stop file."""
    if session.config.launcher.kind != "slurm" and not batches(session.folder):
        return 0
    return tender_of(session).cancel_waiting()


def _watch(session: Session, tender: Tender, view, interrupts: Interrupts) -> Look | None:
    found, next_look, said = None, 0.0, ""
    seconds = history(session.plan, session.ledger)
    notifier = Notifier(session.folder.path, session.config.notify, view.say)
    while True:
        if time.monotonic() >= next_look:
            found, problem = _tend(tender)
            if problem != said:
                view.say(f"paused: {problem}" if problem else "going on")
            said = problem
            next_look = time.monotonic() + LOOK_EVERY_S
        states = session.ledger.statuses(spec.fingerprint for spec in tender.plan.runs)
        notifier.tell(states if found is None or not found.is_searching else {})
        is_settled = all(state.status in SETTLED for state in states.values())
        if is_settled and (last := tender.look()).is_over:
            return last
        next_look = 0.0 if is_settled else next_look  # a search has something to learn and to ask
        num_workers = max(1, found.num_working if found else 1)
        view.update(tender.plan, states, time_left(tender.plan, states, seconds, num_workers))
        if interrupts.event.wait(POLL_S):
            return None


def _tend(tender: Tender) -> tuple[Look | None, str]:
    """One look that puts right what it can; what hinders it, if anything: tomorrow it may not any more.

    A scheduler without an answer or a full disk doesn't end the watch. What somebody has to mend does, once the
    last worker is gone.
    """
    try:
        return tender.tend(), ""
    except UserError as error:
        found = tender.last
        if isinstance(error, StoppedError) and found and not found.num_working + found.num_waiting:
            raise
        return tender.last, str(error)
    except OSError as error:  # the disk ran full between two of our own writes
        return tender.last, f"{error.strerror or error}"


def _where_things_stand(found: Look) -> list[str]:
    num_sent = sum(batch.num_tasks for batch in found.sent)
    jobs = ", ".join(batch.job or "?" for batch in found.sent)
    lines = (
        [f"submitted {num_sent} {'worker' if num_sent == 1 else 'workers'} (job {jobs})"] if num_sent else []
    )
    return lines if lines and not found.num_working + found.num_waiting else lines + queue_lines(found)


def _finish(session: Session, tender: Tender, found: Look) -> int:
    from sweep.commands.running import close_session

    session = dataclasses.replace(session, plan=tender.plan)
    session.folder.link_runs(session.plan)
    Notifier(session.folder.path, session.config.notify).tell(found.states)
    return close_session(session, Ending(states=dict(found.states)))

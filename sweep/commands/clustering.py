"""run, watch, collect and repair on a cluster: each looks once or again, and nothing of ours stays behind."""

import dataclasses
import time
from collections import Counter

from sweep.arguments import Arguments
from sweep.commands.session import Session, history, open_session, time_left
from sweep.controller import Ending, Interrupts
from sweep.errors import LaunchError
from sweep.show import make_view
from sweep.slurm.tend import Look, Tender, queue_lines
from sweep.spec import SETTLED, Status

LOOK_EVERY_S = 30.0  # at the scheduler: squeue, perhaps sacct; the ledger's files are read more often
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
    if session.config.launcher.kind != "slurm":
        return None, []
    found = tender_of(session).look()
    return found, [*queue_lines(found), *class_lines(session, found)]


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
    if session.config.launcher.kind != "slurm":
        return 0
    return tender_of(session).cancel_waiting()


def _watch(session: Session, tender: Tender, view, interrupts: Interrupts) -> Look | None:
    found, next_look, said = None, 0.0, ""
    seconds = history(session.plan, session.ledger)
    while True:
        if time.monotonic() >= next_look:
            try:
                found = tender.tend()
            except LaunchError as error:  # a scheduler that doesn't answer today may do so tomorrow
                if str(error) != said:
                    view.say(f"{error}")
                said = str(error)
                found = tender.look()
            next_look = time.monotonic() + LOOK_EVERY_S
        states = session.ledger.statuses(spec.fingerprint for spec in tender.plan.runs)
        is_settled = all(state.status in SETTLED for state in states.values())
        if is_settled and (last := tender.look()).is_over:
            return last
        next_look = 0.0 if is_settled else next_look  # a search has something to learn and to ask
        num_workers = max(1, found.num_working if found else 1)
        view.update(tender.plan, states, time_left(tender.plan, states, seconds, num_workers))
        if interrupts.event.wait(POLL_S):
            return None


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
    return close_session(session, Ending(states=dict(found.states)))

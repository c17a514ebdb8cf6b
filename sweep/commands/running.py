"""run, retry and watch: from a plan to records, and the report at the end."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping

from sweep.arguments import Arguments
from sweep.commands.costing import actual_lines, keep_to_the_budget
from sweep.commands.elsewhere import Elsewhere
from sweep.commands.reporting import Reporter, show_report
from sweep.commands.session import Session, find_run, open_session
from sweep.controller import Controller, Ending, Interrupts
from sweep.evaluations import is_evaluation
from sweep.launch import Launch, check_ranks
from sweep.ledger import RunState
from sweep.retention import prune, remove_workers_files
from sweep.show import make_view, reason
from sweep.spec import SETTLED, Status
from sweep.stages import children
from train.errors import DataError, ModelError
from train.hub import check_reachable

MAX_FAILURES_SHOWN = 10


def run(arguments: Arguments) -> int:
    """Train what is missing; a finished sweep starts nothing and shows its report."""
    return run_session(open_session(arguments))


def retry(arguments: Arguments) -> int:
    """Forgive failed runs, all or the one named, and run."""
    session = open_session(arguments)
    runs = session.plan.runs
    if arguments.run:
        named = find_run(runs, arguments.run)
        runs = [named, *children(runs, named.fingerprint)]  # which its failure blocked
    num_forgiven = sum(session.ledger.retry(spec.fingerprint) for spec in runs)
    print(f"{num_forgiven} failed {_runs(num_forgiven)} will be tried again")
    return run_session(session)


def watch(arguments: Arguments) -> int:
    """Show progress until all is done; starts nothing and stops nothing."""
    session = open_session(arguments)
    if session.config.launcher.kind == "slurm":
        from sweep.commands import clustering

        return clustering.watch(session)
    ending = control(session, only_watch=True)
    if ending is None or ending.is_interrupted:
        return 130
    if ending.problem:
        print(f"{ending.problem}. Start it with: {session.command()}")
        return 1
    return closing_words(session, ending)


def run_session(session: Session) -> int:
    """The rest of `run`, once the question is composed and planned."""
    check_needs(session)
    keep_to_the_budget(session)
    session.folder.write_plan(session.plan)
    session.folder.link_runs(session.plan)
    print(_opening_words(session))
    if session.config.launcher.kind == "slurm":
        from sweep.commands.clustering import submit

        return submit(session)
    with contextlib.closing(Reporter(session)) as reporter:
        ending = control(session, on_look=reporter)
        session = _grown(session)
        if ending is None:
            print("left at once; workers save their state and end by themselves", file=sys.stderr)
            return 130
        session.folder.link_runs(session.plan)
        if ending.is_interrupted:
            return interrupted_words(session, ending)
        return close_session(session, ending, reporter)


def close_session(session: Session, ending: Ending, reporter: Reporter | None = None) -> int:
    """The last words, the report of what is recorded, and the weights that may go; the exit code."""
    code = closing_words(session, ending)
    print("".join(f"{line}\n" for line in actual_lines(session, ending.states)), end="")
    trained = [spec for spec in session.plan.runs if spec.config.stage != "base"]
    if not any(ending.states[spec.fingerprint].status is Status.FINISHED for spec in trained):
        return code  # a base model alone is no plane
    report_code = show_report(session, reporter)  # also of a sweep some of whose runs failed
    code = code or report_code
    if session.config.retention == "region" and not code:
        kept, given_up = prune(session.plan, session.ledger, session.folder)
        print(f"weights: {kept} {_runs(kept)} in the region keep theirs, {given_up} gave them up")
    if ending.num(Status.FINISHED) == len(ending.states):
        remove_workers_files(session.folder)
    return code


def check_needs(session: Session) -> None:
    """UserError if what is still to be done needs a download or an extra that isn't to be had."""
    states = session.states()
    unfinished = [
        spec for spec in session.plan.runs if states[spec.fingerprint].status is not Status.FINISHED
    ]
    for identity in dict.fromkeys(spec.model_identity for spec in unfinished):
        check_reachable(identity, "model", ModelError)
    for identity in dict.fromkeys(spec.dataset_identity for spec in unfinished):
        check_reachable(identity, "dataset", DataError)
    for config in dict.fromkeys(spec.config.eval for spec in unfinished if is_evaluation(spec)):
        from train.benchmarks.identity import check_benchmarks  # late: few sweeps ask for benchmarks

        check_benchmarks(config)
    if session.unmeasurable:
        print(unmeasurable_line(session))


def unmeasurable_line(session: Session) -> str:
    """Which finished runs can't be measured any more, and what to type."""
    number = len(session.unmeasurable)
    what = (
        f"{number} finished {_runs(number)} kept no weights, so benchmarks can't be measured on them "
        f"({session.unmeasurable[0]}, ...)"
    )
    if any(spec.config.eval.retrain for spec in session.plan.runs):
        return f"{what}: preference-tuned runs aren't trained again for it, so train with retention=all"
    return f"{what}: add eval.retrain=true to train them again for it"


def control(
    session: Session,
    *,
    only_watch: bool = False,
    only_stage: str = "",
    on_look: Callable[[Launch, Mapping[str, RunState]], None] = lambda launch, states: None,
) -> Ending | None:
    """Until the end; None if somebody was in a hurry and asked twice. on_look: hears of every look at the ledger."""
    gpus = session.gpus()
    launcher = session.config.launcher
    launch = Launch(
        root=session.config.root,
        sweep=session.config.name,
        gpus=gpus,
        num_slots=session.num_slots(gpus),
        num_threads=launcher.threads_per_worker,
        max_attempts=launcher.max_attempts,
        pack=launcher.pack or 0,
        unit=launcher.unit,
        only_stage=only_stage,
    )
    if not only_watch:
        check_ranks(session.plan, launch)
    view = make_view(session.ledger)
    elsewhere = Elsewhere(session, view.say)

    def look(states: Mapping[str, RunState]) -> None:
        elsewhere(states)
        on_look(launch, states)

    try:
        with Interrupts().listening() as interrupts:
            return Controller(
                session.plan,
                session.ledger,
                session.folder,
                launch,
                view,
                interrupts,
                only_watch=only_watch,
                search=session.search,
                on_look=look,
            ).run()
    except KeyboardInterrupt:
        return None
    finally:
        view.close()


def _grown(session: Session) -> Session:
    """The session with what its search asked for meanwhile."""
    if session.search is None:
        return session
    session.search.close()
    return dataclasses.replace(session, plan=session.search.plan)


def _opening_words(session: Session) -> str:
    states = session.states().values()
    num_finished = sum(state.status is Status.FINISHED for state in states)
    num_failed = sum(state.status is Status.FAILED for state in states)
    num_left = len(states) - num_finished - num_failed
    parts = [f"{session.config.name}: {len(session.plan.cells)} cells, {len(session.plan.runs)} runs"]
    parts += [f"{num_finished} finished before"] if num_finished else []
    parts += [f"{num_failed} failed before"] if num_failed else []
    return "; ".join([*parts, f"{num_left} to train"])


def interrupted_words(session: Session, ending: Ending) -> int:
    if ending.is_watcher:
        print(f"no longer watching; another process goes on. Stop it with: {session.command('cancel')}")
        return 130
    if ending.num_left_working:
        print(f"{ending.num_left_working} workers are still saving their state; they end by themselves")
    print(
        f"stopped: {ending.num(Status.FINISHED)} of {len(ending.states)} runs finished. "
        f"Continue with: {session.command()}"
    )
    return 130


def closing_words(session: Session, ending: Ending) -> int:
    print("".join(f"{line}\n" for line in (session.search.lines() if session.search else ())), end="")
    failed = [spec for spec in session.plan.runs if ending.states[spec.fingerprint].status is Status.FAILED]
    num_paused = ending.num(Status.PAUSED)
    num_open = len(ending.states) - ending.num(*SETTLED)
    print(
        f"{ending.num(Status.FINISHED)} of {len(ending.states)} runs finished"
        + (f", {len(failed)} failed" if failed else "")
        + (f", {num_paused} paused at their rung" if num_paused else "")
        + (f", {num_open} not done" if num_open else "")
    )
    if num_paused:
        print(f"Train those to the end: {session.command('search.exhaustive=true')}")
    for spec in failed[:MAX_FAILURES_SHOWN]:
        print(f"  failed {spec.run_id}: {reason(ending.states[spec.fingerprint])}")
    if len(failed) > MAX_FAILURES_SHOWN:
        print(f"  and {len(failed) - MAX_FAILURES_SHOWN} more: {session.command('status')}")
    if failed:
        print(f"Look closer: {session.command('why', failed[0].run_id)}")
        print(f"Try again: {session.command('retry')}")
    elif num_open:
        print(f"Continue with: {session.command()}")
    return 1 if failed or num_open else 0


def _runs(number: int) -> str:
    return "run" if number == 1 else "runs"

"""evaluate: benchmarks on finished runs, without training anything."""

import dataclasses
import sys

from sweep.arguments import Arguments
from sweep.commands.reporting import show_report
from sweep.commands.running import (
    check_needs,
    closing_words,
    control,
    interrupted_words,
    run_session,
    unmeasurable_line,
)
from sweep.commands.session import Session, open_session
from sweep.evaluations import EVALUATE, is_evaluation, only
from sweep.spec import Status
from train.errors import UserError


def evaluate(arguments: Arguments) -> int:
    """Measure what eval= asks of every finished run, the base model included; each benchmark is done once.

    Runs that aren't finished are left alone, and said. On a cluster all must be: its workers take what they find.
    """
    session = open_session(arguments)
    states = session.states()
    evaluations = [spec for spec in session.plan.runs if is_evaluation(spec)]
    ready = [spec for spec in evaluations if states[spec.parent_fingerprint].status is Status.FINISHED]
    if not ready:
        raise _nothing_to_measure(session, len(evaluations))
    num_unready = len(evaluations) - len(ready)
    if num_unready and session.config.launcher.kind == "slurm":
        raise UserError(
            f"{num_unready} runs aren't finished, and workers on the cluster would train them",
            "finished runs",
            f"first: {session.command()}",
        )
    if session.config.launcher.kind == "slurm":
        return run_session(session)
    narrowed = dataclasses.replace(session, plan=only(session.plan, ready))
    check_needs(narrowed)
    session.folder.write_plan(session.plan)
    num_done = sum(states[spec.fingerprint].status is Status.FINISHED for spec in ready)
    unready = f"; {num_unready} runs aren't finished and are left alone" if num_unready else ""
    print(f"{session.config.name}: {len(ready)} evaluations, {num_done} done before{unready}")
    for spec in ready:  # a failure under settings that may have changed since is no reason not to try
        session.ledger.retry(spec.fingerprint)
    ending = control(narrowed, only_stage=EVALUATE)
    if ending is None:
        print("left at once; workers save their state and end by themselves", file=sys.stderr)
        return 130
    session.folder.link_runs(session.plan)
    if ending.is_interrupted:
        return interrupted_words(narrowed, ending)
    return closing_words(narrowed, ending) or show_report(session)


def _nothing_to_measure(session: Session, num_asked: int) -> UserError:
    if num_asked:
        return UserError(
            f"none of {num_asked} runs is finished", "finished runs to measure", f"first: {session.command()}"
        )
    if session.unmeasurable:
        return UserError(unmeasurable_line(session))
    return UserError(
        "no benchmarks are asked for",
        "eval=NAME, a file of conf/eval with benchmarks",
        f"such as: {session.command('evaluate', 'eval=papers')}",
    )

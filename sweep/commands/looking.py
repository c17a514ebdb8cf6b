"""plan, status, why and logs: they read, and write nothing."""

import sys
import time
from collections.abc import Callable

from sweep.arguments import Arguments
from sweep.budget import forecast_lines
from sweep.commands.clustering import status_of_queue
from sweep.commands.costing import cost_lines, forecast_of
from sweep.commands.session import (
    Session,
    command_line,
    find_run,
    has_grid,
    history,
    is_over,
    open_session,
    root_of,
    saved_plans,
    time_left,
)
from sweep.duration import duration_text, estimate_text, run_seconds
from sweep.ledger import Ledger, RunState
from sweep.show import aligned, progress_line, reason, status_counts, status_lines, step_text
from sweep.slurm.burial import how_it_ended
from sweep.spec import RunSpec, Status
from train.secrets import scrub

FOLLOW_EVERY_S = 0.3


def plan(arguments: Arguments) -> int:
    """A dry run: what would be trained, what is there already, how long it takes, what to type next."""
    from sweep.plan import summary_lines

    session = open_session(arguments, allow_unresolved=True)
    states = session.states()
    num_slots = session.num_slots(session.gpus())
    estimate = time_left(session.plan, states, history(session.plan, session.ledger), num_slots)
    print(session.config.name)
    for line in summary_lines(session.plan):
        print(f"  {line}")
    print("\n".join(aligned(status_counts(session.plan, states))))
    print("".join(f"{line}\n" for line in (session.search.lines() if session.search else ())), end="")
    if is_over(states.values()):
        print("everything is recorded; nothing would be trained")
    else:
        print(f"time: {estimate_text(estimate)} with {num_slots} {'worker' if num_slots == 1 else 'workers'}")
        found = forecast_of(session, states)
        has_limits = session.config.launcher.kind == "slurm"
        print("\n".join(forecast_lines(found, session.config.budget, has_limits=has_limits)))
        if found.hours is None:
            print(f"Measure a few runs first, for a few minutes: {session.command('pilot')}")
    print(f"Nothing was started. Next: {session.command()}")
    return 0


def status(arguments: Arguments) -> int:
    """One screen: counts, runs in flight, failures. No grid: a line per sweep; a run: what `why` says."""
    if arguments.run is not None:
        return why(arguments)
    if not has_grid(arguments):
        return _every_sweep(arguments)
    session = open_session(arguments, allow_unresolved=True)
    found, lines = status_of_queue(session)
    states = dict(found.states) if found else session.states()
    num_workers = max(1, found.num_working) if found else session.num_slots(session.gpus())
    estimate = time_left(session.plan, states, history(session.plan, session.ledger), num_workers)
    lines = [*status_lines(session.plan, states, estimate), *lines, *cost_lines(session, states)]
    print("\n".join(lines))
    print(f"one run by hand: {_train_command(_interesting(session, states), session.ledger)}")
    return 0


def why(arguments: Arguments) -> int:
    """Five lines at most: what became of a run, where to look, what to type."""
    ledger, spec = _named_run(arguments)
    state = ledger.status(spec.fingerprint)
    print("\n".join([*_explanation(spec, state, ledger, arguments), *_earlier(spec, state, ledger)][:5]))
    return 0


def _earlier(spec: RunSpec, state: RunState, ledger: Ledger) -> list[str]:
    """What became of the attempts before this one, the latest first, on one line."""
    told = []
    for attempt in range(state.attempt - 1, 0, -1):
        kind, words = how_it_ended(ledger, spec.fingerprint, attempt)
        if kind:
            told.append(f"attempt {attempt} {kind}" + (f" ({words[:160]})" if words else ""))
    return (
        [f"before: {'; '.join(told[:3])}" + (f"; {len(told) - 3} more" if told[3:] else "")] if told else []
    )


def logs(arguments: Arguments) -> int:
    """Everything the run's last attempt printed; with -f until it ends."""
    ledger, spec = _named_run(arguments)
    attempt = ledger.last_attempt(spec.fingerprint)
    if attempt == 0 and not arguments.follow:
        print(f"{spec.run_id} was never started, so it printed nothing", file=sys.stderr)
        return 0

    def is_active() -> bool:
        return arguments.follow and ledger.status(spec.fingerprint).status is Status.RUNNING

    while attempt == 0:
        time.sleep(FOLLOW_EVERY_S)
        attempt = ledger.last_attempt(spec.fingerprint)
    _copy_growing(ledger.attempt_path(spec.fingerprint, attempt, "log"), is_active)
    return 0


def _copy_growing(path, is_active: Callable[[], bool]) -> None:
    offset = 0
    while True:
        was_active = is_active()  # asked before reading, so that the last words are read after the end
        try:
            with open(path, "rb") as stream:
                stream.seek(offset)
                content = stream.read()
        except FileNotFoundError:
            content = b""
        offset += len(content)
        sys.stdout.write(scrub(content.decode("utf-8", errors="replace")))
        sys.stdout.flush()
        if not was_active:
            return
        time.sleep(FOLLOW_EVERY_S)


def _every_sweep(arguments: Arguments) -> int:
    root = root_of(arguments)
    plans = saved_plans(root)
    if not plans:
        print(f"no sweeps in {root}. Start one with: python -m sweep +grid=smoke_2x2")
        return 0
    ledger = Ledger(root)
    rows = []
    for saved in plans:
        states = ledger.statuses(spec.fingerprint for spec in saved.runs)
        rows.append([saved.name, progress_line(saved, states, None).split(";")[0]])
    print("\n".join(aligned([["sweep", "runs"], *rows])))
    return 0


def _named_run(arguments: Arguments) -> tuple[Ledger, RunSpec]:
    if has_grid(arguments):
        session = open_session(arguments, allow_unresolved=True)
        return session.ledger, find_run(session.plan.runs, arguments.run)
    root = root_of(arguments)
    return Ledger(root), find_run((spec for saved in saved_plans(root) for spec in saved.runs), arguments.run)


def _interesting(session: Session, states: dict[str, RunState]) -> RunSpec:
    """The run whose line is worth pasting: one that failed, else one in flight, else any."""
    order = (Status.FAILED, Status.LOST, Status.RUNNING)
    ranked = sorted(
        session.plan.runs,
        key=lambda spec: (
            order.index(status) if (status := states[spec.fingerprint].status) in order else len(order)
        ),
    )
    trained = [spec for spec in ranked if spec.config.stage != "base"]
    return (trained or ranked)[0]


def _explanation(spec: RunSpec, state: RunState, ledger: Ledger, arguments: Arguments) -> list[str]:
    log = ledger.attempt_path(spec.fingerprint, state.attempt, "log")
    where = f"by {state.owner.worker or state.owner.pid} on {state.owner.host}" if state.owner else ""
    again = command_line(arguments) if has_grid(arguments) else "the sweep's own command"
    progress = f"{step_text(state)}, attempt {state.attempt}"
    match state.status:
        case Status.FAILED if state.failure is not None:
            words = ("retry", spec.run_id)
            retry = command_line(arguments, *words) if has_grid(arguments) else f"{again}, {' '.join(words)}"
            return [
                f"{spec.run_id} failed in attempt {state.attempt}, {reason(state)}",
                f"where: {state.failure.last_frame or 'not known'}",
                f"log: {log}",
                f"try again: {retry}",
                f"by hand: {_train_command(spec, ledger)}",
            ]
        case Status.FINISHED:
            record = ledger.record(spec.fingerprint)
            took = f" in {duration_text(run_seconds(record))}" if record else ""
            return [
                f"{spec.run_id} finished{took} in attempt {state.attempt}",
                f"record: {ledger.folder(spec.fingerprint) / 'record.json'}",
                f"by hand: {_train_command(spec, ledger)}",
            ]
        case Status.RUNNING:
            since = duration_text(time.time() - state.owner.claimed_at) if state.owner else "a while"
            return [f"{spec.run_id} is running for {since}, {progress}, {where}", f"log: {log}"]
        case Status.INTERRUPTED:
            kind, words = how_it_ended(ledger, spec.fingerprint, state.attempt)
            return [
                f"{spec.run_id} was given back with a checkpoint ({progress}), {kind}"
                + (f": {words}" if words else ""),
                f"log: {log}",
                f"it continues with: {again}",
            ]
        case Status.LOST:
            loss = ledger.loss(spec.fingerprint, state.attempt)
            how = (
                f"{loss['kind']}: {loss['evidence']}" if loss else f"its worker died without a word, {where}"
            )
            return [
                f"{spec.run_id} is lost: {how} ({progress})",
                f"log: {log}",
                f"it continues from its last checkpoint with: {again}",
            ]
        case _:
            before = "its failure was forgiven, " if state.attempt else ""
            return [
                f"{spec.run_id} is planned: {before}nobody has taken it yet",
                f"it starts with: {again}",
                f"by hand: {_train_command(spec, ledger)}",
            ]


def _train_command(spec: RunSpec, ledger: Ledger) -> str:
    from sweep.plan import train_command

    return train_command(spec, ledger.root)

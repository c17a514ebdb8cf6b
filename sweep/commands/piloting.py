"""pilot: train a few runs for a few minutes, so that the rest of a sweep can be forecast.

The pilots are the plan's own runs: those that finish are results, the others go on from their checkpoints when the
sweep is run. They are chosen over the whole plane, as a run's evaluation may take longer where a model learned less.
"""

import dataclasses
import math

from sweep.arguments import Arguments
from sweep.budget import forecast_lines
from sweep.commands.costing import forecast_of
from sweep.commands.session import Session, open_session
from sweep.folder import PILOT_FILE, SweepFolder
from sweep.forecast import PILOT_SUFFIX
from sweep.spec import Plan, RunSpec, Status
from sweep.workloads import workload_of
from train.files import write_json_atomic


def pilot(arguments: Arguments) -> int:
    """Train pilots here and show the forecast, or send them to a cluster and return."""
    session = open_session(arguments)
    states = session.states()
    chosen = {
        spec.fingerprint
        for spec in pilots(session.plan, session.config.budget.pilot_runs)
        if states[spec.fingerprint].status in (Status.PLANNED, Status.LOST)
    }
    runs = tuple(spec for spec in session.plan.runs if spec.fingerprint in chosen)
    if runs:
        limit = f"at most {session.config.budget.pilot_min:g} min each"
        print(f"{len(runs)} pilots, {limit}: {', '.join(spec.run_id for spec in runs[:5])}", end="")
        print(", ..." if len(runs) > 5 else "", flush=True)
        if code := _train(_pilot_session(session, runs)):
            return code
    if runs and session.config.launcher.kind == "slurm":
        print(f"Once they are over, see the forecast with: {session.command('plan')}")
        return 0
    limits = session.config.launcher.kind == "slurm"
    found = forecast_of(session, session.states())
    print("\n".join(forecast_lines(found, session.config.budget, has_limits=limits)))
    print(f"Next: {session.command()}")
    return 0


def pilots(plan: Plan, number: int) -> list[RunSpec]:
    """The untrained base of each model and dataset, and so many of its runs, evenly spread over the ratios of the
    weights; of every set of like runs. Those that start from another run have none: their parents come first."""
    found: list[RunSpec] = []
    groups: dict[str, list[RunSpec]] = {}
    for spec in plan.runs:
        if spec.config.stage == "base":
            found.append(spec)
        elif not spec.parent_fingerprint:
            groups.setdefault(workload_of(spec).shape, []).append(spec)
    for runs in groups.values():
        ordered = sorted(runs, key=lambda spec: (_angle(spec), spec.config.seed))
        count = min(number, len(ordered))
        found += [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]
    return found


def _angle(spec: RunSpec) -> float:
    return math.atan2(spec.config.objective.prompt_weight, spec.config.objective.response_weight)


def _pilot_session(session: Session, runs: tuple[RunSpec, ...]) -> Session:
    """The same ledger, workers and limits; a plan and a folder of its own."""
    plan = Plan(f"{session.config.name}{PILOT_SUFFIX}", (), (), runs)
    folder = SweepFolder(session.config.root, plan.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder.path / PILOT_FILE, {"run_s": 60.0 * session.config.budget.pilot_min})
    config = dataclasses.replace(session.config, name=plan.name)
    return dataclasses.replace(session, plan=plan, folder=folder, config=config)


def _train(session: Session) -> int:
    from sweep.commands.running import control
    from sweep.slurm.tend import Tender

    session.folder.write_plan(session.plan)
    if session.config.launcher.kind == "slurm":
        tender = Tender(session.plan, session.ledger, session.folder, session.config.launcher)
        sent = sum(batch.num_tasks for batch in tender.tend(is_asked=True).sent)
        print(f"submitted {sent} {'worker' if sent == 1 else 'workers'}")
        return 0
    ending = control(session)
    if ending is None or ending.is_interrupted:
        print(f"stopped; go on with: {session.command('pilot')}")
        return 130
    failed = [spec for spec in session.plan.runs if ending.states[spec.fingerprint].status is Status.FAILED]
    for spec in failed:
        print(f"failed {spec.run_id}; look closer: {session.command('why', spec.run_id)}")
    return 1 if failed else 0

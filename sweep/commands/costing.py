"""What a sweep costs, for the commands: the forecast, the budget that it must keep, and what it took."""

import time
from collections.abc import Mapping, Sequence

from sweep.bill import FORECAST_FILE, bill_of
from sweep.budget import actual_line, exceeds, spent_lines
from sweep.commands.session import Session
from sweep.errors import LaunchError
from sweep.forecast import Forecast, Room, forecast, spent_hours
from sweep.launch import available_cores
from sweep.ledger import RunState
from sweep.slurm.classes import class_of, reserve_s
from sweep.spec import SETTLED, RunSpec
from sweep.timesheets import Shift, shifts
from train.files import read_json, write_json_atomic


def forecast_of(
    session: Session, states: Mapping[str, RunState], history: Sequence[Shift] | None = None
) -> Forecast:
    """What the runs that are left will take, from the timesheets of this root."""
    history = shifts(session.config.root) if history is None else history
    return forecast(session.plan.runs, states, history, _rooms(session))


def keep_to_the_budget(session: Session) -> None:
    """Write down the forecast of what is about to be launched; LaunchError where it exceeds the budget."""
    states = session.states()
    found = forecast_of(session, states)
    if exceeds(found, session.config.budget) and not session.arguments.yes:
        hours = "an unknown number of" if found.hours is None else f"about {found.hours:.3g}"
        worst = "" if found.worst is None else f", at most {found.worst:.4g}"
        raise LaunchError(
            f"the sweep takes {hours} {found.unit}-hours{worst}",
            f"at most budget.gpu_hours={session.config.budget.gpu_hours:g}",
            "ask for less, raise the budget, or add yes=true",
        )
    left = [name for name, state in states.items() if _is_open(state)]
    path = session.folder.path / FORECAST_FILE
    before = read_json(path)
    if found.hours is None or not left or (before and set(left) <= set(before["runs"])):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"hours": found.hours, "low": found.low, "high": found.high, "unit": found.unit}
    write_json_atomic(path, {**values, "made_at": time.time(), "runs": left})


def cost_lines(session: Session, states: Mapping[str, RunState]) -> list[str]:
    """Spent and left, or what it took and what was forecast; nothing where no worker ever worked."""
    history = shifts(session.config.root)
    found = forecast_of(session, states, history)
    unit = "GPU" if any(_rooms(session)(spec).gpus for spec in session.plan.runs[:1]) else found.unit
    spent = spent_hours(history, session.config.name, unit)
    if any(map(_is_open, states.values())):
        return spent_lines(spent, found, unit, session.config.budget)
    lines = actual_lines(session, states, history)
    return lines or (spent_lines(spent, None, unit, session.config.budget) if spent else [])


def actual_lines(
    session: Session, states: Mapping[str, RunState], history: Sequence[Shift] | None = None
) -> list[str]:
    """What the launch was forecast to take and what it took, once all of it is done."""
    bill = bill_of(session.folder, states, history)
    return [] if bill is None else [actual_line(bill.forecast, bill.low, bill.high, bill.took, bill.unit)]


def _is_open(state: RunState) -> bool:
    return state.status not in SETTLED


def _rooms(session: Session):
    """What each run's worker is given, here or on a cluster."""
    launcher = session.config.launcher
    if launcher.kind == "slurm":

        def room_of(spec: RunSpec) -> Room:
            resources = class_of(spec.config, launcher)
            return Room(
                gpus=resources.gpus,
                cores=launcher.cpus_per_worker,
                minutes=resources.time_min,
                num_workers=min(launcher.max_jobs, launcher.array_parallelism or launcher.max_jobs),
                runs_per_worker=launcher.runs_per_job,
                pack=launcher.pack,
                reserve_s=reserve_s(60.0 * resources.time_min, launcher.signal_delay_s),
            )

        return room_of
    gpus = session.gpus()
    num_slots, cores = session.num_slots(gpus), launcher.threads_per_worker
    if launcher.pack != 1:
        cores = max(cores, available_cores() // num_slots)
    here = Room(gpus=min(1, len(gpus)), cores=cores, num_workers=num_slots, pack=launcher.pack)
    return lambda spec: here

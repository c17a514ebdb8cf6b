"""cancel: stop a sweep's workers gracefully, wherever they were started."""

import sys

from sweep.arguments import Arguments
from sweep.commands.clustering import cancel_jobs
from sweep.commands.session import open_session
from sweep.controller import stop_workers
from sweep.errors import LaunchError
from sweep.slots import holders
from sweep.spec import Status


def cancel(arguments: Arguments) -> int:
    """Workers save their runs and end; controllers see the request and end too. Runs stay resumable."""
    if arguments.run is not None:
        raise LaunchError(
            f"cancel {arguments.run} would stop one run, and the next worker would take it up",
            "the whole sweep",
            "leave the run out, or exclude its cell from the grid",
        )
    session = open_session(arguments, allow_unresolved=True)
    num_workers = sum(holder.sweep == session.config.name for holder in holders(session.config.root).values())
    num_running = sum(state.status is Status.RUNNING for state in session.states().values())
    if num_waiting := cancel_jobs(session):
        print(f"{num_waiting} waiting {'worker' if num_waiting == 1 else 'workers'} taken out of the queue")
        if not num_workers and not num_running:
            session.folder.ask_to_stop()  # for one that started at this moment
            return 0
    if not num_workers and not num_running:
        print(f"nothing to stop: nobody is working on {session.config.name}")
        return 0
    if not arguments.yes and sys.stdin.isatty() and not _agrees(session.config.name, num_running):
        print("nothing was stopped")
        return 0
    num_left = stop_workers(
        session.folder,
        on_wait=lambda number: print(
            f"waiting for {number} {'worker' if number == 1 else 'workers'} to save their state", flush=True
        ),
    )
    states = session.states().values()
    num_finished = sum(state.status is Status.FINISHED for state in states)
    if num_left:
        print(f"{num_left} workers are still saving their state; they end by themselves")
    print(f"stopped: {num_finished} of {len(states)} runs finished. Continue with: {session.command()}")
    return 0


def _agrees(name: str, num_running: int) -> bool:
    print(
        f"Stop {num_running} running {'run' if num_running == 1 else 'runs'} of {name}? "
        "They can be continued. [y/N] ",
        end="",
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes")

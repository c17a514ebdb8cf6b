"""What else goes on while this machine trains a sweep: jobs of a cluster that hold some of its runs; the webhook."""

import time
from collections.abc import Callable, Mapping

from sweep.commands.session import Session
from sweep.ledger import RunState
from sweep.notify import Notifier
from sweep.slurm.tend import Tender
from sweep.spec import Status

LOOK_EVERY_S = 30.0  # at the scheduler: squeue, perhaps sacct; the ledger's files are read more often


def is_on_a_cluster(states: Mapping[str, RunState]) -> bool:
    """Whether jobs hold any of these runs."""
    return any(
        state.status is Status.RUNNING and state.owner and state.owner.job for state in states.values()
    )


class Elsewhere:
    """Called with every look at the ledger. Claims of living jobs are left alone and shown, dead ones given up."""

    def __init__(self, session: Session, say: Callable[[str], None]) -> None:
        self._tender = Tender(session.plan, session.ledger, session.folder, session.config.launcher, say=say)
        self._notifier = Notifier(session.folder.path, session.config.notify, say)
        self._say, self._next, self._said = say, 0.0, ""

    def __call__(self, states: Mapping[str, RunState]) -> None:
        """Look at the scheduler now and then, and only while its jobs hold runs."""
        self._notifier.tell(states)
        if time.monotonic() < self._next or not is_on_a_cluster(states):
            return
        self._next = time.monotonic() + LOOK_EVERY_S
        found = self._tender.look()
        for line in self._tender.bury(found):
            self._say(f"lost {line}")
        held = [
            state
            for name, state in found.states.items()
            if state.status is Status.RUNNING and state.owner and state.owner.job
        ]
        if not held:
            return
        line = (
            f"{len(held)} {'run is' if len(held) == 1 else 'runs are'} with jobs of a cluster and left alone"
        )
        if found.queue is None:
            line += f", also if those are gone: {found.problem}"
        elif found.num_waiting:
            line += f"; {found.num_waiting} more workers wait in its queue (launcher=slurm cancel ends them)"
        if line != self._said:
            self._say(line)
        self._said = line

"""Look at a sweep on a cluster, and put right what can be: dead claims given up, missing workers sent.

Called by whoever looks: run, watch, collect, a line in cron. Nothing of ours lives between the calls, and any
number of callers at once do no harm: facts are files that appear once, and a worker too many finds nothing to do.
"""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from sweep.errors import LaunchError
from sweep.folder import SweepFolder
from sweep.launcher import LauncherConfig
from sweep.ledger import CLAIMABLE, Ledger, RunState
from sweep.slurm.batches import Batch, batches, folder_of, write_answer
from sweep.slurm.classes import by_class
from sweep.slurm.code import freeze
from sweep.slurm.queue import Queue, call, read_accounting, read_queue
from sweep.slurm.reconcile import Death, Held, deaths, held_claims, hung, num_lacking, unknown_jobs
from sweep.slurm.submit import submit_workers
from sweep.spec import Plan, Status
from sweep.worker import TRAINER


ORPHAN_S = 3600.0  # since a batch was announced, after which it won't appear any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A sweep at one moment. queue None: the scheduler gave no answer, for the reason in `problem`."""

    states: Mapping[str, RunState]
    batches: tuple[Batch, ...]
    queue: Queue | None
    dead: tuple[Death, ...] = ()
    problem: str = ""
    by_batch: Mapping[str, Batch] = field(default_factory=dict)
    hung: tuple[Held, ...] = ()
    sent: tuple[Batch, ...] = ()  # by this look

    @property
    def num_waiting(self) -> int:
        """Workers that will start."""
        return sum(task.is_waiting for task in self._ours())

    @property
    def num_working(self) -> int:
        """Workers that are at it."""
        return sum(task.is_working for task in self._ours())

    def reasons(self) -> dict[str, int]:
        """Why workers wait, in the scheduler's words, and how many."""
        counts: dict[str, int] = {}
        for task in self._ours():
            if task.is_waiting:
                counts[task.reason or task.state] = counts.get(task.reason or task.state, 0) + 1
        return counts

    def _ours(self):
        return [task for task in (self.queue or {}).values() if task.batch in self.by_batch]


class Tender:
    """One sweep on a cluster, for one command."""

    def __init__(self, plan: Plan, ledger: Ledger, folder: SweepFolder, launcher: LauncherConfig, *,
                 trainer: str = TRAINER, say: Callable[[str], None] = print) -> None:
        self.plan, self.ledger, self.folder, self.launcher = plan, ledger, folder, launcher
        self._trainer, self.say = trainer, say

    def look(self) -> Look:
        """Files, one squeue, and one sacct if a claim's job left the queue. Writes nothing."""
        try:
            queue, problem = read_queue(), ""
        except LaunchError as error:
            queue, problem = None, str(error)
        states = self.ledger.statuses(spec.fingerprint for spec in self.plan.runs)
        known = batches(self.folder, [(task.batch, task.key) for task in (queue or {}).values()])
        found = Look(states=states, batches=tuple(known), queue=queue, problem=problem,
                     by_batch={batch.batch: batch for batch in known})
        if queue is None:
            return found
        silence = {name: self.ledger.silence_s(name, state.attempt) for name, state in states.items()
                   if state.status is Status.RUNNING and state.owner and state.owner.job}
        held = held_claims(states, silence)
        suspects = unknown_jobs((claim for claim in held if claim.silence_s > 10.0), queue)
        accounting = read_accounting(suspects) if suspects else {}
        dead = deaths(held, queue, accounting, self.launcher.silence_s)
        gone = {death.fingerprint: Status.LOST for death in dead}
        states = {name: replace(state, status=gone.get(name, state.status)) for name, state in states.items()}
        return replace(found, states=states, dead=tuple(dead),
                       hung=tuple(hung(held, queue, self.launcher.hung_s)))

    def tend(self) -> Look:
        """Look, give up dead claims, and submit the workers that lack. Raises LaunchError if the site refuses."""
        found = self.look()
        if found.queue is None:
            if any(state.status in CLAIMABLE for state in found.states.values()):
                raise LaunchError(found.problem)
            return found
        for death in found.dead:
            if self.ledger.give_up(death.fingerprint, death.attempt, death.kind, death.evidence):
                self.say(f"lost {self.plan.spec(death.fingerprint).run_id} ({death.kind}): {death.evidence}")
        for claim in found.hung:
            with contextlib.suppress(LaunchError):
                call("scontrol", "requeue", claim.job.key)
                self.say(f"job {claim.job.key} runs but was silent for {claim.silence_s:.0f} s: queued again")
        with self._lock() as is_ours:
            return replace(found, sent=tuple(self._send(found))) if is_ours else found

    def repair(self) -> list[str]:
        """Give up dead claims, and take workers of no batch of ours out of the queue; what was done, in lines."""
        found = self.look()
        if found.queue is None:
            raise LaunchError(found.problem)
        lines = []
        for death in found.dead:
            if self.ledger.give_up(death.fingerprint, death.attempt, death.kind, death.evidence):
                run_id = self.plan.spec(death.fingerprint).run_id
                lines.append(f"claim {death.attempt} of {run_id} given up ({death.kind}): {death.evidence}")
        in_queue = {task.batch for task in found.queue.values()}
        for batch in found.batches:
            if batch.job and not batch.is_answered:
                write_answer(self.folder, batch, {"job": batch.job})
                lines.append(f"batch {batch.batch} is job {batch.job}: its submitter died before writing it down")
            elif not batch.is_answered and batch.batch not in in_queue and \
                    time.time() - batch.announced_at > ORPHAN_S:
                write_answer(self.folder, batch, {"refused": "it never appeared in the queue"})
                lines.append(f"batch {batch.batch} was announced but never submitted; struck out")
        return lines

    def cancel_waiting(self) -> int:
        """Take workers that haven't started out of the queue; how many tasks that were."""
        found = self.look()
        if found.queue is None:
            raise LaunchError(found.problem)
        numbers = sorted({task.key.partition("_")[0] for task in found.queue.values()
                          if task.is_waiting and task.batch in found.by_batch})
        if numbers:
            call("scancel", "--state=PENDING", *numbers)
        return found.num_waiting

    def _send(self, found: Look) -> list[Batch]:
        queue = found.queue or {}
        sent: list[Batch] = []
        for resources, runs in by_class(self.plan.runs, self.launcher).items():
            states = [found.states[spec.fingerprint] for spec in runs]
            known = batches(self.folder, [(task.batch, task.key) for task in queue.values()])
            lacking = num_lacking(states, known, queue, resources.name, max_jobs=self.launcher.max_jobs,
                                  runs_per_job=self.launcher.runs_per_job, now=time.time())
            if lacking:
                sent += submit_workers(self.folder, self.launcher, resources, lacking, freeze(self.folder.root),
                                       trainer=self._trainer, say=self.say)
        return sent

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """One submitter at a time; a second one sees the first one's workers with its next look."""
        place = folder_of(self.folder)
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "submit.lock", "w", encoding="ascii") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def queue_lines(found: Look) -> list[str]:
    """What a status screen says of the queue."""
    if found.queue is None:
        return [f"queue: {found.problem}"] if found.batches else []
    words = [f"{found.num_working} working", f"{found.num_waiting} waiting"]
    reasons = ", ".join(f"{number} {reason}" for reason, number in found.reasons().items())
    lines = [f"workers in the queue: {', '.join(words)}" + (f" ({reasons})" if reasons else "")]
    return lines + [f"  lost ({death.kind}): {death.evidence}" for death in found.dead[:5]]

"""What the ledger says and what the scheduler says, put together: which claims are dead, how many workers lack. Pure.

A claim is never given up for its age alone. It takes the scheduler's word that the job is over, or is in a later
life, and a heartbeat that has been silent since: a short while where SLURM saw the process end, `silence_s` where
it can't know (a node that doesn't answer may still compute) or doesn't say (a job that left the queue).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweep.ledger import CLAIMABLE, RunState
from sweep.outcomes import NUM_SAME_FAILURES
from sweep.slurm.batches import Batch
from sweep.slurm.jobs import JobName, job_from_text
from sweep.slurm.queue import Queue, Queued, batch_of
from sweep.spec import Status
from train.record import Failure

SEEN_TO_END_S = 10.0  # heartbeats come every two seconds
SUBMISSION_S = 60.0  # a batch that was just announced may not be in the queue yet
KIND_OF_STATE = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "OUT_OF_MEMORY": "host_oom",
    "FAILED": "killed",
    "COMPLETED": "killed",
    "REVOKED": "cancelled",
}
_UNCERTAIN = ("NODE_FAIL", "BOOT_FAIL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A claim that a job has. silence_s: since its last heartbeat, by the file system's clock."""

    fingerprint: str
    attempt: int
    job: JobName
    silence_s: float
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A claim that is nobody's any more. kind: the class of its failure; evidence: for people."""

    fingerprint: str
    attempt: int
    kind: str
    evidence: str
    job: str = ""
    node: str = ""


def held_claims(states: Mapping[str, RunState], silence: Mapping[str, float]) -> list[Held]:
    """The claims of running runs that name a job."""
    found: list[Held] = []
    for fingerprint, state in states.items():
        job = job_from_text(state.owner.job) if state.owner and state.status is Status.RUNNING else None
        if job is not None:
            found.append(
                Held(
                    fingerprint=fingerprint,
                    attempt=state.attempt,
                    job=job,
                    silence_s=silence.get(fingerprint, 0.0),
                    node=state.owner.worker.partition(",")[0] if state.owner else "",
                )
            )
    return found


def unknown_jobs(held: Iterable[Held], queue: Queue) -> list[str]:
    """The jobs that only the accounting could still know something of: gone, or in a later life by now."""
    return sorted(
        {
            claim.job.key
            for claim in held
            if not _is_in(queue, claim.job) or _is_past(queue[claim.job.key], claim.job)
        }
    )


def deaths(
    held: Iterable[Held], queue: Queue, accounting: Mapping[str, tuple[str, str]], silence_s: float
) -> list[Death]:
    """The claims whose jobs are gone."""
    found: list[Death] = []
    for claim in held:
        verdict = _verdict(claim, queue, accounting)
        if verdict is None:
            continue
        kind, words, is_certain = verdict
        needed_s = min(SEEN_TO_END_S, silence_s) if is_certain else silence_s
        if claim.silence_s >= needed_s:
            found.append(
                Death(
                    fingerprint=claim.fingerprint,
                    attempt=claim.attempt,
                    kind=kind,
                    evidence=f"{words}; its last heartbeat was {claim.silence_s:.0f} s ago",
                    job=str(claim.job),
                    node=claim.node,
                )
            )
    return found


def hung(held: Iterable[Held], queue: Queue, hung_s: float) -> list[Held]:
    """Claims of jobs that run but have been silent for so long: stopped, or cut off from their files.

    Not dead, and so not to be taken over: only the scheduler can end them, by putting the job back into the queue.
    """
    return [
        claim
        for claim in held
        if claim.silence_s > hung_s
        and _is_in(queue, claim.job)
        and queue[claim.job.key].state == "RUNNING"
        and queue[claim.job.key].restart == claim.job.restart
    ]


def died_at_once(
    batches: Sequence[Batch], queue: Queue, states: Iterable[RunState], class_name: str
) -> Batch | None:
    """The latest batch of a class, if its workers all failed before they claimed anything: the next ones would, too."""
    ours = [batch for batch in batches if batch.class_name == class_name]
    if not ours:
        return None
    tasks = [task for task in queue.values() if task.batch == ours[-1].batch]
    claimed = {job.batch for state in states if state.owner and (job := job_from_text(state.owner.job))}
    is_dead = bool(tasks) and all(task.state == "FAILED" for task in tasks) and ours[-1].batch not in claimed
    return ours[-1] if is_dead else None


def code_at_fault(trained: Iterable[RunState]) -> Failure | None:
    """The failure of three runs that failed in the same line while none is finished: no run would fare better."""
    trained = list(trained)
    if any(state.status is Status.FINISHED for state in trained):
        return None
    failures = [
        state.failure for state in trained if state.failure is not None and state.failure.kind == "code"
    ]
    lines = [failure.last_frame for failure in failures]
    return next(
        (failure for failure in failures if lines.count(failure.last_frame) >= NUM_SAME_FAILURES), None
    )


def num_lacking(
    open_runs: Sequence[RunState],
    batches: Sequence[Batch],
    queue: Queue,
    class_name: str,
    *,
    max_jobs: int,
    runs_per_job: int,
    now: float,
) -> int:
    """How many more workers a class needs: those in the queue go on until no run is left."""
    num_open = sum(state.status in CLAIMABLE for state in open_runs)
    if not num_open:
        return 0
    num_left = num_open + sum(state.status is Status.RUNNING for state in open_runs)
    return max(0, min(max_jobs, -(-num_left // runs_per_job)) - num_workers(batches, queue, class_name, now))


def num_workers(batches: Iterable[Batch], queue: Queue, class_name: str, now: float) -> int:
    """Workers of a class that wait or work; those of a batch that was just announced count as waiting.

    One that is completing counts, too: a job that is put back into the queue passes through that state.
    """
    ours = {batch.batch: batch for batch in batches if batch.class_name == class_name}
    counts = dict.fromkeys(ours, 0)
    seen: set[str] = set()
    for task in queue.values():
        if task.batch in ours:
            seen.add(task.batch)
            counts[task.batch] += task.is_waiting or task.is_working
    for name, batch in ours.items():
        if name not in seen and now - batch.announced_at < SUBMISSION_S:
            counts[name] = batch.num_tasks
    return sum(counts.values())


def _is_in(queue: Queue, job: JobName) -> bool:
    task = queue.get(job.key)
    return task is not None and task.batch == job.batch


def _is_past(task: Queued, job: JobName) -> bool:
    """Whether that life of the job is over, as it will live, or lives, again."""
    return task.is_waiting or task.restart > job.restart


def _verdict(
    claim: Held, queue: Queue, accounting: Mapping[str, tuple[str, str]]
) -> tuple[str, str, bool] | None:
    """Kind, words and whether SLURM saw the process end; None while it may live."""
    job = claim.job
    if _is_in(queue, job):
        task = queue[job.key]
        if _is_past(task, job):
            ended, name = accounting.get(f"{job.key}.{job.restart}", ("", ""))
            if batch_of(name) != job.batch:
                ended = ""
            why = ", ".join(filter(None, [ended, task.state, " ".join(task.reason.split())]))
            is_node = ended in _UNCERTAIN or "node" in task.reason.lower()
            kind = "node_fail" if is_node else "preempted"
            return kind, f"job {job.key} was put back into the queue ({why})", False
        if task.is_working:
            return None
        certain = task.state not in _UNCERTAIN
        return (
            KIND_OF_STATE.get(task.state, "killed"),
            f"job {job.key} is {task.state} on {task.node}",
            certain,
        )
    state, name = accounting.get(job.key, ("", ""))
    if state and batch_of(name) == job.batch:
        if state in KIND_OF_STATE:
            return KIND_OF_STATE[state], f"job {job.key} was {state}", state not in _UNCERTAIN
        return "killed", f"job {job.key} left the queue, its last known state is {state}", False
    return "killed", f"job {job.key} of batch {job.batch} is not in the queue", False

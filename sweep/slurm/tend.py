"""Look at a sweep on a cluster, and put right what can be: dead claims given up, missing workers sent.

Called by whoever looks: run, watch, collect, a line in cron. Nothing of ours lives between the calls, and any
number of callers at once do no harm: facts are files that appear once, and a worker too many finds nothing to do.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sweep.attempts import tail
from sweep.errors import LaunchError, StoppedError
from sweep.folder import SweepFolder, check_root
from sweep.launcher import LauncherConfig
from sweep.ledger import CLAIMABLE, Ledger, RunState
from sweep.planes import units
from sweep.searching import Search
from sweep.slurm.batches import Batch, batches, default_memory_gb, folder_of, write_answer
from sweep.slurm.burial import bad_nodes, bury, classified, has_begun, settle_own
from sweep.slurm.classes import by_class, check_time
from sweep.slurm.code import freeze
from sweep.slurm.queue import Queue, call, read_accounting, read_queue
from sweep.slurm.reconcile import (
    Death,
    Held,
    code_at_fault,
    deaths,
    died_at_once,
    held_claims,
    hung,
    num_lacking,
    unknown_jobs,
)
from sweep.slurm.submit import forget_probe, submit_workers
from sweep.spec import SETTLED, Plan, Status
from sweep.trainers import TRAINER
from train.files import only_one, read_json, write_json_exclusive
from train.secrets import mask_file

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
    is_searching: bool = False  # whether more may be asked

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more by itself, nor will be asked."""
        return not self.is_searching and all(state.status in SETTLED for state in self.states.values())

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

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        folder: SweepFolder,
        launcher: LauncherConfig,
        *,
        trainer: str = TRAINER,
        say: Callable[[str], None] = print,
        search: Search | None = None,
    ) -> None:
        self.plan, self.ledger, self.folder, self.launcher = plan, ledger, folder, launcher
        self._trainer, self.say, self._search = trainer, say, search
        self.last: Look | None = None  # what `look` found
        self._began: set[Path] = set()  # outputs of workers that began, and so keep their secrets themselves

    def look(self) -> Look:
        """Files, one squeue, and one sacct if a claim's job left the queue. Writes nothing."""
        self.last = self._look()
        return self.last

    def _look(self) -> Look:
        try:
            queue, problem = read_queue(), ""
        except LaunchError as error:
            queue, problem = None, str(error)
        states = self.ledger.statuses(spec.fingerprint for spec in self.plan.runs)
        known = batches(self.folder, [(task.batch, task.key) for task in (queue or {}).values()])
        found = Look(
            states=states,
            batches=tuple(known),
            is_searching=self._search is not None and not self._search.is_over,
            queue=queue,
            problem=problem,
            by_batch={batch.batch: batch for batch in known},
        )
        if queue is None:
            return found
        in_jobs = {
            name: state.attempt
            for name, state in states.items()
            if state.status is Status.RUNNING and state.owner and state.owner.job
        }
        now = self.ledger.clock() if in_jobs else 0.0  # once: on a network file system it takes three calls
        silence = {name: self.ledger.silence_s(name, attempt, now) for name, attempt in in_jobs.items()}
        held = held_claims(states, silence)
        suspects = unknown_jobs((claim for claim in held if claim.silence_s > 10.0), queue)
        accounting = read_accounting(suspects) if suspects else {}
        dead = deaths(held, queue, accounting, self.launcher.silence_s)
        gone = {death.fingerprint: Status.LOST for death in dead}
        states = {name: replace(state, status=gone.get(name, state.status)) for name, state in states.items()}
        return replace(
            found, states=states, dead=tuple(dead), hung=tuple(hung(held, queue, self.launcher.hung_s))
        )

    def tend(self, *, is_asked: bool = False) -> Look:
        """Look, give up dead claims, and submit the workers that lack.

        is_asked: somebody said run, and so wants workers even after the last ones died at once.
        Raises   LaunchError if the scheduler doesn't answer or refuses.
        """
        found = self.look()
        if found.queue is None:
            if any(state.status in CLAIMABLE for state in found.states.values()):
                raise LaunchError(found.problem)
            return found
        if any(state.status not in SETTLED for state in found.states.values()):
            check_root(self.folder.root)  # a full disk: the sweep waits, instead of burning jobs on it
        self._mask_outputs()
        self._check_probe(found)
        settle_own(self.ledger, found.states)
        for line in self.bury(found):
            self.say(f"lost {line}")
        for claim in found.hung:
            with contextlib.suppress(LaunchError):
                call("scontrol", "requeue", claim.job.key)
                words = f"job {claim.job.key} runs but was silent for {claim.silence_s:.0f} s: queued again"
                write_json_exclusive(
                    self.ledger.attempt_path(claim.fingerprint, claim.attempt, "hung.json"),
                    {"evidence": words},
                )
                self.say(words)
        # a second submitter sees the first one's workers with its next look
        with only_one(folder_of(self.folder) / "submit.lock") as is_ours:
            if is_ours:
                found = self._grown(found)
            return replace(found, sent=tuple(self._send(found, is_asked))) if is_ours else found

    def _grown(self, found: Look) -> Look:
        """What was found, with what the search, told of it, asks for now."""
        if self._search is None:
            return found
        names = [spec.fingerprint for spec in self.plan.runs]
        if self._search.extend(self.ledger.statuses(names), self.launcher.max_jobs):
            self.plan = self._search.plan
            self.folder.write_plan(self.plan)
        states = self.ledger.statuses(spec.fingerprint for spec in self.plan.runs)
        return replace(found, states=states, is_searching=not self._search.is_over)

    def repair(self) -> list[str]:
        """Give up dead claims, and take workers of no batch of ours out of the queue; what was done, in lines."""
        found = self.look()
        if found.queue is None:
            raise LaunchError(found.problem)
        lines = [f"given up: claim of {line}" for line in self.bury(found)]
        in_queue = {task.batch for task in found.queue.values()}
        for batch in found.batches:
            if batch.job and not batch.is_answered:
                write_answer(self.folder, batch, {"job": batch.job})
                lines.append(
                    f"batch {batch.batch} is job {batch.job}: its submitter died before writing it down"
                )
            elif (
                not batch.is_answered
                and batch.batch not in in_queue
                and time.time() - batch.announced_at > ORPHAN_S
            ):
                write_answer(self.folder, batch, {"refused": "it never appeared in the queue"})
                lines.append(f"batch {batch.batch} was announced but never submitted; struck out")
        return lines

    def bury(self, found: Look) -> list[str]:
        """Write dead claims off; what they were, in lines."""
        lines = []
        for death in found.dead:
            death, spec = classified(death, self.ledger, self.folder), self.plan.spec(death.fingerprint)
            if bury(death, spec, self.ledger, self.folder):
                lines.append(f"{spec.run_id} ({death.kind}): {death.evidence}")
        return lines

    def cancel_waiting(self) -> int:
        """Take workers that haven't started out of the queue; how many tasks that were."""
        found = self.look()
        if found.queue is None:
            raise LaunchError(found.problem)
        numbers = sorted(
            {
                task.key.partition("_")[0]
                for task in found.queue.values()
                if task.is_waiting and task.batch in found.by_batch
            }
        )
        probe = found.queue.get(str((read_json(folder_of(self.folder) / "probe.json") or {}).get("job", "")))
        if probe is not None and probe.is_waiting:
            numbers.append(probe.key)
            forget_probe(self.folder)
        if numbers:
            call("scancel", "--state=PENDING", *numbers)
        return found.num_waiting

    def _send(self, found: Look, is_asked: bool) -> list[Batch]:
        queue = found.queue or {}
        sent: list[Batch] = []
        states = found.states
        failure = code_at_fault(
            states[spec.fingerprint] for spec in self.plan.runs if spec.config.stage != "base"
        )
        if failure is not None and not is_asked:
            raise StoppedError(
                f"stopped: the first runs all failed in {failure.last_frame}: {failure.message}",
                "code that trains",
                "mend it, then say retry: the rest stays planned",
            )
        launcher = self._without_bad_nodes()
        host_ooms = {
            name: self.ledger.losses(name).count("host_oom")
            for name, state in states.items()
            if state.attempt and state.status is not Status.FINISHED
        }
        classes = by_class(self.plan.runs, launcher, host_ooms, default_memory_gb(self.folder))
        for resources, runs in classes.items():  # all of them, before the first is sent
            for spec in runs:
                if found.states[spec.fingerprint].status in CLAIMABLE:
                    check_time(spec, resources, launcher)
        for resources, runs in classes.items():
            states = [found.states[spec.fingerprint] for spec in runs]
            known = batches(self.folder, [(task.batch, task.key) for task in queue.values()])
            lacking = num_lacking(
                states if self.launcher.unit == "run" else units(runs, found.states),
                known,
                queue,
                resources.name,
                max_jobs=len(runs) if resources.is_shared else self.launcher.max_jobs,
                runs_per_job=1 if resources.is_shared else self.launcher.runs_per_job,
                now=time.time(),
            )
            dead = died_at_once(known, queue, states, resources.name)
            if lacking and dead and not is_asked:
                raise self._last_words(dead)
            if lacking:
                sent += submit_workers(
                    self.folder,
                    launcher,
                    resources,
                    lacking,
                    freeze(self.folder.root),
                    trainer=self._trainer,
                    say=self.say,
                )
        return sent

    def _mask_outputs(self) -> None:
        """Of jobs that ended in their setup lines, before our code could see to it."""
        for path in set(folder_of(self.folder).glob("*/*_log.out")) - self._began:
            if has_begun(path):
                self._began.add(path)
            else:
                mask_file(path)

    def _check_probe(self, found: Look) -> None:
        """Whether the job that looks for our files from a node found them; its workers wait for it."""
        place = folder_of(self.folder)
        if (place / "seen_by_a_node").exists():
            return
        job = str((read_json(place / "probe.json") or {}).get("job", ""))
        task = (found.queue or {}).get(job)
        never = any(name.startswith("DependencyNeverSatisfied") for name in found.reasons())
        if not never and (task is None or task.is_waiting or task.is_working or task.state == "COMPLETED"):
            return
        forget_probe(self.folder)
        with contextlib.suppress(LaunchError):
            self.cancel_waiting()
        raise StoppedError(
            f"a node can't read {self.folder.path.absolute()}, or can't start {sys.executable} there",
            "a root and an environment that the nodes share with this machine",
            "set root= to a shared folder, and launcher.setup to what makes the environment",
        )

    def _without_bad_nodes(self) -> LauncherConfig:
        """The launcher, keeping away from nodes that took two runs with them."""
        bad = bad_nodes(self.folder)
        if not bad:
            return self.launcher
        return replace(self.launcher, exclude=",".join([*filter(None, [self.launcher.exclude]), *bad]))

    def _last_words(self, batch: Batch) -> StoppedError:
        logs = sorted((folder_of(self.folder) / batch.batch).glob("*.out"))
        words = next(
            (line for log in logs for line in reversed(tail(log, 5)) if "srun: error" not in line), "nothing"
        )
        return StoppedError(
            f"the workers of job {batch.job} died before they claimed a run; one said: {words[:300]}",
            "workers that start",
            "mend it (launcher.setup?), then run again",
        )


def queue_lines(found: Look) -> list[str]:
    """What a status screen says of the queue."""
    if found.queue is None:
        return [f"queue: {found.problem}"] if found.batches else []
    words = [f"{found.num_working} working", f"{found.num_waiting} waiting"]
    reasons = ", ".join(f"{number} {reason}" for reason, number in found.reasons().items())
    lines = [f"workers in the queue: {', '.join(words)}" + (f" ({reasons})" if reasons else "")]
    return lines + [f"  lost ({death.kind}): {death.evidence}" for death in found.dead[:5]]

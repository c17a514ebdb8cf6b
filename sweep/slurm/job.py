"""What a cluster's node does: a worker that knows its job may be taken away at any moment.

submitit starts it and does no more: its signal handling and its results stay unused, because a result file that
was half written when the job was killed makes it throw away the next life's work, and a SIGTERM that it swallows
is a checkpoint lost. This process ends itself.

    SIGUSR2   (sent by SLURM ahead of the time limit or of a preemption; another one: launcher.signal): save, give
              back, be queued again
    SIGTERM   (scancel, or a preemption where the site sends no warning): the same, unless the job was cancelled
    our clock says that the time limit is so near that the warning should have come: the same
"""

import contextlib
import errno
import json
import os
import signal
import threading
import time
import traceback
from dataclasses import asdict, dataclass, replace
from typing import Any

from sweep.claims import JOB_VARIABLE
from sweep.errors import LaunchError, LedgerError
from sweep.flag import Flag
from sweep.folder import SweepFolder, check_root
from sweep.launch import CHECKOUT
from sweep.launcher import LauncherConfig
from sweep.ledger import CLAIMABLE, Ledger
from sweep.notify import Notifier, NotifyConfig
from sweep.planes import Portion, fair_share
from sweep.recovery import CLUSTER_REMEDIES
from sweep.sharing import ALONE, Shared, memory_of_this_task
from sweep.slurm.batches import default_memory_gb, note_default_memory
from sweep.slurm.burial import ENDED, bury, classified, mark_node
from sweep.slurm.classes import ResourceClass, class_of, reserve_s
from sweep.slurm.jobs import job_from_text, task_name, this_job
from sweep.slurm.queue import call
from sweep.slurm.reconcile import Death, code_at_fault
from sweep.spec import RunSpec, Status
from sweep.trainers import TRAINER, load_trainer
from sweep.worker import NODE_FAILURE, SAME_FAILURE, Worker
from train.config import build
from train.scrubbing import scrub_own_output

LOOK_AGAIN_S = 2.0
END_S = 60.0  # after asking to be queued again, until SLURM ends us
DISK_PATIENCE_S = 600.0  # for room on a full disk, with the job's room on the cluster kept meanwhile
NO_SIGNAL = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that a worker is told; it travels as JSON. launcher: the whole LauncherConfig as a tree."""

    root: str
    sweep: str
    batch: str
    class_name: str
    submitted_at: float
    gpus: int  # of the class, as the next two
    memory_gb: float | None
    time_min: int
    launcher: dict[str, Any]
    nodes: int = 1
    ranks: int = 1
    trainer: str = TRAINER

    @property
    def resources(self) -> ResourceClass:
        """The class of the runs that it may claim."""
        return ResourceClass(self.gpus, self.memory_gb, self.time_min, self.nodes, self.ranks)

    def to_text(self) -> str:
        """One text: the only thing that is ever pickled."""
        return json.dumps(asdict(self))


def work(request: str) -> None:
    """The life of a worker on a node. It doesn't return."""
    code, drain = 1, scrub_own_output()
    try:
        code = _Job(Request(**json.loads(request))).run()
    except BaseException:
        traceback.print_exc()
    drain()  # SLURM ends what is left of a step that is over
    os._exit(code)


class _Job:
    def __init__(self, request: Request) -> None:
        self.request, self.started = request, time.time()
        self.name = this_job(request.batch)
        os.environ[JOB_VARIABLE] = str(self.name)
        os.environ["WEIGHT_SWEEP_NAME"] = request.sweep
        self.stop, self._worker = Flag(), None
        self._launcher: LauncherConfig = build(LauncherConfig, request.launcher, "launcher.")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name in {"USR2", "TERM", self._launcher.signal} - {NO_SIGNAL}:
            signal.signal(signal.Signals[f"SIG{name}"], self._hear)
        self.ledger = Ledger(request.root, self._launcher.max_attempts)
        self.folder = SweepFolder(request.root, request.sweep)
        limit_s = 60.0 * request.time_min
        started = float(os.environ.get("SLURM_JOB_START_TIME") or self.started)
        self._end = float(os.environ.get("SLURM_JOB_END_TIME") or started + limit_s)
        self._reserve_s = reserve_s(limit_s, self._launcher.signal_delay_s)
        self._node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
        if request.memory_gb is None:
            note_default_memory(self.folder, os.environ)
        threading.Thread(target=self._watch_the_clock, name="clock", daemon=True).start()

    def run(self) -> int:
        """Claim and train until nothing is left; then end, or be queued again if there is no time for the rest."""
        print(f"job {self.name} on {self._node}, {(self._end - self.started) / 60:.1f} min", flush=True)
        while not self._is_cancelled():
            past_s = self._bury_own_past()
            try:
                code = self._work(f"{self._node}, job {self.name.key}")
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if self._wait_for_room():
                    continue
                if not self.stop.is_set():
                    raise
                code = 0
            if code == NODE_FAILURE:
                print(f"{self._node} is at fault; another worker goes on elsewhere", flush=True)
                mark_node(self.folder, self._node, f"{self.name.key}-{self.name.restart}")
                return self._send_successor(without=self._node)
            if code == SAME_FAILURE or self._is_the_code_at_fault():
                self.folder.ask_to_stop()  # the whole sweep: the rest of the grid would only burn
                print("stopped: the first runs all failed in the same line", flush=True)
                return SAME_FAILURE
            if self.stop.is_set() or not self._has_time():
                return self._queue_again()
            if past_s is None:
                self._tell_if_it_is_over()
                break
            self.stop.wait(min(past_s, LOOK_AGAIN_S))  # a run that our own earlier life held
        return 0

    def _work(self, name: str) -> int:
        """One worker, or as many as fit on the device (`launcher.pack`)."""
        resources = self.request.resources
        gpus, cores = resources.gpus * resources.nodes, self._launcher.cpus_per_worker
        cores *= resources.ranks * resources.nodes

        def make_worker(index: int = 0, shared: Shared = ALONE) -> Worker:
            is_alone = shared is ALONE
            return Worker(
                self.ledger,
                self.folder,
                self.stop,
                name=name if is_alone else f"{name}.{index}",
                make_run_one=lambda: load_trainer(self.request.trainer)(self.request.root),
                may_claim=self._may_claim,
                gpus=gpus if is_alone else 0,
                cores=cores if is_alone else 0,
                gpus_used=gpus,
                remedies=CLUSTER_REMEDIES,
                shared=shared,
                portion=self._portion() if is_alone and not resources.is_shared else None,
            )

        if self._launcher.pack == 1 or gpus > 1 or resources.is_shared:
            self._worker = make_worker()
            return self._worker.run()
        from sweep.packs import Pack, Place

        return Pack(
            self.ledger,
            self.folder,
            self.stop,
            task=task_name(self.name),
            class_name=self.request.class_name,
            number=self._launcher.pack,
            place=Place(memory_gb=memory_of_this_task(), cores=cores, gpus=gpus),
            num_threads=self._launcher.threads_per_worker,
            make_worker=make_worker,
            is_ours=self._may_claim,
        ).run()

    def _portion(self) -> Portion:
        """Where more runs wait than jobs may be sent for, each job takes several."""
        runs_per_job, max_jobs = self._launcher.runs_per_job, self._launcher.max_jobs
        return Portion(
            lambda num_left: max(runs_per_job, fair_share(num_left, max_jobs)),
            whole=self._launcher.unit == "plane",
        )

    def _watch_the_clock(self) -> None:
        """For sites that send no warning, or one that doesn't arrive."""
        stop = self.stop
        time.sleep(max(0.0, self._end - self._launcher.signal_delay_s - time.time()))
        stop.set(f"timeout: {self._launcher.signal_delay_s} s are left")

    def _wait_for_room(self) -> bool:
        """Whether a full disk has room again before patience or time ends; what couldn't be given back then is."""
        with contextlib.suppress(OSError):
            print(f"the disk is full; waiting {DISK_PATIENCE_S:.0f} s at most", flush=True)
        deadline = time.monotonic() + DISK_PATIENCE_S
        while time.monotonic() < deadline and not self._is_cancelled() and not self.stop.wait(LOOK_AGAIN_S):
            try:
                check_root(self.folder.root)
            except LedgerError:
                continue
            for spec, state in self._states():
                if state.status is Status.RUNNING and state.owner and state.owner.job == str(self.name):
                    self.ledger.give_up(spec.fingerprint, state.attempt, "disk_full", "no space was left")
            print("the disk has room again", flush=True)
            return True
        return False

    def _hear(self, number: int, _frame: object) -> None:
        name, left_s = signal.Signals(number).name, self._end - time.time()
        os.write(1, f"heard {name}\n".encode())
        if name == "SIGTERM":
            self.stop.set(f"{ENDED}: heard SIGTERM")  # why, SLURM writes into the job's output later
        else:
            is_late = left_s < self._launcher.signal_delay_s + 60.0
            kind = "timeout" if is_late else "preempted"
            self.stop.set(f"{kind}: heard {name} {left_s:.0f} s before the end")

    def _has_time(self) -> bool:
        return self._end - time.time() > self._reserve_s

    def _may_claim(self, spec: RunSpec) -> bool:
        is_served = self.request.resources.is_shared and self._worker is not None and self._worker.num_ended
        return not is_served and self._is_ours(spec) and self._has_time()

    def _is_ours(self, spec: RunSpec) -> bool:
        num_host_ooms = self.ledger.losses(spec.fingerprint).count("host_oom")
        found = class_of(spec.config, self._launcher, num_host_ooms, default_memory_gb(self.folder))
        return found.name == self.request.class_name

    def _is_cancelled(self) -> bool:
        return self.folder.was_stopped_after(self.request.submitted_at)

    def _bury_own_past(self) -> float | None:
        """Give up what earlier lives of this job held; how long to wait for one that may still write, or None.

        SLURM starts a job again when it has ended, or when its node doesn't answer: then it may still compute.
        """
        wait_s = None
        for spec, state in self._states():
            job = job_from_text(state.owner.job) if state.owner and state.status is Status.RUNNING else None
            if (
                job is None
                or (job.batch, job.key) != (self.name.batch, self.name.key)
                or job.restart >= self.name.restart
            ):
                continue
            silence_s = self.ledger.silence_s(spec.fingerprint, state.attempt)
            if silence_s >= self._launcher.silence_s:
                death = Death(
                    fingerprint=spec.fingerprint,
                    attempt=state.attempt,
                    kind="preempted",
                    evidence=f"job {job.key} was started again; last heartbeat {silence_s:.0f} s ago",
                    job=str(job),
                    node=state.owner.worker.partition(",")[0] if state.owner else "",
                )
                bury(classified(death, self.ledger, self.folder), spec, self.ledger, self.folder)
            else:
                wait_s = self._launcher.silence_s - silence_s
        return wait_s

    def _states(self):
        plan = self.folder.plan()
        runs = [spec for spec in plan.runs if self._is_ours(spec)] if plan else []
        self.ledger.stops = plan.stops if plan else {}
        states = self.ledger.statuses(spec.fingerprint for spec in runs)
        return [(spec, states[spec.fingerprint]) for spec in runs]

    def _is_the_code_at_fault(self) -> bool:
        """On whatever nodes: each worker alone would need three runs to notice."""
        return (
            code_at_fault([state for spec, state in self._states() if spec.config.stage != "base"])
            is not None
        )

    def _tell_if_it_is_over(self) -> None:
        """The last worker tells the webhook: perhaps nobody is looking."""
        plan = self.folder.plan()
        states = self.ledger.statuses(spec.fingerprint for spec in plan.runs) if plan else {}
        Notifier(self.folder.path, NotifyConfig()).tell(states)

    def _send_successor(self, without: str = "") -> int:
        """Where this job can't be put back into the queue: a new one, from this one's code. without: a node."""
        from sweep.slurm.submit import submit_workers  # which needs `work`, above

        request, launcher = self.request, self._launcher
        if without:
            launcher = replace(launcher, exclude=",".join(filter(None, [launcher.exclude, without])))
        resources = request.resources
        try:
            sent = submit_workers(self.folder, launcher, resources, 1, CHECKOUT, trainer=request.trainer)
            print(f"successor: {', '.join(batch.job for batch in sent) or 'none'}", flush=True)
        except LaunchError as error:
            print(f"no successor: {error}. The next look at the sweep sends another worker", flush=True)
        return 0

    def _queue_again(self) -> int:
        """Put this job back into the queue, if there is work for it and nobody cancelled it."""
        if self._is_cancelled() or not any(state.status in CLAIMABLE for _, state in self._states()):
            return 0
        try:
            shown = call("scontrol", "show", "job", "--oneliner", os.environ["SLURM_JOB_ID"])
            if "JobState=RUNNING" not in shown:
                return 0  # cancelled, or put back by SLURM itself
            call("scontrol", "requeue", self.name.key)
        except (KeyError, LaunchError) as error:
            print(f"not queued again: {error}", flush=True)
            return self._send_successor()
        print("queued again", flush=True)
        self.stop = Flag()
        self.stop.wait(END_S)
        return 0

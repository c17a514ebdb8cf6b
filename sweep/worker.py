"""A worker: a process that claims runs of a plan one after another and trains them, until none is left.

It talks to nobody. What it reads is the plan and the ledger, what it writes is the ledger, so the process
that started it may die, be replaced or be joined by others. What trains is given to it (`sweep.trainers`).
"""

import contextlib
import errno
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweep.flag import Flag
from sweep.folder import SweepFolder, link_run
from sweep.launch import ONLY_STAGE, available_cores
from sweep.ledger import BEAT_EVERY_S, MAX_ATTEMPTS, Claim, Ledger
from sweep.lineage import PARENT_EVERY_S, blocked_by, must_wait, parent_state, release_parent
from sweep.outcomes import counts_as_evidence, failed_record, same_failure, spec_to_dict, writable
from sweep.printed import output_to
from sweep.recovery import REMEDIES, smaller_batches, with_remedy
from sweep.sharing import ALONE, CROWDED, PACKED_OOM, Shared, memory_of_this_task
from sweep.slots import devices_of, take_slots
from sweep.spec import RunSpec, Status
from sweep.timesheets import Timesheet
from sweep.trainers import TRAINER, GivenBack, RunOne, load_trainer
from train.failures import failure_from_exception
from train.record import Failure, RunRecord
from train.rungs import Paused
from train.scrubbing import scrub_own_output
from train.secrets import scrub

PROPOSAL_EVERY_S = 0.1  # how often a worker with nothing to do looks whether a search asked for more
NOTHING_LEFT, NO_SLOT, SAME_FAILURE, NODE_FAILURE = 0, 3, 4, 6  # what `work` returns


def work(
    root: str,
    sweep: str,
    slot: int,
    gpus: str = "",
    num_threads: int = 1,
    max_attempts: int = MAX_ATTEMPTS,
    trainer: str = TRAINER,
    pack: int = 1,
    num_slots: int = 1,
    ranks: int = 1,
) -> int:
    """The life of a worker process. Primitive arguments only: they are all that is pickled.

    gpus: the machine's devices, as CUDA_VISIBLE_DEVICES names them; the worker sees its slots' only.
    ranks: it trains runs of so many processes, and no others.
    pack: runs at once in this slot, 0 to measure; it has its share of the cores and the memory of num_slots.
    trainer: module:function, called with the root once there is a run to train, gives a RunOne.
    """
    job = os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")
    locks = take_slots(root, sweep, slot, job, ranks, max(num_slots, slot + 1))
    if locks is None:
        print(f"slot {slot} is taken", flush=True)
        return NO_SLOT
    scrub_own_output()
    stop = Flag()
    _detach(stop)
    devices = devices_of(locks, [device for device in gpus.split(",") if device], num_slots, ranks)
    os.environ.update(
        CUDA_VISIBLE_DEVICES=",".join(devices),
        WEIGHT_SWEEP_NAME=sweep,
        OMP_NUM_THREADS=str(num_threads),
        MKL_NUM_THREADS=str(num_threads),
    )
    only_stage = os.environ.get(ONLY_STAGE, "")
    ledger, folder, name = (
        Ledger(root, max_attempts),
        SweepFolder(root, sweep),
        f"{os.uname().nodename}-{slot}",
    )

    def is_ours(spec: RunSpec) -> bool:
        return spec.config.num_ranks == ranks and only_stage in ("", spec.config.stage)

    def make_worker(index: int = 0, shared: Shared = ALONE) -> Worker:
        is_alone = shared is ALONE
        return Worker(
            ledger,
            folder,
            stop,
            name=name if is_alone else f"{name}.{index}",
            make_run_one=lambda: load_trainer(trainer)(root),
            may_claim=is_ours,
            may_wait=True,
            gpus=len(devices) if is_alone else 0,
            cores=num_threads * ranks if is_alone else 0,
            gpus_used=len(devices),
            shared=shared,
        )

    if pack == 1 or ranks > 1 or only_stage:
        return make_worker().run()
    from sweep.packs import Pack, Place

    cores = max(num_threads, available_cores() // num_slots)
    place = Place(memory_gb=memory_of_this_task(num_slots), cores=cores, gpus=len(devices))
    return Pack(
        ledger,
        folder,
        stop,
        task=name,
        class_name="local",
        number=pack or None,
        place=place,
        num_threads=num_threads,
        make_worker=make_worker,
        is_ours=is_ours,
    ).run()


@dataclass(slots=True)
class _Position:
    step: int = 0
    num_steps: int = 0


class Worker:
    """Claims and trains; `stop` asks it to save its run at the next step, give it back and end."""

    def __init__(
        self,
        ledger: Ledger,
        folder: SweepFolder,
        stop: Flag,
        *,
        name: str,
        make_run_one: Callable[[], RunOne],
        may_claim: Callable[[RunSpec], bool] = lambda spec: True,
        may_wait: bool = False,
        gpus: float = 0,
        cores: float = 1,
        gpus_used: int = 0,
        shared: Shared = ALONE,
        remedies: Mapping[str, int] = REMEDIES,
    ) -> None:
        """may_wait: for what a search asks next, while it goes on here. gpus, cores: what we are billed for.
        shared: with whom we share a device. remedies: failures after which a run is given up to its next attempt,
        and how often."""
        self.ledger, self.folder, self.stop, self.name = ledger, folder, stop, name
        self._may_claim, self._may_wait, self._shared = may_claim, may_wait, shared
        self._remedies = remedies
        self._make_run_one, self._run_one = make_run_one, None
        self._first_failures: list[Failure | None] = []
        self._started = time.time()
        self._limit_s = folder.run_limit_s()
        self._timesheet = Timesheet(
            ledger.root, folder.name, name, gpus=gpus, cores=cores, gpus_used=gpus_used
        )
        self.num_ended = 0  # runs that needn't go on: finished, failed or paused

    def run(self) -> int:
        """Work until nothing is left, somebody says stop, or it makes no sense; OSError for a full disk."""
        for spec, claim in self._claims():
            started = time.monotonic()
            self._timesheet.begin(spec)
            outcome, failure, record = self._attempt(spec, claim)
            self._timesheet.end(outcome, record, self._shared.runs_at_once())
            say = f"{outcome} {spec.run_id} after {time.monotonic() - started:.1f} s"
            print(f"{say}: {failure.kind}: {failure.message}" if failure else say, flush=True)
            if failure and failure.kind == "disk_full":
                raise OSError(errno.ENOSPC, f"{failure.message}; {spec.run_id} can be continued")
            if outcome == "crowded out":
                return CROWDED
            self.num_ended += outcome != "interrupted"
            if failure and failure.kind == "node_fail":
                return NODE_FAILURE  # the next run would fare no better here, nor would this process
            if outcome not in ("interrupted", "paused") and counts_as_evidence(spec, failure):
                self._first_failures.append(failure)
            if same_failure(self._first_failures):
                return SAME_FAILURE
        return NOTHING_LEFT

    def _claims(self) -> Iterator[tuple[RunSpec, Claim]]:
        """One claim after another in the plan's order, and again from the start while that finds some."""
        found = True
        while found:
            found = is_waiting = False
            version, plan = self.folder.plan_version(), self.folder.plan()
            if plan is None:
                return
            self.ledger.stops = plan.stops
            for spec in plan.runs:
                if self.stop.is_set() or self.folder.was_stopped_after(self._started):
                    return
                if self.folder.plan_version() != version:  # another question was asked under the same name
                    found = True
                    break
                if not (self._may_claim(spec) and self._shared.may_claim(spec)) or self._had_its_pilot(spec):
                    continue
                parent = parent_state(spec, self.ledger)
                if must_wait(parent):
                    is_waiting = True
                    continue
                claim = self.ledger.claim(spec.fingerprint, self.name)
                if claim is not None:
                    found = True
                    if failure := blocked_by(spec, parent, plan):
                        self._block(spec, claim, failure)
                        continue
                    yield spec, claim
                    release_parent(spec, plan, self.ledger)
            if is_waiting and not found:  # for a parent that somebody else is training
                found = not self.stop.wait(PARENT_EVERY_S)
            while not found and self._may_wait and self.folder.awaits_proposals():
                if self.stop.wait(PROPOSAL_EVERY_S) or self.folder.was_stopped_after(self._started):
                    return
                found = self.folder.plan_version() != version

    def _block(self, spec: RunSpec, claim: Claim, failure: Failure) -> None:
        """Report a run that can't begin."""
        self.ledger.write_spec(spec.fingerprint, spec_to_dict(spec, self.ledger.root))
        link_run(self.folder.path / "runs", spec.run_id, spec.fingerprint)
        self._fail(spec, claim, failure)
        print(f"failed {spec.run_id}: {failure.message}", flush=True)

    def _had_its_pilot(self, spec: RunSpec) -> bool:
        return self._limit_s is not None and self.ledger.status(spec.fingerprint).status is not Status.PLANNED

    def _attempt(self, spec: RunSpec, claim: Claim) -> tuple[str, Failure | None, RunRecord | None]:
        """Train one claimed run and write down how it ended."""
        self.ledger.write_spec(spec.fingerprint, spec_to_dict(spec, self.ledger.root))
        link_run(self.folder.path / "runs", spec.run_id, spec.fingerprint)
        fenced, position = threading.Event(), _Position()
        num_halvings = self.ledger.losses(spec.fingerprint).count("cuda_oom") if claim.attempt > 1 else 0
        trained = smaller_batches(spec, num_halvings)

        def on_progress(step: int, num_steps: int) -> None:
            position.step, position.num_steps = step, num_steps
            claim.beat(step, num_steps)
            self._timesheet.progress(step, num_steps)

        end = math.inf if self._limit_s is None else time.monotonic() + self._limit_s

        def should_stop() -> bool:
            return self.stop.is_set() or fenced.is_set() or time.monotonic() > end

        pause_at = self.ledger.stops.get(spec.fingerprint)
        with self._beating(claim, position, fenced):
            try:
                record = self._trained(
                    trained,
                    claim,
                    on_progress=on_progress,
                    should_stop=should_stop,
                    **({} if pause_at is None else {"pause_at": pause_at}),
                )
                record = self._shared.described(with_remedy(record, trained, num_halvings))
                if record.outcome == "finished":
                    is_ours = claim.commit(record)
                    shutil.rmtree(claim.folder / "checkpoint", ignore_errors=True)  # not before the record
                    return ("finished" if is_ours else "somebody else finished"), None, record
                claim.fail(record)
                return "failed", record.failure, record
            except GivenBack:
                if message := claim.cancellation():
                    return *self._fail(spec, claim, Failure(kind="cancelled", message=message)), None
                claim.release(self.stop.reason)
                return "interrupted", None, None
            except Paused as rung:
                claim.pause(rung.share, rung.metrics)
                return "paused", None, None
            except (Exception, SystemExit) as error:  # whatever breaks a run must not break the next one
                failure = writable(failure_from_exception(error))
                if failure.kind in ("cuda_oom", "host_oom") and (number := self._shared.runs_at_once()) > 1:
                    claim.lose(PACKED_OOM, f"{number} runs at once; {failure.kind}: {failure.message}")
                    return "crowded out", failure, None
                if failure.kind == "killed":  # one of its ranks; the ledger counts deaths, as of workers
                    claim.lose(failure.kind, failure.message)
                    return "interrupted", failure, None
                return *self._fail(spec, claim, failure), None

    def _trained(self, spec: RunSpec, claim: Claim, **how: Any) -> RunRecord:
        """What the trainer returns or raises; what it prints is in the attempt's log by then."""
        with output_to(claim.path("log")):
            try:
                self._run_one = self._run_one or self._make_run_one()
                self._timesheet.ready()
                return self._run_one(spec, folder=claim.folder, attempt=claim.attempt, **how)
            except (GivenBack, Paused):
                raise
            except (Exception, SystemExit):
                print(scrub(traceback.format_exc()), file=sys.stderr)
                raise

    def _fail(self, spec: RunSpec, claim: Claim, failure: Failure) -> tuple[str, Failure]:
        if failure.kind == "disk_full":  # not the run's fault, and there's no room to write it down
            with contextlib.suppress(OSError):
                claim.lose(failure.kind, failure.message)
            return "interrupted", failure
        if self.ledger.losses(spec.fingerprint).count(failure.kind) < self._remedies.get(failure.kind, 0):
            claim.lose(failure.kind, failure.message)
            return "interrupted", failure
        claim.fail(failed_record(spec, claim.attempt, failure))
        return "failed", failure

    @contextlib.contextmanager
    def _beating(self, claim: Claim, position: _Position, fenced: threading.Event) -> Iterator[None]:
        """Say every two seconds that we live, however long a step takes, and hear whether we should stop."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT_EVERY_S / 2):
                with contextlib.suppress(OSError):  # a full disk for a moment is no reason to lose a run
                    claim.beat(position.step, position.num_steps)
                self._timesheet.beat()
                if claim.is_fenced() or claim.cancellation():
                    fenced.set()
                if self.folder.was_stopped_after(self._started):
                    self.stop.set("cancelled: the sweep was stopped")

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _detach(stop: Flag) -> None:
    """Neither Ctrl-C in the terminal nor a dying ssh session ends a worker; SIGTERM asks it to stop."""
    with contextlib.suppress(PermissionError):  # already a session of its own
        os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signal_number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(
            signal_number, lambda number, _: stop.set(f"cancelled: heard {signal.Signals(number).name}")
        )

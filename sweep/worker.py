"""A worker: a process that claims runs of a plan one after another and trains them, until none is left.

It talks to nobody. What it reads is the plan and the ledger, what it writes is the ledger, so the process
that started it may die, be replaced or be joined by others. What trains is given to it (`sweep.trainers`).
"""

import errno
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sweep.flag import Flag
from sweep.folder import SweepFolder, link_run
from sweep.holding import Endings, Held, Outcome, beating
from sweep.ledger import Claim, Ledger
from sweep.lineage import PARENT_EVERY_S, blocked_by, must_wait, parent_state, release_parent
from sweep.outcomes import counts_as_evidence, same_failure, spec_to_dict
from sweep.planes import Portion, attempt_together, has_company, mates
from sweep.printed import output_to
from sweep.recovery import REMEDIES, smaller_batches
from sweep.sharing import ALONE, CROWDED, Shared
from sweep.spec import Plan, RunSpec, Status
from sweep.timesheets import Timesheet
from sweep.trainers import GivenBack, RunMany, RunOne
from train.record import Failure, RunRecord
from train.rungs import Paused
from train.secrets import scrub

PROPOSAL_EVERY_S = 0.1  # how often a worker with nothing to do looks whether a search asked for more
NOTHING_LEFT, NO_SLOT, SAME_FAILURE, NODE_FAILURE = 0, 3, 4, 6  # what `work` returns


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
        portion: Portion | None = None,
    ) -> None:
        """may_wait: for what a search asks next, while it goes on here. gpus, cores: what we are billed for.
        shared: with whom we share a device. remedies: failures after which a run is given up to its next attempt,
        and how often. portion: how many it may take at once; None: one after another."""
        self.ledger, self.folder, self.stop, self.name = ledger, folder, stop, name
        self._may_claim, self._may_wait, self._shared = may_claim, may_wait, shared
        self.endings, self._portion = Endings(ledger, shared, remedies), portion
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
        for spec, claim, plan in self._claims():
            started = time.monotonic()
            self._timesheet.begin(spec)
            held = [self._hold(spec, claim)]
            held += self._company(held[0], plan)
            if len(held) == 1:
                outcomes = [(held[0], self._attempt(held[0]))]
                self._timesheet.end(outcomes[0][1].word, outcomes[0][1].record, self._shared.runs_at_once())
            else:
                outcomes = self._attempt_together(held)
                self._timesheet.end_together([(one.spec, what.word, what.record) for one, what in outcomes])
            for one in held:
                release_parent(one.spec, plan, self.ledger)
            codes = [self._after(one.spec, what, time.monotonic() - started) for one, what in outcomes]
            if code := next(filter(None, codes), NOTHING_LEFT):
                return code
            if same_failure(self._first_failures):
                return SAME_FAILURE
        return NOTHING_LEFT

    def _after(self, spec: RunSpec, outcome: Outcome, seconds: float) -> int:
        """Say how a run ended; what `run` is to return because of it, if anything."""
        word, failure = outcome.word, outcome.failure
        say = f"{word} {spec.run_id} after {seconds:.1f} s"
        print(f"{say}: {failure.kind}: {failure.message}" if failure else say, flush=True)
        if failure and failure.kind == "disk_full":
            raise OSError(errno.ENOSPC, f"{failure.message}; {spec.run_id} can be continued")
        if word == "crowded out":
            return CROWDED
        self.num_ended += word != "interrupted"
        if failure and failure.kind == "node_fail":
            return NODE_FAILURE  # the next run would fare no better here, nor would this process
        if word not in ("interrupted", "paused") and counts_as_evidence(spec, failure):
            self._first_failures.append(failure)
        return NOTHING_LEFT

    def _claims(self) -> Iterator[tuple[RunSpec, Claim, Plan]]:
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
                    yield spec, claim, plan
            if is_waiting and not found:  # for a parent that somebody else is training
                found = not self.stop.wait(PARENT_EVERY_S)
            while not found and self._may_wait and self.folder.awaits_proposals():
                if self.stop.wait(PROPOSAL_EVERY_S) or self.folder.was_stopped_after(self._started):
                    return
                found = self.folder.plan_version() != version

    def _block(self, spec: RunSpec, claim: Claim, failure: Failure) -> None:
        """Report a run that can't begin."""
        self._announce(spec)
        self.endings.failed(Held(spec, claim), failure)
        print(f"failed {spec.run_id}: {failure.message}", flush=True)

    def _had_its_pilot(self, spec: RunSpec) -> bool:
        return self._limit_s is not None and self.ledger.status(spec.fingerprint).status is not Status.PLANNED

    def _announce(self, spec: RunSpec) -> None:
        self.ledger.write_spec(spec.fingerprint, spec_to_dict(spec, self.ledger.root))
        link_run(self.folder.path / "runs", spec.run_id, spec.fingerprint)

    def _hold(self, spec: RunSpec, claim: Claim) -> Held:
        """A claimed run, ready to be attempted."""
        self._announce(spec)
        num_halvings = self.ledger.losses(spec.fingerprint).count("cuda_oom") if claim.attempt > 1 else 0
        return Held(smaller_batches(spec, num_halvings), claim, num_halvings)

    def _company(self, first: Held, plan: Plan) -> list[Held]:
        """Further runs, claimed to be trained at once with that one."""
        if (
            self._portion is None
            or self._limit_s is not None
            or (self._run_one is not None and not isinstance(self._run_one, RunMany))
            or not has_company(first.spec, plan, self.ledger)
        ):
            return []

        def may_claim(spec: RunSpec) -> bool:
            return self._may_claim(spec) and self._shared.may_claim(spec)

        found, num_alike, most = mates(first, plan, self.ledger, self._portion, may_claim)
        if most == 1:
            return []
        with beating([first], self._listen), output_to(first.claim.path("log")):
            try:
                trainer = self._trainer()
                number = trainer.company(first.spec, num_alike, most) if isinstance(trainer, RunMany) else 1
            except Exception:  # it will be met, and told, again by the run itself
                return []
            if isinstance(trainer, RunMany) and self._portion.whole:
                number = most
        company: list[Held] = []
        for spec in found:
            if len(company) + 1 < number and (claim := self.ledger.claim(spec.fingerprint, self.name)):
                company.append(self._hold(spec, claim))
        return company

    def _attempt_together(self, held: Sequence[Held]) -> list[tuple[Held, Outcome]]:
        """Train several claimed runs at once and write down how each ended."""
        trainer = self._trainer()
        assert isinstance(trainer, RunMany)
        return attempt_together(
            held,
            trainer,
            self.endings,
            should_stop=self.stop.is_set,
            reason=lambda: self.stop.reason,
            on_progress=self._timesheet.progress,
            also=self._listen,
        )

    def _attempt(self, held: Held) -> Outcome:
        """Train one claimed run and write down how it ended."""

        def on_progress(step: int, num_steps: int) -> None:
            held.progress(step, num_steps)
            self._timesheet.progress(step, num_steps)

        end = math.inf if self._limit_s is None else time.monotonic() + self._limit_s

        def should_stop() -> bool:
            return self.stop.is_set() or held.fenced.is_set() or time.monotonic() > end

        pause_at = self.ledger.stops.get(held.spec.fingerprint)
        with beating([held], self._listen):
            try:
                record = self._trained(
                    held,
                    on_progress=on_progress,
                    should_stop=should_stop,
                    **({} if pause_at is None else {"pause_at": pause_at}),
                )
                self._timesheet.beat()  # whoever sees the last record adds up the hours at once
                return self.endings.recorded(held, record)
            except GivenBack:
                return self.endings.given_back(held, self.stop.reason)
            except Paused as rung:
                held.claim.pause(rung.share, rung.metrics)
                return Outcome("paused")
            except (Exception, SystemExit) as error:
                return self.endings.broken(held, error)

    def _trained(self, held: Held, **how: Any) -> RunRecord:
        """What the trainer returns or raises; what it prints is in the attempt's log by then."""
        claim = held.claim
        with output_to(claim.path("log")):
            try:
                return self._trainer()(held.spec, folder=claim.folder, attempt=claim.attempt, **how)
            except (GivenBack, Paused):
                raise
            except (Exception, SystemExit):
                print(scrub(traceback.format_exc()), file=sys.stderr)
                raise

    def _trainer(self) -> RunOne:
        """Made once there is a run to train."""
        self._run_one = self._run_one or self._make_run_one()
        self._timesheet.ready()
        return self._run_one

    def _listen(self) -> None:
        """With every heartbeat."""
        self._timesheet.beat()
        if self.folder.was_stopped_after(self._started):
            self.stop.set("cancelled: the sweep was stopped")

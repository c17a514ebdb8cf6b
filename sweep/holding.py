"""The runs that a worker holds: what it tells of them, what it hears of them, and how each one's end is written."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sweep.ledger import BEAT_EVERY_S, Claim, Ledger
from sweep.outcomes import failed_record, writable
from sweep.recovery import with_remedy
from sweep.sharing import PACKED_OOM, Shared
from sweep.spec import RunSpec
from train.failures import failure_from_exception
from train.record import Failure, RunRecord


@dataclass(slots=True)
class Held:
    """A claimed run. `spec` is what is trained: the plan's, or one with a remedy. `fenced` once it must end."""

    spec: RunSpec
    claim: Claim
    num_halvings: int = 0  # of its micro-batches
    fenced: threading.Event = field(default_factory=threading.Event)
    is_over: bool = False
    step: int = 0
    num_steps: int = 0

    def progress(self, step: int, num_steps: int) -> None:
        """It came so far."""
        self.step, self.num_steps = step, num_steps
        self.claim.beat(step, num_steps)

    def listen(self) -> None:
        """Say that it is held, and hear whether it still is, or somebody wants it to end."""
        if self.is_over:
            return
        with contextlib.suppress(OSError):  # a full disk for a moment is no reason to lose a run
            self.claim.beat(self.step, self.num_steps)
        if self.claim.is_fenced() or self.claim.cancellation():
            self.fenced.set()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended: finished, somebody else finished, failed, interrupted, paused or crowded out."""

    word: str
    failure: Failure | None = None
    record: RunRecord | None = None


@contextlib.contextmanager
def beating(held: Sequence[Held], also: Callable[[], None]) -> Iterator[None]:
    """Say every two seconds that we live, however long a step takes, and listen. `also` is done as often."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_EVERY_S / 2):
            for one in held:
                one.listen()
            also()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Endings:
    """How the attempts of one worker are written down."""

    def __init__(self, ledger: Ledger, shared: Shared, remedies: Mapping[str, int]) -> None:
        self._ledger, self._shared, self._remedies = ledger, shared, remedies

    def recorded(self, held: Held, record: RunRecord) -> Outcome:
        """A record came of it."""
        held.is_over, claim = True, held.claim
        record = self._shared.described(with_remedy(record, held.spec, held.num_halvings))
        if record.outcome == "finished":
            is_ours = claim.commit(record)
            shutil.rmtree(claim.folder / "checkpoint", ignore_errors=True)  # not before the record
            return Outcome("finished" if is_ours else "somebody else finished", None, record)
        claim.fail(record)
        return Outcome("failed", record.failure, record)

    def given_back(self, held: Held, reason: str) -> Outcome:
        """It stopped because it was asked to, saved."""
        held.is_over = True
        if message := held.claim.cancellation():
            return self.failed(held, Failure(kind="cancelled", message=message))
        held.claim.release(reason)
        return Outcome("interrupted")

    def broken(self, held: Held, error: BaseException) -> Outcome:
        """Whatever breaks a run must not break the next one."""
        held.is_over = True
        failure = writable(failure_from_exception(error))
        if failure.kind in ("cuda_oom", "host_oom") and (number := self._shared.runs_at_once()) > 1:
            held.claim.lose(PACKED_OOM, f"{number} runs at once; {failure.kind}: {failure.message}")
            return Outcome("crowded out", failure)
        if failure.kind == "killed":  # one of its ranks; the ledger counts deaths, as of workers
            held.claim.lose(failure.kind, failure.message)
            return Outcome("interrupted", failure)
        return self.failed(held, failure)

    def failed(self, held: Held, failure: Failure) -> Outcome:
        """It failed, or is given up to its next attempt, which may fare better."""
        held.is_over, claim = True, held.claim
        if failure.kind == "disk_full":  # not the run's fault, and there's no room to write it down
            with contextlib.suppress(OSError):
                claim.lose(failure.kind, failure.message)
            return Outcome("interrupted", failure)
        losses = self._ledger.losses(claim.fingerprint)
        if losses.count(failure.kind) < self._remedies.get(failure.kind, 0):
            claim.lose(failure.kind, failure.message)
            return Outcome("interrupted", failure)
        claim.fail(failed_record(held.spec, claim.attempt, failure))
        return Outcome("failed", failure)

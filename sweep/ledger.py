"""Facts on disk, one folder a run: the only door to it, for workers, commands and the analysis.

    <root>/.runs/<fingerprint>/
        spec.json                   what the run is; written once
        events.jsonl, checkpoint/   the run's own
        attempts/0001.json          the claim; the owner is the highest number (see `sweep.claims`)
                 0001.heartbeat     step and time, at most every two seconds
                 0001.log           everything the run printed
                 0001.failure.json  its record, if it failed
                 0001.released      given back with a checkpoint
                 0001.paused        given back at a rung: the share of its steps, and what was measured there
                 0001.cancel.json   somebody wants this run to end
                 0001.lost.json     its job is gone, and how we know (see `sweep.slurm.reconcile`)
                 0001.retry         its failure, or its death, was forgiven
        record.json                 a finished run; written last, the first writer wins

Rejected: a database (SQLite's locks fail on NFS, and a file a person can read outlives the code), lock files
with deletion (who deletes a dead owner's lock may delete a living one's), and status files that are rewritten
(two writers, one truth lost). Every fact is a file that appears once.
"""

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.attempts import Heartbeat, attempts_in, believed_record, read_heartbeat, tail
from sweep.claims import Owner, is_alive, owner_from_dict, this_process
from sweep.deaths import deaths_in_a_row
from sweep.spec import Status
from train.files import read_json, write_json_atomic, write_json_exclusive
from train.record import Failure, RunRecord, record_to_dict
from train.secrets import scrub

MAX_ATTEMPTS = 5  # deaths in a row, none getting further, until a run counts as failed (see `sweep.deaths`)
BEAT_EVERY_S = 2.0
CLAIMABLE = (Status.PLANNED, Status.INTERRUPTED, Status.LOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What the ledger knows of one run now. attempt: the latest; 0 if there was none."""

    status: Status
    attempt: int = 0
    owner: Owner | None = None
    heartbeat: Heartbeat | None = None
    failure: Failure | None = None


PLANNED = RunState(status=Status.PLANNED)


class Ledger:
    """Every run below one root folder."""

    def __init__(
        self, root: Path | str, max_attempts: int = MAX_ATTEMPTS, stops: Mapping[str, float] | None = None
    ) -> None:
        """stops: the plan's; a run that paused there or later waits, one that paused earlier goes on."""
        self.root, self.max_attempts, self.stops = Path(root), max_attempts, stops or {}
        self.runs = self.root / ".runs"
        self._records: dict[str, RunRecord] = {}  # a believed record never changes

    def folder(self, fingerprint: str) -> Path:
        """Where everything of one run lies."""
        return self.runs / fingerprint

    def attempt_path(self, fingerprint: str, attempt: int, suffix: str) -> Path:
        """The file of one attempt: suffix json, heartbeat, log, failure.json, lost.json, released or retry."""
        return self.folder(fingerprint) / "attempts" / f"{attempt:04d}.{suffix}"

    def record(self, fingerprint: str) -> RunRecord | None:
        """The finished run's record; None unless it is whole, of this version and of this run."""
        if fingerprint not in self._records:
            record = believed_record(self.folder(fingerprint) / "record.json", fingerprint)
            if record is None or record.outcome != "finished":
                return None
            self._records[fingerprint] = record
        return self._records[fingerprint]

    def records(self, fingerprints: Iterable[str]) -> dict[str, RunRecord]:
        """The records of those runs that are finished."""
        found = ((fingerprint, self.record(fingerprint)) for fingerprint in self._existing(fingerprints))
        return {fingerprint: record for fingerprint, record in found if record is not None}

    def status(self, fingerprint: str) -> RunState:
        """What is known of one run."""
        record = self.record(fingerprint)
        if record is not None:
            return RunState(status=Status.FINISHED, attempt=record.attempt)
        return self._unfinished_state(fingerprint)

    def statuses(self, fingerprints: Iterable[str]) -> dict[str, RunState]:
        """What is known of each run, in the order asked."""
        fingerprints = list(fingerprints)
        existing = set(self._existing(fingerprints))
        return {
            fingerprint: self.status(fingerprint) if fingerprint in existing else PLANNED
            for fingerprint in fingerprints
        }

    def write_spec(self, fingerprint: str, spec: Mapping[str, Any]) -> None:
        """Write down what the run is, once."""
        folder = self.folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "spec.json").exists():
            write_json_exclusive(folder / "spec.json", spec)

    def claim(self, fingerprint: str, worker: str = "") -> "Claim | None":
        """Take the run, if nobody lives who has it; None if it isn't to be had."""
        state = self.status(fingerprint)
        if state.status not in CLAIMABLE:
            return None
        claim = Claim(self, fingerprint, state.attempt + 1)
        (self.folder(fingerprint) / "attempts").mkdir(parents=True, exist_ok=True)
        if not write_json_exclusive(claim.path("json"), dataclasses.asdict(this_process(worker))):
            return None
        if self.record(fingerprint) is not None:  # the owner we took for dead committed in between
            claim.release()
            return None
        return claim

    def retry(self, fingerprint: str) -> bool:
        """Forgive the run's last failure, so that it can be claimed again; False if it hasn't failed."""
        state = self.status(fingerprint)
        if state.status is not Status.FAILED:
            return False
        path = self.attempt_path(fingerprint, state.attempt, "retry")
        return write_json_exclusive(path, {"time": time.time()})

    def give_up(self, fingerprint: str, attempt: int, kind: str, evidence: str) -> bool:
        """Write down that the job of an attempt is gone; False if the attempt ended otherwise meanwhile."""
        state = self.status(fingerprint)
        if state.status not in (Status.RUNNING, Status.LOST) or state.attempt != attempt:
            return False
        path = self.attempt_path(fingerprint, attempt, "lost.json")
        return write_json_exclusive(path, {"kind": kind, "evidence": scrub(evidence), "time": time.time()})

    def loss(self, fingerprint: str, attempt: int) -> Mapping[str, Any]:
        """What `give_up` wrote: kind, evidence, time; {} if it didn't."""
        return read_json(self.attempt_path(fingerprint, attempt, "lost.json")) or {}

    def losses(self, fingerprint: str) -> list[str]:
        """The classes of all that was lost of a run, in order."""
        kinds = attempts_in(self.folder(fingerprint))
        return [
            str(self.loss(fingerprint, attempt).get("kind"))
            for attempt in sorted(kinds)
            if "lost.json" in kinds[attempt]
        ]

    def rungs(self, fingerprint: str) -> dict[float, Mapping[str, float]]:
        """What was measured where the run paused: share of its steps -> metrics."""
        kinds = attempts_in(self.folder(fingerprint))
        found = [
            read_json(self.attempt_path(fingerprint, attempt, "paused")) or {}
            for attempt in sorted(kinds)
            if "paused" in kinds[attempt]
        ]
        return {values["share"]: values["metrics"] for values in found if "metrics" in values}

    def num_deaths(self, fingerprint: str, before: float = float("inf")) -> int:
        """How many of the latest attempts (of those before one) died without a word, none getting further."""
        files = {key: kinds for key, kinds in attempts_in(self.folder(fingerprint)).items() if key < before}
        return (
            deaths_in_a_row(lambda *names: self.attempt_path(fingerprint, *names), files).num if files else 0
        )

    def last_attempt(self, fingerprint: str) -> int:
        """The highest attempt there is; 0 for none."""
        return max(attempts_in(self.folder(fingerprint)), default=0)

    def _existing(self, fingerprints: Iterable[str]) -> list[str]:
        try:
            names = set(os.listdir(self.runs))
        except FileNotFoundError:
            return []
        return [fingerprint for fingerprint in fingerprints if fingerprint in names]

    def _unfinished_state(self, fingerprint: str) -> RunState:
        files = attempts_in(self.folder(fingerprint))
        if not files:
            return PLANNED
        attempt = max(files)
        kinds = files[attempt]
        owner = owner_from_dict(read_json(self.attempt_path(fingerprint, attempt, "json")))
        heartbeat = read_heartbeat(self.attempt_path(fingerprint, attempt, "heartbeat"))

        def state(status: Status, failure: Failure | None = None) -> RunState:
            return RunState(status=status, attempt=attempt, owner=owner, heartbeat=heartbeat, failure=failure)

        if "retry" in kinds:
            return state(Status.PLANNED)
        if "failure.json" in kinds:
            return state(Status.FAILED, self._failure(fingerprint, attempt))
        if "paused" in kinds:
            share = (read_json(self.attempt_path(fingerprint, attempt, "paused")) or {}).get("share", 0.0)
            return state(Status.PAUSED if share >= self.stops.get(fingerprint, 2.0) else Status.INTERRUPTED)
        if "released" in kinds:
            return state(Status.INTERRUPTED)
        if (
            "lost.json" not in kinds
            and owner is not None
            and is_alive(owner, lambda: self.silence_s(fingerprint, attempt))
        ):
            return state(Status.RUNNING)
        if attempts_in(self.folder(fingerprint)) != files or self.record(fingerprint) is not None:
            return self.status(fingerprint)  # its last word came between our two looks
        deaths = deaths_in_a_row(lambda *names: self.attempt_path(fingerprint, *names), files)
        if deaths.are_enough(self.max_attempts):
            return state(Status.FAILED, self._crash(fingerprint, attempt, deaths.num))
        return state(Status.LOST)

    def _failure(self, fingerprint: str, attempt: int) -> Failure:
        record = believed_record(self.attempt_path(fingerprint, attempt, "failure.json"), fingerprint)
        if record is None or record.failure is None:
            return Failure(kind="unreadable", message=f"the failure of attempt {attempt} can't be read")
        return record.failure

    def _crash(self, fingerprint: str, attempt: int, deaths: int) -> Failure:
        last_line = next(iter(tail(self.attempt_path(fingerprint, attempt, "log"), 1)), "nothing was printed")
        return Failure(
            kind="crash",
            message=f"its worker died {deaths} times without a word; last printed: {scrub(last_line)[:200]}",
        )

    def silence_s(self, fingerprint: str, attempt: int, now: float | None = None) -> float:
        """How long an owner elsewhere has been silent, by the file system's clock (`now`): ours may differ."""
        last = 0.0
        for suffix in ("json", "heartbeat"):
            try:
                last = max(last, self.attempt_path(fingerprint, attempt, suffix).stat().st_mtime)
            except FileNotFoundError:
                continue
        return (self.clock() if now is None else now) - last

    def clock(self) -> float:
        """The file system's, which gives files their times."""
        try:
            path = self.runs / f".clock-{os.getpid()}"
            path.write_text("", encoding="ascii")
            now = path.stat().st_mtime
            path.unlink()
        except OSError:  # a reader of somebody else's results may not write
            now = time.time()
        return now


class Claim:
    """One attempt at one run, held by this process until it commits, fails or releases it."""

    def __init__(self, ledger: Ledger, fingerprint: str, attempt: int) -> None:
        self.ledger, self.fingerprint, self.attempt = ledger, fingerprint, attempt
        self._last_beat = float("-inf")

    def path(self, suffix: str) -> Path:
        """A file of this attempt."""
        return self.ledger.attempt_path(self.fingerprint, self.attempt, suffix)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.ledger.folder(self.fingerprint)

    def is_fenced(self) -> bool:
        """Whether somebody took this run over, believing us dead."""
        return self.ledger.last_attempt(self.fingerprint) != self.attempt

    def cancellation(self) -> str:
        """Who wants this run to end, and since when; "" for nobody."""
        values = read_json(self.path("cancel.json"))
        return str(values.get("message") or "cancelled") if values is not None else ""

    def beat(self, step: int, num_steps: int, *, force: bool = False) -> None:
        """Say how far the run came; cheap enough to call at every step."""
        if force or time.monotonic() - self._last_beat >= BEAT_EVERY_S:
            self._last_beat = time.monotonic()
            write_json_atomic(
                self.path("heartbeat"), {"step": step, "num_steps": num_steps, "time": time.time()}
            )

    def commit(self, record: RunRecord) -> bool:
        """Make the finished run's record final; False if the run is somebody else's by now."""
        if record.fingerprint != self.fingerprint or record.outcome != "finished":
            raise ValueError(f"{record.run_id}, {record.outcome}: not the record of this finished run")
        if self.is_fenced():
            return False
        path = self.folder / "record.json"
        if write_json_exclusive(path, record_to_dict(record)):
            return True
        if self.ledger.record(self.fingerprint) is not None:
            return False
        # Half written, foreign, or of a later version: kept, but not believed.
        path.rename(path.with_name(f"record.unreadable-{self.attempt:04d}.json"))
        return write_json_exclusive(path, record_to_dict(record))

    def fail(self, record: RunRecord) -> None:
        """Write down why this attempt failed; the run then waits for action=retry."""
        write_json_exclusive(self.path("failure.json"), record_to_dict(record))

    def lose(self, kind: str, evidence: str) -> None:
        """Give the run up for a cause that the next attempt, anybody's, will meet differently."""
        write_json_exclusive(
            self.path("lost.json"), {"kind": kind, "evidence": scrub(evidence), "time": time.time()}
        )

    def pause(self, share: float, metrics: Mapping[str, float]) -> None:
        """Give the run back at a rung, measured; it goes on if the plan's stop for it moves."""
        write_json_exclusive(
            self.path("paused"), {"share": share, "metrics": dict(metrics), "time": time.time()}
        )

    def release(self, reason: str = "") -> None:
        """Give the run back, to be continued from its checkpoint by anybody. reason: class and words."""
        write_json_exclusive(self.path("released"), {"reason": reason, "time": time.time()})

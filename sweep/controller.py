"""Keep workers alive until every run of a plan is finished or has failed; show how far it is.

The controller decides nothing that must survive it: kill it and the workers go on, start it again and it
joins them. Only one per sweep, the holder of controller.lock, starts workers; a second one watches, and takes
over when the first dies.
"""

import contextlib
import fcntl
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import IO

from sweep.claims import process_lives, this_process
from sweep.duration import Estimate, kind_of, remaining_time, seconds_by_kind
from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.launch import Job, Launch, start_workers
from sweep.ledger import CLAIMABLE, Ledger, RunState
from sweep.outcomes import counts_as_evidence, same_failure
from sweep.searching import Search
from sweep.show import View, reason
from sweep.slots import holders, places_to_start
from sweep.spec import SETTLED, Plan, Status
from train.record import Failure

PATIENCE_S = 30.0  # for checkpoints, after a request to stop
NUM_DEATHS = 3  # of workers in a row, none of which got anything done, until we stop starting more
QUICK_DEATH_S = 60.0
POLL_S = 0.5
END_POLL_S = 0.1
IDLE_S = 5.0  # without any worker, after which watching makes no sense

Start = Callable[[Launch, Sequence[int]], list[Job]]


class Interrupts:
    """Ctrl-C and SIGTERM as a request: the first sets `event`, the second leaves at once."""

    def __init__(self) -> None:
        self.event = Flag()

    @contextlib.contextmanager
    def listening(self) -> Iterator["Interrupts"]:
        """Listen while inside; only the main thread can."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a controller's work ended. problem: why it gave up, for people."""

    states: dict[str, RunState]
    is_interrupted: bool = False
    is_watcher: bool = False  # somebody else's workers go on
    num_left_working: int = 0  # workers that hadn't stopped when patience ran out
    problem: str = ""

    def num(self, *statuses: Status) -> int:
        """How many runs have one of these statuses."""
        return sum(state.status in statuses for state in self.states.values())


class Controller:
    """One sweep's workers, from this process."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        folder: SweepFolder,
        launch: Launch,
        view: View,
        interrupts: Interrupts,
        *,
        start: Start = start_workers,
        poll_s: float = POLL_S,
        only_watch: bool = False,
        search: Search | None = None,
        on_look: Callable[[dict[str, RunState]], None] = lambda states: None,
    ) -> None:
        self.plan, self.ledger, self.folder, self.launch, self.view = plan, ledger, folder, launch, view
        self.interrupts, self._start, self._poll_s, self._only_watch = interrupts, start, poll_s, only_watch
        self._search, self._plan_version = search, folder.plan_version()
        self._on_look = on_look
        self.states: dict[str, RunState] = {}
        self._jobs: list[Job] = []
        self._first_outcomes: list[Failure | None] = []
        self._history: dict = {}
        self._reserved: dict[str, tuple[int, tuple[int, ...]]] = {}  # by job: ranks, slots
        self._not_before: dict[int, float] = {}
        self._pause_s = 1.0
        self._num_deaths, self._done_before = 0, (-1, -1)
        self._started, self._last_busy = time.time(), time.monotonic()
        self._said: set[str] = set()

    def run(self) -> Ending:
        """Until everything is finished or failed, somebody says stop, or going on makes no sense."""
        lock: IO[str] | None = None
        try:
            while True:
                look_s = self._look()
                self._on_look(self.states)
                if lock is None and not self._only_watch and (self._search or not self._is_settled()):
                    lock = self._take_lock()
                if self._may_grow(is_owner=lock is not None):
                    continue
                if self._is_settled():
                    return Ending(states=self.states)
                self.view.update(self.plan, self.states, self._estimate())
                if self.interrupts.event.is_set() or self.folder.was_stopped_after(self._started):
                    return self._stop(is_owner=lock is not None)
                if lock is not None and (problem := self._same_failure() or self._tend_workers()):
                    self.view.say(problem)
                    return self._stop(is_owner=True, problem=problem)
                if self._only_watch and self._is_idle():
                    return Ending(states=self.states, problem="nobody is working on it")
                self.interrupts.event.wait(self._pause_until_next_look(look_s))
        finally:
            if lock is not None:
                self.folder.set_searching(False)
                lock.close()

    def _pause_until_next_look(self, look_s: float) -> float:
        """Seconds; few while nothing is left to claim, as the last record is then awaited."""
        if any(state.status in CLAIMABLE for state in self.states.values()):
            return max(self._poll_s, 5 * look_s)
        return max(min(self._poll_s, END_POLL_S), 20 * look_s)

    def _may_grow(self, *, is_owner: bool) -> bool:
        """Whether to look again: a search, ours or that of the process we watch, asked for more or still may."""
        if self.interrupts.event.is_set():
            return False
        if is_owner:
            return self._search is not None and self._has_asked(self._search)
        if self.folder.plan_version() != self._plan_version:
            self._plan_version = self.folder.plan_version()
            self.plan = self.folder.plan() or self.plan
            self.ledger.stops = self.plan.stops
            return True
        is_waiting = self._is_settled() and self.folder.awaits_proposals()
        return is_waiting and not self.interrupts.event.wait(self._poll_s)

    def _has_asked(self, search: Search) -> bool:
        has_grown = search.extend(self.states, self.launch.num_slots)
        self.plan = search.plan
        if has_grown:
            self.folder.write_plan(self.plan)
            self._plan_version = self.folder.plan_version()
        self.folder.set_searching(search.waits(self.states))
        return has_grown

    def _is_settled(self) -> bool:
        return all(state.status in SETTLED for state in self.states.values())

    def _take_lock(self) -> IO[str] | None:
        lock = take_controller_lock(self.folder)
        if lock is None:
            self._say_once("another process is running this sweep; watching, and taking over if it ends")
        return lock

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.view.say(line)

    def _is_idle(self) -> bool:
        """Whether no worker and no controller has been seen for a while."""
        is_busy = any(state.status is Status.RUNNING for state in self.states.values()) or any(
            holder.sweep == self.folder.name for holder in holders(self.folder.root).values()
        )
        if is_busy:
            self._last_busy = time.monotonic()
        return time.monotonic() - self._last_busy > IDLE_S

    def _look(self) -> float:
        """Read the ledger and say what ended; the seconds that took."""
        started = time.monotonic()
        before, self.states = self.states, self.ledger.statuses(spec.fingerprint for spec in self.plan.runs)
        for spec in self.plan.runs:
            state, old = self.states[spec.fingerprint], before.get(spec.fingerprint)
            if old is None or old.status is state.status:
                continue
            if state.status is Status.FAILED:
                self._first_outcomes.append(state.failure)
                self.view.say(f"failed {spec.run_id}: {reason(state)}")
            elif state.status is Status.FINISHED:
                if counts_as_evidence(spec, None):
                    self._first_outcomes.append(None)
                self.view.say(f"finished {spec.run_id}")
        return time.monotonic() - started

    def _estimate(self) -> Estimate | None:
        num_finished = sum(map(len, self._history.values()))
        records = self.ledger.records(self.states)
        if len(records) != num_finished:
            self._history = seconds_by_kind(
                [
                    (kind_of(spec), records[spec.fingerprint])
                    for spec in self.plan.runs
                    if spec.fingerprint in records
                ]
            )
        return remaining_time(self.plan.runs, self.states, self._history, self.launch.num_slots, time.time())

    def _same_failure(self) -> str:
        failure = same_failure(self._first_outcomes)
        if failure is None:
            return ""
        return (
            f"stopped: the first {len(self._first_outcomes)} runs all failed in {failure.last_frame}: "
            f"{failure.message}. The rest stays planned."
        )

    def _tend_workers(self) -> str:
        """As many workers as there are free slots and unclaimed runs; why not, if that makes no sense."""
        held = holders(self.folder.root)
        registered = {holder.job for holder in held.values()}
        without_slot = [job for job in self._jobs if job.number not in registered]
        starting = [job for job in without_slot if job.is_alive()]
        if problem := self._bury([job for job in without_slot if job not in starting]):
            return problem
        busy = {
            state.owner.pid
            for state in self.states.values()
            if state.status is Status.RUNNING and state.owner
        }
        ours = [holder for holder in held.values() if holder.sweep == self.folder.name]
        idle = {holder.owner.pid: holder.ranks for holder in ours if holder.owner.pid not in busy}
        present = Counter(idle.values())
        present.update(self._reserved[job.number][0] for job in starting)
        claimable = Counter(
            spec.config.num_ranks
            for spec in self.plan.runs
            if self.states[spec.fingerprint].status in CLAIMABLE
        )
        taken = set(held).union(*(self._reserved[job.number][1] for job in starting))
        free = [
            slot
            for slot in range(self.launch.num_slots)
            if slot not in taken and time.monotonic() >= self._not_before.get(slot, 0.0)
        ]
        for ranks, places in places_to_start(claimable, present, free, self.launch.num_slots):
            jobs = self._start(replace(self.launch, ranks=ranks), [slots[0] for slots in places])
            for job, slots in zip(jobs, places, strict=True):
                self._reserved[job.number] = ranks, slots
            self._jobs += jobs
        if claimable and len(taken) >= self.launch.num_slots and not ours and not starting:
            self._say_once(f"waiting: other sweeps hold all {self.launch.num_slots} slots of this machine")
        return ""

    def _bury(self, dead: list[Job]) -> str:
        """Forget dead workers; a problem if they die again and again without getting anything done."""
        done = (
            sum(state.status in SETTLED for state in self.states.values()),
            sum(state.heartbeat.step for state in self.states.values() if state.heartbeat),
        )
        if done != self._done_before:
            self._num_deaths, self._done_before, self._pause_s = 0, done, 1.0
        for job in dead:
            self._jobs.remove(job)
            self._not_before[job.slot] = time.monotonic() + self._pause_s
            if job.ended_in_order():  # it found nothing to do: a taken slot, or runs that others took
                self._pause_s = min(30.0, 2 * self._pause_s)
                continue
            self._num_deaths += time.time() - job.started_at < QUICK_DEATH_S
            self.view.say(f"a worker died: {next(iter(job.last_words(1)), 'killed, without a word')[:200]}")
        if self._num_deaths < NUM_DEATHS:
            return ""
        words = [f"  {line[:200]}" for line in dead[-1].last_words(4)] or ["  it printed nothing"]
        first = f"stopped: {self._num_deaths} workers in a row died at once; the last one said:"
        return "\n".join([first, *words])

    def _stop(self, *, is_owner: bool, problem: str = "") -> Ending:
        """End our workers, if they are ours, and wait for their checkpoints."""
        num_left = 0
        if is_owner:
            num_left = stop_workers(
                self.folder,
                self._jobs,
                on_wait=lambda num: self.view.say(
                    f"stopping: waiting for {num} {'worker' if num == 1 else 'workers'} to save their state"
                ),
            )
            self._look()
        is_watcher = not is_owner and not self.folder.was_stopped_after(self._started)
        return Ending(
            states=self.states,
            is_interrupted=not problem,
            problem=problem,
            is_watcher=is_watcher,
            num_left_working=num_left,
        )


def stop_workers(
    folder: SweepFolder,
    jobs: Sequence[Job] = (),
    *,
    patience_s: float = PATIENCE_S,
    on_wait: Callable[[int], None] = lambda num: None,
) -> int:
    """Ask this sweep's workers to save and end; how many haven't when patience runs out.

    The signal is repeated: a worker that is still starting loses the first one.
    """
    folder.ask_to_stop()
    deadline, next_signal = time.monotonic() + patience_s, 0.0
    is_first = True
    while True:
        owners = [holder.owner for holder in holders(folder.root).values() if holder.sweep == folder.name]
        alive = {(owner.pid, owner.process_start) for owner in owners}
        alive |= {(job.pid, job.process_start) for job in jobs if job.is_alive()}
        if not alive or time.monotonic() > deadline:
            return len(owners)
        if is_first:
            on_wait(len(owners) or len(alive))
            is_first = False
        if time.monotonic() >= next_signal:
            next_signal = time.monotonic() + 1.0
            for pid, start in alive:
                if process_lives(pid, start):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)


def take_controller_lock(folder: SweepFolder) -> IO[str] | None:
    """Become the one process that starts this sweep's workers; None if another one is."""
    folder.path.mkdir(parents=True, exist_ok=True)
    stream = open(folder.lock_path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the controller ends
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    stream.truncate(0)
    stream.write(json.dumps(asdict(this_process("controller"))))
    stream.flush()
    return stream

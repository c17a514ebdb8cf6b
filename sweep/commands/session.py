"""What every command starts from: the question composed, its plan, its folder and the ledger."""

import contextlib
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.arguments import Arguments
from sweep.config import SweepConfig
from sweep.duration import Estimate, Kind, kind_of, remaining_time, seconds_by_kind
from sweep.errors import LedgerError
from sweep.folder import SweepFolder, check_root, sweep_names
from sweep.forecast import like_runs
from sweep.launch import available_cores, visible_gpus
from sweep.ledger import Ledger, RunState
from sweep.lineage import measurable
from sweep.spec import SETTLED, Plan, RunSpec
from sweep.timesheets import shifts
from sweep.workloads import workload_of
from train.errors import UserError

if TYPE_CHECKING:
    from sweep.compose import ComposedSweep
    from sweep.searching import Search

NUM_CANDIDATES = 5


@dataclass(frozen=True, slots=True)
class Session:
    """One command's view of one sweep. Nothing is written by opening it but the cache of hashes."""

    arguments: Arguments
    config: SweepConfig
    plan: Plan
    folder: SweepFolder
    ledger: Ledger
    search: "Search | None" = None
    unmeasurable: tuple[str, ...] = ()  # finished runs that benchmarks are asked of, but that kept no weights

    def states(self) -> dict[str, RunState]:
        """What the ledger knows of every run of the plan."""
        return self.ledger.statuses(spec.fingerprint for spec in self.plan.runs)

    def command(self, *words: str) -> str:
        """The line that asks this question again, with another action."""
        return command_line(self.arguments, *words)

    @property
    def uses_gpu(self) -> bool:
        """Whether any run may want a device."""
        return any(spec.config.train.device != "cpu" for spec in self.plan.runs)

    def gpus(self) -> tuple[str, ...]:
        """The devices its workers share."""
        return visible_gpus() if self.uses_gpu else ()

    def num_slots(self, gpus: Sequence[str]) -> int:
        """Workers at once: as said, else one per device, else as many as cores allow."""
        launcher = self.config.launcher
        return launcher.slots or len(gpus) or max(1, available_cores() // launcher.threads_per_worker)


def open_session(arguments: Arguments, *, allow_unresolved: bool = False) -> Session:
    """Compose and plan what the command line asks; UserError for every mistake in it.

    allow_unresolved: for a look only: the root isn't tried, and an identity that takes a download stays open.
    """
    if arguments.confirms:
        from sweep.commands.confirming import open_confirming

        return open_confirming(arguments, allow_unresolved=allow_unresolved)
    from sweep.compose import compose_sweep
    from sweep.plan import make_plan

    composed = compose_sweep(arguments)
    config = composed.config
    if not allow_unresolved:
        check_root(config.root)

    def make(composed: "ComposedSweep") -> Plan:
        return make_plan(
            composed, cache_folder=Path(config.root) / ".cache", allow_unresolved=allow_unresolved
        )

    folder, ledger = SweepFolder(config.root, config.name), Ledger(config.root, config.launcher.max_attempts)
    if not (config.search.is_on or config.search.rungs):
        plan, unmeasurable = measurable(make(composed), ledger)
        return Session(arguments, config, plan, folder, ledger, unmeasurable=unmeasurable)
    from sweep.asking import Asker
    from sweep.searching import Search

    search = Search(composed, make, folder, ledger, Asker(folder.path / "search.log"))
    return Session(arguments, config, search.plan, folder, ledger, search)


def has_grid(arguments: Arguments) -> bool:
    """Whether the command line asks a question."""
    return any(override.startswith("+grid=") for override in arguments.overrides)


def root_of(arguments: Arguments) -> Path:
    """The root folder of a command line without a question."""
    said = [
        override.partition("=")[2].strip("'\"")
        for override in arguments.overrides
        if override.startswith("root=")
    ]
    return Path(said[-1] if said else "outputs")


def saved_plans(root: Path) -> list[Plan]:
    """The plans of every sweep below a root, but for those of another version."""
    plans: list[Plan] = []
    for name in sweep_names(root):
        with contextlib.suppress(LedgerError):
            if (plan := SweepFolder(root, name).plan()) is not None:
                plans.append(plan)
    return plans


def command_line(arguments: Arguments, *words: str) -> str:
    """A line to paste. Without the webhook's address, which is a secret."""
    overrides = [word for word in arguments.overrides if not word.startswith("notify.webhook=")]
    folders = [word for folder in arguments.config_dirs for word in ("--config-dir", folder)]
    confirm = ["confirm"] if arguments.confirms else []
    return shlex.join(["python", "-m", "sweep", *overrides, *confirm, *words, *folders])


def find_run(runs: Iterable[RunSpec], word: str | None) -> RunSpec:
    """The one run that `word` names: a run id, a fingerprint, or a part that only one of them has."""
    if word is None:
        raise UserError("no run is named", "a run id or a part of one", "status lists them")
    by_fingerprint = {spec.fingerprint: spec for spec in runs}
    every = list(by_fingerprint.values())
    for found in (
        [spec for spec in every if word in (spec.run_id, spec.fingerprint)],
        [spec for spec in every if word in spec.run_id or spec.fingerprint.startswith(word)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{len(found)} runs match {word}", "one run", f"such as {_some(found)}")
    raise UserError(
        f"no run matches {word}",
        "a run id or a part of one",
        f"such as {_some(every)}" if every else "the plan has no runs",
    )


def history(plan: Plan, ledger: Ledger) -> dict[Kind, list[float]]:
    """The seconds of like runs by kind: from the timesheets of the whole root, else from the plan's own records."""
    sheets = shifts(ledger.root)
    found: dict[Kind, list[float]] = {}
    for workload in dict.fromkeys(map(workload_of, plan.runs)):
        seen = [one for gpus in (0, 1) for one in like_runs(sheets, workload, gpus)]
        if seen:
            found.setdefault(workload.kind, []).extend(seconds * entry.pack for seconds, entry, _ in seen)
    unseen = {spec.fingerprint: kind_of(spec) for spec in plan.runs if kind_of(spec) not in found}
    records = ledger.records(unseen)
    return seconds_by_kind([(unseen[name], record) for name, record in records.items()]) | {
        kind: sorted(seconds) for kind, seconds in found.items()
    }


def time_left(
    plan: Plan, states: Mapping[str, RunState], seconds: Mapping[Kind, Sequence[float]], num_slots: int
) -> Estimate | None:
    """How long the unfinished runs take; None without history."""
    return remaining_time(plan.runs, states, seconds, num_slots, time.time())


def is_over(states: Iterable[RunState]) -> bool:
    """Whether every run is finished or failed."""
    return all(state.status in SETTLED for state in states)


def _some(runs: Sequence[RunSpec]) -> str:
    names = [spec.run_id for spec in runs[:NUM_CANDIDATES]]
    return ", ".join(names) + (", ..." if len(runs) > NUM_CANDIDATES else "")

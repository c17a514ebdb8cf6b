"""What people see: live progress on a terminal, plain lines elsewhere, one screen of status. No decisions."""

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sweep.attempts import tail
from sweep.duration import Estimate, estimate_text, kind_of
from sweep.ledger import Ledger, RunState
from sweep.spec import SETTLED, Plan, RunSpec, Status

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_EVERY_S = 10.0
SCREEN_RUNS = 12  # runs in flight, or failed ones, that fit on one screen
_COLUMNS = (
    Status.FINISHED,
    Status.PAUSED,
    Status.RUNNING,
    Status.PLANNED,
    Status.INTERRUPTED,
    Status.LOST,
    Status.FAILED,
)
_SAID = (Status.PAUSED, Status.RUNNING, Status.FAILED)


class View(Protocol):
    """Where a controller's progress goes."""

    def update(self, plan: Plan, states: Mapping[str, RunState], estimate: Estimate | None) -> None:
        """The present state of everything."""
        ...

    def say(self, line: str) -> None:
        """One thing that happened."""
        ...

    def close(self) -> None:
        """Nothing more will be shown."""
        ...


def make_view(ledger: Ledger) -> View:
    """Live progress on a terminal, plain lines elsewhere."""
    return LiveView(ledger) if sys.stdout.isatty() else PlainView(sys.stdout)


class PlainView:
    """For logs and pipes: at most one line of progress in ten seconds, and one for each run that ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_line = ""
        self._last_time = float("-inf")

    def update(self, plan: Plan, states: Mapping[str, RunState], estimate: Estimate | None) -> None:
        """A line of progress, if it says something new and the last one is old enough."""
        line = progress_line(plan, states, estimate)
        if line != self._last_line and time.monotonic() - self._last_time >= PLAIN_EVERY_S:
            self._last_line, self._last_time = line, time.monotonic()
            self.say(line)

    def say(self, line: str) -> None:
        """One line, at once, also through a pipe."""
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Lines need no end."""


class LiveView:
    """For a terminal: one bar, what is left, and the runs in flight; what happened scrolls by above."""

    def __init__(self, ledger: Ledger, console: Any = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._ledger = ledger
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, plan: Plan, states: Mapping[str, RunState], estimate: Estimate | None) -> None:
        """Redraw."""
        self._live.update(_live_screen(plan, states, estimate, self._ledger), refresh=True)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


def progress_line(plan: Plan, states: Mapping[str, RunState], estimate: Estimate | None) -> str:
    """17 of 40 runs finished, 4 running, 1 failed; about 12 min left."""
    count = Counter(states[spec.fingerprint].status for spec in plan.runs)
    parts = [f"{count[Status.FINISHED]} of {len(plan.runs)} runs finished"]
    parts += [f"{count[status]} {status}" for status in _SAID if count[status]]
    if all(status in SETTLED for status in count):
        return ", ".join(parts)
    return f"{', '.join(parts)}; time left: {estimate_text(estimate)}"


def step_text(state: RunState) -> str:
    """step 40 of 120; "starting" before the first."""
    if state.heartbeat is None or not state.heartbeat.num_steps:
        return "starting"
    return f"step {state.heartbeat.step} of {state.heartbeat.num_steps}"


def last_numbers(ledger: Ledger, fingerprint: str) -> str:
    """The latest number in a run's events: a validation metric if there is one, else its training loss."""
    for line in reversed(tail(ledger.folder(fingerprint) / "events.jsonl", 20)):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # a run's last line may be half written
            continue
        if not isinstance(event, dict):
            continue
        names = [name for name in event if name.startswith("validation_")] or ["train_loss"]
        if isinstance(event.get(names[0]), int | float):
            return f"{names[0].replace('_', ' ')} {event[names[0]]:.4g}"
    return ""


def status_counts(plan: Plan, states: Mapping[str, RunState]) -> list[list[str]]:
    """A table: one row per model and dataset, one column per status; statuses nobody has are left out."""
    rows: dict[tuple[str, str], Counter[Status]] = {}
    for spec in plan.runs:
        stage, model, dataset = kind_of(spec)
        dataset += {"dpo": ", then dpo", "evaluate": ", benchmarks"}.get(stage, "")
        rows.setdefault((model, dataset), Counter())[states[spec.fingerprint].status] += 1
    used = [status for status in _COLUMNS if any(count[status] for count in rows.values())]
    table = [["model", "dataset", *used, "runs"]]
    table += [
        [model, dataset, *(str(count[status]) for status in used), str(count.total())]
        for (model, dataset), count in rows.items()
    ]
    if len(rows) > 1:
        total = sum(rows.values(), Counter[Status]())
        table.append(["all", "", *(str(total[status]) for status in used), str(total.total())])
    return table


def aligned(table: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Lines of a table: texts to the left, whole numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    is_number = [all(row[column].isdigit() for row in table[1:]) for column in range(len(table[0]))]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in table
    ]


def status_lines(plan: Plan, states: Mapping[str, RunState], estimate: Estimate | None) -> list[str]:
    """One screen for any number of runs."""
    lines = [f"{plan.name}: {len(plan.cells)} cells, {len(plan.runs)} runs"]
    lines += aligned(status_counts(plan, states))
    lines += _some(
        "in flight",
        [f"{spec.run_id}  {step_text(state)}" for spec, state in _with_status(plan, states, Status.RUNNING)],
    )
    lines += _some(
        "failed",
        [f"{spec.run_id}  {reason(state)}" for spec, state in _with_status(plan, states, Status.FAILED)],
    )
    if any(state.status not in SETTLED for state in states.values()):
        lines.append(f"time left: {estimate_text(estimate)}")
    return lines


def reason(state: RunState) -> str:
    """Why a run failed, on one line."""
    if state.failure is None:
        return "no reason was written down"
    message = " ".join(state.failure.message.split())
    text = f"{state.failure.kind}: {message}"
    return text if len(text) <= 140 else f"{text[:137]}..."


def _with_status(
    plan: Plan, states: Mapping[str, RunState], status: Status
) -> list[tuple[RunSpec, RunState]]:
    pairs = [(spec, states[spec.fingerprint]) for spec in plan.runs]
    return [(spec, state) for spec, state in pairs if state.status is status]


def _some(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  and {len(lines) - SCREEN_RUNS} more"] if len(lines) > SCREEN_RUNS else []
    return [f"{title}:", *(f"  {line}" for line in lines[:SCREEN_RUNS]), *more]


def _live_screen(
    plan: Plan, states: Mapping[str, RunState], estimate: Estimate | None, ledger: Ledger
) -> "RenderableType":
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    running = _with_status(plan, states, Status.RUNNING)
    finished = sum(states[spec.fingerprint].status is Status.FINISHED for spec in plan.runs)
    table = Table.grid(padding=(0, 2))
    for spec, state in running[:SCREEN_RUNS]:
        table.add_row(
            *(
                Text(text, no_wrap=True)
                for text in (spec.run_id, step_text(state), last_numbers(ledger, spec.fingerprint))
            )
        )
    if len(running) > SCREEN_RUNS:
        table.add_row(Text(f"and {len(running) - SCREEN_RUNS} more"))
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=max(1, len(plan.runs)), completed=finished, width=24),
        Text(progress_line(plan, states, estimate)),
    )
    return Group(head, table)

"""`python -m analysis`: find the sweep, read its records, write its report. This package's only effects.

Arguments are those of `python -m sweep`, so that the line that ran a sweep also analyses it;
`analysis.KEY=VALUE` is taken out first. What was asked comes from the sweep's plan.json if it answers the
same question: then neither model nor data is needed to analyse.
"""

import dataclasses
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.beforehand import WORD, is_wanted, load_libraries
from analysis.config import AnalysisConfig
from analysis.evaluated import ItemReader
from analysis.table import AnalysisError, Table, check_metric, make_table, nothing_finished
from sweep.arguments import Arguments, parse_arguments
from sweep.confirm import SUFFIX
from sweep.folder import SweepFolder
from sweep.ledger import Ledger, RunState
from sweep.rays import canonical_objective
from sweep.spec import Cell, Plan
from train.config import TrackingConfig, build
from train.errors import UserError
from train.files import read_json
from train.fingerprint import identity_tree
from train.record import RunRecord

if TYPE_CHECKING:
    from analysis.report import Report
    from sweep.compose import ComposedSweep

HELP = """\
python -m analysis +grid=NAME [analysis.KEY=VALUE ...] [KEY=VALUE ...]

Read the records of a sweep and write <root>/<name>/report/: report.html, region.json, cells.csv,
cells.parquet and figures/. Trains nothing.
Say what the sweep was started with: +grid=NAME, root=, name=, model=, ...

Also
  publish=wandb             send what W&B lacks, then tables, heat map, artifacts, a workspace and a Report
  publish=wandb-weights     the same, and the kept weights of the region's runs as model artifacts
  publish=optuna-dashboard  write report/optuna.db, to be opened by optuna-dashboard
  publish=optuna:TARGET     the same elsewhere: a file (.db, .log for a journal) or postgresql://user@host/database
  from=published            the published grid of Weighted Instruction Tuning, 525 runs, by the same analysis;
                            with +grid=NAME its planes are drawn beside it
  from=wandb:ENTITY/PROJECT/GROUP   instead of +grid=NAME: make the report from W&B alone, without the ledger
  Published again, everything is changed in place.

Settings
  analysis.metric=NAME                  a validation metric (default: the first preferred one on record)
  analysis.epsilon=0.01                 a difference of no interest, in the metric's unit (default: by unit)
  analysis.max_empty_output_rate=0.2    a run above it is warned about

Example
  python -m analysis +grid=wit_5x5 analysis.metric=validation_response_nll

Exit codes: 0 report written; 2 a mistake in the input, or nothing to analyse, said in one line.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """One command line: the sweep's own arguments, and the analysis's settings as they were said."""

    arguments: Arguments
    settings: Mapping[str, Any]
    help: bool = False
    publish: str = ""  # wandb, wandb-weights, optuna-dashboard, optuna:TARGET or nothing
    source: str = ""  # wandb:entity/project/group instead of the ledger
    waits: bool = False  # for a line on standard input, before the ledger is read


def parse_request(argv: Sequence[str]) -> Request:
    """The command line as a value; UserError names what is wrong."""
    own = [word for word in argv if word.startswith("analysis.") and "=" in word]
    places = [word for word in argv if word.startswith(("publish=", "from="))]
    said = {key: value for key, _, value in (word.partition("=") for word in places)}
    rest = [word for word in argv if word not in own and word not in places and word != WORD]
    _check_places(said)
    arguments = parse_arguments(rest)
    settings = {
        key.removeprefix("analysis."): _value(text) for key, _, text in (word.partition("=") for word in own)
    }
    check_metric(build(AnalysisConfig, settings, "analysis.").metric)  # before anything slow
    where = said.get("publish", ""), said.get("from", "")
    return Request(arguments, settings, arguments.help, *where, waits=WORD in argv)


def _check_places(said: Mapping[str, str]) -> None:
    """UserError for a place that can't be published to or read from."""
    place, _, target = said.get("publish", "wandb").partition(":")
    if place == "optuna":
        from analysis.search.storages import check_target

        check_target(target)
    elif said.get("publish", "wandb") not in ("wandb", "wandb-weights", "optuna-dashboard"):
        expected = "wandb, wandb-weights, optuna-dashboard or optuna:TARGET"
        raise UserError(f"publish={said['publish']}", expected, "say publish=wandb")
    if said.get("from", "published") != "published":
        from analysis.from_wandb import split_source

        split_source(said["from"])


def run(request: Request) -> str:
    """Write the report and return what to print; UserError for anything that the user can mend."""
    if request.source == "published":
        return _run_from_published(request)
    if request.source:
        return _run_from_wandb(request)
    load_libraries()
    from analysis.report import make_report, summary_text
    from analysis.search.next_runs import next_lines
    from sweep.bill import bill_of
    from sweep.cells import cell_rows
    from sweep.commands.session import command_line
    from sweep.compose import compose_sweep
    from sweep.plan import train_command

    composed = compose_sweep(request.arguments, config_name="analysis")
    config = build(AnalysisConfig, {**composed.extras.get("analysis", {}), **request.settings}, "analysis.")
    if request.waits and not is_wanted():
        return ""
    if composed.config.search.is_on:
        from sweep.searching import first_cells

        composed = composed.with_cells(first_cells(composed))
    folder = SweepFolder(composed.config.root, composed.config.name)
    ledger = Ledger(composed.config.root, composed.config.launcher.max_attempts)
    if not ledger.runs.is_dir():
        raise nothing_finished(folder.name, len(composed.cells), command_line(request.arguments))
    plan = _plan(composed, folder)
    ledger.stops = plan.stops
    states = ledger.statuses(spec.fingerprint for spec in plan.runs)
    table = read_table(plan, ledger.records(states), states)
    if not table.num_trained:
        raise nothing_finished(folder.name, len(plan.runs), command_line(request.arguments))
    rows = cell_rows(plan, table.record_by_fingerprint, states)
    commands = {spec.fingerprint: train_command(spec) for spec in plan.runs}
    report = make_report(
        table,
        rows,
        config,
        sweep_command=_command("sweep", request),
        analysis_command=_command("analysis", request),
        train_command_by_fingerprint=commands,
        read_items=item_reader(ledger),
        confirming=confirming_table(ledger, folder),
        costs=bill.costs(composed.config.budget) if (bill := bill_of(folder, states)) else (),
    )
    write_files(folder.report, report.files)
    tracking = composed.configs[0].tracking
    published = _published(request, table, rows, report, folder, tracking)
    advice = next_lines(table, report.studies)
    said = "\n\n".join(filter(None, [summary_text(report), advice]))
    return f"{said}\n\nreport: {folder.report / 'report.html'}{published}"


def _published(
    request: Request,
    table: Table,
    rows: list[dict[str, Any]],
    report: "Report",
    folder: SweepFolder,
    tracking: TrackingConfig,
) -> str:
    """Show the report elsewhere, if asked to; what to print about it."""
    if request.publish in ("wandb", "wandb-weights"):
        from analysis.publish_wandb import publish_wandb
        from sweep.commands.syncing import says_tracking, sync

        sync(dataclasses.replace(request.arguments, action="sync"))
        if not says_tracking(request.arguments):
            tracking = table.plan.runs[0].config.tracking
        runs = folder.root / ".runs" if request.publish == "wandb-weights" else None
        return "\n" + publish_wandb(table, report, rows, tracking, runs)
    if request.publish.startswith("optuna"):
        from analysis.publish_optuna import publish_optuna

        return "\n" + publish_optuna(
            table,
            report.studies,
            folder.report,
            request.publish.removeprefix("optuna-dashboard").partition(":")[2],
        )
    return ""


def _run_from_wandb(request: Request) -> str:
    """The report of what W&B has, below root= under the group's name."""
    from analysis.from_wandb import read_wandb
    from analysis.report import make_report, summary_text
    from sweep.cells import cell_rows
    from sweep.commands.session import root_of
    from sweep.plan import train_command

    found = read_wandb(request.source)
    config = build(AnalysisConfig, dict(request.settings), "analysis.")
    table = read_table(found.plan, found.records, found.states)
    rows = cell_rows(found.plan, found.records, found.states)
    again = shlex.join(["python", "-m", "analysis", f"from={request.source}"])
    commands = {spec.fingerprint: train_command(spec) for spec in found.plan.runs}
    report = make_report(
        table,
        rows,
        config,
        sweep_command=again,
        analysis_command=again,
        train_command_by_fingerprint=commands,
    )
    folder = SweepFolder(root_of(request.arguments), found.plan.name)
    write_files(folder.report, report.files)
    there = f"{len(found.plan.runs)} of {found.num_asked} runs are on W&B"
    return f"{summary_text(report)}\n\n{there}\nreport: {folder.report / 'report.html'}"


def _run_from_published(request: Request) -> str:
    """The report of the published grid, below root=. With +grid=, that sweep's planes are drawn beside it."""
    from analysis.published_page import maps_of, published_files
    from analysis.published_study import study_published
    from analysis.published_text import text
    from sweep.commands.session import root_of

    root = root_of(request.arguments)
    parts = [word.lstrip("+").partition("=") for word in request.arguments.overrides]
    said = {key: value for key, _, value in parts}
    name = said.get("name", said.get("grid", ""))
    report = read_json(SweepFolder(root, name).report / "region.json") if name else {}
    if report is None:
        first = f"python -m analysis +grid={name}"
        raise AnalysisError(f"{name} has no report to draw beside it", "its region.json", f"first: {first}")
    study = study_published()
    folder = SweepFolder(root, "published")
    write_files(folder.report, published_files(study, maps_of(report)))
    return f"{text(study)}\n\nreport: {folder.report / 'report.html'}"


def read_table(plan: Plan, records: Mapping[str, RunRecord], states: Mapping[str, RunState]) -> Table:
    """What the ledger knows of the plan's runs, joined to it."""
    failures = {key: state.failure for key, state in states.items() if state.failure is not None}
    return make_table(plan, records, {key: state.status for key, state in states.items()}, failures)


def item_reader(ledger: Ledger) -> ItemReader:
    """Items as the runs wrote them: beside their record, or by an evaluation of their own."""
    from train.items import FOLDER, Items, read_items

    def read(fingerprint: str, benchmark: str, column: str) -> Items | None:
        run = ledger.folder(fingerprint)
        found = read_items(run / FOLDER, benchmark, [column])
        for folder in sorted((run / "evaluations").glob("*")) if found is None else ():
            found = found or (read_items(folder, benchmark, [column]) if folder.is_dir() else None)
        return found

    return read


def confirming_table(ledger: Ledger, folder: SweepFolder) -> Table | None:
    """What action=confirm trained for this sweep; None if nothing."""
    plan = SweepFolder(folder.root, folder.name + SUFFIX).plan()
    if plan is None:
        return None
    states = ledger.statuses(spec.fingerprint for spec in plan.runs)
    return read_table(plan, ledger.records(states), states)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write each file whole or not at all, and remove figures that an earlier report left."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = folder / f".{Path(name).name}.{secrets.token_hex(6)}.tmp"
        try:
            temporary.write_bytes(content)
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
    for path in (folder / "figures").glob("*.png"):
        if f"figures/{path.name}" not in files:
            path.unlink(missing_ok=True)


def _plan(composed: "ComposedSweep", folder: SweepFolder) -> Plan:
    """The sweep's saved plan if it answers this very question; else a new one, which reads data and model."""
    saved = folder.plan()
    if saved is not None and _answers(saved, composed):
        return saved
    from sweep.plan import make_plan

    return make_plan(composed, cache_folder=folder.root / ".cache")


def _answers(saved: Plan, composed: "ComposedSweep") -> bool:
    """Whether the saved plan was made of the same cells under the same configurations."""

    def cell_key(cell: Cell) -> tuple[Any, ...]:
        return cell.prompt_weight, cell.response_weight, cell.seed, cell.settings

    number = len(composed.cells) if saved.question else len(saved.cells)  # a search asks for more and more
    found = saved.cells[:number]
    if [cell_key(planned.cell) for planned in found] != [cell_key(cell) for cell in composed.cells]:
        return False
    config_by_fingerprint = {spec.fingerprint: spec.config for spec in saved.runs}
    merges = composed.config.grid.collapse != "none"
    for planned, config in zip(found, composed.configs, strict=True):
        objective = canonical_objective(config.objective, config.train) if merges else config.objective
        known = config_by_fingerprint.get(planned.fingerprint)
        wanted = identity_tree(dataclasses.replace(config, objective=objective))
        if (
            known is None
            or identity_tree(known) != wanted
            or (known.model, known.dataset, known.eval) != (config.model, config.dataset, config.eval)
        ):
            return False
    return True


def _command(module: str, request: Request) -> str:
    """A line to paste, without the folder of the results: a report that is moved stays the same."""
    words = [word for word in request.arguments.overrides if not word.startswith("root=")]
    folders = [word for folder in request.arguments.config_dirs for word in ("--config-dir", folder)]
    own = [f"analysis.{key}={_said(value)}" for key, value in request.settings.items()]
    own = own if module == "analysis" else []
    return shlex.join(["python", "-m", module, *words, *own, *folders])


def _value(text: str) -> Any:
    """null, a number, or a word."""
    if text in ("null", "None", "none", ""):
        return None
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _said(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

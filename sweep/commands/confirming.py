"""confirm: the session of the runs that confirm a report's gain; every command works on it as on any sweep."""

import dataclasses
import shlex
from pathlib import Path

from sweep.arguments import Arguments
from sweep.commands.session import Session, command_line
from sweep.confirm import (
    SUFFIX,
    confirming_cells,
    confirming_plan,
    evidence,
    fresh_seeds,
    recommendations,
    without_stage,
)
from sweep.errors import GridError
from sweep.folder import SweepFolder, check_root
from sweep.ledger import Ledger
from sweep.spec import Plan
from sweep.stages import staged
from train.files import read_json

_PLANNING = ("run", "plan", "retry")  # these read the report; the others look after what was planned from it


def open_confirming(arguments: Arguments, *, allow_unresolved: bool = False) -> Session:
    """As `open_session`, for the confirming runs: planned from the report, or as they were planned.

    Raises   GridError where there is nothing to confirm, or nothing was.
    """
    from sweep.compose import compose_sweep
    from sweep.plan import make_plan

    composed = compose_sweep(arguments)
    config = composed.config
    cache = Path(config.root) / ".cache"
    folder = SweepFolder(config.root, config.name + SUFFIX)
    ledger = Ledger(config.root, config.launcher.max_attempts)
    confirming = folder.plan() if arguments.action not in _PLANNING else None
    if confirming is None and arguments.action not in _PLANNING:
        first = command_line(dataclasses.replace(arguments, action="run"))
        raise GridError(f"nothing confirms {config.name} yet", "confirming runs", f"first: {first}")
    if not allow_unresolved:
        check_root(config.root)
    if confirming is None:
        plan = make_plan(composed, cache_folder=cache, allow_unresolved=allow_unresolved)
        main = SweepFolder(config.root, config.name)
        report = read_json(main.report / "region.json")
        again = shlex.join(["python", "-m", "analysis", *arguments.overrides])
        wanted = recommendations(report, _evidence(main.plan() or plan, ledger), again)
        cells, _ = staged(composed.cells, composed.configs, config.grid.stages)
        prototypes = {
            planned.cell.group: without_stage(cell) for planned, cell in zip(plan.cells, cells, strict=True)
        }
        seeds = fresh_seeds(main.plan() or plan, config.confirm.num_seeds)
        asked = confirming_cells(wanted, prototypes, seeds)
        more = composed.with_cells((*composed.cells, *dict.fromkeys(cell for _, cell in asked)))
        both = make_plan(more, cache_folder=cache, allow_unresolved=allow_unresolved)
        confirming = confirming_plan(both, asked, folder.name)
    return Session(
        arguments,
        dataclasses.replace(config, name=folder.name),
        confirming,
        folder,
        ledger,
    )


def _evidence(plan: Plan, ledger: Ledger) -> str:
    return evidence(plan, ledger.records(spec.fingerprint for spec in plan.runs))

"""What may go once a sweep is reported: trained weights outside its regions, and its workers' own files."""

import shutil
from collections.abc import Mapping
from typing import Any

from sweep.confirm import SUFFIX
from sweep.folder import SweepFolder, sweep_names
from sweep.ledger import Ledger
from sweep.slots import holders
from sweep.spec import Plan
from train.files import only_one, read_json
from train.kept import has_weights, remove_weights


def prune(plan: Plan, ledger: Ledger, folder: SweepFolder) -> tuple[int, int]:
    """Keep the weights of the report's regions only; how many runs keep theirs, and how many gave them up.

    A plane without a region keeps its best setting. What another sweep of the root keeps stays, too.
    """
    report = SweepFolder(folder.root, folder.name.removesuffix(SUFFIX)).report  # confirming runs have none
    wanted = region_fingerprints(plan, read_json(report / "region.json") or {})
    kept_elsewhere = {
        spec.fingerprint
        for name in sweep_names(folder.root)
        if name != folder.name
        if (other := SweepFolder(folder.root, name).plan()) is not None
        for spec in other.runs
        if spec.config.keep == "all"
    }
    present = [spec for spec in plan.runs if has_weights(ledger.folder(spec.fingerprint))]
    for spec in present:
        if spec.fingerprint not in wanted | kept_elsewhere:
            remove_weights(ledger.folder(spec.fingerprint))
    num_kept = sum(spec.fingerprint in wanted | kept_elsewhere for spec in present)
    return num_kept, len(present) - num_kept


def remove_workers_files(folder: SweepFolder) -> None:
    """Remove submitit's files of a sweep whose runs are all finished; what runs printed stays with the runs.

    Not while somebody runs the sweep, or a worker that is ending may still write there: the next run removes them.
    """
    with only_one(folder.lock_path) as is_alone:
        if is_alone and not any(holder.sweep == folder.name for holder in holders(folder.root).values()):
            shutil.rmtree(folder.workers, ignore_errors=True)


def region_fingerprints(plan: Plan, report: Mapping[str, Any]) -> set[str]:
    """The runs that answer the cells of the report's regions."""
    wanted: set[tuple[Any, ...]] = set()
    for plane in report.get("planes", ()):
        settings = _settings(plane.get("settings", {}))
        best = [plane["best"]] if plane.get("best") else []
        for ray in plane.get("members") or best:
            weights = [(ray["prompt_weight"], ray["response_weight"]), *map(tuple, ray.get("aliases", ()))]
            wanted |= {(plane["model"], plane["dataset"], settings, *pair) for pair in weights}
    return {
        planned.fingerprint
        for planned in plan.cells
        for cell in [planned.cell]
        if (
            cell.model,
            cell.dataset,
            _settings(dict(cell.settings)),
            cell.prompt_weight,
            cell.response_weight,
        )
        in wanted
    }


def _settings(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in settings.items())
    )

"""The kept weights of the region's runs as model artifacts of W&B, for publish=wandb-weights."""

from pathlib import Path
from typing import Any

from analysis.report import Report
from analysis.study import Study
from analysis.table import Table
from train.kept import FOLDER, has_weights


def send_weights(run: Any, table: Table, report: Report, runs: Path) -> str:
    """The region's runs as model artifacts, as far as their weights were kept; W&B knows equal ones again."""
    import wandb

    wanted = [fingerprint for study in report.studies for fingerprint in region_runs(table, study)]
    kept = [fingerprint for fingerprint in wanted if has_weights(runs / fingerprint)]
    for fingerprint in kept:
        spec = table.spec_by_fingerprint[fingerprint]
        objective = spec.config.objective
        about = {
            "fingerprint": fingerprint,
            "prompt_weight": objective.prompt_weight,
            "response_weight": objective.response_weight,
            "seed": spec.config.seed,
        }
        artifact = wandb.Artifact(f"{spec.run_id}-weights", type="model", metadata=about)
        artifact.add_dir(str(runs / fingerprint / FOLDER))
        run.log_artifact(artifact, aliases=["region"])
    return f"weights of {len(kept)} of the region's {len(wanted)} runs sent (retention=region keeps them)"


def region_runs(table: Table, study: Study) -> list[str]:
    """The runs of the region's rays, or of the best ray where there is no region; each once."""
    region, plane = study.region, study.chosen
    if region.best is None:
        return []
    members = region.members_Y
    rays = [
        ray
        for index, ray in enumerate(plane.rays)
        if (index == region.best if members is None else members[index])
    ]
    weights = {plane.weights(cell) for ray in rays for cell in ray.cells}
    found = [
        planned.fingerprint
        for planned in table.cells_by_group[study.group]
        if (planned.cell.prompt_weight, planned.cell.response_weight) in weights
    ]
    return list(dict.fromkeys(found))

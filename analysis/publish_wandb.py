"""A sweep as a whole on W&B: one run of job_type "analysis" per sweep, and from there workspace and report.

The analysis run has a fixed id, so publishing again continues it. It remembers the digest of what it last
showed and the ids of its workspace, report and chart: what has not changed is not logged again, what has is
replaced. The runs themselves are sent by `sync`, which publishing calls first.
"""

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.publish_weights import send_weights
from analysis.report import Report
from analysis.study import Study
from analysis.table import Table
from analysis.text import finding, group_name
from sweep.plan import plan_to_dict
from train.config import TrackingConfig
from train.errors import UserError
from train.record import record_to_dict
from train.tracking_values import MirroredRun
from train.tracking_wandb import explained, start_run

CHART = "weight_sweep_plane"
HEAT_MAP: Mapping[str, Any] = {  # a Vega-Lite chart; W&B fills ${...} in
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "description": "Mean over seeds of a metric over prompt weight and response weight",
    "data": {"name": "wandb"},
    "mark": {"type": "rect", "tooltip": True},
    "encoding": {
        "x": {"field": "${field:response_weight}", "type": "ordinal", "title": "response weight"},
        "y": {
            "field": "${field:prompt_weight}",
            "type": "ordinal",
            "title": "prompt weight",
            "sort": "descending",
        },
        "color": {
            "aggregate": "mean",
            "field": "${field:score}",
            "type": "quantitative",
            "title": "${string:metric}",
            "scale": {"scheme": "viridis"},
        },
    },
}


def publish_wandb(
    table: Table,
    report: Report,
    rows: Sequence[Mapping[str, Any]],
    tracking: TrackingConfig,
    runs: Path | None = None,
) -> str:
    """Show the sweep; what to print. UserError in one line if W&B doesn't take it.

    runs: the folder of all runs, if the kept weights of the region's runs are to be sent, too.
    """
    mirrored = MirroredRun(
        id=f"analysis-{_word(table.plan.name)}",
        name=f"analysis of {table.plan.name}",
        project=tracking.project,
        entity=tracking.entity,
        group=table.plan.name,
        job_type="analysis",
        tags=("analysis",),
        config={
            "sweep": table.plan.name,
            "num_cells": len(table.plan.cells),
            "num_runs": len(table.plan.runs),
        },
    )
    with tempfile.TemporaryDirectory(prefix="publish-", ignore_cleanup_errors=True) as scratch:
        try:
            return _publish(mirrored, table, report, rows, Path(scratch), runs)
        except UserError:
            raise
        except Exception as error:  # W&B may break in any way, and nothing here is worth a traceback
            raise UserError(
                explained(error, mirrored),
                "a W&B server that takes it",
                "the report itself is written; publish again later",
            ) from error


def _publish(
    mirrored: MirroredRun,
    table: Table,
    report: Report,
    rows: Sequence[Mapping[str, Any]],
    scratch: Path,
    runs: Path | None,
) -> str:
    run = start_run(mirrored, scratch, "online", finish_timeout=300.0, x_disable_stats=True)
    place = f"{run.entity}/{run.project}"
    digest = _digest(report)
    try:
        said = "was up to date"
        if run.summary.get("digest") != digest:
            chart = _chart(run)
            run.log(_pictures(report, rows, scratch, chart))
            run.log_artifact(_report_artifact(table, report, scratch))
            run.log_artifact(_records_artifact(table, report, scratch))
            run.summary.update({**_findings(report), "digest": digest, "chart": chart})
            said = "is new"
        lines = [f"W&B: {place}, group {table.plan.name}; the analysis run {said}"]
        if runs is not None:
            lines.append(send_weights(run, table, report, runs))
        lines += _views(run, table, report)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return "\n".join(lines)


def _views(run: Any, table: Table, report: Report) -> list[str]:
    """Workspace and report under the ids that the analysis run remembers."""
    try:
        from analysis.publish_views import save_report, save_workspace
    except ImportError:
        return ["workspace and Report need wandb-workspaces: pip install 'weight-sweep[dash]'"]
    known = {key: run.summary.get(key) or "" for key in ("workspace_id", "workspace_name", "report_id")}
    known |= save_workspace(run.entity, run.project, table, report.studies, known)
    known |= save_report(run.entity, run.project, table, report, known)
    run.summary.update({key: value for key, value in known.items() if key.endswith(("_id", "_name"))})
    return [f"workspace: {known['workspace_url']}", f"Report: {known['report_url']}"]


def _chart(run: Any) -> str:
    """The heat map's name with W&B, registered once per content."""
    import wandb

    name = f"{CHART}_{hashlib.sha256(json.dumps(HEAT_MAP, sort_keys=True).encode()).hexdigest()[:8]}"
    full_name = f"{run.entity}/{name}"
    if run.summary.get("chart") != full_name:
        try:
            wandb.Api().create_custom_chart(
                entity=run.entity,
                name=name,
                display_name="Weight sweep: plane",
                spec_type="vega2",
                access="private",
                spec=dict(HEAT_MAP),
            )
        except Exception as error:  # registered by another sweep of this entity
            if "exist" not in str(error).lower():
                raise
    return full_name


def _pictures(report: Report, rows: Sequence[Mapping[str, Any]], scratch: Path, chart: str) -> dict[str, Any]:
    """Per plane a table with one row per cell and seed and the heat map over it; and the report's figures."""
    import wandb

    shown: dict[str, Any] = {}
    table: Any = wandb.Table  # its hints want lists of one type
    for study in report.studies:
        name, metric = _word(group_name(study.group)), study.chosen.metric.name
        columns, data = plane_rows(study, rows)
        shown[f"plane/{name}"] = table(columns=columns, data=data)
        recorded = [row for row in data if row[columns.index(metric)] is not None]
        shown[f"heat_map/{name}"] = wandb.plot_table(
            vega_spec_name=chart,
            data_table=table(columns=columns, data=recorded),
            fields={"prompt_weight": "prompt_weight", "response_weight": "response_weight", "score": metric},
            string_fields={"metric": study.chosen.metric.title},
        )
    for path, content in report.files.items():
        if path.endswith(".png"):
            (scratch / Path(path).name).write_bytes(content)
            shown[f"figure/{Path(path).stem}"] = wandb.Image(str(scratch / Path(path).name))
    return shown


def plane_rows(study: Study, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and values of one plane's cells, an absent number as None."""
    model, dataset, settings = study.group
    mine = [
        row
        for row in rows
        if (row["model"], row["dataset"]) == (model, dataset)
        and not row["is_base"]
        and all(row.get(key) == value for key, value in settings)
    ]
    columns = list(rows[0]) if rows else []
    return columns, [[_cell(row.get(name)) for name in columns] for row in mine]


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _findings(report: Report) -> dict[str, Any]:
    """Region and finding of each plane, flat."""
    region = json.loads(report.files["region.json"])
    found: dict[str, Any] = {}
    for study, plane in zip(report.studies, region["planes"], strict=True):
        name, best = _word(group_name(study.group)), plane.get("best") or {}
        found[f"{name}/finding"] = finding(study)
        found[f"{name}/region"] = "; ".join(
            f"({ray['prompt_weight']:g}, {ray['response_weight']:g})" for ray in plane.get("members", ())
        )
        for key in ("prompt_weight", "response_weight", "mean", "standard_error"):
            if key in best:
                found[f"{name}/best_{key}"] = best[key]
    return found


def _report_artifact(table: Table, report: Report, scratch: Path) -> Any:
    """report.html and everything beside it."""
    import wandb

    artifact = wandb.Artifact(f"{_word(table.plan.name)}-report", type="report")
    return _with_files(artifact, scratch / "report", report.files)


def _records_artifact(table: Table, report: Report, scratch: Path) -> Any:
    """The sweep's data, a new version whenever it differs: plan, records, cells."""
    import wandb

    records = io.StringIO()
    for fingerprint in sorted(table.record_by_fingerprint):
        print(
            json.dumps(record_to_dict(table.record_by_fingerprint[fingerprint]), sort_keys=True), file=records
        )
    files = {
        "records.jsonl": records.getvalue().encode(),
        "plan.json": json.dumps(plan_to_dict(table.plan)).encode(),
        "cells.parquet": report.files["cells.parquet"],
        "region.json": report.files["region.json"],
    }
    artifact = wandb.Artifact(
        f"{_word(table.plan.name)}-records",
        type="dataset",
        metadata={"num_records": len(table.record_by_fingerprint)},
    )
    return _with_files(artifact, scratch / "records", files)


def _with_files(artifact: Any, folder: Path, files: Mapping[str, bytes]) -> Any:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        artifact.add_file(str(path), name=name)
    return artifact


def _digest(report: Report) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(report.files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _word(text: str) -> str:
    """What W&B takes as a name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "plane"

"""The saved workspace and the Report of a sweep, by wandb-workspaces: what a person would click together.

Both are saved under the id they had before, if they had one, so that publishing again changes them in place.
"""

import time
from collections.abc import Mapping
from typing import Any

import wandb_workspaces.reports.v2.interface as reports
import wandb_workspaces.workspaces as workspaces

from analysis.report import Report, summary_text
from analysis.study import Study
from analysis.table import Table
from analysis.text import finding, group_name
from train.metrics import metric as metric_of
from train.tracking_values import STEP

_CURVES = (("train_response_nll", "response nll"), ("train_prompt_nll", "prompt nll"))


def save_workspace(
    entity: str, project: str, table: Table, studies: tuple[Study, ...], known: Mapping[str, str]
) -> dict[str, str]:
    """Id, name and address of the workspace, made or changed."""
    metric = studies[0].chosen.metric.name
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"{table.plan.name} weight sweep",
        sections=[
            workspaces.Section(name="Plane", is_open=True, panels=[*_plane_panels(metric), _pictures()]),
            workspaces.Section(name="Curves", is_open=True, panels=_curve_panels()),
            workspaces.Section(name="Metrics", panels=[_bar(name) for name in table.available]),
            workspaces.Section(name="Budget", panels=_budget_panels()),
        ],
        runset_settings=workspaces.RunsetSettings(filters=f"Metric('group') == '{table.plan.name}'"),
    )
    workspace._internal_id, workspace._internal_name = known["workspace_id"], known["workspace_name"]
    workspace.save()
    return {
        "workspace_id": workspace._internal_id,
        "workspace_name": workspace._internal_name,
        "workspace_url": workspace.url,
    }


def save_report(
    entity: str, project: str, table: Table, report: Report, known: Mapping[str, str]
) -> dict[str, str]:
    """Id and address of the Report: the findings in words, the plane, curves and budget as figures."""
    name, metric = table.plan.name, report.studies[0].chosen.metric.name

    def grid(panels: list[Any]) -> Any:
        runset = reports.Runset(
            entity=entity, project=project, name=name, filters=f"Metric('group') == '{name}'"
        )
        return reports.PanelGrid(runsets=[runset], panels=panels)

    blocks: list[Any] = [
        reports.H1("What we found"),
        *_words(report),
        reports.H1("The plane"),
        grid([_pictures(), *_plane_panels(metric)]),
        reports.H1("Curves"),
        grid(_curve_panels()),
        reports.H1("Budget"),
        reports.P(_budget_sentence(table)),
        grid(_budget_panels()),
        reports.H1("In numbers"),
        reports.CodeBlock(code=summary_text(report), language="markdown"),
    ]
    saved = reports.Report(
        entity=entity,
        project=project,
        title=f"Weight sweep {name}",
        blocks=blocks,
        description=f"{finding(report.studies[0])[:200]}",
    )
    saved.id = known["report_id"]
    saved.save()
    return {"report_id": saved.id, "report_url": saved.url}


def _words(report: Report) -> list[Any]:
    """Finding and cautions of each plane."""
    blocks: list[Any] = []
    for study, lines in zip(report.studies, report.cautions, strict=True):
        blocks += [reports.H2(group_name(study.group)), reports.P(finding(study))]
        if lines:
            blocks.append(reports.UnorderedList(items=list(lines)))
    return blocks


def _plane_panels(metric: str) -> list[Any]:
    chosen = reports.SummaryMetric(metric)
    gradient = [
        reports.GradientPoint(color="#440154", offset=0),
        reports.GradientPoint(color="#21918c", offset=50),
        reports.GradientPoint(color="#fde725", offset=100),
    ]
    columns = [
        reports.ParallelCoordinatesPlotColumn(metric=reports.Config(key))
        for key in ("prompt_weight", "response_weight", "seed")
    ]
    return [
        reports.ScatterPlot(
            title=metric_of(metric).title,
            x=reports.Config("response_weight"),
            y=reports.Config("prompt_weight"),
            z=chosen,
            gradient=gradient,
        ),
        reports.ParallelCoordinatesPlot(
            title="weights, seed and score",
            gradient=gradient,
            columns=[*columns, reports.ParallelCoordinatesPlotColumn(metric=chosen)],
        ),
    ]


def _curve_panels() -> list[Any]:
    """Per-role nll over our own steps, one line per ratio."""
    return [
        reports.LinePlot(
            title=f"{title} while training, by ratio",
            x=STEP,
            y=[key],
            title_y="nats/token",
            groupby=reports.Config("ratio"),
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        )
        for key, title in _CURVES
    ]


def _budget_panels() -> list[Any]:
    times: list[Any] = [reports.SummaryMetric(key) for key in ("training_s", "evaluation_s", "setup_s")]
    return [
        reports.BarPlot(title="seconds of a run", metrics=times, orientation="h"),
        reports.LinePlot(title="tokens/s", x=STEP, y=["step_tokens_per_s"]),
        reports.LinePlot(title="memory, GiB", x=STEP, y=["memory_gb"]),
        reports.ScalarChart(
            title="training, all runs, s", metric=reports.SummaryMetric("training_s"), groupby_aggfunc="sum"
        ),
    ]


def _bar(name: str) -> Any:
    return reports.BarPlot(
        title=metric_of(name).title,
        metrics=[reports.SummaryMetric(name)],
        groupby=reports.Config("ratio"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
    )


def _pictures() -> Any:
    return reports.MediaBrowser(
        title="figures of the analysis", media_keys=["figure/plane", "figure/difference"]
    )


def _budget_sentence(table: Table) -> str:
    """What it cost to know."""
    records = table.record_by_fingerprint.values()
    hours = sum(record.training_s + record.evaluation_s for record in records) / 3600
    return (
        f"{len(table.plan.cells):,} cells, answered by {table.num_finished:,} runs in {hours:.2f} hours of "
        f"training and evaluation; written {time.strftime('%Y-%m-%d', time.gmtime())}."
    )

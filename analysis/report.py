"""The report's files as bytes: the page, its figures, region.json and the cells. Same input, same bytes.

HTML instead of the Markdown that the house first planned: one file that carries its figures survives being
mailed. The page stays below MAX_PAGE_BYTES by leaving figures of lesser rank in figures/.
"""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.appendix import appendix
from analysis.cautions import cautions
from analysis.config import AnalysisConfig
from analysis.evaluated import ItemReader
from analysis.joint import Joint, make_joint
from analysis.joint_page import PREFIX, joint_figures, joint_finding, joint_sections, joint_summary
from analysis.page import Markup, join, page, tag
from analysis.protocol import bill_table, commands_section, cost_section, glossary_section, protocol_section
from analysis.search.next_runs import next_section
from analysis.sections import overview, study_section
from analysis.study import Study, make_studies
from analysis.summary import region_summary
from analysis.table import Table
from analysis.text import finding, group_name, plural, text_plane
from sweep.bill import Bill
from sweep.confirm import evidence
from train.files import to_json

MAX_PAGE_BYTES = 2_000_000
_ROOM_FOR_FIGURES = 1_300_000  # bytes of PNG; base64 makes them a third larger


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is written, by its name within the report's folder, and the studies behind it."""

    studies: tuple[Study, ...]
    cautions: tuple[tuple[str, ...], ...]
    files: Mapping[str, bytes]
    joint: Joint | None = None  # what the planes say together; None for one plane


def make_report(
    table: Table,
    rows: list[dict[str, Any]],
    config: AnalysisConfig,
    *,
    sweep_command: str,
    analysis_command: str,
    train_command_by_fingerprint: Mapping[str, str] | None = None,
    read_items: ItemReader | None = None,
    confirming: Table | None = None,
    costs: Sequence[tuple[str, Bill]] = (),
) -> Report:
    """Analyse and render. `rows` are `sweep.cells.cell_rows`; see `make_studies` for the rest and the errors.

    costs: what the last launch was forecast to take, and took, by name.
    """
    studies = make_studies(table, config, read_items, confirming)
    lines = tuple(cautions(table, study, config) for study in studies)
    figures = {
        name: png
        for index, study in enumerate(studies)
        for name, png in _figures(study, _prefix(index, len(studies))).items()
    }
    joint = make_joint(table, studies)
    figures |= joint_figures(joint)
    again = sweep_command, analysis_command
    cost = join([cost_section(table), bill_table(costs)])
    html = _page(table, studies, joint, lines, figures, again, train_command_by_fingerprint or {}, cost)
    files = {
        "report.html": html.encode("utf-8"),
        "region.json": to_json(
            {
                **region_summary(
                    table.plan.name, studies, lines, evidence(table.plan, table.record_by_fingerprint)
                ),
                **joint_summary(joint),
            }
        ).encode("utf-8"),
        "summary.md": appendix(table, studies, lines, joint, again).encode("utf-8"),
        **{f"figures/{name}.png": png for name, png in figures.items()},
        **_cell_files(rows),
    }
    return Report(studies, lines, files, joint)


def _prefix(index: int, num_planes: int) -> str:
    return f"{index + 1:02d}_" if num_planes > 1 else ""


def _figures(study: Study, prefix: str) -> dict[str, bytes]:
    """Figures of one plane by file name; those that would be empty are left out."""
    from analysis import curve, landscape_plot, plot
    from analysis.draw import png_bytes

    makers: dict[str, Callable[[], Any]] = {
        "noise": lambda: landscape_plot.noise_figure(study),
        "plane": lambda: plot.plane_figure(study, study.chosen),
        "near_best": lambda: landscape_plot.near_best_figure(study),
        "gain": lambda: landscape_plot.gain_figure(study),
        "difference": lambda: plot.difference_figure(study, study.chosen),
        "ratio": lambda: curve.ratio_figure(study),
        "plane_test": lambda: plot.plane_figure(study, study.test) if study.test is not None else None,
        "difference_test": lambda: (
            plot.difference_figure(study, study.test) if study.test is not None else None
        ),
        "metrics": lambda: plot.metrics_figure(study),
    }
    if study.region.best is None:
        return {}
    made = {f"{prefix}{role}": make() for role, make in makers.items()}
    return {name: png_bytes(figure) for name, figure in made.items() if figure is not None}


def _page(
    table: Table,
    studies: Sequence[Study],
    joint: Joint | None,
    lines: Sequence[Sequence[str]],
    figures: Mapping[str, bytes],
    module_commands: tuple[str, str],
    commands: Mapping[str, str],
    cost: Markup,
) -> str:
    shown = _that_fit(figures)
    sections = []
    for index, study in enumerate(studies):
        prefix = _prefix(index, len(studies))
        mine = {name.removeprefix(prefix): png for name, png in figures.items() if name.startswith(prefix)}
        kept = {role: png for role, png in mine.items() if f"{prefix}{role}" in shown}
        left_out = [f"{prefix}{role}.png" for role in mine if role not in kept]
        sections.append(
            study_section(
                table,
                study,
                lines[index],
                kept,
                left_out,
                _best_command(study, table, commands),
                f"plane-{index + 1}",
            )
        )
    done = f"{table.num_finished:,} of {plural(len(table.plan.runs), 'run')} finished"
    asked = f"{plural(len(table.plan.cells), 'cell')} asked, {done}, base models included"
    return page(
        f"{table.plan.name}: prompt and response weights",
        tag("h1", f"Sweep {table.plan.name}"),
        tag("p", asked + f". Chosen on {studies[0].chosen.metric.name}.", class_="note"),
        overview(studies),
        joint_sections(joint, {name: figures[name] for name in shown}),
        *sections,
        next_section(table, studies),
        cost,
        protocol_section(table),
        commands_section(*module_commands),
        glossary_section(table.available),
    )


def _that_fit(figures: Mapping[str, bytes]) -> set[str]:
    """The figures for which the page has room: first every plane, then every difference, and so on."""
    ranks = (
        *(PREFIX + name for name in ("pooled", "agreement", "trade_off", "ranks")),
        *("plane", "near_best", "noise", "gain", "ratio"),
        *("plane_test", "difference", "difference_test", "metrics"),
    )
    room, shown = _ROOM_FOR_FIGURES, set()
    for role in ranks:
        for name, png in figures.items():
            if name.lstrip("0123456789").removeprefix("_") == role and len(png) <= room:
                room -= len(png)
                shown.add(name)
    return shown


def _best_command(study: Study, table: Table, commands: Mapping[str, str]) -> str:
    """The line that trains the best ray's run of the first seed."""
    if study.region.best is None:
        return ""
    p, r = study.chosen.rays[study.region.best].cells[-1]
    weights = study.chosen.weights((p, r))
    for planned in table.cells_by_group[study.group]:
        if (
            planned.cell.prompt_weight,
            planned.cell.response_weight,
        ) == weights and planned.cell.seed == study.chosen.seeds_S[0]:
            return commands.get(planned.fingerprint, "")
    return ""


def _cell_files(rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """cells.csv and cells.parquet; an absent number is an empty field, a whole number stays one."""
    import pandas

    columns = {name: _column([row.get(name) for row in rows]) for name in (rows[0] if rows else ())}
    frame = pandas.DataFrame(
        {name: pandas.array(values, dtype=kind) for name, (values, kind) in columns.items()}
    )
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False)
    return {
        "cells.csv": frame.to_csv(index=False, lineterminator="\n").encode("utf-8"),
        "cells.parquet": stream.getvalue(),
    }


def _column(values: list[Any]) -> tuple[list[Any], str]:
    """Values of one type, and pandas's name for it. A column of mixed types becomes text."""
    kinds = {type(value) for value in values if value is not None}
    for kind, name in ((bool, "boolean"), (int, "Int64"), (float, "Float64")):
        if kinds == {kind}:
            return values, name
    if kinds and kinds <= {int, float}:
        return [None if value is None else float(value) for value in values], "Float64"
    return [None if value is None else str(value) for value in values], "string"


def summary_text(report: Report) -> str:
    """What a terminal shows: the finding and a small plane for each; for many planes the findings only."""
    parts = (
        ["\n".join(textwrap.wrap(f"Across planes: {said}", 100))]
        if (said := joint_finding(report.joint))
        else []
    )
    for study, lines in zip(report.studies, report.cautions, strict=True):
        parts.append("\n".join(textwrap.wrap(f"{group_name(study.group)}: {finding(study)}", 100)))
        if len(report.studies) <= 3:
            parts.append(text_plane(study))
            parts += [
                "\n".join(textwrap.wrap(f"Note: {line}", 100, subsequent_indent="  ")) for line in lines
            ]
    return "\n\n".join(parts)

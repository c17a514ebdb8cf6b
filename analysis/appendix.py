"""summary.md: the report's findings for a paper's appendix. Pure; same input, same bytes."""

from collections.abc import Sequence

from analysis.joint import Joint
from analysis.joint_page import joint_markdown
from analysis.study import Study
from analysis.table import Table
from analysis.text import finding_sentences, group_name, pair, plural, signed
from train.metrics import Metric


def appendix(
    table: Table,
    studies: Sequence[Study],
    cautions: Sequence[Sequence[str]],
    joint: Joint | None,
    commands: Sequence[str],
) -> str:
    """One section for each plane, then what holds across them, then the lines that make all of it again."""
    done = f"{table.num_finished:,} of {plural(len(table.plan.runs), 'run')} finished"
    metric = studies[0].chosen.metric
    lines = [
        f"# {table.plan.name}",
        "",
        f"{plural(len(table.plan.cells), 'cell')} asked, {done}, base models included. Chosen on {metric.name} "
        f"({metric.unit}, {metric.better} is better). Intervals are 95 %.",
    ]
    for study, notes in zip(studies, cautions, strict=True):
        lines += ["", f"## {group_name(study.group)}", "", " ".join(finding_sentences(study)), ""]
        lines += _gains(study)
        lines += [f"- {note}" for note in notes]
    lines += joint_markdown(joint)
    lines += ["", "## Again", "", "```", *commands, "```", ""]
    return "\n".join(lines)


def _gains(study: Study) -> list[str]:
    """Confirmed and exploratory gains over (0, 1), never without that word."""
    plane, landscape = study.chosen, study.region.landscape
    rows = [
        f"| {pair(gain.of)} | {pair(gain.over)} | {_interval(gain.mean, gain.low, gain.high, _judge(study))} "
        f"| confirmed, {plural(gain.contrast.num_of, 'fresh seed')} |"
        for gain in study.confirmed
    ]
    gain = study.region.gain(study.region.best)
    if landscape is not None and gain is not None and study.region.best != study.conventional:
        ray = plane.rays[study.region.best or 0]
        value = landscape.scale.value
        ends = sorted((value(gain.low), value(gain.high)))
        rows.append(
            f"| {pair((ray.prompt_weight, ray.response_weight))} | (0, 1) | "
            f"{_interval(value(gain.mean), ends[0], ends[1], plane.metric)} | exploratory: chosen on the same runs |"
        )
    if not rows:
        return []
    return ["| setting | over | difference | status |", "|---|---|---|---|", *rows, ""]


def _judge(study: Study) -> Metric:
    return study.test.metric if study.test is not None else study.chosen.metric


def _interval(mean: float, low: float, high: float, metric: Metric) -> str:
    return f"{signed(mean, metric)} [{signed(low, metric)}, {signed(high, metric)}] {metric.unit}"

"""The report's sections about all planes: cost, protocol, commands and the meaning of words. Pure."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.page import Markup, bullets, join, table, tag
from analysis.table import Group, Table
from analysis.text import group_name, plural
from sweep.bill import Bill
from sweep.spec import RunSpec
from train.config import config_to_dict
from train.metrics import SPLITS
from train.metrics import metric as metric_of
from train.record import RunRecord

_PARTS = {"training": "training_s", "evaluation": "evaluation_s", "setup": "setup_s"}


_COUNTED = ("train", *SPLITS)


def cost_section(table_: Table) -> Markup:
    """Seconds, tokens per second and hours, by plane; a run that answers two planes counts once in all."""
    rows = [
        [group_name(group), *_cost_cells(_records(table_, table_.fingerprints(group)))]
        for group in table_.cells_by_group
    ]
    if len(rows) > 1:
        rows.append(["all, shared runs once", *_cost_cells(list(table_.record_by_fingerprint.values()))])
    headers = ["plane", "runs", "training s", "evaluation s", "setup s", "median tokens/s", "hours"]
    return join(
        [
            tag("h2", "Cost"),
            table(headers, rows, numeric=range(1, 7)),
            tag(
                "p",
                "Finished runs, base model included; wall seconds summed over runs. Hours are one device "
                "or one CPU process each, setup included. Failed and interrupted attempts are not counted.",
                class_="note",
            ),
        ]
    )


def bill_table(costs: Sequence[tuple[str, Bill]]) -> Markup:
    """What the last launch was forecast to take, and took; nothing where nothing was forecast."""
    if not costs:
        return join([])
    rows = [
        [
            name,
            f"{cost.forecast:.3g}",
            f"{cost.low:.3g} to {cost.high:.3g}",
            f"{cost.took:.3g}",
            f"{cost.took / cost.forecast - 1:+.0%}" if cost.forecast else "",
            "inside" if cost.is_within else "outside",
        ]
        for name, cost in costs
    ]
    headers = [
        "the last launch",
        "forecast",
        "80 % interval",
        "took",
        "took against forecast",
        "of the interval",
    ]
    return join(
        [
            table(headers, rows, numeric=range(1, 5)),
            tag(
                "p",
                "What workers were paid for from the launch on: start-up, loading, lost attempts and idle time too.",
                class_="note",
            ),
        ]
    )


def _records(table_: Table, fingerprints: set[str]) -> list[RunRecord]:
    return [
        table_.record_by_fingerprint[spec.fingerprint]
        for spec in table_.plan.runs
        if spec.fingerprint in fingerprints and spec.fingerprint in table_.record_by_fingerprint
    ]


def _cost_cells(records: Sequence[RunRecord]) -> list[str]:
    if not records:
        return ["0", *[""] * 5]
    seconds = {part: sum(getattr(record, name) for record in records) for part, name in _PARTS.items()}
    rates = sorted(record.tokens_per_s for record in records if record.tokens_per_s)
    by_kind: Counter[str] = Counter()
    for record in records:
        kind = "GPU" if str(record.environment.get("device", "")).startswith("cuda") else "CPU"
        by_kind[kind] += sum(getattr(record, name) for name in _PARTS.values())
    hours = ", ".join(f"{total / 3600:.2f} {kind}" for kind, total in sorted(by_kind.items()))
    return [
        f"{len(records):,}",
        *(f"{value:,.0f}" for value in seconds.values()),
        f"{rates[len(rates) // 2]:,.0f}" if rates else "",
        hours,
    ]


def protocol_section(table_: Table) -> Markup:
    """Model, data, recipe, evaluation, environment: for each plane, what its own runs say."""
    return join([tag("h2", "Protocol"), *(_protocol(table_, group) for group in table_.cells_by_group)])


def _protocol(table_: Table, group: Group) -> Markup:
    specs = table_.specs(group)
    trained = [spec for spec in specs if spec.config.stage != "base"] or specs
    records = _records(table_, table_.fingerprints(group))
    rows: list[list[object]] = [
        ["model identity", tag("code", trained[0].model_identity)],
        ["dataset identity", tag("code", trained[0].dataset_identity)],
        *(
            [part, _settings(trained, part)]
            for part in ("model", "dataset", "train", "eval", "objective", "seeds")
        ),
    ]
    rows += _benchmarks(records)
    rows += _counts(records)
    rows += _environment(records)
    parts = [tag("h3", group_name(group))] if len(table_.cells_by_group) > 1 else []
    return join([*parts, table(["", ""], [row for row in rows if row[1] != "-"]), _counts_by_split(records)])


def _benchmarks(records: Sequence[RunRecord]) -> list[list[object]]:
    """For each benchmark its protocol, and which of its items chose and which only report."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for name, about in record.measured.items():
            split, _, measure = name.partition("_")
            if about.get("protocol"):
                known = found.setdefault(measure.partition(".")[0], {"protocol": about["protocol"]})
                known[split] = max(known.get(split, 0), about["num_items"])
    return [
        [
            f"benchmark {name}",
            f"protocol {about['protocol']}; {about.get('validation', 0):,} items may choose (validation), "
            f"{about.get('test', 0):,} only report (test)",
        ]
        for name, about in sorted(found.items())
    ]


def _settings(specs: Sequence[RunSpec], part: str) -> str:
    """What all runs of the plane share in one part; no paths, and no setting at its neutral value."""
    configs = [getattr(spec.config, part) for spec in specs]
    unsaid = {
        item.name
        for item in dataclasses.fields(configs[0])
        if item.name == "path"
        or ("neutral" in item.metadata and getattr(configs[0], item.name) == item.metadata["neutral"])
    }
    common = {
        key: value
        for key, value in config_to_dict(configs[0]).items()
        if key not in unsaid
        and not _is_path(value)
        and all(getattr(config, key) == getattr(configs[0], key) for config in configs)
    }
    return ", ".join(f"{key} {_said(value)}" for key, value in common.items() if value is not None) or "-"


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/")


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count_values(records: Sequence[RunRecord]) -> dict[str, list[int]]:
    values: dict[str, list[int]] = {}
    for record in records:
        for name, count in record.counts.items():
            values.setdefault(name, []).append(count)
    return values


def _counts(records: Sequence[RunRecord]) -> list[list[object]]:
    """Counts that belong to no split: one value if the runs agree, a range if not."""
    values = _count_values(records)
    unusable = {
        name.split(".", 1)[1]: found for name, found in values.items() if name.startswith("unusable_rows.")
    }
    rows: list[list[object]] = [
        [name.replace("_", " "), _range(found)]
        for name, found in values.items()
        if not name.startswith("unusable_rows.") and name.partition("_")[0] not in _COUNTED
    ]
    said = ", ".join(f"{name}: {_range(found)}" for name, found in sorted(unusable.items()))
    return [*rows, ["unusable rows by reason", said or "none"]] if values else rows


def _counts_by_split(records: Sequence[RunRecord]) -> Markup:
    """Rows, and tokens by role, of each split; a count that is 0 everywhere is left out."""
    values = {name: found for name, found in _count_values(records).items() if any(found)}
    found: dict[str, dict[str, str]] = {}
    for name, counts in values.items():
        split, _, what = name.partition("_")
        if split in _COUNTED:
            found.setdefault(split, {})[what.replace("_", " ")] = _range(counts)
    columns = list(dict.fromkeys(what for counts in found.values() for what in counts))
    rows = [
        [split, *(found[split].get(what, "0") for what in columns)] for split in _COUNTED if split in found
    ]
    return table(["split", *columns], rows, numeric=range(1, len(columns) + 1)) if rows else Markup("")


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _environment(records: Sequence[RunRecord]) -> list[list[object]]:
    """Every fact of the environment with the runs that share it, most frequent first."""
    values: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in record.environment.items():
            said = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            if not _is_path(said):
                values.setdefault(key, Counter())[said] += 1
    return [
        [
            key.replace("_", " "),
            ", ".join(
                value if len(counter) == 1 else f"{value} ({plural(count, 'run')})"
                for value, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))
            ),
        ]
        for key, counter in sorted(values.items())
    ]


def commands_section(sweep_command: str, analysis_command: str) -> Markup:
    """The lines that make this report again."""
    return join(
        [
            tag("h2", "Repeat it"),
            tag("pre", f"{sweep_command}\n{analysis_command}"),
            tag(
                "p",
                "The first trains what is missing and is safe to repeat; the second reads records and "
                "writes this folder. Add root= if the results are not in the default folder.",
                class_="note",
            ),
        ]
    )


def glossary_section(available: Iterable[str]) -> Markup:
    """Every measure on record: its unit, its direction, the splits it was measured on."""
    splits: dict[str, list[str]] = {}
    for name in available:
        split, _, measure = name.partition("_")
        splits.setdefault(measure, []).append(split)
    rows = []
    for measure, found in splits.items():
        metric = metric_of(f"{found[0]}_{measure}")
        rows.append(
            [
                metric.title.rsplit(" (", 1)[0],
                tag("code", measure),
                metric.unit,
                {"none": "none, describes only"}.get(metric.better, f"{metric.better} is better"),
                ", ".join(split for split in SPLITS if split in found),
                _EXPLAINED.get(measure, ""),
            ]
        )
    return join(
        [
            tag("h2", "What the numbers mean"),
            table(["measure", "name", "unit", "direction", "splits", "meaning"], rows),
            bullets(
                [
                    "Every number is measured without the swept weights, so cells can be compared.",
                    "Validation rows choose; test rows report; robustness rows are held-out wordings.",
                    "A run is one training; a cell is a question. One run may answer several cells.",
                ]
            ),
            tag(
                "p",
                "region.json holds the same answer for programs (its schema heads analysis/summary.py); "
                "cells.csv and cells.parquet hold one row for each cell.",
                class_="note",
            ),
        ]
    )


_EXPLAINED: Mapping[str, str] = {
    "exact_answer": "greedy answers equal to the verifiable one",
    "constraint_adherence": "answers that keep the constraint their prompt states",
    "response_nll": "mean negative log-likelihood of response tokens",
    "prompt_nll": "mean negative log-likelihood of prompt tokens",
    "response_bits_per_byte": "the same per byte of text, comparable across tokenizers",
    "prompt_bits_per_byte": "the same per byte of text, comparable across tokenizers",
    "empty_output_rate": "greedy answers without any text",
    "truncated_output_rate": "greedy answers that ended at the length limit",
    "mean_output_tokens": "mean length of greedy answers",
}

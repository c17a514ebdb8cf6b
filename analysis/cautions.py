"""What a reader must know before believing a plane: one line each, the gravest first. Pure."""

import math

from analysis.config import AnalysisConfig
from analysis.study import Study
from analysis.table import Table
from analysis.text import absent_sentence, number, pair, plural
from train.record import RunRecord

MAX_NAMED = 4  # run ids in one line


def cautions(table: Table, study: Study, config: AnalysisConfig) -> tuple[str, ...]:
    """Every caution that applies to one plane."""
    records = _records(table, study)
    lines = [
        _absent(study),
        _silent(study),
        _noise(study),
        _equal(study),
        _coverage(study),
        _below_base(study),
        _empty_outputs(records, config.max_empty_output_rate),
        _mixed(records),
        _changed_code(records),
        _unpaired(study),
    ]
    return tuple(line for line in lines if line)


def _records(table: Table, study: Study) -> list[RunRecord]:
    return [
        table.record_by_fingerprint[spec.fingerprint]
        for spec in table.specs(study.group)
        if spec.fingerprint in table.record_by_fingerprint
    ]


def _absent(study: Study) -> str:
    sentence = absent_sentence(study.absent)
    return sentence and f"{sentence}. What follows is the answer so far, not the answer."


def _silent(study: Study) -> str:
    if not study.num_silent:
        return ""
    return f"{plural(study.num_silent, 'finished run')} did not report {study.chosen.metric.name}."


def _noise(study: Study) -> str:
    region = study.region
    if region.members_Y is not None or region.best is None:
        return ""
    return f"No region: {region.why_none}. The best below may be the luckiest."


def _equal(study: Study) -> str:
    if study.all_equal:
        return "All scores are equal: nothing can be distinguished, and the best named is merely the first."
    if study.region.members_Y is not None and study.region.spread.difference == 0:
        return "Seeds make no difference to any comparison, so noise counts as 0: do seeds reach training?"
    return ""


def _coverage(study: Study) -> str:
    region = study.region
    if study.all_equal or not math.isfinite(region.coverage) or region.coverage >= 0.945:
        return ""
    num_rays = sum(estimate.num_seeds > 0 for estimate in region.estimates)
    return (
        f"The region is provisional: of {num_rays} equally good settings, this rule keeps the best one in "
        f"only {100 * region.coverage:.0f} % of simulated sweeps with as many seeds."
    )


def _below_base(study: Study) -> str:
    plane = study.chosen
    if not math.isfinite(plane.base_score):
        return ""
    sign = 1 if plane.metric.better == "higher" else -1
    worse = [
        ray
        for ray, estimate in zip(plane.rays, study.region.estimates, strict=True)
        if sign * (estimate.mean - plane.base_score) < 0
    ]
    if not worse:
        return ""
    names = ", ".join(pair((ray.prompt_weight, ray.response_weight)) for ray in worse[:MAX_NAMED])
    more = f" and {len(worse) - MAX_NAMED} more" if len(worse) > MAX_NAMED else ""
    return (
        f"Training made {plane.metric.title} worse than the untouched base model "
        f"({number(plane.base_score, plane.metric)}) at {plural(len(worse), 'setting')}: {names}{more}."
    )


def _empty_outputs(records: list[RunRecord], limit: float) -> str:
    rates = {
        record.run_id: max(
            rate for name, rate in record.metrics.items() if name.endswith("_empty_output_rate")
        )
        for record in records
        if any(name.endswith("_empty_output_rate") for name in record.metrics)
    }
    high = {name: rate for name, rate in rates.items() if rate > limit}
    if not high:
        return ""
    named = ", ".join(
        f"{name} ({100 * high[name]:.0f} %)" for name in sorted(high, key=lambda n: (-high[n], n))[:2]
    )
    return (
        f"{plural(len(high), 'run')} gave empty outputs for more than {100 * limit:.0f} % of rows, "
        f"which can pass for a low score: {named}{' and others' if len(high) > 2 else ''}."
    )


def _mixed(records: list[RunRecord]) -> str:
    parts = []
    for key, noun in (("git_commit", "commits"), ("device", "devices"), ("torch", "torch versions")):
        values = sorted({str(record.environment[key]) for record in records if key in record.environment})
        if len(values) > 1:
            parts.append(f"{len(values)} {noun}")
    return f"Runs are mixed from {', '.join(parts)}; see the protocol." if parts else ""


def _changed_code(records: list[RunRecord]) -> str:
    changed = sum(bool(record.environment.get("git_has_changes")) for record in records)
    return f"{plural(changed, 'run')} came from a checkout with uncommitted changes." if changed else ""


def _unpaired(study: Study) -> str:
    region = study.region
    if region.members_Y is None or region.spread.is_paired:
        return ""
    return "No two settings share two seeds, so differences are not paired and their errors are larger."

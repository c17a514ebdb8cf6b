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
        _unmeasured(table),
        _noise(study),
        _equal(study),
        _broken(study),
        _alarms(study),
        _below_base(study),
        _empty_outputs(records, config.max_empty_output_rate),
        mixed_environments(records),
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


def _unmeasured(table: Table) -> str:
    if not table.num_unmeasured:
        return ""
    return f"{plural(table.num_unmeasured, 'evaluation')} that benchmarks are asked of are not done."


def _noise(study: Study) -> str:
    region = study.region
    if region.landscape is None:
        return f"No region: {region.why_none}." if region.best is not None and not study.all_equal else ""
    if max(estimate.num_seeds for estimate in region.estimates) > 1:
        return ""
    known = (
        f"{plural(region.noise.num_checks, 'scale check')} and " if region.noise.num_checks else ""
    ) + "how far settings scatter around a smooth surface"
    return (
        f"One seed: the noise is inferred from {known}, a lower bound of the spread between seeds; no claim here "
        "covers another order of the data. Say grid.seeds=[0,1,2]."
    )


def _equal(study: Study) -> str:
    if study.all_equal:
        return "All scores are equal: nothing can be distinguished, and the best named is merely the first."
    if study.region.members_Y is not None and study.region.spread.difference == 0:
        return "Seeds make no difference to any comparison, so noise counts as 0: do seeds reach training?"
    return ""


def _broken(study: Study) -> str:
    found = study.broken
    if found is None:
        return ""
    return (
        "The scale of the weights matters here, against theory, so settings of one ratio are no longer pooled: scale "
        f"checks differ by up to {number(found.largest_check, study.chosen.metric)} "
        f"(chance: {number(found.check_limit, study.chosen.metric)}), Bayes factor {found.bayes_factor:.2g}. "
        "grid.collapse=none trains every cell."
    )


def _alarms(study: Study) -> str:
    named = [diagnostic.name for diagnostic in study.diagnostics if diagnostic.alarm]
    return f"Diagnostics beyond their thresholds, see below: {'; '.join(named)}." if named else ""


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


def mixed_environments(records: list[RunRecord]) -> str:
    """One sentence naming what differs between the runs but not between their configurations; "" for nothing."""
    parts = []
    for key, noun in (("git_commit", "commits"), ("device", "devices"), ("torch", "torch versions")):
        values = sorted({str(record.environment[key]) for record in records if key in record.environment})
        if len(values) > 1:
            parts.append(f"{len(values)} {noun}")
    measured = sorted(
        {
            str(record.environment["measured_with"])
            for record in records
            if "measured_with" in record.environment
        }
    )
    if len(measured) > 1:
        parts.append(f"benchmarks measured with {' and with '.join(measured)}")
    return f"Runs are mixed from {', '.join(parts)}; see the protocol." if parts else ""


def _changed_code(records: list[RunRecord]) -> str:
    changed = sum(bool(record.environment.get("git_has_changes")) for record in records)
    return f"{plural(changed, 'run')} came from a checkout with uncommitted changes." if changed else ""


def _unpaired(study: Study) -> str:
    region = study.region
    several = max((estimate.num_seeds for estimate in region.estimates), default=0) > 1
    if region.members_Y is None or region.spread.is_paired or not several:
        return ""
    return "No two settings share two seeds, so differences are not paired and their errors are larger."

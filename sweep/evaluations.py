"""Evaluations: benchmarks on a finished run, in the plan beside it, with an identity of their own.

An evaluation is a run of stage "evaluate" whose parent is the run it measures: claimed, resumed, counted and
forecast like any other, named by its parent's fingerprint and its protocols' fingerprints. So another protocol is
another evaluation and never another training; the base model is the (0, 0) corner under the same protocol.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sweep.spec import Plan, RunSpec
from train.benchmarks.config import evaluation_fingerprint
from train.record import RunRecord

EVALUATE = "evaluate"  # the stage


def with_evaluations(
    runs: Sequence[RunSpec], protocols_by_run: Mapping[str, Mapping[str, str]]
) -> list[RunSpec]:
    """Each run followed by its evaluation, where benchmarks are asked of it.

    protocols_by_run   run fingerprint -> fingerprint of each benchmark's protocol by name
    """
    found: list[RunSpec] = []
    for spec in runs:
        found.append(spec)
        protocols = protocols_by_run.get(spec.fingerprint)
        if protocols:
            name = evaluation_fingerprint(spec.fingerprint, protocols, spec.config.eval.aggregates)
            found.append(
                dataclasses.replace(
                    spec,
                    run_id=f"{spec.run_id.removesuffix(spec.fingerprint[:12])}evaluate-{name[:12]}",
                    fingerprint=name,
                    config=dataclasses.replace(spec.config, stage=EVALUATE, keep="none"),
                    parent_fingerprint=spec.fingerprint,
                )
            )
    return found


def protocols_by_run(runs: Iterable[RunSpec], cache_folder: Path | None) -> dict[str, dict[str, str]]:
    """The fingerprint of each benchmark asked of each run; local data are hashed."""
    asked = [spec for spec in runs if spec.config.eval.benchmarks]
    if not asked:
        return {}
    from train.benchmarks.identity import asked_protocols  # late, because it reads files

    known = {config: asked_protocols(config, cache_folder) for config in {spec.config.eval for spec in asked}}
    return {spec.fingerprint: known[spec.config.eval] for spec in asked}


def evaluation_line(plan: Plan) -> list[str]:
    """What `plan` says of evaluations; nothing without any."""
    found = [spec for spec in plan.runs if is_evaluation(spec)]
    words = "evaluation" if len(found) == 1 else "evaluations"
    return [f"{len(found)} {words} of {', '.join(found[0].config.eval.benchmarks)}"] if found else []


def is_evaluation(spec: RunSpec) -> bool:
    """Whether it measures another run and trains nothing."""
    return spec.config.stage == EVALUATE


def is_training(spec: RunSpec) -> bool:
    """Whether it trains: neither a base model nor an evaluation."""
    return spec.config.stage not in ("base", EVALUATE)


def without_evaluations(plan: Plan) -> Plan:
    """The plan of what is trained, and its base models."""
    return dataclasses.replace(plan, runs=tuple(spec for spec in plan.runs if not is_evaluation(spec)))


def only(plan: Plan, runs: Iterable[RunSpec]) -> Plan:
    """The plan with some of its runs."""
    wanted = {spec.fingerprint for spec in runs}
    return dataclasses.replace(plan, runs=tuple(spec for spec in plan.runs if spec.fingerprint in wanted))


def evaluations_by_run(plan: Plan) -> dict[str, RunSpec]:
    """Run fingerprint -> its evaluation."""
    return {spec.parent_fingerprint: spec for spec in plan.runs if is_evaluation(spec)}


def answered(plan: Plan, records: Mapping[str, RunRecord]) -> dict[str, RunRecord]:
    """The records of what was trained, with the metrics of the evaluation that the plan asks for.

    Of what was measured under any other protocol nothing is taken, so that scores can't mix.
    """
    evaluations = evaluations_by_run(plan)
    names = {spec.fingerprint for spec in evaluations.values()}
    merged: dict[str, RunRecord] = {}
    for fingerprint, record in records.items():
        if fingerprint in names:
            continue
        spec = evaluations.get(fingerprint)
        measured = records.get(spec.fingerprint) if spec is not None else None
        merged[fingerprint] = record if measured is None else merged_record(record, measured)
    return merged


def merged_record(record: RunRecord, measured: RunRecord) -> RunRecord:
    """A run's record with its evaluation's metrics, what measured them, and the time that took."""
    known = measured.environment
    measured_with = ", ".join(f"{name} {known[name]}" for name in ("torch", "transformers") if name in known)
    return dataclasses.replace(
        record,
        metrics={**record.metrics, **measured.metrics},
        measured={**record.measured, **measured.measured},
        environment={**record.environment, **({"measured_with": measured_with} if measured_with else {})},
        evaluation_s=record.evaluation_s + measured.evaluation_s,
    )

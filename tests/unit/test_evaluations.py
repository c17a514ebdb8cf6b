"""Evaluations in the plan: named by run and protocols, never by another training; joined by the asked protocol."""

import dataclasses

import pytest
from planning import run_config

from analysis.cautions import mixed_environments
from analysis.table import AnalysisError, make_table
from sweep.arguments import parse_arguments
from sweep.compose import compose_sweep
from sweep.evaluations import answered, evaluations_by_run, is_evaluation, without_evaluations
from sweep.ledger import Ledger
from sweep.lineage import measurable
from sweep.plan import make_plan, plan_from_dict, plan_to_dict, summary_lines
from sweep.spec import Status
from train.benchmarks.identity import check_benchmarks
from train.config import EvalConfig, build
from train.errors import ConfigError, DataError
from train.files import write_json_atomic
from train.fingerprint import fingerprint
from train.record import RunRecord, record_to_dict
from train.schema import Tree


def plan_of(*words):
    return make_plan(compose_sweep(parse_arguments(["+grid=smoke_2x2", *words])), cache_folder=None)


def with_eval(name):
    return plan_of("eval=papers", f"eval.limit={name}")


@pytest.fixture(scope="module")
def plan():
    return with_eval(3)


def test_every_run_and_the_base_is_followed_by_its_evaluation(plan):
    for run, evaluation in zip(plan.runs[::2], plan.runs[1::2], strict=True):
        assert is_evaluation(evaluation)
        assert evaluation.parent_fingerprint == run.fingerprint
        assert run.config.keep == ("none" if run.config.stage == "base" else "until_dpo")
    assert "4 evaluations of mmlu, bbh, ifeval" in summary_lines(plan)
    assert plan_from_dict(plan_to_dict(plan)) == plan


def test_benchmarks_change_no_run_and_another_protocol_is_another_evaluation(plan):
    plain, other = plan_of(), with_eval(4)
    runs = [spec.fingerprint for spec in without_evaluations(plan).runs]
    assert runs == [spec.fingerprint for spec in plain.runs]
    assert runs == [spec.fingerprint for spec in without_evaluations(other).runs]
    first, second = evaluations_by_run(plan), evaluations_by_run(other)
    assert all(first[name].fingerprint != second[name].fingerprint for name in runs)


def test_neither_data_folders_nor_speed_enter_a_runs_identity():
    plain = run_config()
    asked = dataclasses.replace(
        plain,
        eval=dataclasses.replace(
            plain.eval, benchmarks=Tree({"quiz": {"kind": "lm_eval", "tasks": ["x"]}}), limit=3
        ),
    )
    names = [fingerprint(one, model_identity="m", dataset_identity="d") for one in (plain, asked)]
    assert names[0] == names[1]


def record(spec, metrics, protocol="p", items="i", **more):
    return RunRecord(
        run_id=spec.run_id,
        fingerprint=spec.fingerprint,
        outcome="finished",
        stage=spec.config.stage,
        metrics=metrics,
        evaluation_s=1.0,
        measured={name: {"protocol": protocol, "items": items} for name in metrics if "." in name},
        **more,
    )


def records_of(plan, protocol="p", items="i"):
    found = {}
    for spec in plan.runs:
        name = "validation_mmlu.exact_match" if is_evaluation(spec) else "validation_response_nll"
        found[spec.fingerprint] = record(spec, {name: 0.5}, protocol, items)
    return found


def test_a_table_joins_what_was_measured_under_the_asked_protocol(plan):
    records = records_of(plan)
    merged = answered(plan, records)
    assert set(merged) == {spec.fingerprint for spec in without_evaluations(plan).runs}
    assert all(len(one.metrics) == 2 and one.evaluation_s == 2.0 for one in merged.values())
    assert all(len(one.metrics) == 1 for one in answered(with_eval(4), records).values())
    table = make_table(plan, records, dict.fromkeys(records, Status.FINISHED))
    assert table.available == ("validation_response_nll", "validation_mmlu.exact_match")
    assert (table.num_trained, table.num_unmeasured) == (3, 0)
    half = {key: one for key, one in records.items() if one.stage != "evaluate"}
    statuses = {spec.fingerprint: Status.PLANNED for spec in plan.runs}
    assert make_table(plan, half, statuses).num_unmeasured == 4


@pytest.mark.parametrize("change", [{"protocol": "other"}, {"items": "other"}])
def test_mixed_protocols_and_items_are_refused(plan, change):
    records = records_of(plan)
    spec = plan.runs[3]
    records[spec.fingerprint] = record(
        spec, {"validation_mmlu.exact_match": 0.5}, **{"protocol": "p", **change}
    )
    with pytest.raises(AnalysisError, match=r"measured under two .*\(., other\)|\(. and other\)"):
        make_table(plan, records, {})


def test_another_lm_eval_is_another_evaluation_of_the_same_run(plan, monkeypatch):
    records = records_of(plan)
    monkeypatch.setattr("train.benchmarks.config.versions", lambda packages: {"lm_eval": "0.4.99"})
    newer = with_eval(3)
    assert [spec.fingerprint for spec in newer.runs[::2]] == [spec.fingerprint for spec in plan.runs[::2]]
    old, new = evaluations_by_run(plan), evaluations_by_run(newer)
    assert all(old[name].fingerprint != new[name].fingerprint for name in old)
    trained = {key: one for key, one in records.items() if one.stage != "evaluate"}
    half = {**trained, new[plan.runs[0].fingerprint].fingerprint: record(newer.runs[1], {}, "q")}
    merged = answered(newer, half)
    assert not any(name.endswith("mmlu.exact_match") for one in merged.values() for name in one.metrics)
    monkeypatch.setattr("train.benchmarks.config.versions", lambda packages: {"lm_eval": "absent"})
    assert [spec.fingerprint for spec in with_eval(3).runs] == [spec.fingerprint for spec in plan.runs]


def test_what_measured_the_benchmarks_is_named_where_it_differs(plan):
    records = records_of(plan)
    for spec, version in zip(plan.runs[1::2], ("5.23.0", "5.23.0", "5.23.0", "5.24.0"), strict=True):
        old = records[spec.fingerprint]
        records[spec.fingerprint] = dataclasses.replace(old, environment={"transformers": version})
    merged = list(answered(plan, records).values())
    said = "benchmarks measured with transformers 5.23.0 and with transformers 5.24.0"
    assert said in mixed_environments(merged)
    assert mixed_environments(merged[:3]) == ""


def test_a_finished_run_without_weights_is_left_out_and_named(plan, tmp_path):
    ledger = Ledger(tmp_path)
    base, _, run, _ = plan.runs[:4]
    for spec in (base, run):
        ledger.folder(spec.fingerprint).mkdir(parents=True)
        write_json_atomic(
            ledger.folder(spec.fingerprint) / "record.json",
            record_to_dict(record(spec, {}, finished_at=1.0, parameters_sha256="x")),
        )
    kept, named = measurable(plan, ledger)
    assert named == (run.run_id,)
    assert len(kept.runs) == len(plan.runs) - 1
    assert measurable(plan_of("eval=papers", "eval.limit=3", "eval.retrain=true"), ledger)[1] == ()


def config_of(folder, path="google/IFEval"):
    benchmark = {"kind": "lm_eval", "tasks": ["ifeval"], "hub": [path]}
    return build(EvalConfig, {"benchmarks": {"quiz": benchmark}, "data": str(folder)}, "eval.")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"key": 1, "prompt": "a"}', "has no instruction_id_list"),
        ('{"key": 1, "prompt": "a", "instruction_id_list": [], "kwargs": []}\n' * 2, "a second time"),
        ("{", "broken"),
        ("", "empty"),
        ("[1]", "has no key"),
    ],
)
def test_a_damaged_benchmark_file_is_one_line_before_anything_starts(tmp_path, monkeypatch, lines, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    folder = tmp_path / "google" / "IFEval"
    folder.mkdir(parents=True)
    (folder / "input_data.jsonl").write_text(lines)
    with pytest.raises(DataError, match=said) as caught:
        check_benchmarks(config_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_absent_folder_and_an_absent_data_set_are_named(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        plan_of("eval=papers", f"eval.data={tmp_path / 'absent'}")
    with pytest.raises(DataError, match="has no cais/mmlu"):
        plan_of("eval=papers", f"eval.data={tmp_path}")


def test_without_the_extra_the_line_says_what_to_type(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[eval\]'"):
        check_benchmarks(
            build(EvalConfig, {"benchmarks": {"quiz": {"kind": "lm_eval", "tasks": ["x"]}}}, "eval.")
        )

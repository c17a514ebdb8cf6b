"""A sweep's planes beside each other: what is pooled, what is refused, what is said to be absent."""

import dataclasses
import json

import numpy as np
import pytest
from hand_made import hand_made_plan, hand_made_records, planted_score

from analysis.config import AnalysisConfig
from analysis.joint import make_joint
from analysis.joint_page import joint_finding, joint_markdown, joint_sections, joint_summary
from analysis.report import make_report, summary_text
from analysis.study import make_studies
from analysis.table import Table, make_table
from sweep.spec import Plan
from train.record import RunRecord

GROUPS = (("small", "facts"), ("small", "tales"), ("large", "facts"), ("large", "tales"))
SIZES = {"small": 1_000_000, "large": 7_000_000}


def records_of(plan: Plan, families: bool = False) -> dict[str, RunRecord]:
    records = hand_made_records(plan, planted_score())
    for name, record in records.items():
        config = plan.spec(name).config
        metrics = dict(record.metrics)
        angle = np.arctan2(config.objective.prompt_weight, config.objective.response_weight or 1e-9)
        for split in ("validation", "test") if families else ():
            metrics[f"{split}_constraint_adherence"] = metrics[f"{split}_exact_answer"] + 0.4 * float(angle)
        counts = {
            "train_rows": 1000,
            "train_prompt_tokens": 300 if config.dataset.name == "tales" else 100,
            "train_response_tokens": 100,
            "model_parameters": SIZES[config.model.name],
        }
        records[name] = dataclasses.replace(record, metrics=metrics, counts=counts)
    return records


def table_of(groups=GROUPS, families: bool = False, **changes) -> Table:
    plan = hand_made_plan(weights=(0.0, 0.5, 1.0), groups=groups, **changes)
    return make_table(plan, records_of(plan, families), {})


@pytest.fixture(scope="module")
def told():
    table = table_of(families=True)
    studies = make_studies(table, AnalysisConfig(metric="validation_exact_answer"))
    return table, studies, make_joint(table, studies)


def test_planes_that_agree_are_pooled_and_judged_on_test(told):
    _, _, joint = told
    assert joint.across is not None
    assert joint.is_judged_on_test
    assert joint.across.recommended is not None
    assert joint.across.recommended[0] > 0
    assert joint.across.common_gain.low > 0
    assert {one.factor for one in joint.across.left_out} == {"model", "dataset", "plane"}
    assert joint.across.silences == ()


def test_decisions_are_weights_that_people_write(told):
    _, _, joint = told
    places = joint.across.places_Q2
    assert np.allclose(places * 20, np.round(places * 20))
    assert (places.max(axis=1) == 1).all()


def test_families_are_traded_and_settings_ranked(told):
    _, _, joint = told
    assert joint.trade_off is not None
    assert joint.trade_off.families == ("instruction adherence", "knowledge")
    assert joint.families["knowledge"] == ("validation_exact_answer",)
    assert joint.correlation > 0.5  # one is made of the other
    assert joint.ranks is not None
    assert joint.ranks.names[0] == "(0, 1)"


def test_the_factors_come_from_the_records(told):
    _, _, joint = told
    found = {one.name: one.num_levels for one in joint.factors}
    assert found == {
        "prompt tokens / response tokens": 2,
        "number of training examples": 1,
        "model size": 2,
    }
    assert joint.unknown == ()


def test_the_words_and_the_json_say_the_same(told):
    _, _, joint = told
    summary = joint_summary(joint)["across"]
    assert json.loads(json.dumps(summary)) == summary
    assert summary["finding"] == joint_finding(joint)
    assert "exploratory" in joint_finding(joint)
    assert "a new model on a new dataset" in "\n".join(joint_markdown(joint))
    page = joint_sections(joint, {})
    assert "left-out model" in page
    assert "A point is 0.01 share of rows" in page


def test_one_plane_says_nothing_across():
    table = table_of(groups=GROUPS[:1])
    joint = make_joint(table, make_studies(table, AnalysisConfig()))
    assert joint is None
    assert joint_sections(joint, {}) == ""
    assert (joint_markdown(joint), joint_summary(joint), joint_finding(joint)) == ([], {}, "")


def test_different_protocols_are_named_and_not_compared():
    plan = hand_made_plan(weights=(0.0, 0.5, 1.0), groups=GROUPS[:2])
    runs = tuple(
        dataclasses.replace(
            spec,
            config=dataclasses.replace(
                spec.config, eval=dataclasses.replace(spec.config.eval, max_new_tokens=99)
            ),
        )
        if spec.config.dataset.name == "tales"
        else spec
        for spec in plan.runs
    )
    table = make_table(dataclasses.replace(plan, runs=runs), records_of(plan), {})
    joint = make_joint(table, make_studies(table, AnalysisConfig()))
    assert joint is not None
    assert joint.across is None
    (refusal,) = joint.refusals
    assert "2 protocols" in refusal
    assert "small on tales: max_new_tokens=99" in refusal
    assert "Not compared" in joint_sections(joint, {})
    assert joint_finding(joint).startswith("planes were measured under 2 protocols")


def test_a_half_finished_sweep_names_the_planes_that_say_nothing_yet():
    plan = hand_made_plan(weights=(0.0, 0.5, 1.0), groups=GROUPS[:3])
    records = records_of(plan)
    kept = {name: record for name, record in records.items() if not record.run_id.startswith("large")}
    table = make_table(plan, kept, {})
    joint = make_joint(table, make_studies(table, AnalysisConfig()))
    assert joint is not None
    assert joint.across is not None
    assert joint.across.silences[0].startswith("large on facts has no surface")
    assert len(joint.across.planes) == 2


def test_a_lower_is_better_metric_gains_by_falling():
    table = table_of(groups=GROUPS[:2])
    joint = make_joint(table, make_studies(table, AnalysisConfig(metric="validation_response_nll")))
    assert joint is not None
    assert joint.across is not None
    assert joint.scale.factor < 0
    assert joint.across.common_gain is not None
    assert joint.across.common_gain.mean > 0
    assert "nats/token" in joint_markdown(joint)[-1]


def test_equal_records_give_equal_answers():
    table = table_of(groups=GROUPS[:2], seeds=(0,))
    first, second = (make_joint(table, make_studies(table, AnalysisConfig())) for _ in range(2))
    assert joint_summary(first) == joint_summary(second)


def test_the_report_holds_it_all():
    table = table_of(groups=GROUPS[:2], seeds=(0,))
    report = make_report(
        table, [{"a": 1}], AnalysisConfig(), sweep_command="sweep", analysis_command="analysis"
    )
    assert b"Does it hold across planes?" in report.files["report.html"]
    assert "across" in json.loads(report.files["region.json"])
    assert "figures/across_pooled.png" in report.files
    assert b"exploratory" in report.files["summary.md"]
    assert summary_text(report).startswith("Across planes:")

"""Records joined to a plan: what is there, what is absent, and which metric may choose."""

import dataclasses

import pytest
from hand_made import hand_made_plan, hand_made_records, hand_made_table, planted_score

from analysis.table import AnalysisError, choose_metric, make_table
from sweep.spec import Status
from train.errors import ConfigError
from train.record import Failure


def fingerprint_of(plan, run_id):
    return next(spec.fingerprint for spec in plan.runs if spec.run_id == run_id)


def test_a_complete_table_lacks_nothing():
    table = hand_made_table()
    assert table.absent() == {}
    assert table.num_finished == 13 * 3 + 1


def test_absent_runs_are_named_by_status():
    plan = hand_made_plan()
    failed = fingerprint_of(plan, "tiny-facts-p1-r1-s0")
    table = hand_made_table(plan, drop=("p1-r1-s0", "p0-r1-s2"), statuses={failed: Status.FAILED})
    assert table.absent() == {
        Status.PLANNED: ("tiny-facts-p0-r1-s2",),
        Status.FAILED: ("tiny-facts-p1-r1-s0",),
    }


def test_absence_is_counted_within_its_own_plane():
    plan = hand_made_plan(groups=(("a", "x"), ("b", "x")))
    table = hand_made_table(plan, drop=("a-x-p1-r1-s0",))
    assert table.absent(("a", "x", ())) == {Status.PLANNED: ("a-x-p1-r1-s0",)}
    assert table.absent(("b", "x", ())) == {}


def test_the_record_is_the_fact_and_the_status_a_view_of_it():
    plan = hand_made_plan()
    records = hand_made_records(plan, planted_score())
    first, second = plan.runs[1].fingerprint, plan.runs[2].fingerprint
    missing = {key: record for key, record in records.items() if key != second}
    table = make_table(plan, missing, {first: Status.RUNNING, second: Status.FINISHED})
    assert table.status_by_fingerprint[first] is Status.FINISHED
    assert table.status_by_fingerprint[second] is Status.PLANNED


def test_records_of_another_question_are_left_out():
    plan = hand_made_plan()
    records = hand_made_records(hand_made_plan(groups=(("other", "facts"),)), planted_score())
    assert make_table(plan, records, {}).num_finished == 0


def test_a_failed_record_is_not_a_finished_run():
    plan = hand_made_plan()
    records = hand_made_records(plan, planted_score())
    key = plan.runs[1].fingerprint
    failure = Failure(kind="nan_loss", message="not finite")
    records[key] = dataclasses.replace(records[key], outcome="failed", failure=failure)
    table = make_table(plan, records, {key: Status.FAILED})
    assert key not in table.record_by_fingerprint
    assert table.failure_by_fingerprint == {key: failure}


def test_exact_answers_choose_before_likelihoods():
    assert choose_metric(hand_made_table(), None).name == "validation_exact_answer"
    table = hand_made_table(score=lambda *_: {"validation_response_nll": 1.0, "test_exact_answer": 0.5})
    assert choose_metric(table, None).name == "validation_response_nll"


def test_a_misspelt_metric_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean validation_response_nll"):
        choose_metric(hand_made_table(), "validation_respnse_nll")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_exact_answer", "not for choosing.*use analysis.metric=validation_exact_answer"),
        ("validation_mean_output_tokens", "has no direction"),
    ],
)
def test_what_cannot_choose_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        choose_metric(hand_made_table(), name)


def test_a_metric_on_no_record_is_refused_with_those_that_are():
    with pytest.raises(AnalysisError, match=r"on no record.*validation_exact_answer"):
        choose_metric(hand_made_table(), "validation_prompt_nll")


def test_without_records_the_command_to_run_is_said():
    plan = hand_made_plan()
    with pytest.raises(AnalysisError, match=r"first run: python -m sweep \+grid=wit_5x5"):
        choose_metric(make_table(plan, {}, {}), None)


def test_the_base_model_alone_is_nothing_to_analyse():
    plan = hand_made_plan()
    records = hand_made_records(plan, planted_score())
    base = plan.bases[0].fingerprint
    with pytest.raises(AnalysisError, match="no finished run"):
        choose_metric(make_table(plan, {base: records[base]}, {}), None)

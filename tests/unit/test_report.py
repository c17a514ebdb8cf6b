"""The report: one page, one JSON, the cells; honest at every stage of a sweep, and the same bytes twice."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import re
from unittest.mock import patch

import numpy as np
import pytest
from hand_made import hand_made_plan, hand_made_records, hand_made_table, planted_score

from analysis.config import AnalysisConfig
from analysis.report import MAX_PAGE_BYTES, make_report, summary_text
from analysis.study import EXPLORATORY
from analysis.table import AnalysisError, make_table
from analysis.text import finding, number, signed
from sweep.bill import Bill
from sweep.budget import BudgetConfig
from sweep.cells import cell_rows
from sweep.spec import Status
from train.items import Items
from train.metrics import MEASURES, METRICS
from train.record import Failure

EXACT = "validation_exact_answer"


def report_of(table, config=None, *, drawn=False, **commands):
    """A report; without its figures, which take most of the time, unless a test looks at them."""
    rows = cell_rows(table.plan, table.record_by_fingerprint, {})
    figures = contextlib.nullcontext() if drawn else patch("analysis.report._figures", lambda *_: {})
    with figures:
        return make_report(
            table,
            rows,
            config or AnalysisConfig(),
            sweep_command="python -m sweep +grid=wit_5x5",
            analysis_command="python -m analysis +grid=wit_5x5",
            **commands,
        )


def page_of(report):
    """The page's text without its figures' bytes."""
    return re.sub(r"base64,[^\"]+", "base64,", report.files["report.html"].decode())


def json_of(report):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(report.files["region.json"], parse_constant=refuse)


@pytest.fixture(scope="module")
def full():
    plan = hand_made_plan()
    commands = {spec.fingerprint: f"python -m train by-hand {spec.run_id}" for spec in plan.runs}
    table = hand_made_table(plan, planted_score(noise=0.003, best_angle=0.2449786631268641))
    return report_of(table, train_command_by_fingerprint=commands, drawn=True)


def test_the_same_input_gives_the_same_bytes(full):
    plan = hand_made_plan()
    commands = {spec.fingerprint: f"python -m train by-hand {spec.run_id}" for spec in plan.runs}
    again = report_of(
        hand_made_table(plan, planted_score(noise=0.003, best_angle=0.2449786631268641)),
        train_command_by_fingerprint=commands,
        drawn=True,
    )
    assert dict(again.files) == dict(full.files)


def test_the_page_is_one_small_file_that_loads_nothing(full):
    html = full.files["report.html"].decode()
    assert len(html) < MAX_PAGE_BYTES
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png|#)", html)
    assert html.count("<img") == len([name for name in full.files if name.startswith("figures/")]) == 9


def test_what_the_launch_took_stands_beside_its_forecast():
    bill = Bill(unit="GPU", took=2.2, forecast=2.0, low=1.5, high=2.5)
    costs = bill.costs(BudgetConfig(price_per_gpu_hour=3.0, price_per_cpu_hour=99.0))
    page = page_of(report_of(hand_made_table(), costs=costs))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "GPU-hours 2 1.5 to 2.5 2.2 +10% inside price 6 4.5 to 7.5 6.6 +10% inside" in text
    assert "kg CO2" not in text
    late = dataclasses.replace(bill, took=2.6).costs(BudgetConfig())
    assert "2.6 +30% outside" in re.sub(
        r"<[^>]+>", " ", page_of(report_of(hand_made_table(), costs=late))
    ).replace("  ", " ")
    assert "80 % interval" not in page_of(report_of(hand_made_table())), "nothing was forecast"


def test_the_page_opens_with_the_planted_best(full):
    page = page_of(full)
    assert "Prompt weight 0.25, response weight 1 beats instruction tuning (0, 1)" in page
    assert "python -m train by-hand tiny-facts-p0.25-r1-s0" in page
    assert "python -m sweep +grid=wit_5x5\npython -m analysis +grid=wit_5x5" in page
    assert "24 cells × 3 seeds = 72" in page
    assert "13 settings × 3 seeds = 39 runs" in page


def test_a_gain_without_fresh_seeds_is_called_exploratory_wherever_it_stands(full):
    page, plane = page_of(full), json_of(full)["planes"][0]
    assert EXPLORATORY in finding(full.studies[0])
    assert not plane["confirmed_gains"]
    assert {gain["status"] for gain in (*plane["gains"], *plane["posterior_gains"])} == {EXPLORATORY}
    assert ">confirmed<" not in full.files["report.html"].decode()
    assert "Confirmed with" not in page


def test_fresh_seeds_confirm_a_gain_and_alone_are_quoted_for_it():
    plan = hand_made_plan()
    score = planted_score(noise=0.003, best_angle=0.2449786631268641)
    fresh = hand_made_plan(
        seeds=(1000, 1001, 1002),
        pairs=((0.25, 1.0), (0.0, 1.0), (1.0, 1.0)),
        base=False,
        name="wit_5x5.confirm",
    )
    confirming = hand_made_table(fresh, score)
    report = report_of(hand_made_table(plan, score), confirming=confirming)
    gains = {tuple(gain["over"]): gain for gain in json_of(report)["planes"][0]["confirmed_gains"]}
    means = {
        pair: np.mean(
            [
                record.metrics[EXACT]
                for record in confirming.record_by_fingerprint.values()
                if pair in record.run_id
            ]
        )
        for pair in ("p0.25-r1", "p0-r1")
    }
    expected = means["p0.25-r1"] - means["p0-r1"]
    assert gains[0.0, 1.0]["mean"] == pytest.approx(expected)
    assert gains[0.0, 1.0]["low"] < expected < gains[0.0, 1.0]["high"]
    assert gains[0.0, 1.0]["is_better"]
    assert set(gains) == {(0.0, 1.0), (1.0, 1.0)}
    assert finding(report.studies[0]).startswith("Confirmed with 3 fresh seeds each: (0.25, 1) beats")


def test_the_page_says_first_how_large_a_difference_must_be(full):
    page = page_of(full)
    assert page.index("Noise first") < page.index("The plane")
    noise = json_of(full)["planes"][0]["noise"]
    assert noise["seed"] == pytest.approx(0.003, rel=0.5)
    assert noise["inferred_low"] < noise["run"] < 2 * noise["inferred_high"]


@pytest.mark.parametrize(("steps", "is_partly"), [((0, 0), False), ((0, 20), True), ((60, 60), False)])
def test_a_clip_that_binds_now_and_then_leaves_out_the_surface_of_the_ratio_alone(steps, is_partly):
    plan = hand_made_plan(aliases=False)
    records = hand_made_records(plan, planted_score())
    for index, (key, record) in enumerate(sorted(records.items())):
        counts = {**record.counts, "clipped_steps": steps[index % 2]}
        records[key] = dataclasses.replace(record, counts=counts)
    report = report_of(make_table(plan, records, dict.fromkeys(records, Status.FINISHED)))
    plane = json_of(report)["planes"][0]
    (clipped,) = [one for one in plane["diagnostics"] if one["name"].startswith("steps whose gradient")]
    assert clipped["value"] == f"{steps[0] / 60:.1%} to {steps[1] / 60:.1%} of a run's"
    assert clipped["alarm"] == is_partly
    assert ("ray" in plane["surface"]["models"]) != is_partly
    assert ("common scale a step size" in page_of(report)) == is_partly
    assert plane["scale_invariance"]["clipped"] == [steps[0] / 60, steps[1] / 60]


def test_a_surface_that_depends_on_scale_is_no_longer_pooled():
    def score(prompt_weight, response_weight, seed):
        value = 0.5 - 0.2 * (max(prompt_weight, response_weight) < 1) + 0.001 * ((7 * seed) % 3)
        return {EXACT: value + 0.01 * prompt_weight}

    plan = hand_made_plan(checks=((0.0, 0.25), (0.25, 0.25)))
    report = report_of(hand_made_table(plan, score))
    plane = json_of(report)["planes"][0]
    assert plane["scale_invariance"]["is_broken"]
    assert plane["scale_invariance"]["largest_check"] > plane["scale_invariance"]["check_limit"]
    assert plane["best"]["aliases"] == [[plane["best"]["prompt_weight"], plane["best"]["response_weight"]]]
    assert "no longer pooled" in page_of(report)


def items_of(score, protocols=("a" * 32,)):
    """A reader of items whose mean is the run's score, and how often it was asked."""
    plan = hand_made_plan()
    order = {spec.fingerprint: number for number, spec in enumerate(plan.runs)}

    def read(fingerprint, benchmark, column):
        generator = np.random.default_rng(order[fingerprint])
        values = (generator.random(200) < 0.5).astype(float)
        return Items(
            benchmark=benchmark,
            protocol=protocols[order[fingerprint] % len(protocols)],
            metrics={column: MEASURES[column]},
            item_ids=tuple(map(str, range(200))),
            clusters=tuple(map(str, range(200))),
            splits=("validation",) * 200,
            values={column: values},
        )

    return hand_made_table(plan, score), read


def test_items_give_the_known_part_of_the_noise():
    table, read = items_of(planted_score(noise=0.03))
    noise = json_of(report_of(table, read_items=read))["planes"][0]["noise"]
    assert noise["evaluation"] == pytest.approx(math.sqrt(0.25 / 200), rel=0.05)
    assert "evaluation" not in json_of(report_of(table))["planes"][0]["noise"]


def test_scores_of_two_protocols_are_refused_by_name():
    table, read = items_of(planted_score(), protocols=("a" * 32, "b" * 32))
    with pytest.raises(AnalysisError, match=r"measured under 2 protocols: a{12} .*b{12}"):
        report_of(table, read_items=read)


def test_a_score_that_is_no_number_counts_as_absent():
    plan = hand_made_plan()
    score = planted_score(noise=0.003)
    table = hand_made_table(
        plan, lambda p, r, seed: score(p, r, seed) | ({EXACT: math.nan} if (p, r) == (1.0, 1.0) else {})
    )
    plane = json_of(report_of(table))["planes"][0]
    assert plane["instruction_modelling"]["num_seeds"] == 0
    assert "mean" not in plane["instruction_modelling"]


def test_the_json_holds_the_same_answer(full):
    plane = json_of(full)["planes"][0]
    assert (plane["best"]["prompt_weight"], plane["best"]["response_weight"]) == (0.25, 1.0)
    assert plane["best"]["ratio"] == 0.25
    assert plane["metric"] == "validation_exact_answer"
    assert plane["better"] == "higher"
    assert plane["conventional"]["aliases"] == [[0.0, 0.25], [0.0, 0.5], [0.0, 0.75], [0.0, 1.0]]
    assert plane["best"] in plane["members"]
    assert {(gain["name"], gain["split"]) for gain in plane["gains"]} == {
        (name, split) for name in ("best", "instruction_modelling") for split in ("validation", "test")
    }
    assert plane["gains"][0]["standard_error"] > 0
    assert "mean" in plane["best"]["test"]


def test_all_aliases_of_a_member_are_members():
    table = hand_made_table(score=planted_score(noise=0.0005, best_angle=0.785398))
    best = json_of(report_of(table))["planes"][0]["best"]
    assert best["aliases"] == [[w, w] for w in (0.25, 0.5, 0.75, 1.0)]


def test_the_cells_are_a_table_without_invented_zeros():
    table = hand_made_table(drop=("p1-r1-s0",))
    files = report_of(table).files
    rows = list(csv.DictReader(io.StringIO(files["cells.csv"].decode())))
    assert len(rows) == 72 + 1
    absent = [row for row in rows if row["prompt_weight"] == row["response_weight"] and row["seed"] == "0"]
    assert len(absent) == 4
    assert {row["validation_exact_answer"] for row in absent} == {""}
    import pandas

    frame = pandas.read_parquet(io.BytesIO(files["cells.parquet"]))
    assert frame["validation_exact_answer"].isna().sum() == 4


def test_a_half_finished_sweep_gives_the_honest_intermediate_answer():
    plan = hand_made_plan()
    failed = next(spec.fingerprint for spec in plan.runs if spec.run_id.endswith("p1-r1-s2"))
    records = hand_made_records(plan, planted_score())
    kept = {
        key: record
        for key, record in records.items()
        if not record.run_id.endswith("s2") and "p0.75-r1-" not in record.run_id
    }
    failure = Failure(kind="nan_loss", message="loss <b>of</b> step 3 is not finite")
    table = make_table(plan, kept, {failed: Status.FAILED}, {failed: failure})
    report = report_of(table)
    page, plane = page_of(report), json_of(report)["planes"][0]
    assert "15 runs of this plane are absent: 14 planned, 1 failed" in page
    assert "What follows is the answer so far" in page
    assert plane["absent"] == {"planned": 14, "failed": 1}
    assert plane["best"]["num_seeds"] == 2
    assert "undecided" in page
    assert "loss &lt;b&gt;of&lt;/b&gt; step 3" in page


def test_a_first_finished_run_is_a_report_without_comparison():
    plan = hand_made_plan()
    records = hand_made_records(plan, planted_score())
    key = plan.runs[1].fingerprint
    report = report_of(make_table(plan, {key: records[key]}, {}))
    assert "only one distinct run has finished" in page_of(report)
    assert "members" not in json_of(report)["planes"][0]


def test_one_seed_answers_and_says_what_cannot_be_said():
    report = report_of(hand_made_table(hand_made_plan(seeds=(23,))), drawn=True)
    plane = json_of(report)["planes"][0]
    assert plane["members"]
    assert "pooled_seed_standard_deviation" not in plane
    assert "seed" not in plane["noise"]
    assert "standard_error" not in plane["best"]
    assert "no claim here covers another order of the data" in page_of(report)
    assert "No setting has two seeds" in page_of(report)


def test_equal_scores_distinguish_nothing():
    table = hand_made_table(score=lambda *_: {"validation_exact_answer": 0.25, "test_exact_answer": 0.25})
    report = report_of(table)
    assert "nothing can be distinguished" in summary_text(report)
    assert "*" not in summary_text(report).split("* best")[0]


def test_everything_of_the_user_is_escaped():
    plan = hand_made_plan(groups=(("<script>alert(1)</script>", "a&b"),))
    page = page_of(report_of(hand_made_table(plan)))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a&amp;b" in page


def test_directions_are_never_mixed():
    """Each plane holds one metric, and the best of each direction is its own extreme."""
    table = hand_made_table(score=planted_score(noise=0.001))
    for name in ("validation_exact_answer", "validation_response_nll"):
        plane = json_of(report_of(table, AnalysisConfig(metric=name)))["planes"][0]
        means = [ray["mean"] for ray in (plane["conventional"], plane["instruction_modelling"])]
        best = plane["best"]["mean"]
        assert best >= max(means) if plane["better"] == "higher" else best <= min(means)
        assert plane["unit"] == METRICS[name].unit


def test_a_test_metric_never_chooses():
    """Test prefers another cell than validation: the report follows validation and reports test beside it."""

    def score(prompt_weight, response_weight, seed):
        angle, wobble = prompt_weight - response_weight, 0.001 * seed
        return {
            "validation_exact_answer": 0.5 - 0.1 * angle + wobble,
            "test_exact_answer": 0.5 + 0.1 * angle + wobble,
        }

    plane = json_of(report_of(hand_made_table(score=score)))["planes"][0]
    assert (plane["best"]["prompt_weight"], plane["best"]["response_weight"]) == (0.0, 1.0)
    assert plane["best"]["test"]["mean"] == pytest.approx(0.401)


def test_runs_below_the_base_model_and_empty_outputs_are_warned_about():
    def score(prompt_weight, response_weight, seed):
        if (prompt_weight, response_weight) == (0, 0):
            return {"validation_exact_answer": 0.5, "validation_empty_output_rate": 0.0}
        bad = response_weight == 0
        return {
            "validation_exact_answer": 0.1 if bad else 0.6 + 0.01 * seed,
            "validation_empty_output_rate": 0.9 if bad else 0.0,
        }

    page = page_of(report_of(hand_made_table(score=score)))
    assert "worse than the untouched base model (0.500) at 1 setting: (1, 0)" in page
    assert "3 runs gave empty outputs for more than 20 % of rows" in page


def test_mixed_versions_and_changed_code_are_warned_about():
    plan = hand_made_plan()
    records = hand_made_records(plan, planted_score())
    key = plan.runs[1].fingerprint
    records[key] = dataclasses.replace(
        records[key], environment={"git_commit": "fff", "git_has_changes": True}
    )
    page = page_of(report_of(make_table(plan, records, {})))
    assert "Runs are mixed from 2 commits" in page
    assert "1 run came from a checkout with uncommitted changes" in page


def test_several_planes_have_an_overview_and_stay_small():
    plan = hand_made_plan((0.0, 0.5, 1.0), groups=[(model, "facts") for model in ("a", "b")])
    report = report_of(hand_made_table(plan), drawn=True)
    page = page_of(report)
    assert "All planes" in page
    assert page.count('id="plane-') == page.count('href="#plane-') == 2
    assert len(report.files["report.html"]) < MAX_PAGE_BYTES
    assert "figures/02_metrics.png" in report.files


def test_figures_beyond_the_page_limit_stay_in_their_folder(monkeypatch):
    monkeypatch.setattr("analysis.report._ROOM_FOR_FIGURES", 30_000)
    report = report_of(hand_made_table(), drawn=True)
    assert page_of(report).count("<img") < 6
    assert "Left out to keep this page small" in page_of(report)
    assert "figures/metrics.png" in report.files


def test_no_path_of_the_machine_is_in_the_report():
    plan = hand_made_plan()
    records = hand_made_records(
        plan, planted_score(), environment={"cache": "/home/somebody/cache", "host": "node1"}
    )
    assert b"somebody" not in b"".join(report_of(make_table(plan, records, {})).files.values())


def test_a_number_that_is_absent_or_negative_zero_is_said_plainly():
    metric = METRICS["validation_exact_answer"]
    assert number(float("nan"), metric) == "absent"
    assert number(-0.0001, metric) == "0.000"
    assert signed(-0.0001, metric) == "0.000"
    assert signed(0.02, metric) == "+0.020"
    assert number(0.0, metric) == "0.000"


def test_counts_are_a_table_of_splits_and_roles():
    counts = {"train_rows": 512, "train_prompt_tokens": 900, "test_rows": 100, "test_prompt_tokens": 250}
    records = hand_made_records(plan := hand_made_plan(), planted_score(), counts=counts | {"rows_read": 612})
    page = page_of(report_of(make_table(plan, records, {})))
    assert '<tr><td>train</td><td class="n">512</td><td class="n">900</td></tr>' in page
    assert '<tr><td>test</td><td class="n">100</td><td class="n">250</td></tr>' in page
    assert "<td>rows read</td><td>612</td>" in page
    assert "<td>unusable rows by reason</td><td>none</td>" in page

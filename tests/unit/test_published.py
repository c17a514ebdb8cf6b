"""The published grid: what its numbers say by themselves, and criterion 11 of the region's acceptance list."""

import csv
import statistics
from pathlib import Path

import pytest

from analysis.across_plot import many_maps_figure
from analysis.command import parse_request, run
from analysis.draw import png_bytes
from analysis.published import BENCHMARKS, published_facts, published_planes, within_ray_sd
from analysis.published_page import maps_of
from analysis.published_study import answer_planes, mean_cell_percent
from train.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "wit_published" / "wit_grid.csv"


@pytest.fixture(scope="module")
def answers():
    return answer_planes()


def test_five_models_three_datasets_and_35_runs_each():
    planes = published_planes()
    assert len({plane.model for plane in planes}) == 5
    assert len({plane.dataset for plane in planes}) == 3
    assert [plane.scores_NB.shape for plane in planes] == [(35, 5)] * 15
    assert published_facts().num_runs == 525


def test_the_table_holds_the_numbers_that_were_read_from_the_paper():
    if not SHARED.is_file():
        pytest.skip("the transcription isn't beside this checkout")
    names = {
        "alpacaeval": "alpaca_eval",
        "mtbench": "mt_bench",
        "ifeval": "ifeval",
        "mmlu": "mmlu",
        "bbh": "bbh",
    }
    by_plane = {(plane.model, plane.dataset): plane for plane in published_planes()}
    num_compared = 0
    with open(SHARED, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            weights = float(row["lambda_p"]), float(row["lambda_r"])
            if row["metric"] not in names or weights == (0, 0):
                continue
            plane = by_plane[row["model"], row["dataset"]]
            name = names[row["metric"]]
            value = plane.scores_NB[plane.index(weights), BENCHMARKS.index(name)]
            assert value == pytest.approx(float(row["value"]) * (10 if name == "mt_bench" else 1), abs=1e-9)
            num_compared += 1
    assert num_compared == 525 * 5


def test_facts_that_need_no_model():
    facts = published_facts()
    assert set(facts.num_distinct) == {21}
    assert (facts.num_printed_over_4, facts.num_printed_over_5, facts.num_printed) == (540, 0, 540)
    assert facts.num_best_on_convention == 7
    assert statistics.mean(facts.naive_gains_percent) == pytest.approx(6.76, abs=0.005)
    assert statistics.mean(facts.naive_without_ifeval_percent) < 2
    floor = facts.within_ray_sd_by_benchmark
    pooled = {"mmlu": 1.7, "bbh": 0.70, "alpaca_eval": 3.0, "ifeval": 1.6, "mt_bench": 1.2}
    assert {name: pytest.approx(value, abs=0.05) for name, value in pooled.items()} == floor
    assert statistics.median(facts.within_ray_sd) == pytest.approx(0.61, abs=0.005)


def test_the_spread_within_rays_sees_only_rays():
    plane = published_planes()[0]
    values = plane.average_N.copy()
    for shift, members in enumerate(plane.rays.values()):
        values[members] = 10.0 * shift
    assert within_ray_sd(plane, values) == 0
    assert within_ray_sd(plane, 2 * plane.average_N) == pytest.approx(
        2 * within_ray_sd(plane, plane.average_N)
    )


def test_criterion_11_most_of_the_claimed_gain_is_luck(answers):
    assert mean_cell_percent(answers) == pytest.approx(3.7, abs=0.5)
    assert abs(sum(answer.is_told for answer in answers) - 6) <= 1
    suspects = {answer.name: answer.suspects for answer in answers}
    assert (1.0, 1.0) in suspects["Llama-3.2-1B on alpaca-cleaned"]


def test_the_same_planes_are_told_as_in_the_reference(answers):
    told = {answer.name for answer in answers if answer.is_told}
    assert {
        "Llama-3.2-1B on tulu-v2",
        "Llama-3-8B on tulu-v2",
        "Mistral-7B on alpaca-cleaned",
        "Llama-3-8B on alpaca-cleaned",
    } <= told
    assert not {answer.name for answer in answers if answer.is_told and answer.plane.model == "Llama-3.2-3B"}


def test_the_surfaces_see_that_only_the_ratio_matters(answers):
    rays = [
        sum(answer.screened.posterior.model_weights[name] for name in ("ray", "polar", "flat"))
        for answer in answers
    ]
    assert sum(weight > 0.9 for weight in rays) >= 11


def test_the_planes_of_a_sweep_are_drawn_beside_the_published_ones():
    place = {"prompt_weight": 0.5, "response_weight": 1.0, "near_best": 0.7}
    plane = {"model": "m", "dataset": "d", "map": [place], "recommended": place}
    (found,) = maps_of({"sweep": "mine", "planes": [plane, {"model": "m", "dataset": "silent"}]})
    assert found.name.startswith("mine: m")
    assert found.recommended == (0.5, 1.0)
    assert found.region_Q.tolist() == [True]
    assert png_bytes(many_maps_figure([found])).startswith(b"\x89PNG")


def test_a_sweep_without_a_report_has_nothing_to_draw(tmp_path):
    with pytest.raises(UserError, match="mine has no report to draw beside it"):
        run(parse_request(["from=published", "+grid=mine", f"root={tmp_path}"]))

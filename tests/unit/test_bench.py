"""What the benches compute from what they measure; and that a tiny part of each runs."""

import json
import sys
from pathlib import Path

import numpy
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import bench_gpu
import bench_orchestration
import bench_plane_memory
import gpu_planes
import gpu_whole_plane
from bench_embedded import summary as embedded_summary
from costs import Cost, estimate
from embedded_data import write_embedded
from noop.cells import answer, are_right, axes_of, cells_of, write_answers

from train.config import DatasetConfig


def test_an_estimate_has_its_rounds_and_the_interval_of_their_logarithms():
    found = estimate([2.0, 8.0])
    assert found["mean"] == 4.0
    assert found["rounds"] == [2.0, 8.0]
    low, high = found["interval_95"]  # t of one degree of freedom: 12.706; log 4 +- 12.706 * log(2)
    assert low == pytest.approx(4 / 2**12.7062, rel=0.1, abs=0.01)
    assert high == pytest.approx(4 * 2**12.7062, rel=0.01)
    assert "interval_95" not in estimate([3.0])


@pytest.mark.parametrize("number", [1, 5, 20, 40, 625])
def test_a_product_has_as_many_cells_as_asked_for_and_no_two_alike(number):
    cells = cells_of(number)
    assert len(cells) == len(set(cells)) == number
    sizes = [len(values) for values in axes_of(number)]
    assert numpy.prod(sizes) == number


def test_a_number_of_cells_that_is_no_product_is_refused():
    with pytest.raises(ValueError, match="7 cells"):
        axes_of(7)


def test_the_gate_wants_every_answer_once(tmp_path):
    path = tmp_path / "answers.json"
    right = {cell: answer(*cell) for cell in cells_of(5)}
    write_answers(path, right)
    assert are_right(path, 5)
    write_answers(path, dict(list(right.items())[1:]))
    assert not are_right(path, 5)
    write_answers(path, right | {(1.0, 1.0, 0): 0.5})
    assert not are_right(path, 5)


def test_the_line_through_two_sizes_is_measured_at_the_larger_and_continued_beyond():
    costs = {5: Cost(2.0, 3.0), 40: Cost(9.0, 24.0)}
    at_40, at_625 = (bench_orchestration.line_at(costs, number) for number in (40, 625))
    assert at_40["cpu_s"] == pytest.approx(24.0)
    assert at_625["cpu_s"] == pytest.approx(3.0 - 5 * 0.6 + 625 * 0.6)
    assert at_625["wall_s_per_cell"] == pytest.approx(0.2)


@pytest.mark.parametrize(("slope", "kept"), [(0.9, True), (0.02, False)])
def test_orchestration_keeps_its_promise_only_against_both(slope, kept):
    def costs(few, more, per_cell):
        return {size: Cost(1.0 + size * per_cell, 1.0 + size * per_cell) for size in (few, more)}

    found = {
        "ours": costs(5, 625, 0.004),
        "hydra_multirun": costs(5, 40, slope),
        "dora_grid": costs(5, 20, 2.0),
    }
    result = bench_orchestration.summary([found, found], 625)
    assert result["kept"] is kept
    expected = (1 + 625 * slope) / (1 + 625 * 0.004)
    assert result["over_ours"]["hydra_multirun"]["cpu"]["mean"] == pytest.approx(expected, abs=0.01)
    json.dumps(result)


def test_the_question_is_promised_in_wall_and_cpu_and_the_plane_in_wall_alone():
    def one(wall_s, cpu_s):
        return {"wall_s": wall_s, "cpu_s": cpu_s}

    common = {"ours": one(10, 10) | {"training": one(5, 5)}}
    question = [common | {"trl_hydra": one(90, 70)}]
    assert not embedded_summary("question", question)["kept"]
    plane = [common | {"trl_processes": one(60, 20), "trl_loops": one(30, 30)}]
    result = embedded_summary("plane", plane)
    assert result["kept"]
    assert result["over_ours"]["trl_loops"]["cpu"]["mean"] == 3.0
    assert result["over_ours"]["trl_loops"]["cpu_without_report"]["mean"] == 6.0


def test_the_peers_get_the_embedded_rows_and_the_model(tmp_path):
    config = DatasetConfig(
        name="embedded",
        source="embedded",
        num_train_rows=8,
        num_validation_rows=4,
        num_test_rows=4,
        num_robustness_rows=4,
    )
    folder = write_embedded(tmp_path / "data", config)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(row["completion"].startswith(" ") and row["prompt"] for row in rows)
    assert (folder / "model" / "config.json").is_file()


def test_memory_of_a_further_cell_is_the_slope_and_shared_pages_count_once():
    def entry(peak_mb):
        return [{"peak_mb": peak_mb, "file_mb": 100.0, "adapter_mb": 1.0}]

    found = bench_plane_memory.compared({0: entry(400.0), 1: entry(410.0), 4: entry(440.0), 13: entry(530.0)})
    assert found["mb_per_further_cell"] == 10.0
    assert found["mb_of_13_processes"] == {"their_peaks": 5200.0, "shared_pages_once": 4000.0}


def test_promises_and_limits_of_the_gpu_point_in_their_direction():
    kept = {"over_solo_16k": 1.1, "over_solo_1k": 3.5, "over_hf_peft": 6.0, "gb_per_extra_cell": 0.15}
    assert bench_gpu.broken_promises({"plane_1b": kept}) == []
    found = bench_gpu.broken_promises({"plane_1b": kept | {"gb_per_extra_cell": 0.3, "over_solo_1k": 2.0}})
    assert [text.split(" is ")[0] for text in found] == [
        "plane_1b.over_solo_1k",
        "plane_1b.gb_per_extra_cell",
    ]
    assert bench_gpu.broken_promises({"plane_1b": {"not_measured": "no memory"}})


def test_memory_of_a_gpu_is_compared_between_groups_with_as_many_tokens_at_once():
    peaks = {
        "1": {"peak_gb": 10.0},
        "4": {"peak_gb": 40.0},
        "13": {"not_measured": ""},
        "21": {"peak_gb": 43.4},
    }
    assert gpu_planes.gb_per_cell(peaks) == pytest.approx(0.2)
    assert gpu_planes.gb_per_cell({"4": {"peak_gb": 40.0}}) is None


def test_groups_of_a_gpu_run_on_a_processor_in_tiny_shapes(monkeypatch):
    monkeypatch.setattr(gpu_planes, "NUM_CELLS", (1, 2))
    monkeypatch.setattr(gpu_planes, "ROUNDS", 1)
    device = torch.device("cpu")
    split = gpu_planes.rows_of_tokens("tiny", "alpaca", 64)
    assert int(split.offsets[-1]) >= 64 > int(split.offsets[-2])
    base = gpu_planes.model_of("tiny", device)
    assert gpu_planes.matrices("tiny", base) == sum(
        p.numel() for name, p in base.named_parameters() if p.ndim == 2 and "embed_tokens" not in name
    )
    model = gpu_planes.add_adapters(base, gpu_planes.cells("tiny", 1, split)[0].train, 0)
    found = gpu_planes.one_size("tiny", model, split, device)
    assert set(found["by_cells"]) == {"1", "2"}
    assert all(entry["over_solo"]["median"] > 0 for entry in gpu_planes.filled(found))


def test_cells_in_bfloat16_end_as_near_to_their_runs_alone_as_these_to_themselves(monkeypatch):
    monkeypatch.setattr(gpu_planes, "EQUAL_STEPS", 3)
    monkeypatch.setattr(gpu_planes, "EQUAL_CELLS", 2)
    found = gpu_planes.equivalence(torch.device("cpu"), {})
    assert bench_gpu.broken_promises({"equivalence": found}) == []
    assert all(0.0 < distance < 0.1 for distance in found["solo_from_permuted_solo"])
    train = gpu_planes.train_stacked

    def other_weights(model, split, runs, **how):
        """The cells of other rays."""
        return train(model, split, runs[::-1], **how)

    monkeypatch.setattr(gpu_planes, "train_stacked", other_weights)
    (broken,) = bench_gpu.broken_promises({"equivalence": gpu_planes.equivalence(torch.device("cpu"), {})})
    assert broken.startswith("equivalence.over_permuted is ")


def test_a_whole_plane_in_one_process_and_in_one_for_each_ray_measures_the_same(tmp_path):
    gpu_whole_plane.write_inputs(tmp_path, "small", torch.device("cpu"))
    together = gpu_whole_plane.measure(tmp_path, "small", [0, 1, 2])
    assert [run["stacked"] for run in together["runs"]] == [3, 3, 3]
    each = {ray: gpu_whole_plane.measure(tmp_path, "small", [ray]) | {"wall_s": 10.0} for ray in (0, 2)}
    found = gpu_whole_plane.compared(together | {"wall_s": 12.0}, each)
    assert found["largest_difference_nats_per_token"] < 1e-3
    assert (found["processes"]["measured"], found["processes"]["wall_s_of_all"]) == (2, 30.0)
    assert (found["one_process_wall_s_per_ray"], found["over_processes"]) == (4.0, 2.5)
    assert len({run["nll"] for run in together["runs"]}) == 3

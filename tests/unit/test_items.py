"""Per-item results: what is written is read back, absent is never 0, and the error of a mean is the right one."""

import math

import numpy
import pytest

from train.items import Items, half_of, read_items, score, write_items
from train.metrics import MEASURES, is_metric, metric, ordered, selection_metric


def items_of(values, clusters=None, weights=None, splits=None, outputs=()):
    count = len(values)
    return Items(
        benchmark="quiz",
        protocol="f" * 32,
        metrics={"accuracy": MEASURES["accuracy"]},
        item_ids=tuple(f"item-{index}" for index in range(count)),
        clusters=tuple(clusters or (f"item-{index}" for index in range(count))),
        splits=tuple(splits or ["validation"] * count),
        values={"accuracy": numpy.array(values, dtype=float)},
        weights={} if weights is None else {"accuracy": numpy.array(weights, dtype=float)},
        outputs=outputs,
    )


def test_what_is_written_is_read_back(tmp_path):
    items = items_of(
        [1, 0, math.nan], ["a", "a", "b"], [2, 1, 0], ["validation", "test", "test"], ("x", None, "é\n")
    )
    path = write_items(tmp_path, items)
    assert [path] == list(tmp_path.iterdir())
    again = read_items(tmp_path, "quiz")
    assert again is not None
    for name in ("benchmark", "protocol", "metrics", "item_ids", "clusters", "splits", "outputs"):
        assert getattr(again, name) == getattr(items, name), name
    numpy.testing.assert_array_equal(again.values["accuracy"], items.values["accuracy"])
    numpy.testing.assert_array_equal(again.weights["accuracy"], items.weights["accuracy"])
    few = read_items(tmp_path, "quiz", columns=["accuracy"])
    assert few is not None
    assert few.outputs == ()
    assert set(few.weights) == {"accuracy"}


def test_a_file_that_is_absent_or_cut_is_none(tmp_path):
    assert read_items(tmp_path, "quiz") is None
    path = write_items(tmp_path, items_of([1.0, 0.0]))
    path.write_bytes(path.read_bytes()[:-20])
    assert read_items(tmp_path, "quiz") is None


def test_an_absent_value_is_neither_0_nor_counted():
    assert score(items_of([1, math.nan, 1]), "accuracy").mean == 1.0
    assert score(items_of([1, math.nan, 1]), "accuracy").num_items == 2
    assert score(items_of([math.nan]), "accuracy") is None
    assert score(items_of([1.0]), "accuracy", "test") is None
    assert score(items_of([1.0]), "accuracy").standard_error is None


def test_without_clusters_the_error_is_the_ordinary_one():
    values = numpy.random.default_rng(0).random(50)
    found = score(items_of(values), "accuracy")
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_twins_in_a_cluster_bring_nothing():
    values = numpy.random.default_rng(0).random(50)
    names = [f"c{index}" for index in range(50)]
    single = score(items_of(values, names), "accuracy")
    double = score(items_of([*values, *values], [*names, *names]), "accuracy")
    assert double.standard_error == pytest.approx(single.standard_error)
    assert (double.num_items, double.num_clusters) == (100, 50)


def test_the_clustered_error_covers_as_it_promises():
    """95 % intervals of means of 40 clusters of 5 correlated items hold the truth about 95 times in 100."""
    generator, hits = numpy.random.default_rng(1), 0
    names = [f"c{index // 5}" for index in range(200)]
    for _ in range(400):
        values = numpy.repeat(generator.normal(size=40), 5) + generator.normal(size=200)
        found = score(items_of(values, names), "accuracy")
        hits += abs(found.mean) <= 2.02 * found.standard_error
    assert 0.92 <= hits / 400 <= 0.98


def test_a_weighted_column_is_the_ratio_of_sums():
    followed, asked = numpy.array([1, 2, 0]), numpy.array([1, 3, 2])
    found = score(items_of(followed / asked, weights=asked), "accuracy")
    assert found.mean == pytest.approx(3 / 6)


def test_halves_are_stable_and_even():
    keys = [f"item-{index}" for index in range(2000)]
    halves = [half_of("mmlu", key) for key in keys]
    assert halves == [half_of("mmlu", key) for key in keys]
    assert 0.45 < halves.count("validation") / 2000 < 0.55
    assert halves != [half_of("mmlu", key, seed=1) for key in keys]
    assert half_of("mmlu", "item-3") in ("validation", "test")


def test_names_of_benchmark_metrics_carry_unit_and_direction():
    found = metric("test_wmt.translation_edit_rate")
    assert (found.better, found.unit) == ("lower", "edits/reference word")
    assert "test" in found.title
    for wrong in ("train_mmlu.accuracy", "validation_mmlu.nonsense", "validation_nonsense", "mmlu.accuracy"):
        assert not is_metric(wrong), wrong


def test_an_average_over_benchmarks_selects_before_anything_else():
    names = ["validation_response_nll", "test_five.mean", "validation_five.mean", "validation_mmlu.accuracy"]
    assert selection_metric(names).name == "validation_five.mean"
    assert selection_metric(names[:1]).name == "validation_response_nll"
    assert ordered([*names, "wrong"]) == (
        "validation_response_nll",
        "test_five.mean",
        "validation_five.mean",
        "validation_mmlu.accuracy",
    )

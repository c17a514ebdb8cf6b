"""Subsets are what the literature drew: its own statistics come out, seeds decide, nothing drifts."""

import json
import random

import pytest
from planning import composed, run_config

from train.compose import compose_run
from train.config import DatasetConfig, SubsetConfig
from train.errors import ConfigError, DataError
from train.identity import dataset_identity
from train.row_files import read_file
from train.rows import Message, Row, load_rows, split_rows, usable_rows
from train.subsets import best_rows, length_ratio, num_best, quotas, subset_rows, word_statistics

# Size, total, output (sd), instruction (sd), ratio: Instruction Modelling (arXiv 2405.14394), table 5.
TABLE_5 = {
    "lima_data.jsonl": (1030, 484.47, 442.75, 491.34, 41.72, 79.28, 0.0942),
    "alpagasus_3k_dolly.jsonl": (2996, 111.91, 68.08, 106.38, 43.83, 107.53, 0.6439),
    "alpagasus_claude_t45_alpaca.jsonl": (5305, 48.29, 30.81, 34.44, 17.48, 12.45, 0.5672),
}


def row(index: int, num_instruction: int = 3, num_output: int = 3, source: str = "a") -> Row:
    return Row(
        f"row-{index}",
        (
            Message("user", f"i{index} " + "w " * (num_instruction - 2)),
            Message("assistant", "v " * (num_output - 1)),
        ),
        source=source,
    )


def ids(rows):
    return [row.row_id for row in rows]


def drawn(rows, **settings):
    return subset_rows(rows, SubsetConfig(**settings), ids(rows))


@pytest.mark.parametrize("name", TABLE_5)
def test_table_5_comes_out_of_the_real_files(shared_data, name):
    path = shared_data / "sft_lima_alpagasus" / name
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand")
    raw_rows = read_file(path)
    # The table counts every row; four of the Alpaca set have an empty answer, which teaches nothing.
    found = word_statistics(
        [
            Row(raw["id"], tuple(Message(turn["role"], turn["content"]) for turn in raw["messages"]))
            for raw in raw_rows
        ]
    )
    rows, unusable = usable_rows(raw_rows, "messages", place=name)
    size, total, output, output_sd, instruction, instruction_sd, ratio = TABLE_5[name]
    assert unusable == ({"empty_response": 4} if "alpaca" in name else {})
    assert found.size == size
    assert [
        round(value, 2)
        for value in (found.total, found.output, found.output_sd, found.instruction, found.instruction_sd)
    ] == [total, output, output_sd, instruction, instruction_sd]
    assert round(found.ratio, 4) == ratio
    assert {row.source for row in rows} == {rows[0].source} != {""}


def test_nothing_said_is_every_row():
    rows = [row(index) for index in range(5)]
    assert drawn(rows) == tuple(rows)


def test_a_larger_subset_contains_the_smaller_one_and_seeds_differ():
    rows = [row(index) for index in range(100)]
    few, more = drawn(rows, num_examples=20), drawn(rows, num_examples=50)
    assert len(few) == 20
    assert set(ids(few)) < set(ids(more))
    assert set(ids(drawn(rows, num_examples=20, seed=1))) != set(ids(few))
    assert drawn(rows, share=0.2) == few
    assert ids(few) == sorted(ids(few), key=ids(rows).index), "the order that rows came in stays"


def test_the_order_of_the_file_changes_a_random_subset_not_at_all():
    rows = [row(index) for index in range(60)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(ids(drawn(rows, num_examples=9))) == set(ids(drawn(shuffled, num_examples=9)))


def test_a_quota_of_each_source_in_the_files_order_is_first_come_first_served():
    rows = [row(index, source="big" if index % 4 else "small") for index in range(40)]
    shuffled = random.Random(0).sample(rows, len(rows))
    chosen = subset_rows(shuffled, SubsetConfig(share=0.1, by_source=True, order="file"), ids(rows))
    assert set(ids(chosen)) == {"row-0", "row-1", "row-2", "row-3"}
    assert {row.source for row in drawn(rows, num_examples=8, by_source=True)} == {"big", "small"}


def test_quotas_add_up_and_the_largest_remainder_wins():
    assert quotas({"a": 5, "b": 3, "c": 2}, 5) == {"a": 3, "b": 1, "c": 1}
    sizes = {"a": 49747, "b": 7132, "c": 7331, "d": 111912, "e": 20016, "f": 19906, "g": 110137}
    for share in (0.1, 0.2, 0.5):
        number = round(share * sum(sizes.values()))
        assert sum(quotas(sizes, number).values()) == number


def test_the_rows_of_the_nearest_length_ratio_are_chosen():
    rows = [row(index, num_instruction=2 + index, num_output=4) for index in range(60)]
    chosen = drawn(rows, length_ratio=5, num_examples=7)
    assert sorted(map(length_ratio, chosen)) == [17 / 4, 18 / 4, 19 / 4, 20 / 4, 21 / 4, 22 / 4, 23 / 4]
    pooled = drawn(rows, length_ratio=5, num_examples=3, pool_size=7)
    assert set(ids(pooled)) < set(ids(chosen))
    assert set(ids(pooled)) < set(ids(drawn(rows, length_ratio=5, num_examples=5, pool_size=7)))


def test_more_rows_than_there_are_is_an_error():
    rows = [row(index) for index in range(4)]
    for settings in (
        {"num_examples": 5},
        {"length_ratio": 1.0},
        {"length_ratio": 1.0, "num_examples": 3, "pool_size": 2},
    ):
        with pytest.raises(DataError, match=r"dataset\.subset asks for"):
            drawn(rows, **settings)


@pytest.mark.parametrize(
    "change", [{"num_examples": 0}, {"share": 0.0}, {"share": 1.5}, {"length_ratio": -1.0}]
)
def test_impossible_subsets_are_refused(change):
    with pytest.raises(ConfigError, match=r"dataset\.subset\."):
        run_config(dataset__subset=change)


def test_held_out_rows_are_the_same_for_every_subset():
    rows = [row(index) for index in range(100)]

    def splits(**settings):
        config = DatasetConfig(
            name="x",
            source="local",
            path="x",
            num_validation_rows=5,
            num_test_rows=5,
            subset=SubsetConfig(**settings),
        )
        return split_rows(rows, config)

    whole, part = splits(), splits(num_examples=10)
    assert part["validation"] == whole["validation"]
    assert part["test"] == whole["test"]
    assert set(part["train"]) < set(whole["train"])
    assert len(part["train"]) == 10


def test_the_embedded_dataset_obeys_them_too():
    words = [
        "objective.prompt_weight=0",
        "objective.response_weight=1",
        "seed=0",
        "dataset.num_train_rows=40",
        "dataset.num_validation_rows=4",
        "dataset.num_test_rows=4",
    ]
    whole = load_rows(compose_run(words).dataset).splits
    part = load_rows(compose_run([*words, "dataset.subset.num_examples=6"]).dataset).splits
    assert len(part["train"]) == 6
    assert set(ids(part["train"])) < set(ids(whole["train"]))
    assert part["validation"] == whole["validation"]


def test_size_and_ratio_are_axes():
    axes = "grid.axes={dataset.subset.num_examples: [8, 16], dataset.subset.length_ratio: [5, 10]}"
    configs = composed("+grid=smoke_2x2", axes).configs
    assert {
        (config.dataset.subset.num_examples, config.dataset.subset.length_ratio) for config in configs
    } == {(8, 5), (8, 10), (16, 5), (16, 10)}


def test_a_local_file_is_cut_to_its_subset(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"p{index}", "response": f"r{index}", "dataset": f"s{index % 2}"}) + "\n"
            for index in range(40)
        )
    )
    config = DatasetConfig(
        name="x", source="local", path=str(path), subset=SubsetConfig(num_examples=4, by_source=True)
    )
    train = load_rows(config).splits["train"]
    assert len(train) == 4
    assert {row.source for row in train} == {"s0", "s1"}


@pytest.fixture
def scored_file(shared_data, tmp_path):
    """Real rows: those of the released Alpagasus selection among others, with ratings that would have chosen them."""
    folder = shared_data / "sft_lima_alpagasus"
    chosen = read_file(folder / "alpagasus_claude_t45_alpaca.jsonl")
    others = read_file(folder / "alpagasus_3k_dolly.jsonl")
    ratings = [(raw, 4.5 + 0.5 * (index % 2)) for index, raw in enumerate(chosen)]
    ratings += [(raw, 4.0 - index % 4) for index, raw in enumerate(others)]
    random.Random(0).shuffle(ratings)
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(raw) + "\n" for raw, _ in ratings))
    return path, ratings, [raw["id"] for raw in chosen]


def write_scores(folder, form: str, ratings):
    """The same ratings as various tools leave them."""
    if form == "list":
        (folder / "s.json").write_text(json.dumps([score for _, score in ratings]))
        return folder / "s.json"
    if form == "id":
        lines = [json.dumps({"id": raw["id"], "score": score}) for raw, score in reversed(ratings)]
        (folder / "s.jsonl").write_text("\n".join(lines))
        return folder / "s.jsonl"
    counts: dict[str, int] = {}
    lines = ["file name, index, score" if form == "less" else "index,rating"]
    for place, (raw, score) in enumerate(ratings):
        of_source = counts[raw["dataset"]] = counts.get(raw["dataset"], -1) + 1
        lines.append(f"{raw['dataset']}, {of_source}, {score}" if form == "less" else f"{place},{score}")
    (folder / "s.csv").write_text("\n".join([lines[0], *sorted(lines[1:])]))
    return folder / "s.csv"


def loaded(path, scores, num_held_out=0, **settings):
    config = DatasetConfig(
        name="x",
        source="local",
        path=str(path),
        num_validation_rows=num_held_out,
        num_test_rows=num_held_out,
        subset=SubsetConfig(scores=str(scores), **settings),
    )
    return load_rows(config).splits


@pytest.mark.parametrize("form", ["list", "id", "index", "less"])
def test_a_released_selection_comes_out_of_all_rows_and_their_ratings(scored_file, tmp_path, form):
    path, ratings, released = scored_file
    scores = write_scores(tmp_path, form, ratings)
    chosen = loaded(path, scores, min_score=4.5)["train"]
    assert len(released) == 5305
    assert len(chosen) == 5301, "four of the published rows have an empty answer, which teaches nothing"
    assert {row.row_id for row in chosen} <= set(released)


def test_scores_choose_training_rows_and_leave_the_held_out_ones_alone(scored_file, tmp_path):
    path, ratings, _ = scored_file
    ratings = ratings[:900]
    path.write_text("".join(json.dumps(raw) + "\n" for raw, _ in ratings))
    scores = write_scores(tmp_path, "list", ratings)
    every, some = loaded(path, scores, 50), loaded(path, scores, 50, min_score=4.5)
    assert (every["validation"], every["test"]) == (some["validation"], some["test"])
    best = loaded(path, scores, 50, top_share=0.05)["train"]
    again, other = (loaded(path, scores, 50, top_share=0.05, seed=seed)["train"] for seed in (0, 1))
    assert len(best) == int(0.05 * len(every["train"]))
    assert best == again != other, "equal scores are drawn by seed"
    rated = {raw["id"]: score for raw, score in ratings}
    assert {rated[row.row_id] for row in best} == {5.0}
    few = loaded(path, scores, 50, min_score=4.5, num_examples=10)["train"]
    assert len(few) == 10
    assert set(few) <= set(some["train"])


def test_the_best_five_percent_of_less_are_its_13533_rows():
    assert num_best(270_679, 0.05) == 13_533  # 100,000 + 100,000 + 15,011 + 55,668 rows
    assert num_best(100, 0.29) == 29, "0.29 * 100 is 28.999999999999996"
    rows = [row(index) for index in range(40)]
    scores = {row.row_id: float(index) for index, row in enumerate(rows)}
    assert ids(best_rows(rows, SubsetConfig(scores="x", top_share=0.1), scores)) == ids(rows[36:])
    del scores["row-39"]  # without a score, and so not one of those whose share is taken
    assert ids(best_rows(rows, SubsetConfig(scores="x", top_share=0.1), scores)) == ids(rows[36:39])


def test_a_subset_by_scores_is_known_by_their_content(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "response": "r"}) + "\n" for i in range(20)))

    def identity(scores, **settings):
        subset = SubsetConfig(scores=str(scores), **settings)
        config = DatasetConfig(name="x", source="local", path=str(path), subset=subset)
        return dataset_identity(config, cache_folder=None)

    one, same, other = (tmp_path / f"{name}.json" for name in ("one", "same", "other"))
    one.write_text(json.dumps(list(range(20))))
    same.write_text(one.read_text())
    other.write_text(json.dumps(list(range(1, 21))))
    assert identity(one, min_score=3) == identity(same, min_score=3) != identity(other, min_score=3)
    plain = dataset_identity(DatasetConfig(name="x", source="local", path=str(path)), cache_folder=None)
    assert identity(one) == plain, "scores that decide nothing change nothing"
    assert identity(one, top_share=0.5).startswith(plain)


@pytest.mark.parametrize(
    ("scores", "settings", "says"),
    [
        ("[1, 2]", {"min_score": 1}, "2 scores for 20 rows"),
        (json.dumps([{"id": "z", "score": 1}] * 20), {"min_score": 1}, "scores none of the 20 rows"),
        (json.dumps([{"good": 1}] * 20), {"min_score": 1}, "holds no scores (keys: good)"),
        (json.dumps(["high"] * 20), {"top_share": 0.5}, "row 1 has the score 'high'"),
        (json.dumps([{"index": "x", "score": 1}] * 20), {"top_share": 0.5}, "without a whole index"),
        (json.dumps([1.0] * 20), {"min_score": 2}, "keeps none of 20 training rows"),
        (None, {"min_score": 2}, "does not exist"),
    ],
)
def test_scores_that_fit_no_rows_are_one_line(tmp_path, scores, settings, says):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "response": "r"}) + "\n" for i in range(20)))
    if scores is not None:
        (tmp_path / "s.json").write_text(scores)
    with pytest.raises(DataError) as caught:
        loaded(path, tmp_path / "s.json", **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_threshold_without_scores_is_one_line():
    subset = SubsetConfig(min_score=4.5)
    with pytest.raises(ConfigError, match=r"dataset\.subset\.min_score=4\.5 without scores"):
        dataset_identity(DatasetConfig(name="x", source="embedded", subset=subset), cache_folder=None)


def test_a_threshold_is_an_axis(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(list(range(448))))
    axes = "grid.axes={dataset.subset.min_score: [null, 100, 200]}"
    configs = composed("+grid=smoke_2x2", axes, f"dataset.subset.scores={tmp_path / 's.json'}").configs
    assert {config.dataset.subset.min_score for config in configs} == {None, 100, 200}
    chosen = {
        config.dataset.subset.min_score: load_rows(config.dataset).splits["train"] for config in configs
    }
    assert len(chosen[None]) > len(chosen[100]) > len(chosen[200]) > 0

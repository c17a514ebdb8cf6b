"""The algebra of grids: its laws, and every question that is no question."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import SQUARE, cells_of

from sweep.errors import GridError

weights = st.lists(st.integers(1, 40).map(lambda number: number / 8), min_size=1, max_size=5, unique=True)
seeds = st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True)


def points(cells):
    return [(cell.prompt_weight, cell.response_weight) for cell in cells]


@given(weights, weights, seeds)
def test_a_product_has_the_product_of_sizes(prompts, responses, seed_list):
    cells = cells_of({"product": {"prompt_weight": prompts, "response_weight": responses}}, seeds=seed_list)
    assert len(cells) == len(prompts) * len(responses) * len(seed_list) == len(set(cells))
    assert points(cells)[:: len(seed_list)] == list(itertools.product(prompts, responses))


@given(weights, weights, st.data())
def test_exclude_and_only_partition_a_grid(prompts, responses, data):
    product = {"product": {"prompt_weight": prompts, "response_weight": responses}}
    entry = {
        "prompt_weight": data.draw(st.lists(st.sampled_from(prompts), min_size=1)),
        "response_weight": data.draw(st.sampled_from(responses)),
    }

    def part(**filters):
        rows = cells_of({"concatenate": [{**product, **filters}, kept_apart]})
        return [cell for cell in rows if cell.seed != 100]

    # A grid may not be empty, but a part may: one cell of another seed keeps it alive.
    product = {"product": [product, {"product": {"seed": [0]}}]}
    kept_apart = {"product": {"prompt_weight": [1], "response_weight": [1], "seed": [100]}}
    kept, dropped = part(exclude=[entry]), part(only=[entry])
    assert not set(kept) & set(dropped)
    assert set(kept) | set(dropped) == set(cells_of(product))


@given(weights, weights)
def test_expanding_is_idempotent_and_concatenating_a_grid_with_itself_changes_nothing(prompts, responses):
    product = {"product": {"prompt_weight": prompts, "response_weight": responses}}
    cells = cells_of(product)
    assert cells_of({"concatenate": [product, product]}) == cells
    assert cells_of({"product": [product]}) == cells
    one_by_one = [{"product": {"prompt_weight": [p], "response_weight": [r]}} for p, r in points(cells)]
    assert cells_of({"concatenate": one_by_one}) == cells


@given(weights)
def test_zip_pairs_values(values):
    cells = cells_of({"zip": {"prompt_weight": values, "response_weight": values[::-1]}})
    assert points(cells) == list(zip(values, values[::-1], strict=True))


def test_numbers_count_by_value():
    cells = cells_of(
        {"product": {"prompt_weight": [1, 1.0, 1e0], "response_weight": [0, -0.0]}}, seeds=[1, 1.0]
    )
    assert [(cell.prompt_weight, cell.response_weight, cell.seed) for cell in cells] == [(1.0, 0.0, 1)]
    assert str(cells[0].response_weight) == "0.0"
    by_axis = cells_of(axes={"train.epochs": [1, 1.0]})
    assert len(by_axis) == 24


def test_axes_inside_the_expression_replace_the_outer_ones():
    inner = {"product": [SQUARE, {"zip": {"seed": [5, 6], "model": ["a", "b"], "dataset": ["c", "d"]}}]}
    cells = cells_of(inner, seeds=[0, 1, 2], models=["x"], datasets=["y"])
    assert {(cell.model, cell.dataset, cell.seed) for cell in cells} == {("a", "c", 5), ("b", "d", 6)}
    assert len(cells) == 48


def test_further_axes_become_settings_sorted_by_key():
    axes = {"train.learning_rate": [1e-3], "eval": ["likelihood"], "dataset.max_tokens": [64]}
    cells = cells_of(axes=axes)
    assert cells[0].settings == (
        ("dataset.max_tokens", 64),
        ("eval", "likelihood"),
        ("train.learning_rate", 1e-3),
    )
    assert cells_of(axes=dict(reversed(axes.items()))) == cells


def test_long_names_of_weights_are_the_same_axes():
    product = {"objective.prompt_weight": [0, 1], "objective.response_weight": [1]}
    exclude = [{"objective.prompt_weight": 0}]
    assert points(cells_of({"product": product, "exclude": exclude})) == [(1.0, 1.0)]


def test_filters_at_the_top_see_the_outer_axes():
    cells = cells_of(
        {**SQUARE, "only": [{"model": "a", "seed": [0, 1]}, {"model": "b", "seed": 2}]},
        models=["a", "b"],
        seeds=[0, 1, 2],
    )
    assert {(cell.model, cell.seed) for cell in cells} == {("a", 0), ("a", 1), ("b", 2)}


BAD = {
    "unknown node key": ({"prodct": {"prompt_weight": [1]}}, "did you mean product?"),
    "axes without an operator": ({"prompt_weight": [1]}, "put axes under product"),
    "two operators": ({"product": {"seed": [1]}, "zip": {"seed": [1]}}, "exactly one"),
    "not a mapping": ([1, 2], "is not an expression"),
    "empty product": ({"product": {}}, "axes and their values"),
    "empty list": ({"concatenate": []}, "a list of expressions"),
    "zip of a list": ({"zip": [SQUARE]}, "axes and their values"),
    "empty axis": ({"product": {"prompt_weight": [], "response_weight": [1]}}, "prompt_weight has no values"),
    "zip lengths": ({"zip": {"prompt_weight": [0, 1], "response_weight": [1]}}, "prompt_weight has 2"),
    "negative weight": (
        {"product": {"prompt_weight": [-1], "response_weight": [1]}},
        "prompt_weight=-1 is no weight",
    ),
    "nan": ({"product": {"prompt_weight": [float("nan")], "response_weight": [1]}}, "prompt_weight=nan"),
    "infinite": ({"product": {"prompt_weight": [float("inf")], "response_weight": [1]}}, "prompt_weight=inf"),
    "text weight": ({"product": {"prompt_weight": ["much"], "response_weight": [1]}}, "prompt_weight='much'"),
    "true weight": ({"product": {"prompt_weight": [True], "response_weight": [1]}}, "prompt_weight=True"),
    "missing weight": ({"product": {"prompt_weight": [1]}}, "the grid has no response_weight"),
    "the untrained corner": ({"product": {"prompt_weight": [0, 1], "response_weight": [0, 1]}}, "exclude it"),
    "seed": ({"product": [SQUARE, {"product": {"seed": [1.5]}}]}, "seed=1.5 is no seed"),
    "exclude of an unknown axis": (
        {**SQUARE, "exclude": [{"prompt_wieght": 0}]},
        "did you mean prompt_weight?",
    ),
    "exclude of no mapping": ({**SQUARE, "exclude": [0]}, "exclude holds 0"),
    "misspelt axis": (
        {"product": {"prompt_weight": [1], "respons_weight": [1]}},
        "did you mean response_weight?",
    ),
    "an axis twice": (
        {"product": {"prompt_weight": [1], "objective.prompt_weight": [2]}},
        "names one axis twice",
    ),
    "two factors": ({"product": [SQUARE, {"product": {"prompt_weight": [1]}}]}, "set by two factors"),
    "nothing left": ({**SQUARE, "only": [{"prompt_weight": 7}]}, "has no cells"),
    "too much": (
        {"product": {"prompt_weight": list(range(2000)), "response_weight": list(range(2000))}},
        "rows",
    ),
    "model without a name": ({"product": [SQUARE, {"product": {"model": [3]}}]}, "model=3 is no name"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_question_is_refused_in_one_line(name):
    cells, words = BAD[name]
    with pytest.raises(GridError) as caught:
        cells_of(cells)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value), "a problem alone helps nobody"


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"train.learning_rat": [1]}, "did you mean train.learning_rate?"),
        ({"learning_rate": [1]}, "did you mean train.learning_rate?"),
        ({"train.learning_rate": []}, "train.learning_rate has no values"),
        ({"train.learning_rate": [float("nan")]}, "finite"),
        ({"train.learning_rate": [{"a": 1}]}, "no single value"),
        ({"prompt_weight": [1]}, "is in grid.cells and in grid.axes"),
        ({"stage": ["base"]}, "which is no axis"),
    ],
)
def test_bad_axes(axes, words):
    with pytest.raises(GridError, match=words.replace("?", r"\?").replace(".", r"\.")):
        cells_of(axes=axes)

"""Rays: which weights are the same experiment, and when scale matters after all."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import cells_of

from sweep.rays import canonical_objective, is_scale_free
from train.config import ObjectiveConfig, RecipeConfig
from train.objective import step_scale

SCALE_FREE = RecipeConfig()
weight = st.integers(0, 1000).map(lambda number: number / 1000)
pairs = st.tuples(weight, weight).filter(any)


def canonical(prompt, response, recipe=SCALE_FREE, **others):
    objective = ObjectiveConfig(prompt_weight=prompt, response_weight=response, **others)
    return canonical_objective(objective, recipe)


@given(pairs)
def test_canonical_is_idempotent_and_its_largest_weight_is_one(pair):
    once = canonical(*pair)
    assert canonical_objective(once, SCALE_FREE) == once
    assert max(once.prompt_weight, once.response_weight) == 1


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20), st.integers(1, 20))
def test_scale_does_not_matter(prompt, response, first, second):
    if prompt or response:
        assert canonical(prompt * first / 1000, response * first / 1000) == canonical(
            prompt * second / 1000, response * second / 1000
        )


def test_decimals_are_divided_as_written():
    assert canonical(0.2, 0.6) == canonical(0.25, 0.75) == canonical(1e-5, 3e-5)
    assert 0.2 / 0.6 != 0.25 / 0.75


@pytest.mark.parametrize(("steps", "num_cells", "num_rays"), [(4, 24, 13), (5, 35, 21)])
def test_known_numbers_of_rays(steps, num_cells, num_rays):
    values = [number / steps for number in range(steps + 1)]
    cells = cells_of(
        {
            "product": {"prompt_weight": values, "response_weight": values},
            "exclude": [{"prompt_weight": 0, "response_weight": 0}],
        }
    )
    assert len(cells) == num_cells
    assert len({canonical(cell.prompt_weight, cell.response_weight) for cell in cells}) == num_rays


@pytest.mark.parametrize(
    "recipe",
    [
        RecipeConfig(clip_norm=1.0),
        RecipeConfig(optimizer="sgd"),
        RecipeConfig(optimizer="adam"),
        RecipeConfig(epsilon=1e-6),
    ],
)
def test_scale_matters_under_clipping_sgd_coupled_decay_and_large_epsilon(recipe):
    assert not is_scale_free(recipe)
    assert canonical(0.5, 0.25, recipe) == ObjectiveConfig(prompt_weight=0.5, response_weight=0.25)


def test_all_four_weights_must_lie_on_one_ray():
    assert canonical(0.2, 0.4, template_weight=0.1) == canonical(0.5, 1, template_weight=0.25)
    assert canonical(0.2, 0.4, template_weight=0.1) != canonical(0.5, 1, template_weight=0.1)
    assert canonical(0.2, 0.4, system_weight=0.8) == canonical(0.25, 0.5, system_weight=1)
    assert canonical(0.2, 0.4).system_weight is None
    assert canonical(0, 0) == ObjectiveConfig(prompt_weight=0.0, response_weight=0.0)


SCALED = {"nonzero_count": 0.5, "completion_count": 0.5, "sequence_mean": 0.5, "weight_sum": 1.0}


@pytest.mark.parametrize(("normalisation", "factor"), SCALED.items())
def test_halving_all_weights_scales_every_coefficient_as_the_merge_assumes(normalisation, factor):
    """The claim behind canonical_objective, on the coefficients themselves."""
    counts = numpy.array([[0, 3, 2, 0, 1], [0, 0, 4, 2, 0], [0, 7, 1, 0, 0]])
    whole, half = (numpy.array([0, scale * 0.4, scale, scale * 0.2, 0]) for scale in (1.0, 0.5))
    before, after = (step_scale(counts, [0, 1, 2], weights, normalisation) for weights in (whole, half))
    for row in range(3):
        assert half * after.nll_by_row[row] == pytest.approx(factor * whole * before.nll_by_row[row])
    assert before.kl_by_row == after.kl_by_row, "a divergence never sees the weights"


@pytest.mark.parametrize("normalisation", SCALED)
def test_rays_merge_under_every_normalisation_and_keep_it(normalisation):
    assert canonical(0.2, 0.4, normalisation=normalisation) == ObjectiveConfig(
        prompt_weight=0.5, response_weight=1.0, normalisation=normalisation
    )
    assert canonical(0.2, 0.4, normalisation=normalisation) != canonical(0.2, 0.4, turns="last")


@pytest.mark.parametrize("recipe", [RecipeConfig(clip_norm=1.0), RecipeConfig(optimizer="sgd")])
def test_a_weighted_mean_is_scale_free_under_every_optimiser(recipe):
    assert canonical(0.25, 0.5, recipe, normalisation="weight_sum").response_weight == 1
    assert canonical(0.25, 0.5, recipe, normalisation="sequence_mean").response_weight == 0.5


def test_a_divergence_scales_along_where_the_loss_does():
    assert canonical(0.25, 0.5, kl_weight=0.1) == canonical(0.5, 1, kl_weight=0.2)
    assert canonical(0.25, 0.5, kl_weight=0.1) != canonical(0.5, 1, kl_weight=0.1)
    assert canonical(0.25, 0.5, kl_weight=0.1, normalisation="weight_sum") == canonical(
        0.5, 1, kl_weight=0.1, normalisation="weight_sum"
    )

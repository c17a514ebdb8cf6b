"""Which weights are the same experiment: under scale-free optimisation only their ratio matters. Pure.

The paper's 35 cells are 21 distinct experiments, the 24 cells of {0, .25, .5, .75, 1}^2 are 13. That is a theorem
about the optimiser and an assumption about everything else, so a grid may ask for `scale_checks`: a few aliases
that are trained all the same.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction

from train.config import ObjectiveConfig, RecipeConfig

# Adam's own default. Larger values (1e-6 recipes) are felt: eps acts as eps / c.
LARGEST_NEGLIGIBLE_EPSILON = 1e-8

_WEIGHTS = ("prompt_weight", "response_weight", "template_weight", "system_weight")


def is_scale_free(recipe: RecipeConfig) -> bool:
    """Whether multiplying the loss by a constant c leaves the trained parameters as they are.

        g -> c g  gives  m -> c m,  v -> c^2 v,  and  lr m / (sqrt(v) + eps) -> lr m / (sqrt(v) + eps / c)

    so c acts only as eps -> eps / c. Decoupled weight decay and the schedule don't see c; WIT's normaliser
    counts non-zero weights, so it is constant on a ray (and jumps at the axes, rays of their own).

    Exact    Bitwise for powers of two at eps = 0; 8e-5 to 3e-4 of the distance trained at eps = 1e-8, against
             0.5 between data orders. With LoRA eps bites harder (8e-3), because its first gradients are tiny.
    Note     Not scale-free: SGD (the scale is a learning rate), Adam with coupled L2, a clip that is active
             for one cell and not for another, a large eps.
    Source   Kingma and Ba, arXiv:1412.6980, section 2.1; measured for this loss.
    """
    return (
        recipe.optimizer == "adamw"
        and recipe.clip_norm is None
        and recipe.epsilon <= LARGEST_NEGLIGIBLE_EPSILON
    )


def canonical_objective(objective: ObjectiveConfig, recipe: RecipeConfig) -> ObjectiveConfig:
    """The representative of the objective's ray, its largest weight 1; the objective itself if scale matters.

    All four weights are divided together, so two objectives merge only if all of them lie on one ray. How the
    common scale enters the loss is the normalisation's (train.objective):

        nonzero_count, completion_count, sequence_mean   loss -> c loss, so scale drops out where `is_scale_free`
        weight_sum                                       loss -> loss, so scale drops out under every optimiser

    A divergence has a weight of its own beside the loss. Where the loss scales, kl_weight must scale along to
    stay the same experiment; where it doesn't, kl_weight stays.

    Exact    Divides the decimals people wrote, as fractions: (0.2, 0.6) and (0.25, 0.75) give equal floats,
             which 0.2 / 0.6 and 0.25 / 0.75 don't.
    """
    is_weighted_mean = objective.normalisation == "weight_sum"
    if not is_weighted_mean and not is_scale_free(recipe):
        return objective
    weights = {
        name: Fraction(repr(getattr(objective, name)))
        for name in _WEIGHTS
        if getattr(objective, name) is not None
    }
    largest = max(weights.values())
    if largest in (0, 1):
        return objective
    if not is_weighted_mean:
        weights["kl_weight"] = Fraction(repr(objective.kl_weight))
    return dataclasses.replace(
        objective, **{name: float(weight / largest) for name, weight in weights.items()}
    )


def scale_checks(
    objectives: Sequence[ObjectiveConfig], aliases: Iterable[int], number: int
) -> tuple[int, ...]:
    """Which `number` of a plane's aliases (indices into `objectives`, one seed) to train in spite of all.

    Those farthest from their ray's representative, where a broken invariance shows most, one for each ray before
    a second for any; the response-only ray first, then by growing prompt share: on a square grid the two
    conventions (0, 1) and (1, 1) at their smallest scale. None where the loss is a weighted mean: its scale
    cancels before the optimiser sees it.
    """
    candidates = [index for index in aliases if objectives[index].normalisation != "weight_sum"]
    by_ray: dict[Fraction | None, list[int]] = {}
    for index in sorted(candidates, key=lambda index: (_largest(objectives[index]), index)):
        by_ray.setdefault(_ratio(objectives[index]), []).append(index)
    rays = sorted(
        by_ray.values(),
        key=lambda indices: (
            _ratio(objectives[indices[0]]) is None,  # prompt only is rarely of interest
            _largest(objectives[indices[0]]),
            _ratio(objectives[indices[0]]) or 0,
        ),
    )
    ordered = [
        indices[turn]
        for turn in range(max(map(len, rays), default=0))
        for indices in rays
        if turn < len(indices)
    ]
    return tuple(sorted(ordered[:number]))


def _largest(objective: ObjectiveConfig) -> Fraction:
    return max(Fraction(repr(objective.prompt_weight)), Fraction(repr(objective.response_weight)))


def _ratio(objective: ObjectiveConfig) -> Fraction | None:
    """Prompt over response weight; None for prompt only."""
    if objective.response_weight == 0:
        return None
    return Fraction(repr(objective.prompt_weight)) / Fraction(repr(objective.response_weight))

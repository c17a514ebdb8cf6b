"""Which weights are the same experiment: under scale-free optimisation only their ratio matters. Pure.

The paper's 35 cells are 21 distinct experiments, the 24 cells of {0, .25, .5, .75, 1}^2 are 13.
"""

import dataclasses
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

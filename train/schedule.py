"""The learning rate at a step, and how many steps there are. Pure."""

import math

from train.config import RecipeConfig


def num_steps(recipe: RecipeConfig, num_rows: int) -> int:
    """Optimiser steps of a whole run; the last, smaller batch of an epoch counts as a step."""
    steps_per_epoch = math.ceil(num_rows / recipe.batch_size)
    steps = max(1, round(recipe.epochs * steps_per_epoch))
    return min(steps, recipe.max_steps) if recipe.max_steps is not None else steps


def learning_rate(recipe: RecipeConfig, step: int, steps: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `steps`.

    Source   transformers' get_scheduler, which the WIT code uses: linear warm-up from 0 over
             ceil(warmup_ratio * steps) steps (so the first step moves nothing), then to 0 at `steps`.
    """
    warmup_steps = math.ceil(recipe.warmup_ratio * steps)
    if step < warmup_steps:
        return recipe.learning_rate * step / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1.0 - progress)
    return recipe.learning_rate

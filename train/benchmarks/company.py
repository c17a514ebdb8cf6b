"""Which evaluations may share a base model, by their configurations alone. No torch: who hands out runs asks, too."""

from typing import Any

from train.config import RunConfig


def measured_alone(config: RunConfig) -> str:
    """Why no other run can be measured over the same copy of the base, whatever the model; empty if some may."""
    for is_so, what in (
        (config.train.method != "lora", "a whole model of its own"),
        (config.eval.backend != "hf", f"eval.backend={config.eval.backend}"),
        (config.num_ranks > 1, "several ranks"),
        (config.train.plane in ("off", "1"), f"train.plane={config.train.plane}"),
    ):
        if is_so:
            return what
    return ""


def measured_alike(config: RunConfig) -> Any:
    """Equal for evaluations that ask the same of adapters of one shape, given that their base is the same."""
    recipe = config.train
    adapters = (recipe.lora_rank, recipe.lora_alpha, recipe.lora_targets)
    return config.model, config.eval, adapters, recipe.device, recipe.num_threads

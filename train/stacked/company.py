"""Which runs may share a stack, by their configurations alone. No torch: who hands out runs asks, too."""

import dataclasses

from train.config import RunConfig


def trained_alone(config: RunConfig) -> str:
    """Why no other run can share a pass with this one, whatever the model; empty if some may."""
    recipe = config.train
    if config.stage != "sft":
        return f"stage={config.stage} is trained alone"
    for is_so, what in (
        (recipe.dropout or recipe.lora_dropout, "dropout, whose masks would be shared"),
        (recipe.neftune_alpha, "train.neftune_alpha"),
        (config.objective.kl_weight, "objective.kl_weight"),
        (config.num_ranks > 1, "several ranks"),
        (recipe.precision == "paper_bf16", "train.precision=paper_bf16"),
        (recipe.compile, "train.compile"),
        (recipe.activation_checkpointing, "train.activation_checkpointing"),
        (recipe.head == "naive", "train.head=naive"),
        (recipe.plane in ("off", "1"), f"train.plane={recipe.plane}"),
    ):
        if is_so:
            return what
    return ""


def in_common(config: RunConfig) -> RunConfig:
    """Equal for runs of one stack: everything but the swept weights and the optimiser's rates."""
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, learning_rate=1.0, weight_decay=0.0),
        objective=dataclasses.replace(config.objective, prompt_weight=1.0, response_weight=1.0),
    )


def largest_asked(config: RunConfig) -> int | None:
    """At most so many runs in one stack; None: as many as is measured to be fastest."""
    return (
        None
        if config.train.plane == "auto"
        else 1
        if config.train.plane == "off"
        else int(config.train.plane)
    )

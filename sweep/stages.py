"""Stages: the supervised runs of a grid, and preference tuning on top of each. Pure.

    stages: [sft, dpo]

gives every cell a second one with the setting stage=dpo, and so a plane of its own. Settings of preference
tuning (dpo.beta, ...) belong to those cells only: a supervised run that differs in nothing else is one run.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from sweep.errors import GridError
from sweep.spec import Cell, RunSpec
from train.config import RunConfig

STAGES = ("sft", "dpo")
STAGE = ("stage", "dpo")  # the setting that tells a preference-tuned cell from the one it stands on
_OF_PREFERENCES = ("dpo", "preference")


def staged(
    cells: Sequence[Cell], configs: Sequence[RunConfig], stages: Sequence[str]
) -> tuple[list[Cell], list[RunConfig]]:
    """The cells of every stage, supervised ones first, each with the configuration that it asks for.

    Raises   GridError for an axis of preference tuning in a grid without it.
    """
    supervised: dict[Cell, RunConfig] = {}
    for cell, config in zip(cells, configs, strict=True):
        settings = tuple(pair for pair in cell.settings if pair[0].split(".")[0] not in _OF_PREFERENCES)
        if settings != cell.settings and "dpo" not in stages:
            axis = next(key for key, _ in cell.settings if key.split(".")[0] in _OF_PREFERENCES)
            raise GridError(
                f"{axis} is an axis, but the grid has no stage dpo",
                "stages: [sft, dpo]",
                "say grid.stages=[sft,dpo], or remove the axis",
            )
        supervised.setdefault(dataclasses.replace(cell, settings=settings), config)
    tuned = (
        {
            dataclasses.replace(cell, settings=tuple(sorted((*cell.settings, STAGE)))): dataclasses.replace(
                config, stage="dpo"
            )
            for cell, config in zip(cells, configs, strict=True)
        }
        if "dpo" in stages
        else {}
    )
    return [*supervised, *tuned], [*supervised.values(), *tuned.values()]


def with_keep(config: RunConfig, stages: Sequence[str], retention: str) -> RunConfig:
    """The configuration with what becomes of its weights: kept, kept for its children, or not."""
    if retention != "none":
        return dataclasses.replace(config, keep="all")
    is_parent = config.stage == "sft" and "dpo" in stages
    if config.keep == "none" and config.stage != "base" and (is_parent or config.eval.benchmarks):
        return dataclasses.replace(config, keep="until_dpo")
    return config


def children(runs: Iterable[RunSpec], fingerprint: str) -> list[RunSpec]:
    """The runs that start from that one."""
    return [spec for spec in runs if spec.parent_fingerprint == fingerprint]

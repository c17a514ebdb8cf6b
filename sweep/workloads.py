"""What a run asks of a machine, without what it asks of the science. Pure.

Runs that differ in weights, seed or learning rate only take about as long as each other; their *shape* is one. Where
the number of sequences differs as well (epochs, steps, batch, subset), training time is scaled by it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sweep.spec import RunSpec
from train.config import RunConfig, SeedsConfig, config_to_dict

_FREE = {  # changes no duration, or is scaled
    "train": (
        "learning_rate weight_decay beta1 beta2 epsilon momentum clip_norm schedule warmup_ratio "
        "checkpoint_every_s epochs max_steps batch_size"
    ),
    "model": "name source path revision gpus memory_gb timeout_min",
    "dataset": "name source path revision split_seed",
    "objective": "prompt_weight response_weight template_weight system_weight",
    "dpo": "learning_rate beta",
}
_FREE_WORDS = {part: tuple(words.split()) for part, words in _FREE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """shape: equal for runs that compute the same. The rest says how many sequences a run of it trains on."""

    stage: str
    model: str  # their labels
    dataset: str
    shape: str
    epochs: float
    max_steps: int | None
    batch_size: int
    num_examples: int | None  # of a subset

    @property
    def kind(self) -> tuple[str, str, str]:
        """As `sweep.duration.kind_of` has it."""
        return self.stage, self.model, self.dataset


def workload_of(spec: RunSpec) -> Workload:
    """What the run asks of a machine."""
    config = spec.config
    return _workload(
        dataclasses.replace(
            config,
            seed=0,
            seeds=SeedsConfig(),
            objective=dataclasses.replace(config.objective, prompt_weight=1.0, response_weight=1.0),
        ),
        spec.model_identity,
        spec.dataset_identity,
        spec.preference_identity,
    )


def workload_from_dict(values: Mapping[str, Any]) -> Workload:
    """The inverse of `dataclasses.asdict`. Raises TypeError for another version's."""
    return Workload(**values)


def scale(seen: Workload, num_steps: int, asked: Workload) -> float | None:
    """How many times the sequences of a run of `seen` that took `num_steps` one of `asked` trains on.

    None where that can't be known: another shape, or epochs of a corpus of which no whole epoch was seen.
    """
    if seen.shape != asked.shape:
        return None
    if seen == asked:
        return 1.0
    if num_steps < 1:
        return None
    was_cut = seen.max_steps is not None and num_steps >= seen.max_steps
    epoch = None if was_cut else num_steps / max(seen.epochs, 1e-9) * seen.batch_size
    if seen.num_examples != asked.num_examples:
        epoch = None if asked.num_examples is None else float(asked.num_examples)
    steps = None if epoch is None else max(1.0, asked.epochs * epoch / asked.batch_size)
    if asked.max_steps is not None:
        steps = asked.max_steps if steps is None else min(steps, asked.max_steps)
    return None if steps is None else steps * asked.batch_size / (num_steps * seen.batch_size)


@lru_cache(maxsize=512)
def _workload(config: RunConfig, *identities: str) -> Workload:
    tree = config_to_dict(config)
    for part, words in _FREE_WORDS.items():
        for word in words:
            tree[part].pop(word, None)
    if config.stage != "evaluate":  # whose time alone depends on them
        for word in ("benchmarks", "aggregates", "limit", "data", "punkt", "half_seed", "retrain"):
            tree["eval"].pop(word, None)
    num_examples = tree["dataset"]["subset"].pop("num_examples", None)
    left_out = {
        "base": ("train", "objective", "dpo", "preference"),
        "sft": ("dpo", "preference"),
        "dpo": (),
        "evaluate": ("objective", "preference"),
    }
    for part in ("tracking", "keep", "seed", "seeds", *left_out[config.stage]):
        tree.pop(part, None)
    text = json.dumps([tree, identities], sort_keys=True, default=str)
    is_scaled = config.stage == "sft"
    return Workload(
        stage=config.stage,
        model=config.model.name,
        dataset=config.dataset.name,
        shape=hashlib.sha256(text.encode()).hexdigest()[:16],
        epochs=config.train.epochs if is_scaled else 1.0,
        max_steps=config.train.max_steps if is_scaled else None,
        batch_size=config.train.batch_size if is_scaled else 1,
        num_examples=num_examples if is_scaled else None,
    )

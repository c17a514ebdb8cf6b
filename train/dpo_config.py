"""The configuration of preference tuning: a corpus of answers compared, and how to learn from it.

Neither section changes a supervised run, so neither is part of one's identity: `train.fingerprint` adds both
for the stage dpo, with the parent's fingerprint.
"""

from dataclasses import dataclass, field
from typing import Literal

from train.errors import ConfigError
from train.schema import check_at_least, check_not_negative, check_positive, check_share, how


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """Pairs of answers to one prompt, the better one named. Its identity is the content of its rows."""

    name: str = field(default="embedded", metadata={"identity": "how"})
    source: Literal["embedded", "local", "hub"] = how("embedded")
    path: str | None = how(None)  # a file, a folder written by `datasets`, or an organisation/name (hub)
    revision: str | None = how(None)  # a commit hash; hub only
    hub_split: str = "train"
    max_tokens: int = 1024  # prompt and answer; longer answers are cut
    num_train_pairs: int | None = None  # at most; None: all that remain after validation
    num_validation_pairs: int = 200
    split_seed: int = 0  # which pairs are held out; for the embedded corpus also its generator's seed
    max_unusable_share: float = 0.2  # a larger share of unusable pairs fails the run before training

    def __post_init__(self) -> None:
        if self.source != "embedded" and not self.path:
            raise ConfigError(
                f"preference.source={self.source} has no preference.path",
                "a path",
                "add preference.path=/folder/pairs.jsonl",
            )
        check_at_least("preference.max_tokens", self.max_tokens, 2)
        if self.num_train_pairs is not None:
            check_at_least("preference.num_train_pairs", self.num_train_pairs, 1)
        check_at_least("preference.num_validation_pairs", self.num_validation_pairs, 0)
        check_share("preference.max_unusable_share", self.max_unusable_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig:
    """How to tune on preferences: AdamW from the parent's weights, which are also the reference."""

    beta: float = 0.1  # how dear it is to leave the reference
    learning_rate: float = 5e-7
    weight_decay: float = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.1  # share of all steps
    epochs: float = 2.0
    max_steps: int | None = None
    batch_size: int = 32  # pairs per optimiser step
    micro_batch_pairs: int = how(8)  # held at once; a divisor of batch_size

    def __post_init__(self) -> None:
        check_positive("dpo.beta", self.beta)
        check_positive("dpo.learning_rate", self.learning_rate)
        check_positive("dpo.epochs", self.epochs)
        check_not_negative("dpo.weight_decay", self.weight_decay)
        check_share("dpo.warmup_ratio", self.warmup_ratio)
        for name in ("batch_size", "micro_batch_pairs"):
            check_at_least(f"dpo.{name}", getattr(self, name), 1)
        if self.max_steps is not None:
            check_at_least("dpo.max_steps", self.max_steps, 1)

"""The complete configuration of one run: names, types, units, defaults and checks. Standard library only.

A value that a scientist changes lives in conf/*.yaml; its type, unit and check live here, once. The classes
are frozen and double as the schema: `defaults_tree` gives Hydra its struct (so a misspelt key dies at
composition) and `run_config_from_dict` gives types and checks. House rule 3.4 wanted mutable dataclasses as
Hydra schemas; building the struct from frozen ones keeps values immutable and lets our own messages name the
key, its value and the nearest right one.

Each field says in its metadata how it takes part in a run's identity (see `train.fingerprint`):
  science            (default) changes the result; always in the fingerprint
  science, neutral   in the fingerprint unless it equals its neutral value: the behaviour from before the
                     setting existed. A new setting must declare one, so that adding it re-runs nothing.
  how                never changes the result: paths, devices, tracking, intervals
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from train.dpo_config import DpoConfig, PreferenceConfig
from train.errors import ConfigError
from train.judges.config import JudgeConfig
from train.schema import (
    MANDATORY,
    build,
    check_at_least,
    check_not_negative,
    check_positive,
    check_share,
    config_to_dict,
    defaults_tree,
    how,
    neutral,
)
from train.subsets import SubsetConfig

__all__ = [
    "MANDATORY",
    "DatasetConfig",
    "DpoConfig",
    "EvalConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PreferenceConfig",
    "RecipeConfig",
    "RunConfig",
    "SeedsConfig",
    "SubsetConfig",
    "TrackingConfig",
    "build",
    "config_to_dict",
    "defaults_tree",
    "how",
    "neutral",
    "run_config_from_dict",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A base checkpoint. Its identity is the content of its files (or its hub commit), not name or path."""

    name: str = field(metadata={"identity": "how"})  # the label in tables and run ids
    source: Literal["embedded", "local", "hub"] = field(metadata={"identity": "how"})
    path: str | None = how(None)  # a folder (local) or an organisation/name (hub)
    revision: str | None = how(None)  # a commit hash; hub only. Enters the identity through the model's hash
    # raw | chat (the tokenizer's own) | tulu | chatml | a path to a Jinja file. Its text, not its path,
    # enters the identity, through the model's hash.
    template: str = how("raw")
    add_bos: bool | None = None  # None: what the tokenizer itself does
    trust_remote_code: bool = False
    # What one run needs; None: what the launcher says, and one node. With train.distributed a run has one
    # process for each of these devices, unless train.num_ranks says how many.
    gpus: int | None = how(None)  # on each node
    nodes: int | None = how(None)
    memory_gb: float | None = how(None)
    timeout_min: int | None = how(None)  # a run that takes longer goes on in its worker's next job

    def __post_init__(self) -> None:
        if self.source != "embedded" and not self.path:
            what = "model.path=/folder/with/config.json" if self.source == "local" else "model.path=org/name"
            raise ConfigError(f"model.source={self.source} has no model.path", "a path", f"add {what}")
        if self.nodes is not None:
            check_at_least("model.nodes", self.nodes, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """Instruction rows and their splits. Its identity is the content of its rows, not its name or path."""

    name: str = field(metadata={"identity": "how"})
    source: Literal["embedded", "local", "hub"] = field(metadata={"identity": "how"})
    path: str | None = how(None)  # a file, a folder written by `datasets`, or an organisation/name (hub)
    revision: str | None = how(None)  # a commit hash; hub only
    hub_split: str = "train"  # the split of a hub id or of a `datasets` folder to read
    columns: Literal["auto", "pair", "alpaca", "messages", "sharegpt"] = "auto"  # row format
    max_tokens: int = 512  # longer rows are cut; rows whose prompt alone is longer are unusable
    num_train_rows: int | None = None  # at most; None: all that remain after validation and test
    num_validation_rows: int = 200
    num_test_rows: int = 200
    num_robustness_rows: int = 0  # embedded dataset only: held-out wordings
    split_seed: int = 0  # which rows are held out; for the embedded dataset also its generator's seed
    max_unusable_share: float = 0.2  # a larger share of unusable rows fails the run before training
    subset: SubsetConfig = SubsetConfig()  # noqa: RUF009 - a frozen value; of the training rows

    def __post_init__(self) -> None:
        if self.source != "embedded" and not self.path:
            raise ConfigError(
                f"dataset.source={self.source} has no dataset.path",
                "a path",
                "add dataset.path=/folder/data.jsonl",
            )
        check_at_least("dataset.max_tokens", self.max_tokens, 2)
        if self.num_train_rows is not None:
            check_at_least("dataset.num_train_rows", self.num_train_rows, 1)
        for name in ("num_validation_rows", "num_test_rows", "num_robustness_rows"):
            check_at_least(f"dataset.{name}", getattr(self, name), 0)
        check_share("dataset.max_unusable_share", self.max_unusable_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """How to train. Group `train` in conf/; no clipping by default, because a partly active clip turns the
    common scale of the two weights into a learning rate."""

    method: Literal["full", "lora"] = "full"
    lora_rank: int = neutral(16, 16)
    lora_alpha: int = neutral(32, 32)
    lora_dropout: float = neutral(0.0, 0.0)
    lora_targets: str = neutral("all-linear", "all-linear")
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"  # adam couples weight decay into the gradient
    learning_rate: float = 2e-5
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    momentum: float = neutral(0.0, 0.0)  # sgd only
    clip_norm: float | None = None  # None: never clipped
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.01  # share of all steps
    epochs: float = 2.0
    max_steps: int | None = None  # optimiser steps; None: as many as `epochs` needs
    batch_size: int = 64  # sequences per optimiser step
    micro_batch_tokens: int = how(8192)  # tokens held at once; only the order of float sums depends on it
    dropout: float = neutral(0.0, 0.0)  # attention dropout of the model
    neftune_alpha: float = neutral(0.0, 0.0)  # uniform noise of +-alpha / sqrt(length * width) on embeddings
    # The compute type; master weights are float32. paper_bf16 alone keeps weights and optimiser in bfloat16,
    # as the published 1B to 3B runs did, where at 2e-5 most updates are below half a unit in the last place.
    precision: Literal["float32", "bfloat16", "paper_bf16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = how("auto")
    num_threads: int = how(1)  # torch threads of one run; two can be 20x slower than one on tiny models
    # The next seven change the order of float sums at most.
    head: Literal["auto", "triton", "eager", "naive"] = how("auto")  # who computes the loss; auto measures
    packing: Literal["auto", "on", "off"] = how("auto")  # rows end to end instead of padded
    activation_checkpointing: bool = how(False)  # layers are computed twice and held once
    compile: bool = how(False)  # torch.compile, layer by layer
    distributed: Literal["none", "ddp", "fsdp"] = how("none")  # copies of the model, or shards of it
    num_ranks: int = how(1)  # processes, on all nodes together; 1: as model.gpus and model.nodes say
    checkpoint_every_s: float = how(30.0)
    plane: str = how(
        "auto"
    )  # runs trained in one stack: off, at most so many, or as many as is measured fastest

    def __post_init__(self) -> None:
        check_positive("train.learning_rate", self.learning_rate)
        check_positive("train.epochs", self.epochs)
        check_positive("train.epsilon", self.epsilon)
        for name in ("batch_size", "micro_batch_tokens", "lora_rank", "num_threads", "num_ranks"):
            check_at_least(f"train.{name}", getattr(self, name), 1)
        if self.max_steps is not None:
            check_at_least("train.max_steps", self.max_steps, 1)
        if self.clip_norm is not None:
            check_positive("train.clip_norm", self.clip_norm)
        for name in ("warmup_ratio", "dropout", "lora_dropout", "beta1", "beta2", "momentum"):
            check_share(f"train.{name}", getattr(self, name))
        check_not_negative("train.weight_decay", self.weight_decay)
        check_not_negative("train.neftune_alpha", self.neftune_alpha)
        if self.num_ranks > 1 and self.distributed == "none":
            raise ConfigError(
                f"train.num_ranks={self.num_ranks} with train.distributed=none",
                "ddp or fsdp",
                "add train.distributed=ddp",
            )
        check_not_negative("train.checkpoint_every_s", self.checkpoint_every_s)
        if self.plane not in ("auto", "off") and (not self.plane.isdecimal() or int(self.plane) < 1):
            raise ConfigError(
                f"train.plane={self.plane}", "auto, off or a whole number", "set train.plane=auto"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is measured at the end of a run, always unweighted. Nothing here may depend on swept weights."""

    generate: bool = True  # greedy answers, where the dataset's rows carry a verifiable one
    max_new_tokens: int = 32
    batch_rows: int = how(64)
    # Public benchmarks: evaluations of their own, with identities of their own (`train.benchmarks.config`).
    benchmarks: Mapping[str, Any] = how({})  # name -> kind and settings
    aggregates: Mapping[str, tuple[str, ...]] = how({})  # name -> terms, see `train.benchmarks.aggregates`
    limit: int | None = how(None)  # items of each benchmark that doesn't say its own; None: all
    data: str | None = how(None)  # a folder laid out like the hub; None: the hub, or its cache
    punkt: str | None = how(None)  # a folder with nltk's tokenizers/punkt_tab, for IFEval
    add_bos: bool | None = how(None)  # before a benchmark's text; None: what the tokenizer itself does
    half_seed: int = how(0)  # which items of a benchmark may choose (validation), which only report (test)
    backend: Literal["hf", "vllm"] = how("hf")
    batch_tokens: int = how(16384)  # held at once while benchmarks are measured
    retrain: bool = how(False)  # train a run again whose weights weren't kept, to evaluate it
    judge: JudgeConfig = how(JudgeConfig())  # noqa: RUF009 - a frozen value; of benchmarks that are judged

    def __post_init__(self) -> None:
        check_at_least("eval.max_new_tokens", self.max_new_tokens, 1)
        check_at_least("eval.batch_rows", self.batch_rows, 1)
        check_at_least("eval.batch_tokens", self.batch_tokens, 1)
        if self.limit is not None:
            check_at_least("eval.limit", self.limit, 1)
        if self.benchmarks or self.aggregates:
            from train.benchmarks.aggregates import check_aggregates  # late: they stand on this module
            from train.benchmarks.config import benchmark_configs

            check_aggregates(self.aggregates, list(benchmark_configs(self.benchmarks)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Loss per target token by whose token it is; `train.objective` says what each setting means.

    The literature in these words (prompt, response, template weight; normalisation):
      conventional tuning  0, 1, 0; nonzero_count       continual pre-training  1, 1, 1; nonzero_count
      WIT                  p, r, 0; nonzero_count       Instruction Modelling   1, 1, 0; sequence_mean
      prompt-only          1, 0, 0; nonzero_count       prompt loss weight      p, 1, 0; completion_count
    """

    prompt_weight: float
    response_weight: float
    template_weight: float = neutral(0.0, 0.0)  # chat markers; 0 is Instruction Modelling's rule
    system_weight: float | None = neutral(None, None)  # None: as prompt tokens
    turns: Literal["all", "last"] = neutral("all", "all")  # last: only the last exchange has targets
    normalisation: Literal["nonzero_count", "weight_sum", "completion_count", "sequence_mean"] = neutral(
        "nonzero_count", "nonzero_count"
    )
    kl_weight: float = neutral(0.0, 0.0)  # of the divergence from the untouched model, over the same targets

    def __post_init__(self) -> None:
        for name in ("prompt_weight", "response_weight", "template_weight", "kl_weight"):
            check_not_negative(f"objective.{name}", getattr(self, name))
        if self.system_weight is not None:
            check_not_negative("objective.system_weight", self.system_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedsConfig:
    """Separate sources of chance. None: derived from the run's `seed`."""

    init: int | None = None  # LoRA adapters; full fine-tuning initialises nothing
    data_order: int | None = None
    dropout: int | None = None
    noise: int | None = neutral(None, None)  # of NEFTune


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """A mirror of the record. The null tracker is the default; secrets come from the environment only."""

    mode: Literal["none", "wandb_offline", "wandb", "trackio"] = "none"
    project: str = "weight-sweep"
    entity: str | None = None  # a W&B user or team; None: the API key's own
    tags: tuple[str, ...] = ()
    sweeps_ui: bool = False  # action=sync also lists the runs under W&B's own Sweeps

    def __post_init__(self) -> None:
        refused = sorted(set(self.project) & set("/\\#?%:"))
        if refused or not 0 < len(self.project) <= 128:
            raise ConfigError(
                f"tracking.project={self.project!r} is no name for a W&B project",
                "1 to 128 characters, none of / \\ # ? % :",
                "say tracking.project=my_project",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything one run needs to know. Two runs with equal identities are the same experiment."""

    # base: the untouched checkpoint, only evaluated. dpo: preference tuning of the sft run that all else says.
    # evaluate: benchmarks on a finished run of any of these.
    stage: Literal["sft", "base", "dpo", "evaluate"] = "sft"
    model: ModelConfig
    dataset: DatasetConfig
    train: RecipeConfig
    eval: EvalConfig
    objective: ObjectiveConfig
    seed: int
    seeds: SeedsConfig
    tracking: TrackingConfig = field(metadata={"identity": "how"})
    # No part of a supervised run; see train.fingerprint.
    preference: PreferenceConfig = how(PreferenceConfig())  # noqa: RUF009 - a frozen value
    dpo: DpoConfig = how(DpoConfig())  # noqa: RUF009 - a frozen value
    # Trained weights in the run's folder: none; until_dpo, until the runs that start from them are over; all.
    keep: Literal["none", "until_dpo", "all"] = how("none")

    def __post_init__(self) -> None:
        weights = (self.objective.prompt_weight, self.objective.response_weight)
        if self.stage not in ("base", "evaluate") and weights == (0.0, 0.0):
            raise ConfigError(
                "objective.prompt_weight=0 with objective.response_weight=0 trains nothing",
                "at least one weight above 0 (the untouched base model is measured with every grid)",
                "exclude the pair: exclude: [{prompt_weight: 0, response_weight: 0}]",
            )
        check_at_least("seed", self.seed, 0)
        self._check_ranks()

    @property
    def num_nodes(self) -> int:
        """Nodes that the run is spread over."""
        return self.model.nodes or 1

    @property
    def num_ranks(self) -> int:
        """Processes that train the run together, one for each device."""
        if self.train.distributed == "none":
            return 1
        return self.train.num_ranks if self.train.num_ranks > 1 else (self.model.gpus or 1) * self.num_nodes

    def _check_ranks(self) -> None:
        if self.num_nodes > 1 and self.train.distributed == "none":
            raise ConfigError(
                f"model.nodes={self.num_nodes} with train.distributed=none",
                "ddp or fsdp",
                "add train.distributed=fsdp",
            )
        if self.num_ranks % self.num_nodes:
            raise ConfigError(
                f"train.num_ranks={self.num_ranks} on model.nodes={self.num_nodes}",
                "as many ranks on each node",
                f"set train.num_ranks={self.num_nodes * (self.num_ranks // self.num_nodes + 1)}",
            )
        if self.stage == "dpo" and self.num_ranks > 1:
            raise ConfigError(
                f"stage=dpo on {self.num_ranks} ranks",
                "one process: preferences are tuned by TRL's trainer, which isn't divided among ranks here",
                "set train.num_ranks=1 and model.gpus=1; train=lora fits a large model on one device",
            )


def run_config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The typed configuration; ConfigError names key, value, expectation and the nearest right key."""
    return build(RunConfig, values, "")

"""The complete configuration of one run: names, types, units, defaults and checks. Standard library only.

A value that a scientist changes lives in conf/*.yaml; its type, unit and check live here, once. The classes are
frozen and double as the schema: `defaults_tree` gives Hydra its struct (so a misspelt key dies at
composition) and `run_config_from_dict` gives types and checks. House rule 3.4 wanted mutable dataclasses as
Hydra schemas; building the struct from frozen ones keeps values immutable and lets our own messages name the
key, its value and the nearest right one.

Each field says in its metadata how it takes part in a run's identity (see `train.fingerprint`):
  science            (default) changes the result; always in the fingerprint
  science, neutral   in the fingerprint unless it equals its neutral value: the behaviour from before the
                     setting existed. A new setting must declare one, so that adding it re-runs nothing.
  how                never changes the result: paths, devices, tracking, intervals
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from train.errors import ConfigError

MANDATORY = "???"  # OmegaConf's word for "no default: say it"


def how(default: Any) -> Any:
    """A field that never changes the result, and so never enters the fingerprint."""
    return field(default=default, metadata={"identity": "how"})


def neutral(default: Any, neutral_value: Any) -> Any:
    """A field left out of the fingerprint while it equals `neutral_value`."""
    return field(default=default, metadata={"identity": "science", "neutral": neutral_value})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A base checkpoint. Its identity is the content of its files (or its hub commit), not its name or path."""

    name: str = field(metadata={"identity": "how"})  # the label in tables and run ids
    source: Literal["embedded", "local", "hub"] = field(metadata={"identity": "how"})
    path: str | None = how(None)  # a folder (local) or an organisation/name (hub)
    revision: str | None = how(None)  # a commit hash; hub only. Enters the identity through the model's hash
    # raw | chat (the tokenizer's own) | tulu | chatml | a path to a Jinja file. Its text, not its path, enters
    # the identity, through the model's hash.
    template: str = how("raw")
    add_bos: bool | None = None  # None: what the tokenizer itself does
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.source != "embedded" and not self.path:
            what = "model.path=/folder/with/config.json" if self.source == "local" else "model.path=org/name"
            raise ConfigError(f"model.source={self.source} has no model.path", "a path", f"add {what}")


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

    def __post_init__(self) -> None:
        if self.source != "embedded" and not self.path:
            raise ConfigError(f"dataset.source={self.source} has no dataset.path", "a path",
                              "add dataset.path=/folder/data.jsonl")
        _check_at_least("dataset.max_tokens", self.max_tokens, 2)
        if self.num_train_rows is not None:
            _check_at_least("dataset.num_train_rows", self.num_train_rows, 1)
        for name in ("num_validation_rows", "num_test_rows", "num_robustness_rows"):
            _check_at_least(f"dataset.{name}", getattr(self, name), 0)
        _check_share("dataset.max_unusable_share", self.max_unusable_share)


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
    micro_batch_tokens: int = how(8192)  # padded tokens held at once; only the order of float sums depends on it
    dropout: float = neutral(0.0, 0.0)  # attention dropout of the model
    precision: Literal["float32", "bfloat16"] = "float32"  # compute type; master weights are always float32
    device: Literal["auto", "cpu", "cuda"] = how("auto")
    num_threads: int = how(1)  # torch threads of one run; two can be 20x slower than one on tiny models
    checkpoint_every_s: float = how(30.0)

    def __post_init__(self) -> None:
        _check_positive("train.learning_rate", self.learning_rate)
        _check_positive("train.epochs", self.epochs)
        _check_positive("train.epsilon", self.epsilon)
        for name in ("batch_size", "micro_batch_tokens", "lora_rank", "num_threads"):
            _check_at_least(f"train.{name}", getattr(self, name), 1)
        if self.max_steps is not None:
            _check_at_least("train.max_steps", self.max_steps, 1)
        if self.clip_norm is not None:
            _check_positive("train.clip_norm", self.clip_norm)
        for name in ("warmup_ratio", "dropout", "lora_dropout", "beta1", "beta2", "momentum"):
            _check_share(f"train.{name}", getattr(self, name))
        _check_not_negative("train.weight_decay", self.weight_decay)
        _check_not_negative("train.checkpoint_every_s", self.checkpoint_every_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is measured at the end of a run, always unweighted. Nothing here may depend on the swept weights."""

    generate: bool = True  # greedy answers, where the dataset's rows carry a verifiable one
    max_new_tokens: int = 32
    batch_rows: int = how(64)

    def __post_init__(self) -> None:
        _check_at_least("eval.max_new_tokens", self.max_new_tokens, 1)
        _check_at_least("eval.batch_rows", self.batch_rows, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The two weights of Weighted Instruction Tuning (arXiv 2507.07817, equation 3): loss per target token."""

    prompt_weight: float
    response_weight: float
    template_weight: float = neutral(0.0, 0.0)  # chat markers; 0 is Instruction Modelling's rule
    system_weight: float | None = neutral(None, None)  # None: as prompt tokens
    normalisation: Literal["nonzero_count"] = neutral("nonzero_count", "nonzero_count")

    def __post_init__(self) -> None:
        for name in ("prompt_weight", "response_weight", "template_weight"):
            _check_not_negative(f"objective.{name}", getattr(self, name))
        if self.system_weight is not None:
            _check_not_negative("objective.system_weight", self.system_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedsConfig:
    """Separate sources of chance. None: derived from the run's `seed`."""

    init: int | None = None  # LoRA adapters; full fine-tuning initialises nothing
    data_order: int | None = None
    dropout: int | None = None


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
            raise ConfigError(f"tracking.project={self.project!r} is no name for a W&B project",
                              "1 to 128 characters, none of / \\ # ? % :", "say tracking.project=my_project")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything one run needs to know. Two runs with equal identities are the same experiment."""

    stage: Literal["sft", "base"] = "sft"  # base: the untouched checkpoint, only evaluated
    model: ModelConfig
    dataset: DatasetConfig
    train: RecipeConfig
    eval: EvalConfig
    objective: ObjectiveConfig
    seed: int
    seeds: SeedsConfig
    tracking: TrackingConfig = field(metadata={"identity": "how"})

    def __post_init__(self) -> None:
        weights = (self.objective.prompt_weight, self.objective.response_weight)
        if self.stage == "sft" and weights == (0.0, 0.0):
            raise ConfigError(
                "objective.prompt_weight=0 with objective.response_weight=0 trains nothing",
                "at least one weight above 0 (the untouched base model is measured with every grid)",
                "exclude the pair: exclude: [{prompt_weight: 0, response_weight: 0}]",
            )
        _check_at_least("seed", self.seed, 0)


def run_config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The typed configuration; raises ConfigError naming key, value, expectation and the nearest right key."""
    return _build(RunConfig, values, "")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A plain tree of JSON values; `run_config_from_dict` is its inverse."""
    return {
        item.name: config_to_dict(value)
        if dataclasses.is_dataclass(value := getattr(config, item.name))
        else list(value) if isinstance(value, tuple) else value
        for item in dataclasses.fields(config)
    }


def defaults_tree(schema: type) -> dict[str, Any]:
    """The schema as a plain tree for Hydra: defaults filled in, MANDATORY where there is none."""
    hints = typing.get_type_hints(schema)
    tree: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[item.name]):
            tree[item.name] = defaults_tree(hints[item.name])
        else:
            default = MANDATORY if item.default is dataclasses.MISSING else item.default
            tree[item.name] = list(default) if isinstance(default, tuple) else default
    return tree


_HINTS: dict[type, dict[str, Any]] = {}  # get_type_hints costs 100 us a class; 10,000 cells ask 7 classes each


def build(schema: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Any of this project's frozen configuration classes from a plain tree; see `run_config_from_dict`."""
    return _build(schema, values, prefix)


def _build(schema: type, values: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the configuration'}={values!r} is not a group", "keys and values")
    hints = _HINTS.setdefault(schema, typing.get_type_hints(schema))
    names = [item.name for item in dataclasses.fields(schema)]
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), names, n=1)
            raise ConfigError(f"unknown key {prefix}{key}", f"one of {', '.join(names)}",
                              f"did you mean {prefix}{near[0]}?" if near else "")
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        hint = hints[item.name]
        if item.name not in values or values[item.name] == MANDATORY:
            if dataclasses.is_dataclass(hint) and item.name not in values:
                arguments[item.name] = _build(hint, {}, f"{prefix}{item.name}.")
            elif item.default is dataclasses.MISSING:
                raise ConfigError(f"{prefix}{item.name} is not set", _describe(hint), f"add {prefix}{item.name}=...")
        elif dataclasses.is_dataclass(hint):
            arguments[item.name] = _build(hint, values[item.name], f"{prefix}{item.name}.")
        else:
            arguments[item.name] = _convert(hint, values[item.name], prefix + item.name)
    return schema(**arguments)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as `hint` asks, or ConfigError. A whole float is a fine int, an int a fine float, a bool neither."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, key)
    if origin is Literal:
        if value in typing.get_args(hint) and not isinstance(value, bool):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            inner = typing.get_args(hint)[0]
            return tuple(_convert(inner, element, f"{key}[{index}]") for index, element in enumerate(value))
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
            raise ConfigError(f"{key}={value}", "a finite number", f"set {key} to a number")
    elif isinstance(value, str):
        return value
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # YAML reads a revision such as 1234567 as a number
    raise ConfigError(f"{key}={value!r} has the wrong type", _describe(hint), f"set {key} to such a value")


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _describe(option) for option in typing.get_args(hint))
    if origin is tuple:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))


def _check_at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key}={value}", f"a whole number of at least {least}", f"set {key}={least} or more")


def _check_positive(key: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{key}={value:g}", "a number above 0", f"set {key} above 0")


def _check_not_negative(key: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{key}={value:g}", "a number of at least 0", f"set {key}=0 or more")


def _check_share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{key}={value:g}", "a share from 0 to 1", f"set {key} between 0 and 1")

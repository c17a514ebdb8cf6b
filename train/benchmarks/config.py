"""What conf/eval/*.yaml says of benchmarks, typed and checked. Standard library only.

    benchmarks:
      ifeval: {kind: lm_eval, tasks: [ifeval], limit: null}
    aggregates:
      all_four: [ifeval.prompt_strict, ifeval.instruction_strict]

None of it is part of a run's identity: an evaluation has its own, made of the run's and of each protocol's
fingerprint (see `protocols`), so that a new protocol trains nothing again.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from train.benchmarks.judged_config import (
    JUDGED_KINDS,
    AlpacaEvalConfig,
    MtBenchConfig,
    PosixConfig,
    WordingsConfig,
    judge_identity,
)
from train.errors import ConfigError
from train.fingerprint import protocol_fingerprint
from train.metrics import MEASURES
from train.provenance import versions
from train.schema import Tree, build, check_at_least, config_to_dict

_LM_EVAL_VERSION = "0.4.13"  # what evaluations were made with when its version entered the protocol
BENCHMARK_VERSION = 1  # raise it when a change of code alters scores that the configuration can't show


@dataclass(frozen=True, kw_only=True, slots=True)
class LmEvalConfig:
    """Tasks of lm-evaluation-harness, by its own names (task, group or tag)."""

    kind: Literal["lm_eval"] = "lm_eval"
    tasks: tuple[str, ...] = ()
    # Our measure to "metric,filter" of lm-eval, whose filter is "none" unless its task says otherwise.
    metrics: Mapping[str, str] = field(default_factory=Tree)
    num_fewshot: int | None = None  # None: the task's own
    limit: int | None = None  # items over all tasks together, spread evenly; None: all
    max_new_tokens: int | None = None  # None: the task's own
    average: Literal["items", "tasks"] = "items"  # a mean over all items, or over the means of the tasks
    prompt: Literal["text", "template"] = "text"  # as it is, or as a user's message in model.template
    hub: tuple[str, ...] = ()  # the data sets it reads; () with eval.data: everything in that folder

    def __post_init__(self) -> None:
        _check(bool(self.tasks), "tasks=[]", "names of lm-eval tasks", "say tasks: [ifeval]")
        for measure in self.metrics:
            check_measure(measure)
        for name in ("limit", "max_new_tokens"):
            if (value := getattr(self, name)) is not None:
                check_at_least(name, value, 1)


# A kind of benchmark: its configuration, and the module with its `make_benchmark`.
KINDS: dict[str, tuple[type, str]] = {
    "lm_eval": (LmEvalConfig, "train.benchmarks.lm_eval_tasks"),
    "alpaca_eval": (AlpacaEvalConfig, "train.benchmarks.alpaca_eval"),
    "mt_bench": (MtBenchConfig, "train.benchmarks.mt_bench"),
    "posix": (PosixConfig, "train.benchmarks.posix"),
    "wordings": (WordingsConfig, "train.benchmarks.wordings"),
}


def benchmark_configs(benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """Each benchmark's typed configuration by name; ConfigError names the key, what is known and the nearest."""
    return {name: _typed(str(name), values) for name, values in benchmarks.items() if values is not None}


def _typed(name: str, values: Any) -> Any:
    place = f"eval.benchmarks.{name}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{place} is no name", "lower-case letters, digits and _", "rename it")
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        raise ConfigError(
            f"{place}.kind={kind}",
            f"one of {', '.join(KINDS)}",
            f"did you mean {near[0]}?" if near else "",
        )
    try:
        return build(KINDS[kind][0], values, f"{place}.")
    except ConfigError as error:
        if error.problem.startswith((place, "unknown")):
            raise
        raise ConfigError(f"{place}.{error.problem}", error.expected, error.fix) from None


def protocols(config: Any, data_identity: Mapping[str, str]) -> dict[str, str]:
    """The fingerprint of each benchmark's protocol by name. config: an EvalConfig.

    data_identity   of each benchmark that reads local files: the hash of what they hold.

    lm-eval's tasks change with its version, so another one is another protocol and never stands beside the first.
    """
    return {
        name: protocol_fingerprint(
            {
                "version": BENCHMARK_VERSION,
                "benchmark": name,  # halves are drawn by it
                "config": {
                    key: value
                    for key, value in config_to_dict(benchmark).items()
                    if key not in ("hub", "path") and value is not None
                },
                **(_lm_eval_version() if benchmark.kind == "lm_eval" else {}),
                **({"judge": judge_identity(config.judge)} if benchmark.kind in JUDGED_KINDS else {}),
                "limit": effective_limit(benchmark, config.limit),
                "add_bos": config.add_bos,
                "half_seed": config.half_seed,
                "data": data_identity.get(name, "hub"),
            }
        )
        for name, benchmark in benchmark_configs(config.benchmarks).items()
    }


def _lm_eval_version() -> dict[str, str]:
    """Of what is installed; nothing for the first version, and where none is, such as where reports are read."""
    version = versions(("lm_eval",))["lm_eval"]
    return {} if version in (_LM_EVAL_VERSION, "absent") else {"lm_eval": version}


def evaluation_fingerprint(
    run_fingerprint: str, protocols: Mapping[str, str], aggregates: Mapping[str, Sequence[str]]
) -> str:
    """32 hexadecimal digits naming one run measured under these protocols."""
    averaged = {name: list(terms) for name, terms in aggregates.items()}
    return protocol_fingerprint(
        {"evaluation": run_fingerprint, "protocols": dict(protocols), "aggregates": averaged}
    )


def effective_limit(benchmark: Any, limit: int | None) -> int | None:
    """A benchmark's own limit, or that of all."""
    own = getattr(benchmark, "limit", None)
    return limit if own is None else own


def check_measure(measure: str) -> None:
    """ConfigError unless the measure has a unit and a direction here."""
    if measure not in MEASURES:
        near = difflib.get_close_matches(measure, MEASURES, n=2, cutoff=0.4)
        raise ConfigError(
            f"unknown measure {measure}",
            "a measure of train/metrics.py",
            f"did you mean {' or '.join(near)}?" if near else "",
        )


def _check(is_right: bool, what: str, expected: str, fix: str) -> None:
    if not is_right:
        raise ConfigError(what, expected, fix)

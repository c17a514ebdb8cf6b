"""Every number a run may report: its name, unit and direction. A number that isn't listed here isn't reported.

A metric is a measure on a split: `validation_response_nll`; of a benchmark, `validation_mmlu.accuracy`, where the
benchmark's name is the configuration's. Selection uses validation metrics only; test metrics, and those over all
items (`all_mmlu.accuracy`, which papers print), are for the report.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

SPLITS = ("validation", "test", "robustness")
BENCHMARK_SPLITS = ("validation", "test", "all")


@dataclass(frozen=True, slots=True)
class Metric:
    """`better` is "none" for numbers that describe a run but can't rank it."""

    name: str
    unit: str
    better: Literal["higher", "lower", "none"]
    title: str  # for people: figure and table headings


_MEASURES = (
    Metric("exact_answer", "share of rows", "higher", "exact answers"),
    Metric("constraint_adherence", "share of rows with a constraint", "higher", "constraint adherence"),
    Metric("response_nll", "nats/token", "lower", "response nll"),
    Metric("prompt_nll", "nats/token", "lower", "prompt nll"),
    Metric("response_bits_per_byte", "bits/byte", "lower", "response bits per byte"),
    Metric("prompt_bits_per_byte", "bits/byte", "lower", "prompt bits per byte"),
    Metric("empty_output_rate", "share of rows", "lower", "empty outputs"),
    Metric("truncated_output_rate", "share of rows", "lower", "outputs cut at max_new_tokens"),
    Metric("mean_output_tokens", "tokens", "none", "mean output length"),
    Metric("preference_accuracy", "share of pairs", "higher", "better answer likelier"),
    Metric("parent_preference_accuracy", "share of pairs", "none", "better answer likelier in the parent"),
    Metric("reward_accuracy", "share of pairs", "higher", "better answer rewarded"),
    Metric("reward_margin", "nats, times beta", "higher", "reward margin"),
)

# What a benchmark may measure beyond these. lm-eval's own names, where it has one (acc is accuracy).
_BENCHMARK_MEASURES = (
    Metric("mean", "share", "higher", "mean over benchmarks"),
    Metric("accuracy", "share of items", "higher", "accuracy"),
    Metric("normalised_accuracy", "share of items", "higher", "accuracy, normalised by length"),
    Metric("exact_match", "share of items", "higher", "exact match"),
    Metric("f1", "share", "higher", "F1"),
    Metric("pass_at_1", "share of items", "higher", "pass@1"),
    Metric("truthful_probability", "share", "higher", "probability of true answers"),
    Metric("translation_edit_rate", "edits/reference word", "lower", "translation edit rate"),
    Metric("perplexity", "perplexity", "lower", "perplexity"),
    Metric("prompt_strict", "share of prompts", "higher", "prompts obeyed, strict"),
    Metric("prompt_loose", "share of prompts", "higher", "prompts obeyed, loose"),
    Metric("instruction_strict", "share of instructions", "higher", "instructions obeyed, strict"),
    Metric("instruction_loose", "share of instructions", "higher", "instructions obeyed, loose"),
    Metric("win_rate", "share of prompts", "higher", "win rate"),
    Metric("discrete_win_rate", "share of prompts", "higher", "prompts won"),
    Metric("length_controlled_win_rate", "share of prompts", "higher", "length-controlled win rate"),
    Metric("rating", "rating of 1 to 10", "higher", "judge's rating"),
    Metric("first_turn_rating", "rating of 1 to 10", "higher", "judge's rating, first turn"),
    Metric("second_turn_rating", "rating of 1 to 10", "higher", "judge's rating, second turn"),
    Metric("unjudged_rate", "share of judgements", "lower", "failed or unreadable judgements"),
    Metric("position_consistency", "share of prompts", "none", "same verdict in both orders"),
    Metric("cut_prompt_rate", "share of items", "lower", "prompts longer than the context"),
    Metric("prompt_sensitivity", "nats/token", "lower", "POSIX"),
)

METRICS: Mapping[str, Metric] = {
    f"{split}_{measure.name}": Metric(
        f"{split}_{measure.name}", measure.unit, measure.better, f"{measure.title} ({split})"
    )
    for split in SPLITS
    for measure in _MEASURES
}

MEASURES: Mapping[str, Metric] = {measure.name: measure for measure in (*_MEASURES, *_BENCHMARK_MEASURES)}

# What selects the best weights, in order of preference: what was asked to be averaged over benchmarks, answers
# people want, then likelihoods.
SELECTION_PREFERENCE = ("validation_exact_answer", "validation_response_nll")

_DYNAMIC = re.compile(rf"({'|'.join(BENCHMARK_SPLITS)})_([a-z][a-z0-9_]*)\.([a-z0-9_]+)")


def metric(name: str) -> Metric:
    """The metric called `name`; KeyError for a number nobody may report."""
    if name in METRICS:
        return METRICS[name]
    match = _DYNAMIC.fullmatch(name)
    if match is None:
        raise KeyError(name)
    split, benchmark, measure = match.groups()
    known = MEASURES[measure]
    where = "all items" if split == "all" else split
    return Metric(name, known.unit, known.better, f"{benchmark} {known.title} ({where})")


def is_metric(name: str) -> bool:
    """Whether a run may report a number of that name."""
    try:
        metric(name)
    except KeyError:
        return False
    return True


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The reportable ones among `names`: those of the dataset in the order above, then benchmarks' by name."""
    found = set(names)
    rest = sorted(name for name in found - set(METRICS) if is_metric(name))
    return (*(name for name in METRICS if name in found), *rest)


def is_selectable(name: str) -> bool:
    """Whether the metric may choose weights: validation, and with a direction."""
    return name.startswith("validation_") and is_metric(name) and metric(name).better != "none"


def selection_metric(available: Iterable[str]) -> Metric | None:
    """The first preferred validation metric among `available`; None if there is none."""
    names = ordered(available)
    means = [name for name in names if name.startswith("validation_") and name.endswith(".mean")]
    return next((metric(name) for name in (*means, *SELECTION_PREFERENCE) if name in names), None)

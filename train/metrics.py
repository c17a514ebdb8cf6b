"""Every number a run may report: its name, unit and direction. A number that isn't listed here isn't reported.

A metric is a measure on a split: `validation_response_nll`. Selection uses validation metrics only; test
metrics are for the report.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

SPLITS = ("validation", "test", "robustness")


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

METRICS: Mapping[str, Metric] = {
    f"{split}_{measure.name}": Metric(
        f"{split}_{measure.name}", measure.unit, measure.better, f"{measure.title} ({split})"
    )
    for split in SPLITS
    for measure in _MEASURES
}

# What selects the best weights, in order of preference: answers people want before likelihoods.
SELECTION_PREFERENCE = ("validation_exact_answer", "validation_response_nll")


def metric(name: str) -> Metric:
    """The metric called `name`; KeyError for a number nobody may report."""
    return METRICS[name]


def selection_metric(available: Iterable[str]) -> Metric | None:
    """The first preferred validation metric among `available`; None if there is none."""
    names = set(available)
    return next((METRICS[name] for name in SELECTION_PREFERENCE if name in names), None)

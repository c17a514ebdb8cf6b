"""Averages over benchmarks that say what they average: higher is better, on the scale of a share, all there.

    five: [mmlu.exact_match, bbh.exact_match, ifeval.instruction_strict, alpaca_eval.win_rate, mt_bench.rating/10]
    nlp: [understanding.mean, 1-multilinguality.mean]

A term is BENCHMARK.MEASURE or AGGREGATE.mean; `/10` brings a rating of 1 to 10 to the scale of a share, and `1-`
turns what is better lower. Without it such a term is refused: measures of different direction never average
silently. An average of k terms is their sum over k: with a term absent it is absent.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.errors import ConfigError
from train.items import Score
from train.metrics import MEASURES

_TERM = re.compile(r"(1-)?([a-z][a-z0-9_]*)\.([a-z0-9_]+)(/10)?")


@dataclass(frozen=True, slots=True)
class Term:
    """One summand. value: (1 -) score (/ 10)."""

    benchmark: str
    measure: str
    is_flipped: bool
    divisor: float

    @property
    def name(self) -> str:
        return f"{self.benchmark}.{self.measure}"


def check_aggregates(
    aggregates: Mapping[str, Sequence[str]], benchmarks: Sequence[str]
) -> dict[str, list[Term]]:
    """The terms by aggregate, in an order in which each stands after those that it is made of; ConfigError."""
    terms = {
        name: [_term(name, text, benchmarks, aggregates) for text in texts]
        for name, texts in aggregates.items()
    }
    done: dict[str, list[Term]] = {}
    while len(done) < len(terms):
        ready = [
            name
            for name in terms
            if name not in done
            and all(term.benchmark in done or term.benchmark in benchmarks for term in terms[name])
        ]
        if not ready:
            left = ", ".join(name for name in terms if name not in done)
            raise ConfigError(
                f"eval.aggregates {left} are made of each other", "no circle", "take one term out"
            )
        done |= {name: terms[name] for name in ready}
    return done


def aggregate_scores(
    aggregates: Mapping[str, Sequence[Term]], scores: Mapping[str, Score]
) -> dict[str, Score]:
    """AGGREGATE.mean -> score, of one split. scores: by BENCHMARK.MEASURE.

    The standard error takes the benchmarks for independent samples of items.
    """
    known = dict(scores)
    for name, terms in aggregates.items():
        found = [known.get(term.name) for term in terms]
        present = [score for score in found if score is not None]
        if len(present) < len(terms) or not terms:
            continue
        values = [
            (1 - score.mean if term.is_flipped else score.mean) / term.divisor
            for term, score in zip(terms, present, strict=True)
        ]
        errors = [
            math.nan if score.standard_error is None else score.standard_error / term.divisor
            for term, score in zip(terms, present, strict=True)
        ]
        error = math.sqrt(sum(one**2 for one in errors)) / len(terms)
        known[f"{name}.mean"] = Score(
            sum(values) / len(values),
            None if math.isnan(error) else error,
            sum(score.num_items for score in present),
            sum(score.num_clusters for score in present),
        )
    return {f"{name}.mean": known[f"{name}.mean"] for name in aggregates if f"{name}.mean" in known}


def _term(name: str, text: str, benchmarks: Sequence[str], aggregates: Mapping[str, Sequence[str]]) -> Term:
    place = f"eval.aggregates.{name}"
    match = _TERM.fullmatch(text)
    if match is None:
        raise ConfigError(f"{place} has the term {text}", "BENCHMARK.MEASURE", "such as mmlu.accuracy")
    flip, benchmark, measure, divide = match.groups()
    known = [*benchmarks, *aggregates]
    if benchmark not in known or (benchmark in aggregates and measure != "mean"):
        near = difflib.get_close_matches(benchmark, known, n=1)
        raise ConfigError(
            f"{place} has the term {text}, of no benchmark",
            f"one of {', '.join(known)}",
            f"did you mean {near[0]}?" if near else "",
        )
    if measure not in MEASURES:
        near = difflib.get_close_matches(measure, MEASURES, n=2, cutoff=0.4)
        raise ConfigError(
            f"{place} has the term {text}, of no measure",
            "a measure of train/metrics.py",
            f"did you mean {' or '.join(near)}?" if near else "",
        )
    _check_scale(place, text, measure, bool(flip), bool(divide))
    return Term(benchmark, measure, bool(flip), 10.0 if divide else 1.0)


def _check_scale(place: str, text: str, measure: str, is_flipped: bool, is_divided: bool) -> None:
    known = MEASURES[measure]
    is_rating = known.unit.startswith("rating")
    is_share = known.unit.startswith("share") or measure == "translation_edit_rate"
    if is_rating != is_divided or not (is_share or is_rating):
        raise ConfigError(
            f"{place} has the term {text}, in {known.unit}",
            "shares only; a rating of 1 to 10 divided by 10",
            f"say {text}/10"
            if is_rating
            else f"say {text.removesuffix('/10')}"
            if is_share
            else "take it out",
        )
    wanted = "lower" if is_flipped else "higher"
    if known.better != wanted:
        raise ConfigError(
            f"{place} has the term {text}, of which {known.better} is better"
            if known.better != "none"
            else f"{place} has the term {text}, which has no direction",
            "terms of which higher is better",
            f"say 1-{text}" if known.better == "lower" else f"say {text.removeprefix('1-')}",
        )

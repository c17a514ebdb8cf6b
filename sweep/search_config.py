"""What proposes runs, as a configuration: group `search` of conf/, its types, defaults and checks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweep.axes import GROUP_AXES, configuration_keys, did_you_mean
from train.config import RunConfig, defaults_tree
from train.errors import ConfigError
from train.schema import build, check_at_least

RATIO = "ratio"  # prompt weight / response weight, the one axis of the plane where scale doesn't matter
LOG_FACTOR = 10.0  # a range that spans this much is searched on a logarithmic scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """An axis to search between two ends, both included. ratio: high may be infinite (prompt only)."""

    axis: str
    low: float
    high: float
    is_whole: bool = False

    @property
    def is_log(self) -> bool:
        """Whether equal factors, not equal steps, are equally likely."""
        return self.axis != RATIO and self.low > 0 and self.high / self.low >= LOG_FACTOR


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Who proposes runs, and how far. conf/search/*.yaml say which values suit.

    kind: none trains every cell of the grid; the others take its cells for candidates.
    metrics: validation metrics; none: the one that the report prefers; two: the trade-off between them.
    max_runs: trained runs of one plane, the pilot design included; None: as many as the grid would take.
    at_once: asked and not yet trained, at most; None: as many as there are workers, up to five.
    ahead: runs asked for beyond those workers, so that none of them waits.
    epsilon: a loss in the metric's own unit that doesn't matter; None: the analysis's.
    confidence: P(regret <= epsilon) at which the region counts as known.
    rungs: shares of a run's steps at which it is measured and the better `keep` of the cells go on; the others
    pause. exhaustive: no run pauses, paused ones go on, and every cell of the grid is trained.
    """

    kind: Literal["none", "adaptive", "gp", "tpe"] = "none"
    metrics: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()
    pilot_runs: int = 5
    max_runs: int | None = None
    at_once: int | None = None
    ahead: int = 1
    epsilon: float | None = None
    confidence: float = 0.9
    seed: int = 0
    rungs: tuple[float, ...] = ()
    keep: float = 0.5
    exhaustive: bool = False

    @property
    def is_on(self) -> bool:
        """Whether anything is proposed."""
        return self.kind != "none"

    @property
    def has_stops(self) -> bool:
        """Whether runs may pause."""
        return bool(self.rungs) and not self.exhaustive

    def __post_init__(self) -> None:
        check_at_least("search.pilot_runs", self.pilot_runs, 2)
        check_at_least("search.ahead", self.ahead, 0)
        check_at_least("search.seed", self.seed, 0)
        if self.at_once is not None:
            check_at_least("search.at_once", self.at_once, 1)
        if self.max_runs is not None and self.max_runs < self.pilot_runs:
            raise ConfigError(
                f"search.max_runs={self.max_runs} is below the pilot design of {self.pilot_runs} runs",
                "a budget that leaves something to search",
                f"set search.max_runs={2 * self.pilot_runs} or more",
            )
        if self.epsilon is not None and not self.epsilon > 0:
            raise ConfigError(
                f"search.epsilon={self.epsilon:g}", "a loss above 0, in the metric's unit", "set it to null"
            )
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"search.confidence={self.confidence:g}",
                "a probability from 0.5 to below 1",
                "set search.confidence=0.9",
            )
        if len(self.metrics) > 2:
            raise ConfigError(
                f"search.metrics={list(self.metrics)}", "one metric, or two", "leave out the others"
            )
        if not 0 < self.keep < 1:
            raise ConfigError(f"search.keep={self.keep:g}", "a share between 0 and 1", "set search.keep=0.5")
        if any(not 0 < share < 1 for share in self.rungs) or list(self.rungs) != sorted(set(self.rungs)):
            raise ConfigError(
                f"search.rungs={list(self.rungs)}",
                "rising shares of a run between 0 and 1",
                "say search.rungs=[0.25,0.5]",
            )
        _check_kind(self)


def _check_kind(search: SearchConfig) -> None:
    if search.ranges and not search.is_on:
        raise ConfigError("search.ranges with search=none", "a search", "say search=adaptive")
    others = [found.axis for found in search.ranges if found.axis != RATIO]
    if search.kind == "adaptive" and others:
        raise ConfigError(
            f"search=adaptive over {others[0]}",
            "the two weights, whose surface it knows",
            "say search=gp, or put the values into grid.axes",
        )
    if search.kind == "adaptive" and search.has_stops:
        raise ConfigError(
            "search=adaptive with search.rungs",
            "runs that are measured at the same step",
            "say search=none or search=tpe with rungs",
        )


def search_config_from_dict(values: Mapping[str, Any]) -> SearchConfig:
    """The typed search; ConfigError says what is wrong."""
    ranges = values.get("ranges") or {}
    if not isinstance(ranges, Mapping):
        raise ConfigError(
            f"search.ranges={ranges!r}", "axes and their two ends", "say 'search.ranges={ratio: [0, 2]}'"
        )
    plain = {key: value for key, value in values.items() if key != "ranges"}
    for key in ("metrics", "rungs"):
        value = plain.get(key)
        plain[key] = [] if value is None else value if isinstance(value, list | tuple) else [value]
    flat = dict(_flat(ranges))
    found = build(SearchConfig, plain, "search.")
    names = [f"{axis}" for axis in flat]
    parsed = tuple(_range(axis, flat[axis]) for axis in names)
    return SearchConfig(
        **{name: getattr(found, name) for name in SearchConfig.__dataclass_fields__ if name != "ranges"},
        ranges=parsed,
    )


def _flat(ranges: Mapping[str, Any], prefix: str = ""):
    """search.ranges.train.learning_rate=[...] makes a tree; a file may say the full key at once."""
    for key, value in ranges.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _range(axis: str, ends: Any) -> Range:
    place = f"search.ranges.{axis}"
    known = [key for key in configuration_keys() if key.split(".")[0] in ("train", "objective", "dataset")]
    known = [key for key in known if key not in ("objective.prompt_weight", "objective.response_weight")]
    if axis != RATIO and (axis not in known or axis in GROUP_AXES):
        raise ConfigError(
            f"search.ranges names {axis}, which can't be searched",
            "ratio (of prompt to response weight) or a full key such as train.learning_rate",
            did_you_mean(axis, [RATIO, *known]),
        )
    pair = [_number(end) for end in ends] if isinstance(ends, list | tuple) else []
    low, high = pair if len(pair) == 2 else (math.nan, math.nan)
    is_finite = math.isfinite(low) and (math.isfinite(high) or (axis == RATIO and high == math.inf))
    if not is_finite:
        raise ConfigError(f"{place}={ends!r}", "two numbers, the lower one first", f"say {place}=[0, 2]")
    if low >= high:
        raise ConfigError(
            f"{place}=[{low:g}, {high:g}] is reversed or empty",
            "the lower end first",
            f"say {place}=[{high:g}, {low:g}]" if low > high else f"leave it out, and set {axis}={low:g}",
        )
    if axis == RATIO and low < 0:
        raise ConfigError(
            f"{place}=[{low:g}, {high:g}]", "ratios of at least 0", f"say {place}=[0, {high:g}]"
        )
    return Range(axis=axis, low=low, high=high, is_whole=_is_whole(axis))


def _is_whole(axis: str) -> bool:
    value: Any = {RATIO: 0.0} if axis == RATIO else defaults_tree(RunConfig)
    for name in axis.split("."):
        value = value[name]
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan

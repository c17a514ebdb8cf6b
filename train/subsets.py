"""Subsets of a training set: by number, by share of each source, by length ratio, by score. Pure and seeded.

A subset is taken from the *training* rows, after validation and test rows were set aside: every size and
every ratio is measured on the same held-out rows. A larger subset of one seed contains the smaller one, so a
curve over sizes adds rows and never swaps them.

Lengths count white-space words and one role tag a message, as Table 5 of Instruction Modelling does (found by
computation: its figures for LIMA and both Alpagasus sets come out to the last digit).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from train.errors import ConfigError, DataError
from train.schema import check_at_least, check_not_negative, check_positive, check_share, how, neutral

if TYPE_CHECKING:
    from train.rows import Row

NUM_CLOSEST = 3000  # rows of a length-ratio subset where num_examples is null: Instruction Modelling's number


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetConfig:
    """Which training rows to keep; all null: every row. Each key is an axis: dataset.subset.share, ..."""

    num_examples: int | None = neutral(None, None)
    share: float | None = neutral(None, None)  # of the training rows, where num_examples is null
    by_source: bool = neutral(
        False, False
    )  # the number or the share is a quota of each source (the rows' "dataset")
    order: Literal["random", "file"] = neutral("random", "random")  # file: first come, first served
    length_ratio: float | None = neutral(
        None, None
    )  # the rows whose instruction/output ratio is closest to it
    # With length_ratio: so many closest rows are the pool from which num_examples are drawn at random.
    # Without it, a larger subset drifts further from the ratio, and a curve over sizes would mix the two.
    pool_size: int | None = neutral(None, None)
    # A file with a number for each row of the dataset (see train.scores): what a judge or a method thinks of it.
    # Its content enters the identity, through the dataset's hash. What follows is applied before all else.
    scores: str | None = how(None)
    min_score: float | None = neutral(None, None)  # rows rated so high or higher: Alpagasus
    top_share: float | None = neutral(None, None)  # of the scored training rows, the best; rounded down: LESS
    seed: int = neutral(0, 0)  # of the random order, and among equal scores

    def __post_init__(self) -> None:
        for name in ("num_examples", "pool_size"):
            if (value := getattr(self, name)) is not None:
                check_at_least(f"dataset.subset.{name}", value, 1)
        if self.share is not None:
            check_share("dataset.subset.share", self.share)
            check_positive("dataset.subset.share", self.share)
        if self.length_ratio is not None:
            check_not_negative("dataset.subset.length_ratio", self.length_ratio)
        if self.top_share is not None:
            check_share("dataset.subset.top_share", self.top_share)
            check_positive("dataset.subset.top_share", self.top_share)
        check_at_least("dataset.subset.seed", self.seed, 0)

    @property
    def is_everything(self) -> bool:
        """Whether no row is left out."""
        return not self.uses_scores and self._takes_all

    @property
    def uses_scores(self) -> bool:
        """Whether the scores decide anything."""
        return self.min_score is not None or self.top_share is not None

    @property
    def scores_file(self) -> Path:
        """Where the scores are; ConfigError if nobody said."""
        if self.scores is None:
            name, value = next(
                (name, value)
                for name in ("min_score", "top_share")
                if (value := getattr(self, name)) is not None
            )
            raise ConfigError(
                f"dataset.subset.{name}={value:g} without scores",
                "a file with a score for each row",
                "add dataset.subset.scores=FILE",
            )
        return Path(self.scores)

    @property
    def _takes_all(self) -> bool:
        return self.num_examples is None and self.share is None and self.length_ratio is None


def subset_rows(
    rows: "Sequence[Row]",
    config: SubsetConfig,
    file_order: Sequence[str],
    scores: Mapping[str, float] | None = None,
) -> "tuple[Row, ...]":
    """The rows of the subset, in the order they came in.

    file_order   row ids as the file has them; only order="file" reads it.
    scores       by row id; rows without one aren't chosen where scores decide.
    Raises       DataError where more rows are asked for than there are.
    Source       Instruction Modelling, arXiv 2405.14394, section 4.3: 3,000 rows of Tulu V2 closest to a
                 ratio of 5, 10 or 15; 1,000 to 35,000 rows at a ratio of 10; quotas by source in file order.
    Differs      Its samples are unseeded, so they can't be drawn again; ours are.
    """
    if config.uses_scores:
        rows = best_rows(rows, config, scores or {})
    if config._takes_all:
        return tuple(rows)
    number = _number(len(rows), config)
    if config.length_ratio is not None:
        ranked = sorted(
            rows, key=lambda row: (_distance(row, config.length_ratio or 0.0), _place(config.seed, row))
        )
        pool = ranked[: config.pool_size or number]
        _check_enough(len(pool), number, "dataset.subset.pool_size" if config.pool_size else "training rows")
        chosen = sorted(pool, key=lambda row: _place(config.seed, row))[:number]
    else:
        positions = {row_id: place for place, row_id in enumerate(file_order)}
        ranked = sorted(
            rows,
            key=(lambda row: (positions[row.row_id], b""))
            if config.order == "file"
            else (lambda row: (0, _place(config.seed, row))),
        )
        chosen = _by_source(ranked, number) if config.by_source else ranked[:number]
    kept = {row.row_id for row in chosen}
    return tuple(row for row in rows if row.row_id in kept)


def best_rows(rows: "Sequence[Row]", config: SubsetConfig, scores: Mapping[str, float]) -> "tuple[Row, ...]":
    """The rows of at least min_score, and of those the top_share of all that have a score, in their order.

    Raises   DataError where none is left.
    Source   AlpaGasus, arXiv 2307.08701: a judge's rating of at least 4.5; LESS, arXiv 2402.04333: the best
             5 % by influence, int(0.05 n) rows as its code has it.
    Differs  Both choose from all rows; here validation and test rows were set aside before, unseen by scores.
    """
    scored = [row for row in rows if row.row_id in scores]
    kept = [row for row in scored if config.min_score is None or scores[row.row_id] >= config.min_score]
    if config.top_share is not None:
        ranked = sorted(kept, key=lambda row: (-scores[row.row_id], _place(config.seed, row)))
        kept = ranked[: num_best(len(scored), config.top_share)]
    if not kept:
        highest = max((scores[row.row_id] for row in scored), default=math.nan)
        raise DataError(
            f"dataset.subset keeps none of {len(rows)} training rows ({len(scored)} have a score, "
            f"the highest is {highest:g})",
            "a score that some rows reach",
            "lower dataset.subset.min_score, or raise dataset.subset.top_share",
        )
    chosen = {row.row_id for row in kept}
    return tuple(row for row in rows if row.row_id in chosen)


def num_best(num_rows: int, share: float) -> int:
    """A share of so many rows, rounded down; 0.29 of 100 is 29 whatever a float makes of it."""
    return math.floor(share * num_rows + 1e-9)


def quotas(sizes: Mapping[str, int], number: int) -> dict[str, int]:
    """`number` divided among sources in proportion to their sizes, by largest remainders."""
    total = sum(sizes.values())
    exact = {source: number * size / total for source, size in sizes.items()}
    shares = {source: math.floor(value) for source, value in exact.items()}
    by_remainder = sorted(sizes, key=lambda source: (shares[source] - exact[source], source))
    for source in by_remainder[: number - sum(shares.values())]:
        shares[source] += 1
    return shares


def num_words(row: "Row") -> tuple[int, int]:
    """White-space words of instruction, system message included, and of output; one role tag a message."""
    counts = {True: 0, False: 0}
    for message in row.messages:
        counts[message.role == "assistant"] += len(message.content.split()) + 1
    return counts[False], counts[True]


def length_ratio(row: "Row") -> float:
    """Instruction words per output word. The role tags keep it finite."""
    instruction, output = num_words(row)
    return instruction / output


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """A row of Instruction Modelling's Table 5. Units: words a row, role tags included; ratio of means."""

    size: int
    total: float
    output: float
    output_sd: float  # of the population, as the table has it
    instruction: float
    instruction_sd: float

    @property
    def ratio(self) -> float:
        """Mean instruction words per mean output word."""
        return self.instruction / self.output


def word_statistics(rows: "Sequence[Row]") -> WordStatistics:
    """What Table 5 says of a dataset; `rows` isn't empty."""
    pairs = [num_words(row) for row in rows]
    instruction, instruction_sd = _mean_and_sd([first for first, _ in pairs])
    output, output_sd = _mean_and_sd([second for _, second in pairs])
    return WordStatistics(len(pairs), instruction + output, output, output_sd, instruction, instruction_sd)


def _number(num_rows: int, config: SubsetConfig) -> int:
    if config.num_examples is not None:
        number = config.num_examples
    elif config.share is not None:
        return max(1, round(config.share * num_rows))
    else:
        number = NUM_CLOSEST
    _check_enough(num_rows, number, "training rows")
    return number


def _check_enough(available: int, number: int, what: str) -> None:
    if number > available:
        raise DataError(
            f"dataset.subset asks for {number} rows of {available}",
            f"at most as many as {what}",
            f"set dataset.subset.num_examples={available} or less",
        )


def _by_source(ranked: "list[Row]", number: int) -> "list[Row]":
    sizes: dict[str, int] = {}
    for row in ranked:
        sizes[row.source] = sizes.get(row.source, 0) + 1
    left = quotas(sizes, number)
    chosen = []
    for row in ranked:
        if left[row.source]:
            left[row.source] -= 1
            chosen.append(row)
    return chosen


def _distance(row: "Row", wanted: float) -> float:
    return abs(length_ratio(row) - wanted)


def _place(seed: int, row: "Row") -> bytes:
    """A row's place in the random order: a function of its content, so that the file's order is none."""
    content = json.dumps([[message.role, message.content] for message in row.messages])
    return hashlib.sha256(f"subset\n{seed}\n{content}\n{row.row_id}".encode()).digest()


def _mean_and_sd(values: Sequence[int]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))

"""How many runs are trained at once, as a value: the ways that were measured, and which of them wins. Pure."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.config import RunConfig

CLEAR = 1.02  # times as fast as alone, in every turn


@dataclass(frozen=True, slots=True, order=True)
class Way:
    """So many runs in one stack, each in micro-batches of so many tokens; 0: of as many as the recipe says."""

    size: int
    tokens: int = 0

    def __str__(self) -> str:
        return f"{self.size}x{self.tokens}" if self.tokens else str(self.size)

    def applied(self, config: RunConfig) -> RunConfig:
        """What a run of such a stack is trained with."""
        if not self.tokens:
            return config
        recipe = dataclasses.replace(config.train, micro_batch_tokens=self.tokens)
        return dataclasses.replace(config, train=recipe)


def way_of(text: str) -> Way:
    """The inverse of `str`."""
    size, _, tokens = text.partition("x")
    return Way(int(size), int(tokens or 0))


@dataclass(frozen=True, slots=True)
class Choice:
    """So many runs in one stack, why, and what was measured by way: seconds of a step and run.

    micro_batch_tokens   of each run of a stack; 0: the recipe's
    step_tokens          of a run, in the step that was measured
    """

    size: int
    why: str
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    micro_batch_tokens: int = 0
    step_tokens: int = 0

    @property
    def way(self) -> Way:
        """Of its stacks."""
        return Way(self.size, self.micro_batch_tokens)

    def described(self, size: int) -> dict[str, Any]:
        """For the record of a run that was trained in a stack of `size`."""
        found: dict[str, Any] = {"runs": size, "why": self.why}
        if self.micro_batch_tokens and size > 1:
            found["micro_batch_tokens"] = self.micro_batch_tokens
        if self.seconds:
            found["seconds_per_run_and_step"] = dict(self.seconds)
        if self.seconds and self.step_tokens:
            found["tokens_per_s"] = {way: self.step_tokens / value for way, value in self.seconds.items()}
        return found


def decided(turns: Mapping[Way, Sequence[float]], most: int) -> Choice:
    """The way that won all its turns by the most, for `most` runs at most.

    turns   seconds of a step and run in each turn, the first of every way beside each other; none for a way that
            didn't fit in memory
    """
    alone = turns[Way(1)]
    gains = {
        way: [one / other for one, other in zip(alone, seconds, strict=True)]
        for way, seconds in turns.items()
        if way.size > 1 and seconds
    }
    seconds = {str(way): statistics.median(values) for way, values in turns.items() if values}
    clear = {way: statistics.median(gain) for way, gain in gains.items() if min(gain) >= CLEAR}

    def taken(size: int, way: Way) -> Choice:
        held = f", each in micro-batches of {way.tokens} tokens," if way.tokens else ""
        why = f"measured: {clear[way]:.2f} times as fast in stacks of {way.size}{held} as alone"
        return Choice(size, why, seconds, way.tokens)

    if not clear:
        return Choice(1, "measured: no stack is clearly faster than a run alone", seconds)
    best = max(clear, key=lambda way: clear[way])
    if best.size <= most:
        return taken(best.size, best)
    between = {way.size for way in gains if way.size < most}
    if between <= {way.size for way in clear}:
        return taken(most, best)
    fits = [way for way in clear if way.size in between]
    if not fits:
        return Choice(1, f"measured: no stack of {most} at most is clearly faster than a run alone", seconds)
    largest = max(fits, key=lambda way: (way.size, clear[way]))
    return taken(largest.size, largest)

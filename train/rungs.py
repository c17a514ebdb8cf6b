"""Rungs: shares of a run's steps at which it is measured on validation rows and paused, not ended.

A paused run has its checkpoint and goes on to the same bits, whenever somebody asks for the rest.
"""

import math
from collections.abc import Mapping


class Paused(Exception):  # not an error: the state is saved and the rest may be trained later
    """A run reached its rung. share: of its steps; metrics: of the validation rows there."""

    def __init__(self, share: float, metrics: Mapping[str, float]) -> None:
        super().__init__(f"paused after {share:.0%} of its steps")
        self.share, self.metrics = share, dict(metrics)


def step_of(share: float, num_steps: int) -> int:
    """The optimiser steps that are done at a rung: at least one, and all of them for share 1."""
    return min(num_steps, max(1, math.ceil(share * num_steps - 1e-9)))

"""A request that a signal handler may make.

threading.Event isn't safe there: its lock isn't re-entrant, so a second signal that arrives while the first
is setting the event, or while the same thread is entering wait(), waits for itself for ever. Seen: a worker
that got SIGTERM from its supervisor and from `cancel` at once hung with its run claimed.
"""

import time

_LOOK_EVERY_S = 0.05


class Flag:
    """Once set, it stays set. No locks: one assignment is all there is."""

    def __init__(self) -> None:
        self._is_set = False
        self.reason = ""  # of the first request, for people

    def set(self, reason: str = "") -> None:
        """Make the request."""
        self.reason = self.reason or reason
        self._is_set = True

    def is_set(self) -> bool:
        """Whether it was made."""
        return self._is_set

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is made, at most so long; whether it was."""
        deadline = time.monotonic() + timeout_s
        while not self._is_set and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(_LOOK_EVERY_S, left_s))
        return self._is_set

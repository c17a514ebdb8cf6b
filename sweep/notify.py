"""One message to a webhook when a sweep is over and when its failures mount up, whoever notices first.

Every look at a sweep may send it: a watcher, a line in cron, the last worker on a node. A file that is created
exclusively before the message goes out makes sure that only one does. If the receiver refused or could not be
reached the file goes again, for the next looker somewhere else; if it may have arrived, it stays. The address is a
secret: it is read from the configuration or from WEIGHT_SWEEP_WEBHOOK and written nowhere.
"""

import hashlib
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sweep.ledger import RunState
from sweep.spec import SETTLED, Status
from train.errors import ConfigError
from train.files import write_json_exclusive
from train.secrets import scrub

VARIABLE = "WEIGHT_SWEEP_WEBHOOK"
TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyConfig:
    """webhook: http(s), gets {"text": ...} as JSON, as Slack and Mattermost want it. num_failures: make a burst."""

    webhook: str | None = field(default=None, repr=False)
    num_failures: int = 3

    def __post_init__(self) -> None:
        if self.webhook is not None and urlsplit(self.webhook).scheme not in ("http", "https"):
            raise ConfigError(
                "notify.webhook is no address of the web",  # which is a secret, so it isn't quoted
                "one that begins with https://",
                f"set notify.webhook, or leave it out and export {VARIABLE}",
            )
        if self.num_failures < 1:
            raise ConfigError(
                f"notify.num_failures={self.num_failures}", "at least 1", "say notify.num_failures=3"
            )

    @property
    def address(self) -> str:
        """Where messages go; "" for nowhere."""
        return self.webhook or os.environ.get(VARIABLE, "")


@dataclass(frozen=True, slots=True)
class Event:
    """key: the same for everybody who sees the same thing happen, and for nothing else."""

    key: str
    text: str


def events(name: str, states: Mapping[str, RunState], num_failures: int) -> list[Event]:
    """What is worth a message now: the end, and every doubling of the number of failed runs. Pure.

    Runs that somebody cancelled have failed, but that is no news.
    """
    failed = {
        fingerprint: state
        for fingerprint, state in states.items()
        if state.status is Status.FAILED and not (state.failure and state.failure.kind == "cancelled")
    }
    question = _digest(sorted(states))
    counts = Counter(state.failure.kind if state.failure else "unknown" for state in failed.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
    found: list[Event] = []
    if states and all(state.status in SETTLED for state in states.values()):
        num_finished = sum(state.status is Status.FINISHED for state in states.values())
        outcome = _digest(sorted([name, state.status, state.attempt] for name, state in states.items()))
        text = f"{name}: {num_finished} of {len(states)} runs finished" + (
            f"; failed: {kinds}" if kinds else ""
        )
        found.append(Event(f"over-{question}-{outcome}", text))
    level, threshold = 0, num_failures
    while len(failed) >= threshold:
        level, threshold = level + 1, 2 * threshold
    if level:
        last = next((state.failure for state in failed.values() if state.failure), None)
        words = f", such as {last.message[:200]}" if last else ""
        text = f"{name}: {len(failed)} of {len(states)} runs failed ({kinds}){words}"
        found.append(Event(f"failures-{question}-{level}", text))
    return found


class Notifier:
    """Sends what is due of the sweep in `folder`; never raises, never takes longer than a few seconds."""

    def __init__(self, folder: Path, config: NotifyConfig, say: Callable[[str], None] = print) -> None:
        self._folder, self._config, self._say = folder, config, say
        self._tried: set[str] = set()

    def tell(self, states: Mapping[str, RunState]) -> None:
        """Send what nobody has sent; a line if the receiver is out of order."""
        if not self._config.address:
            return
        for event in events(self._folder.name, states, self._config.num_failures):
            if event.key not in self._tried:
                self._tried.add(event.key)
                self._send(event)

    def _send(self, event: Event) -> None:
        marker = self._folder / "notified" / f"{event.key}.json"
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            if not write_json_exclusive(marker, {"time": time.time(), "host": socket.gethostname()}):
                return
            problem, has_arrived = post(self._config.address, event.text)
            if problem:
                self._say(f"no message to the webhook: {problem}")
            if problem and not has_arrived:
                marker.unlink(missing_ok=True)
        except OSError as error:
            self._say(f"no message to the webhook: {error.strerror or type(error).__name__}")


def post(address: str, text: str, timeout_s: float = TIMEOUT_S) -> tuple[str, bool]:
    """Send a text: "" or what went wrong, and whether it may have arrived. Nothing said holds the address."""
    import urllib.error  # here, as every command imports this module
    import urllib.request

    outcome: list[tuple[str, bool]] = []

    def send() -> None:
        try:
            request = urllib.request.Request(
                address,
                data=json.dumps({"text": scrub(text)}).encode(),
                headers={"Content-Type": "application/json", "User-Agent": "weight-sweep"},
            )
            with urllib.request.urlopen(request, timeout=timeout_s):
                outcome.append(("", True))
        except urllib.error.HTTPError as error:
            error.close()
            outcome.append((f"its receiver says {error.code}", False))
        except urllib.error.URLError as error:
            reason = error.reason
            words = reason.strerror if isinstance(reason, OSError) and reason.strerror else "no connection"
            outcome.append((words, isinstance(reason, TimeoutError)))
        except TimeoutError:
            outcome.append((f"no answer within {timeout_s:g} s", True))
        except Exception as error:  # whatever a receiver can think of must not end a sweep
            outcome.append((type(error).__name__, True))

    thread = threading.Thread(target=send, name="webhook", daemon=True)
    thread.start()
    thread.join(timeout_s + 1.0)  # the time-out above is for each piece of an answer
    return outcome[0] if outcome else (f"no answer within {timeout_s:g} s", True)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]

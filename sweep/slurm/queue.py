"""The scheduler's queue as values: one squeue for everything, one sacct if it must be, and their errors."""

import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweep.errors import LaunchError

TIMEOUT_S = 30.0  # an absent controller answers after 9 s
WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"))
WORKING = frozenset(
    ("RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESIZING")
)
_FORMAT = "JobArrayID:|,State:|,RestartCnt:|,Name:|,NodeList:|,Reason:|"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A task as the scheduler sees it. batch: the word at the end of its name; "" if it isn't one of ours."""

    key: str
    state: str
    restart: int
    batch: str
    node: str = ""
    reason: str = ""

    @property
    def is_waiting(self) -> bool:
        """Whether it will start."""
        return self.state in WAITING

    @property
    def is_working(self) -> bool:
        """Whether its processes may exist."""
        return self.state in WORKING


Queue = Mapping[str, Queued]


def call(*command: str, timeout_s: float = TIMEOUT_S) -> str:
    """What a scheduler's command prints. Raises LaunchError with the scheduler's words."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SLURM_TIME_FORMAT": "%s"},
        )
    except FileNotFoundError as error:
        raise not_on_path(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"{command[0]} gave no answer for {timeout_s:.0f} s",
            "a reachable scheduler",
            "try again later: nothing is lost",
        ) from error
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise LaunchError(f"{command[0]} says: {words}", "an answer", "")
    return done.stdout


def not_on_path(program: str) -> LaunchError:
    """What to do about it."""
    return LaunchError(
        f"{program} is not on PATH",
        "a login node of a SLURM cluster",
        "go there, load the site's slurm module, or say launcher=local",
    )


def read_queue() -> dict[str, Queued]:
    """All tasks of this user, those that ended in the last minutes (MinJobAge) included. Raises LaunchError."""
    return parse_queue(call("squeue", "--me", "--noheader", "--array", "--states=all", f"--Format={_FORMAT}"))


def parse_queue(text: str) -> dict[str, Queued]:
    """Tasks by key; lines that aren't tasks are left out."""
    found: dict[str, Queued] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) < 6 or not parts[2].isdigit():
            continue
        key, state, restart, name, node, reason = parts[:6]
        found[key] = Queued(
            key=key,
            state=state.split()[0] if state else "",
            restart=int(restart),
            batch=batch_of(name),
            node=node,
            reason=reason,
        )
    return found


def batch_of(name: str) -> str:
    """The random word that ends the names of our jobs."""
    word = name.rpartition("-")[2]
    return word if len(word) == 16 and set(word) <= set("0123456789abcdef") else ""


def read_accounting(keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """State and name of tasks, and of each of their lives as key.restart; {} where there is no accounting."""
    numbers = sorted({key.partition("_")[0] for key in keys})
    if not numbers:
        return {}
    try:
        text = call("sacct", "-n", "-P", "-X", "-D", "-o", "JobID,State,JobName", "-j", ",".join(numbers))
    except LaunchError:
        return {}
    return parse_accounting(text)


def parse_accounting(text: str) -> dict[str, tuple[str, str]]:
    """sacct lists the lives of a task that was queued again one after another: the last is the task's state."""
    found: dict[str, tuple[str, str]] = {}
    lives: Counter[str] = Counter()
    for line in text.splitlines():
        key, state, name = [*line.split("|"), "", ""][:3]
        if state:
            found[key] = found[f"{key}.{lives[key]}"] = state.split()[0], name
            lives[key] += 1
    return found


def limit_of_arrays() -> int:
    """How many tasks one array may have; SLURM's default if the scheduler doesn't say."""
    for line in call("scontrol", "show", "config").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value) - 1)
    return 1000

"""What a W&B server remembers: runs, and what was made around them."""

import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

ENTITY = "local"
HISTORY = "wandb-history.jsonl"


class Refused(Exception):
    """An answer that isn't data: HTTP status and message."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass
class Run:
    """One run as the server has it. lines: file -> offset -> line, as file_stream sends them."""

    entity: str
    project: str
    name: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    commit: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    is_preempting: bool = False
    created: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return encoded(f"Run:v1:{self.name}:{self.project}:{self.entity}")

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in the order of their offsets."""
        return [json.loads(line) for _, line in sorted(self.lines.get(HISTORY, {}).items())]

    @property
    def values(self) -> dict[str, Any]:
        """The configuration as the user gave it."""
        return {key: item["value"] for key, item in self.config.items() if not key.startswith("_")}

    def count(self, file: str) -> int:
        return max(self.lines.get(file, {}), default=-1) + 1

    def tail(self, file: str) -> str:
        lines = self.lines.get(file, {})
        return json.dumps([lines[max(lines)]] if lines else [])


@dataclass
class Store:
    """Everything the server knows; survives its death, as a database does."""

    runs: dict[tuple[str, str, str], Run] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    entities: set[str] = field(default_factory=lambda: {ENTITY})
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    charts: list[dict[str, Any]] = field(default_factory=list)
    sweeps: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    creations: list[float] = field(default_factory=list)

    def run(self, name: str) -> Run:
        """The one run of that id, in whatever project."""
        (found,) = [run for run in self.runs.values() if run.name == name]
        return found

    def delete(self, name: str) -> None:
        """What the delete button does: the id is burnt for ever."""
        self.runs = {key: run for key, run in self.runs.items() if run.name != name}
        self.deleted.add(name)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def matches(run: Run, wanted: dict[str, Any]) -> bool:
    """The part of W&B's filter language that is asked for here."""
    for key, value in wanted.items():
        if key == "$or":
            if not any(matches(run, part) for part in value):
                return False
        elif key == "$and":
            if not all(matches(run, part) for part in value):
                return False
        else:
            have = {"group": run.group, "tags": run.tags, "name": run.name, "jobType": run.job_type}[key]
            options = value["$in"] if isinstance(value, dict) else [value]
            if not any(option in have if isinstance(have, list) else option == have for option in options):
                return False
    return True

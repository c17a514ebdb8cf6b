"""What was submitted, written down before and after: <root>/<sweep>/slurm/<batch>.json and .submitted.json.

Runs are never tied to a batch: workers claim them from the ledger. A batch that was announced and never seen in
the queue therefore loses nobody anything; it is only worth nothing.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweep.folder import SweepFolder
from train.files import read_json, write_json_exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One array of workers. class_name: of the runs that they may claim. code: the snapshot that they run."""

    batch: str
    sweep: str
    class_name: str
    num_tasks: int
    announced_at: float
    code: str
    partition: str = ""
    job: str = ""  # the array's number; "" until it is known
    is_answered: bool = False  # whether its submitter lived to write that down

    @property
    def job_name(self) -> str:
        """What squeue shows: for people, then for us."""
        return f"{re.sub(r'[^A-Za-z0-9_.]', '_', self.sweep)[:40]}-{self.batch}"


def new_batch(sweep: str, class_name: str, num_tasks: int, code: str, partition: str) -> Batch:
    """A batch with a name that no other ever has."""
    return Batch(
        batch=secrets.token_hex(8),
        sweep=sweep,
        class_name=class_name,
        num_tasks=num_tasks,
        announced_at=time.time(),
        code=code,
        partition=partition,
    )


def folder_of(folder: SweepFolder) -> Path:
    """Where a sweep's batches and its jobs' output are."""
    return folder.path / "slurm"


def announce(folder: SweepFolder, batch: Batch) -> None:
    """Write down that it is about to be submitted."""
    folder_of(folder).mkdir(parents=True, exist_ok=True)
    write_json_exclusive(folder_of(folder) / f"{batch.batch}.json", asdict(batch))


def write_answer(folder: SweepFolder, batch: Batch, answer: dict[str, Any]) -> None:
    """Write down what became of it: {"job": number}, or {"refused": words}."""
    write_json_exclusive(folder_of(folder) / f"{batch.batch}.submitted.json", {**answer, "time": time.time()})


def batches(folder: SweepFolder, seen: Iterable[tuple[str, str]] = ()) -> list[Batch]:
    """Every batch that was announced and not refused, oldest first. seen: (batch, key) pairs of the queue, which
    name the array of a submitter that died before it could write it down."""
    number_of = {name: key.partition("_")[0] for name, key in seen}
    found: list[Batch] = []
    for path in sorted(folder_of(folder).glob("*.json")):
        if path.name.endswith(".submitted.json"):
            continue
        values = read_json(path)
        answer = read_json(path.with_name(f"{path.stem}.submitted.json")) or {}
        if values is None or "refused" in answer:
            continue
        try:
            found.append(
                Batch(
                    **{
                        **values,
                        "is_answered": bool(answer),
                        "job": str(answer.get("job") or number_of.get(path.stem, "")),
                    }
                )
            )
        except TypeError:  # written by another version
            continue
    return sorted(found, key=lambda batch: batch.announced_at)


def note_default_memory(folder: SweepFolder, environment: Mapping[str, str]) -> None:
    """From inside a job for which no memory was asked: how much the site gave it, written down once."""
    per_node, per_cpu = environment.get("SLURM_MEM_PER_NODE"), environment.get("SLURM_MEM_PER_CPU")
    path = folder_of(folder) / "default_memory.json"
    with contextlib.suppress(ValueError, OSError):
        num_mb = float(per_node or 0) or float(per_cpu or 0) * float(
            environment.get("SLURM_CPUS_ON_NODE") or 1
        )
        if num_mb and not path.exists():
            write_json_exclusive(path, {"memory_gb": num_mb / 1024})


def default_memory_gb(folder: SweepFolder) -> float | None:
    """How much the site gives a job that doesn't ask; None if no job has said so."""
    value = (read_json(folder_of(folder) / "default_memory.json") or {}).get("memory_gb")
    return float(value) if isinstance(value, int | float) else None

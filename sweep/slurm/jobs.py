"""How a claim names the job that holds it, and how a job names itself.

A job number alone says nothing: a controller that crashes gives the same one to the next job. Hence the batch, a
random word in the job's name, is part of every comparison. A job that is queued again keeps its number and counts
`restart` up, so two lives of one job are told apart.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TEXT = re.compile(r"(?P<batch>[0-9a-f]+):(?P<key>\d+(?:_\d+)?)\.(?P<restart>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobName:
    """One life of one task. key: its number as squeue has it, 12_3 in an array and 12 outside."""

    batch: str
    key: str
    restart: int

    def __str__(self) -> str:
        return f"{self.batch}:{self.key}.{self.restart}"


def job_from_text(text: str) -> JobName | None:
    """What `str` wrote; None for anything else."""
    match = _TEXT.fullmatch(text)
    return JobName(batch=match["batch"], key=match["key"], restart=int(match["restart"])) if match else None


def task_name(job: JobName) -> str:
    """The same for all its lives."""
    return f"{job.batch}-{job.key}"


def this_job(batch: str, environment: Mapping[str, str] = os.environ) -> JobName:
    """The job that this process is part of. SLURM_RESTART_COUNT is absent in a job's first life."""
    number, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    key = f"{number}_{task}" if number and task else environment.get("SLURM_JOB_ID", "0")
    return JobName(batch=batch, key=key, restart=int(environment.get("SLURM_RESTART_COUNT") or 0))

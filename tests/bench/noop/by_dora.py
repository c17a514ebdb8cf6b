"""`python -m noop.by_dora FOLDER NUMBER`: `dora grid`, its jobs on this machine, its table at the end.

Dora submits to SLURM only. submitit's local executor takes SLURM's place here, in one array, as Dora does it; the
rest is Dora's own `run_grid` and `monitor`.
"""

import sys
from pathlib import Path
from typing import Any

import dora.shep
import submitit
from dora.explore import Explorer
from dora.grid import RunGridArgs, monitor, run_grid
from submitit.core.core import InfoWatcher
from submitit.local.local import _PROCESSES

from noop.cells import axes_of, cells_of, write_answers
from noop.dora_app import main as app


class LocalInstead(submitit.LocalExecutor):
    """Takes what a SLURM executor is told, and ignores what is about SLURM."""

    def __init__(self, folder: Path, max_num_timeout: int = 3, python: str | None = None) -> None:
        super().__init__(folder)

    def update_parameters(self, **kwargs: Any) -> None:
        super().update_parameters(timeout_min=60)


class LocalStates(InfoWatcher):
    """What Dora's table asks SLURM: whether a job still runs."""

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        process = _PROCESSES.get(job_id)
        return "RUNNING" if process and process.poll() is None else "COMPLETED"


def explore(number: int) -> Any:
    """A grid as Dora's users write it."""
    prompt_weights, response_weights, seeds = axes_of(number)

    def schedule(launcher: Any) -> None:
        with launcher.job_array():
            for prompt_weight in prompt_weights:
                for response_weight in response_weights:
                    for seed in seeds:
                        launcher(prompt_weight=prompt_weight, response_weight=response_weight, seed=seed)

    return Explorer(schedule)


def main(folder: str, number: int) -> None:
    """The grid, its jobs' ends, its table."""
    dora.shep.submitit.SlurmExecutor = LocalInstead  # type: ignore[misc]
    submitit.LocalJob.watcher = LocalStates()
    explorer = explore(number)
    sheep = run_grid(app, explorer, "noop", args=RunGridArgs(monitor=False, silent=True))
    for one in sheep:
        one.job.result()
    monitor(RunGridArgs(), app, explorer, sheep, print)
    answers = {}
    for one in sheep:
        config = one.xp.cfg
        cell = (float(config.prompt_weight), float(config.response_weight), int(config.seed))
        answers[cell] = app.get_xp_history(one.xp)[-1]["answer"]
    assert len(answers) == len(cells_of(number))
    write_answers(Path(folder, "answers.json"), answers)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

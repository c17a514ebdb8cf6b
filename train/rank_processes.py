"""The processes of one run: started here or, by SLURM's srun, on every node of a job; watched; ended together.

torchrun would do for one machine, but it ends the ranks on the SIGTERM and SIGUSR2 with which a scheduler
gives notice, where they must save; so each rank is born deaf to signals, and hears of a stop from its starter.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from train.config import RunConfig
from train.errors import ConfigError

_DEAF = ("/bin/sh", "-c", 'trap "" USR1 USR2 TERM INT HUP; exec "$@"', "sh")
_KEPT_BY_STEPS = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME")
SAVING_S = 60.0  # for a checkpoint, where the starter itself is being ended


class RankProcesses:
    """All ranks of a run, or the srun that holds them."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = tuple(processes)

    def poll(self) -> int | None:
        """None while all is well; 0 when all ended in order; else how one that didn't ended.

        One that failed takes the others with it: they would wait for it in their next sum.
        """
        codes = [process.poll() for process in self._processes]
        failed = [code for code in codes if code]
        if failed:
            self.kill()
            return min(failed)  # a signal says more than what it did to the others
        return None if None in codes else 0

    def wait(self, timeout_s: float) -> None:
        """Until they end by themselves, or time is up."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def kill(self) -> None:
        """End what is left, at once."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()


def start_ranks(
    config: RunConfig, command: Sequence[str], log: IO[bytes] | int, starter: str
) -> RankProcesses:
    """`command` once for each rank, with the variables that torchrun would set; output goes to `log`.

    starter   name of the variable that tells rank 0 this process's number
    Raises    ConfigError for a run over several nodes outside of a SLURM job.
    """
    places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(config.train.num_threads),
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "WORLD_SIZE": str(config.num_ranks),
        "LOCAL_WORLD_SIZE": str(config.num_ranks // config.num_nodes),
        "MASTER_PORT": str(_free_port()),
        starter: str(os.getpid()),
    }
    environment.pop("RANK", None)
    if config.num_nodes > 1:
        environment["MASTER_ADDR"] = socket.gethostname()  # rank 0 is on the first node, as is its starter
        lines = [[*_srun(config, environment), *_DEAF, *command]]
        environments: list[Mapping[str, str]] = [_of_step(environment)]
    else:
        environment["MASTER_ADDR"] = "127.0.0.1"
        ranks = range(config.num_ranks)
        lines = [[*_DEAF, *command] for _ in ranks]
        environments = [environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for line, variables in zip(lines, environments, strict=True):
            processes.append(
                subprocess.Popen(line, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
    except OSError:
        RankProcesses(processes).kill()
        raise
    return RankProcesses(processes)


def name_this_rank() -> None:
    """In a process that srun started: the variables of torchrun, from SLURM's."""
    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ:
        os.environ["RANK"], os.environ["LOCAL_RANK"] = os.environ["SLURM_PROCID"], os.environ["SLURM_LOCALID"]


def how_it_ended(code: int) -> str:
    """The end of a process in words; srun reports a signal as a shell does."""
    number = -code if code < 0 else code - 128 if code > 128 else 0
    try:
        return f"was ended by {signal.Signals(number).name}" if number else f"ended with exit code {code}"
    except ValueError:
        return f"ended with exit code {code}"


def _srun(config: RunConfig, environment: Mapping[str, str]) -> list[str]:
    """A step of this job on all its nodes, beside the one that we are in."""
    if "SLURM_JOB_ID" not in environment:
        raise ConfigError(
            f"model.nodes={config.num_nodes}, but this process is in no job of several nodes",
            "a SLURM job",
            "add launcher=slurm, or start torchrun on each node (see train/launch.py)",
        )
    per_node = config.num_ranks // config.num_nodes
    cpus = max(1, int(environment.get("SLURM_CPUS_PER_TASK", "1")) // per_node)
    return [
        "srun",
        "--overlap",
        "--relative=0",
        f"--nodes={config.num_nodes}",
        f"--ntasks={config.num_ranks}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={cpus}",
        "--kill-on-bad-exit=1",
        "--input=none",
        "--job-name=ranks",
    ]


def _of_step(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of the step that we are in: srun would take them for its own options."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("SLURM", "SRUN")) or name in _KEPT_BY_STEPS
    }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def python_command(module: str, *arguments: str) -> list[str]:
    """This Python, running one of our modules."""
    return [sys.executable, "-m", module, *arguments]

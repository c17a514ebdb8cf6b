"""Start workers on this machine through submitit's local executor, out of reach of whatever starts them.

submitit's local jobs live in their starter's session: Ctrl-C in the terminal reaches their supervisor, which
then kills the worker a second later, and they hold the starter's output open, so that `| tee` never ends.
Hence a short-lived helper process in a session of its own (`python -m sweep.launch`) submits and goes; only
submitit's public interface is used. Nobody trusts submitit's job states: whether a worker lives is read from
/proc and its slot (`sweep.slots`), as the process that started it may be gone.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sweep.attempts import tail
from sweep.claims import process_lives, process_start
from sweep.errors import LaunchError
from sweep.ledger import MAX_ATTEMPTS
from sweep.spec import Plan

TIMEOUT_MIN = 365 * 24 * 60  # a worker ends when its work does
ONLY_STAGE = "WEIGHT_SWEEP_ONLY_STAGE"  # how a worker is told
CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the workers of one sweep are started; all that a controller needs to know of the machine."""

    root: str
    sweep: str
    num_slots: int
    gpus: tuple[str, ...] = ()  # slot k sees device k modulo their number; none: the processors only
    ranks: int = 1  # of the runs that they train; each worker holds as many slots, and sees as many devices
    num_threads: int = 1
    max_attempts: int = MAX_ATTEMPTS
    trainer: str = "sweep.trainers:make_trainer"
    pack: int = 1  # runs at once in a slot; 0: as many as are measured to fit
    unit: str = "run"  # what a worker takes at once; see `sweep.launcher`
    only_stage: str = ""  # the stage whose runs alone are claimed; "": every run of the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A worker that was started. Its pid is that of submitit's supervisor, which hands SIGTERM on."""

    slot: int
    pid: int
    process_start: str
    folder: str
    started_at: float  # seconds since 1970

    @property
    def number(self) -> str:
        """How the worker names its job in its slot."""
        return str(self.pid)

    def is_alive(self) -> bool:
        """Whether its supervisor lives; the worker may outlive a supervisor that was killed."""
        return process_lives(self.pid, self.process_start)

    def ended_in_order(self) -> bool:
        """Whether `work` returned, as opposed to dying or raising."""
        try:
            return b"success" in (Path(self.folder) / f"{self.pid}_0_result.pkl").read_bytes()
        except OSError:
            return False

    def last_words(self, num_lines: int = 5) -> list[str]:
        """The end of its error output."""
        return tail(Path(self.folder) / f"{self.pid}_0_log.err", num_lines)


def check_ranks(plan: Plan, launch: Launch) -> None:
    """LaunchError for a run of more devices than this machine has, or of several machines."""
    for spec in plan.runs:
        config = spec.config
        if config.num_nodes > 1:
            raise LaunchError(
                f"{spec.run_id} is spread over {config.num_nodes} nodes",
                "a cluster",
                "add launcher=slurm, or set model.nodes=1",
            )
        if launch.gpus and config.train.device != "cpu" and config.num_ranks > len(launch.gpus):
            raise LaunchError(
                f"{spec.run_id} takes {config.num_ranks} devices of {len(launch.gpus)}",
                "as many as this machine has",
                f"set train.num_ranks={len(launch.gpus)}, or add launcher=slurm",
            )


def start_workers(launch: Launch, slots: Sequence[int]) -> list[Job]:
    """Start one worker per slot number; they look for work by themselves. Raises LaunchError."""
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    folder = Path(launch.root, launch.sweep, "workers", name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    request = {"launch": asdict(launch), "slots": list(slots), "folder": str(folder)}
    finished = subprocess.run(
        [sys.executable, "-m", "sweep.launch"],
        input=json.dumps(request),
        text=True,
        capture_output=True,
        env=_environment(launch),
        start_new_session=True,
        check=False,
    )
    try:
        pids: list[int] = json.loads(finished.stdout)
    except json.JSONDecodeError:
        words = " | ".join(finished.stderr.strip().splitlines()[-3:])
        raise LaunchError(
            f"no worker could be started: {words}", "a working submitit", "try: python -c 'import submitit'"
        ) from None
    absent = "gone" if Path("/proc/self").exists() else ""
    return [
        Job(
            slot=slot,
            pid=pid,
            process_start=process_start(pid) or absent,
            folder=str(folder),
            started_at=time.time(),
        )
        for slot, pid in zip(slots, pids, strict=True)
    ]


def visible_gpus(
    environment: Mapping[str, str] = os.environ, proc: Path = Path("/proc/driver/nvidia/gpus")
) -> tuple[str, ...]:
    """The devices we may use, as CUDA_VISIBLE_DEVICES names them; found without importing torch."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = [name.strip() for name in named.split(",")]
        return tuple(name for name in names if name not in ("", "-1", "NoDevFiles"))
    try:
        return tuple(str(index) for index in range(len(os.listdir(proc))))
    except OSError:
        pass
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    num_devices = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return tuple(str(index) for index in range(num_devices))


def available_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processor cores that we, not the machine, have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit here, or "max"
        return cores


def _environment(launch: Launch) -> dict[str, str]:
    """Threads are set before any library is loaded; our packages can be imported from any folder."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(launch.num_threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        ONLY_STAGE: launch.only_stage,
    }


def _submit(launch: Launch, slots: Sequence[int], folder: str) -> list[int]:
    """Inside the helper: one submitit job per slot."""
    import submitit

    from sweep.local_worker import work

    pids = []
    for slot in slots:
        executor = submitit.LocalExecutor(folder=folder)  # one waits 0.2 s between two jobs
        executor.update_parameters(timeout_min=TIMEOUT_MIN, name=launch.sweep)
        job = executor.submit(
            work,
            str(Path(launch.root).absolute()),
            launch.sweep,
            slot,
            ",".join(launch.gpus),
            launch.num_threads,
            launch.max_attempts,
            launch.trainer,
            launch.pack,
            launch.num_slots,
            launch.ranks,
            launch.unit,
        )
        pids.append(int(job.job_id))
    return pids


def _main() -> None:
    """The helper: a request on standard input, submitit's process numbers on standard output."""
    request = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")  # ours alone: the jobs must not hold it open
    errors = os.dup(2)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    try:
        values = request["launch"]
        launch = Launch(**{**values, "gpus": tuple(values["gpus"])})
        pids = _submit(launch, request["slots"], request["folder"])
        json.dump(pids, answer)
        answer.close()
    except Exception as error:
        os.write(errors, f"{type(error).__name__}: {error}\n".encode())
        sys.exit(1)


if __name__ == "__main__":
    _main()

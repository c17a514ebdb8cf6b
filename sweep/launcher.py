"""The launcher's part of the configuration: where workers run and what they may use. Values: conf/launcher/*.yaml."""

from dataclasses import dataclass
from typing import Literal

from train.errors import ConfigError

SIGNALS = ("USR2", "USR1", "TERM", "INT", "HUP", "none")
_AT_LEAST_ONE = (
    "slots",
    "threads_per_worker",
    "pack",
    "max_attempts",
    "cpus_per_worker",
    "time_min",
    "max_jobs",
    "runs_per_job",
    "array_parallelism",
    "max_array_size",
    "signal_delay_s",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LauncherConfig:
    """Where workers run. Keys below `partition` are read by kind slurm only.

    slots: None (auto in YAML) is as many workers as cores or devices allow.
    unit: what a worker takes at once. run: one run, and what shares its stack of the worker's part of all that wait;
    plane: all that waits of one model, dataset and seed.
    pack: runs at once on a worker's device; None (auto in YAML) measures the first and starts as many as fit.
    partition: several, separated by commas: the first that has room starts the job.
    gres: what asks for devices; {gpus} is their number. sbatch: further options, as sbatch spells them.
    max_jobs: workers at once in the queue, for each resource class. array_parallelism: of these, running at once.
    signal: the warning that SLURM is asked to send; none for sites where it can't: the job's own clock, and the
    SIGTERM of a preemption, then have to do. signal_delay_s: how long before the end.
    runs_per_job: how many runs there must be for each worker that is submitted.
    silence_s: how long a heartbeat must be silent before a job that isn't in the queue any more, or that was
    started again, has lost its run. It covers clocks and caches of network file systems that are a minute late.
    hung_s: of silence, after which a job that runs is put back into the queue.
    """

    kind: Literal["local", "slurm"] = "local"
    slots: int | None = None
    threads_per_worker: int = 1
    unit: Literal["run", "plane"] = "run"
    pack: int | None = 1
    max_attempts: int = 5
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    setup: tuple[str, ...] = ()
    gres: str = "gpu:{gpus}"
    gpus: int = 1
    memory_gb: float | None = None
    cpus_per_worker: int = 1
    time_min: int = 240
    signal: str = "USR2"
    signal_delay_s: int = 120
    max_jobs: int = 64
    runs_per_job: int = 1
    array_parallelism: int | None = None
    max_array_size: int | None = None
    silence_s: float = 150.0
    hung_s: float = 900.0
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"launcher.{name}={value}", "a whole number of at least 1", f"set launcher.{name}=1"
                )
        if self.signal not in SIGNALS:
            raise ConfigError(
                f"launcher.signal={self.signal}", f"one of {', '.join(SIGNALS)}", "say launcher.signal=USR2"
            )
        for option in self.sbatch:
            if not option.startswith("--") or len(option) < 3:
                raise ConfigError(
                    f"launcher.sbatch holds {option!r}",
                    "options as sbatch spells them",
                    "say \"launcher.sbatch=['--reservation=mine']\"",
                )
        if self.kind == "slurm" and self.signal_delay_s >= 60 * self.time_min:
            raise ConfigError(
                f"launcher.signal_delay_s={self.signal_delay_s} leaves no time of "
                f"launcher.time_min={self.time_min}",
                "a warning that comes after the start",
                "raise launcher.time_min",
            )

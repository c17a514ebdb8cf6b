"""Resource classes: what a run's job must have. Runs of one class share one array of workers. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweep.launcher import LauncherConfig
from sweep.spec import RunSpec
from train.config import RunConfig


MAX_DOUBLINGS = 2


@dataclass(frozen=True, slots=True, order=True)
class ResourceClass:
    """memory_gb None: the site's default."""

    gpus: int
    memory_gb: float | None
    time_min: int

    @property
    def name(self) -> str:
        """A word for file names and comments."""
        memory = "" if self.memory_gb is None else f"-{self.memory_gb:g}gb"
        return f"{self.gpus}gpu{memory}-{self.time_min}min"


def class_of(config: RunConfig, launcher: LauncherConfig, num_host_ooms: int = 0) -> ResourceClass:
    """What the model's file says, else the launcher. The embedded model and train.device=cpu need no device.

    num_host_ooms: how often the run ended for lack of memory. It gets twice as much each time, twice at most.
    """
    model = config.model
    gpus = launcher.gpus if model.source != "embedded" and config.train.device != "cpu" else 0
    memory_gb = model.memory_gb if model.memory_gb is not None else launcher.memory_gb
    return ResourceClass(gpus=model.gpus if model.gpus is not None else gpus,
                         memory_gb=None if memory_gb is None else memory_gb * 2 ** min(num_host_ooms, MAX_DOUBLINGS),
                         time_min=model.timeout_min or launcher.time_min)


def by_class(runs: Iterable[RunSpec], launcher: LauncherConfig, host_ooms: Mapping[str, int]) -> dict[ResourceClass, list[RunSpec]]:
    """The runs of each class, in their order. host_ooms: by fingerprint, where there were any."""
    found: dict[ResourceClass, list[RunSpec]] = {}
    for spec in runs:
        found.setdefault(class_of(spec.config, launcher, host_ooms.get(spec.fingerprint, 0)), []).append(spec)
    return found

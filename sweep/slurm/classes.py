"""Resource classes: what a run's job must have. Runs of one class share one array of workers. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweep.errors import LaunchError
from sweep.launcher import LauncherConfig
from sweep.recovery import MAX_DOUBLINGS
from sweep.spec import RunSpec
from train.config import RunConfig


@dataclass(frozen=True, slots=True, order=True)
class ResourceClass:
    """On each of its nodes a job has so many devices, so much memory, and starts so many ranks of its one run.

    memory_gb None: the site's default.
    """

    gpus: int
    memory_gb: float | None
    time_min: int
    nodes: int = 1
    ranks: int = 1

    @property
    def name(self) -> str:
        """A word for file names and comments."""
        memory = "" if self.memory_gb is None else f"-{self.memory_gb:g}gb"
        ranks = f"-{self.nodes}x{self.ranks}ranks" if self.is_shared else ""
        return f"{self.gpus}gpu{memory}{ranks}-{self.time_min}min"

    @property
    def is_shared(self) -> bool:
        """Whether a job's whole allocation trains one run, after which it ends."""
        return self.nodes * self.ranks > 1


def class_of(
    config: RunConfig,
    launcher: LauncherConfig,
    num_host_ooms: int = 0,
    default_memory_gb: float | None = None,
) -> ResourceClass:
    """What the model's file says, else the launcher. The embedded model and train.device=cpu need no device.
    A run on several ranks has a device for each.

    num_host_ooms: how often the run ended for lack of memory. It gets twice as much each time, twice at most.
    default_memory_gb: what the site gave where nobody asked, once a job has seen it.
    """
    model = config.model
    ranks = config.num_ranks // config.num_nodes
    is_on_gpu = model.source != "embedded" and config.train.device != "cpu"
    gpus = (ranks if config.num_ranks > 1 else launcher.gpus) if is_on_gpu else 0
    memory_gb = model.memory_gb if model.memory_gb is not None else launcher.memory_gb
    if memory_gb is None and num_host_ooms:
        memory_gb = default_memory_gb
    return ResourceClass(
        gpus=model.gpus if model.gpus is not None else gpus,
        memory_gb=None if memory_gb is None else memory_gb * 2 ** min(num_host_ooms, MAX_DOUBLINGS),
        time_min=model.timeout_min or launcher.time_min,
        nodes=config.num_nodes,
        ranks=ranks,
    )


def check_time(spec: RunSpec, resources: ResourceClass, launcher: LauncherConfig) -> None:
    """Refuse a time limit in which a job could end before it has saved anything."""
    limit_s, save_s = 60.0 * resources.time_min, spec.config.train.checkpoint_every_s
    if limit_s - reserve_s(limit_s, launcher.signal_delay_s) < save_s:
        raise LaunchError(
            f"a job of {resources.time_min} min ends before {spec.run_id} saves its state, every "
            f"{save_s:g} s",
            "a longer time limit, or saving more often",
            "raise launcher.time_min (or model.timeout_min), or lower train.checkpoint_every_s",
        )


def reserve_s(limit_s: float, signal_delay_s: float) -> float:
    """How long before its end a job stops claiming. SLURM looks at time limits every 30 s only."""
    return min(signal_delay_s + 30.0, limit_s / 2)


def by_class(
    runs: Iterable[RunSpec],
    launcher: LauncherConfig,
    host_ooms: Mapping[str, int],
    default_memory_gb: float | None = None,
) -> dict[ResourceClass, list[RunSpec]]:
    """The runs of each class, in their order. host_ooms: by fingerprint, where there were any."""
    found: dict[ResourceClass, list[RunSpec]] = {}
    for spec in runs:
        num_host_ooms = host_ooms.get(spec.fingerprint, 0)
        found.setdefault(class_of(spec.config, launcher, num_host_ooms, default_memory_gb), []).append(spec)
    return found

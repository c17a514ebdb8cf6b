"""How many runs fit on one device at once, from what one of them was measured to need. Pure.

Memory must hold them all, with a margin, as running out costs work; time on the device and processor cores must be
left over, as sharing them gains nothing. A run of a device that was never measured is not packed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sweep.timesheets import Entry

MARGIN = 0.9  # of the memory may be planned for
SLACK = 0.1  # of a run, by which a share of time may be short
MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one run needs at its peak, in GiB, and on average, in cores and as a share of the device's time.

    None: not known, or no device.
    """

    memory_gb: float
    cores: float
    device_gb: float | None = None
    device_share: float | None = None
    device_total_gb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a task has for all its runs. memory_gb: of the machine, None for no known limit."""

    memory_gb: float | None
    cores: float
    gpus: int = 0


def footprint(entries: Iterable[Entry], num_threads: int) -> Footprint | None:
    """The most that any of these runs needed; None if none of them tells.

    Its threads are asked for even where they were seen waiting: a busy machine isn't an idle run.
    """
    seen = [entry for entry in entries if entry.outcome == "finished" and entry.memory_gb is not None]
    if not seen:
        return None

    def most(name: str) -> float | None:
        return max((value for entry in seen if (value := getattr(entry, name)) is not None), default=None)

    demand = most("demand") or 0.0
    device_gb = most("device_gb")
    return Footprint(
        memory_gb=most("memory_gb") or 0.0,
        cores=demand if device_gb is not None else max(demand, float(num_threads)),
        device_gb=device_gb,
        device_share=most("device_share"),
        device_total_gb=most("device_total_gb"),
    )


def runs_at_once(one: Footprint, place: Place) -> tuple[int, str]:
    """How many, at least one; and what limits them."""
    limits: list[tuple[int, str]] = [(MOST, f"never more than {MOST}")]
    if place.memory_gb is not None:
        number = math.floor(MARGIN * place.memory_gb / max(one.memory_gb, 1e-3))
        limits.append((number, f"{one.memory_gb:.2f} of {place.memory_gb:.2f} GiB of memory each"))
    number = math.floor(place.cores / max(one.cores, 1e-3) + SLACK)
    limits.append((number, f"{one.cores:.2f} of {place.cores:g} cores each"))
    if place.gpus and (one.device_gb is None or one.device_total_gb is None):
        return 1, "the device's memory was not measured"
    if place.gpus and one.device_gb is not None and one.device_total_gb is not None:
        number = math.floor(MARGIN * one.device_total_gb / max(one.device_gb, 1e-3))
        limits.append((number, f"{one.device_gb:.2f} of {one.device_total_gb:.1f} GiB of the device each"))
        if one.device_share is not None:
            number = math.floor(1 / max(one.device_share, 1e-3) + SLACK)
            limits.append((number, f"{one.device_share:.0%} of the device's time each"))
    number, why = min(limits)
    return max(1, number), why

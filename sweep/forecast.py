"""What the runs that are left will cost, and what was spent. Pure; from the timesheets of like runs.

Two costs, charged apart: a worker's start and its loading of each model and dataset, once for each worker; and each
run's own time, training scaled by its sequences where they differ from those that were seen. A run that was stopped
by a pilot's limit counts with the pace it had, its evaluation taken from like runs, the untrained base among them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sweep.duration import share_done
from sweep.ledger import RunState
from sweep.predict import Prediction, interval, predict
from sweep.spec import SETTLED, RunSpec
from sweep.timesheets import Entry, Shift
from sweep.workloads import Workload, scale, workload_of

PILOT_SUFFIX = ".pilot"  # of the folder in which a sweep's pilot is trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a run's worker is given. minutes: its time limit; None where there is none."""

    gpus: int
    cores: int = 1
    minutes: int | None = None
    num_workers: int = 1  # at once, for all runs of this room
    runs_per_worker: int = 1  # at least, or there are fewer workers
    pack: int | None = 1  # runs at once on a device; None: as many as fit
    reserve_s: float = 0.0  # before its end, in which a worker claims nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The forecast of like runs: how many are left, one run's own seconds, tokens/s, device-hours of them all."""

    workload: Workload
    runs: float  # a run that is half done is half a run
    seconds: Prediction | None
    tokens_per_s: float | None = None
    hours: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Device-hours (processor-hours where no device is used) of the runs that are left. None: never measured."""

    hours: float | None
    low: float | None
    high: float | None
    worst: float | None  # by the time limits; None where a run has none
    unit: str
    shares: tuple[Share, ...] = ()
    start_s: float = 0.0  # of one worker
    num_workers: int = 0
    suggested_min: int | None = None  # a time limit that 95 % of runs keep
    high_95_s: float | None = None
    unknown: tuple[str, ...] = ()  # model and dataset of runs without history


def forecast(
    runs: Sequence[RunSpec],
    states: Mapping[str, RunState],
    history: Sequence[Shift],
    room_of: Callable[[RunSpec], Room],
) -> Forecast:
    """room_of: what a run's worker is given. history: timesheets of this root, of this sweep and others."""
    left = [spec for spec in runs if states[spec.fingerprint].status not in SETTLED]
    groups: dict[tuple[Workload, Room], list[RunSpec]] = {}
    for spec in left:
        groups.setdefault((workload_of(spec), room_of(spec)), []).append(spec)
    unit = "GPU" if any(room.gpus for _, room in groups) else "CPU"
    limits = [
        len(specs) * _devices(room, unit) * room.minutes / 60
        for (_, room), specs in groups.items()
        if room.minutes is not None
    ]
    shares, total = [], _Sum()
    longest, suggested = 0.0, 0
    for (workload, room), specs in groups.items():
        number = sum(1.0 - share_done(states[spec.fingerprint]) for spec in specs)
        share = _share(workload, room, number, history, unit)
        shares.append(share)
        if share.seconds is None:
            continue
        total.add(share.seconds, number, _devices(room, unit))
        longest = max(longest, share.seconds.high_95)
        saves = max(spec.config.train.checkpoint_every_s for spec in specs)
        need_s = max(share.seconds.high_95 + load_seconds(history, workload)[0], saves)
        suggested = max(suggested, math.ceil((need_s + min(need_s, room.reserve_s)) / 60))
    start_s, num_workers = _add_starts(total, groups, history, unit)
    unknown = tuple(
        dict.fromkeys(
            f"{share.workload.model}/{share.workload.dataset}" for share in shares if share.seconds is None
        )
    )
    low, high = total.interval() if not unknown else (None, None)
    return Forecast(
        hours=None if unknown else total.mean / 3600,
        low=low,
        high=high,
        worst=sum(limits) if len(limits) == len(groups) else None,
        unit=unit,
        shares=tuple(shares),
        start_s=start_s,
        num_workers=num_workers,
        suggested_min=suggested or None,
        high_95_s=longest or None,
        unknown=unknown,
    )


@dataclass(slots=True)
class _Sum:
    """A sum of predicted seconds times devices."""

    mean: float = 0.0
    parts: list[tuple[float, float]] = field(default_factory=list)  # variance, freedom

    def add(self, one: Prediction, number: float, devices: float) -> None:
        self.mean += one.mean * number * devices
        variance = (number * one.variance + number**2 * one.mean_variance) * devices**2
        self.parts.append((variance, one.freedom))

    def interval(self) -> tuple[float, float]:
        """Hours. The freedom of a sum of estimated variances is Welch and Satterthwaite's."""
        variance = sum(part for part, _ in self.parts)
        doubt = sum(part**2 / freedom for part, freedom in self.parts if part)
        low, high = interval(self.mean, variance, variance**2 / doubt if doubt else 1.0)
        return low / 3600, high / 3600


def _share(workload: Workload, room: Room, number: float, history: Sequence[Shift], unit: str) -> Share:
    seen = like_runs(history, workload, room.gpus)
    seen = [pair for pair in seen if (pair[1].pack > 1) == (room.pack != 1)] or seen
    found = predict([seconds for seconds, _, _ in seen], [shift.sweep for _, _, shift in seen])
    if found is None:
        return Share(workload=workload, runs=number, seconds=None)
    part = _Sum()
    part.add(found, number, _devices(room, unit))
    low, high = part.interval()
    trained = [entry for _, entry, _ in seen if entry.num_tokens and entry.training_s]
    tokens_s = sum(entry.training_s for entry in trained)
    return Share(
        workload=workload,
        runs=number,
        seconds=found,
        tokens_per_s=sum(entry.num_tokens for entry in trained) / tokens_s if tokens_s else None,
        hours=part.mean / 3600,
        low=low,
        high=high,
    )


def like_runs(history: Sequence[Shift], workload: Workload, gpus: int) -> list[tuple[float, Entry, Shift]]:
    """Own seconds, on a device of its own or its part of a shared one, of every like run that says something."""
    evaluations = [
        entry.evaluation_s / entry.pack
        for shift in history
        for entry in shift.entries
        if entry.evaluation_s and _same_evaluation(entry.workload, workload)
    ]
    found: list[tuple[float, Entry, Shift]] = []
    for shift in history:
        for entry in shift.entries:
            times = scale(entry.workload, entry.num_steps, workload)
            if times is None or bool(shift.gpus_used) != bool(gpus):
                continue
            if entry.outcome == "finished" and entry.steps == entry.num_steps:
                rest_s = entry.own_s - entry.training_s
                found.append(((entry.training_s * times + rest_s) / entry.pack, entry, shift))
            elif entry.outcome == "finished" and not entry.steps:  # a base model, or a trainer without steps
                found.append((entry.own_s / entry.pack, entry, shift))
            elif entry.outcome == "interrupted" and entry.steps > 1 and evaluations:
                pace_s = entry.training_s / entry.steps
                whole_s = pace_s * entry.num_steps * times / entry.pack + sum(evaluations) / len(evaluations)
                found.append((whole_s, entry, shift))
    return found


def load_seconds(history: Sequence[Shift], workload: Workload) -> tuple[float, list[float]]:
    """What a worker takes to start, on average; and what each took to load this model and dataset."""
    starts = [shift.ready_s for shift in history if shift.ready_s is not None]
    loads = [
        entry.setup_s
        for shift in history
        for entry in shift.entries
        if entry.is_first and (entry.workload.model, entry.workload.dataset) == workload.kind[1:]
    ]
    start_s = sum(starts) / len(starts) if starts else 0.0
    return start_s + (sum(loads) / len(loads) if loads else 0.0), loads


def _add_starts(
    total: _Sum,
    groups: Mapping[tuple[Workload, Room], Sequence[RunSpec]],
    history: Sequence[Shift],
    unit: str,
) -> tuple[float, int]:
    """Charge every worker its start and its loading; the seconds of one worker's start and loading, and workers."""
    starts = predict([shift.ready_s for shift in history if shift.ready_s is not None])
    runs_of: dict[tuple[Room, tuple[str, str]], int] = {}
    workers: dict[Room, int] = {}
    for (workload, room), specs in groups.items():
        place = room, (workload.model, workload.dataset)
        runs_of[place] = runs_of.get(place, 0) + len(specs)
    start_s = starts.mean if starts else 0.0
    for room in {room for room, _ in runs_of}:
        number = sum(number for (other, _), number in runs_of.items() if other == room)
        workers[room] = min(room.num_workers, math.ceil(number / room.runs_per_worker))
    if starts:
        for room, number in workers.items():
            total.add(starts, number, _devices(room, unit))
    for (room, loaded), number in runs_of.items():
        workload = next(work for work, _ in groups if (work.model, work.dataset) == loaded)
        if found := predict(load_seconds(history, workload)[1]):
            total.add(found, min(number, workers[room]), _devices(room, unit))
            start_s += found.mean / len(runs_of)
    return start_s, sum(workers.values())


def _same_evaluation(seen: Workload, asked: Workload) -> bool:
    return (seen.model, seen.dataset) == (asked.model, asked.dataset)


def _devices(room: Room, unit: str) -> float:
    return room.gpus if unit == "GPU" else room.cores


def spent_hours(history: Sequence[Shift], sweep: str, unit: str, since: float = 0.0) -> float:
    """Device-hours of a sweep's workers that began since that moment, its pilot's too: trained, lost and idle alike."""
    return (
        sum(
            shift.seconds * (shift.gpus if unit == "GPU" else shift.cores)
            for shift in history
            if shift.sweep in (sweep, f"{sweep}{PILOT_SUFFIX}") and shift.started_at >= since
        )
        / 3600
    )

"""Several runs of one plane from configurations to records: trained in stacks, measured one after another.

Each run ends in the record it has alone (`train.run`), under its own name, in its own folder. What a stack can't do,
its runs do alone: a model that can't be stacked, a stack that breaks. One that runs out of memory is halved.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from time import monotonic
from typing import Any

import torch

from train.batches import used_lengths
from train.cells import Cells, Ended, Member, Setting
from train.checkpoint import saved_step
from train.config import RunConfig
from train.errors import TemplateError
from train.failures import OF_THE_MACHINE, failure_kind
from train.loop import Interrupted
from train.objective import check_roles, role_weights, with_target_roles
from train.run import device_of, run
from train.stacked.choice import Choice
from train.stacked.choosing import choose
from train.stacked.company import largest_asked
from train.stacked.stacking import cannot_stack
from train.together import fitted
from train.tokens import TokenSplit
from train.workbench import Workbench

__all__ = ["Member", "best_company", "run_plane"]


def best_company(
    config: RunConfig,
    *,
    most: int,
    num_alike: int,
    workbench: Workbench,
    model_identity: str,
    dataset_identity: str,
) -> Choice:
    """How many runs that differ from this one in weights and rates only are best trained at once, `most` at most.

    num_alike   runs that are as long, seeds apart, for which it is found out only once
    """
    torch.set_num_threads(config.train.num_threads)
    device = device_of(config)
    model = workbench.model(config, model_identity, device)
    data = workbench.data(config, model, model_identity, dataset_identity)
    trained = fitted(model, config)
    try:
        if reason := cannot_stack(trained, [config]):
            return Choice(1, reason)
        if (asked := largest_asked(config)) is not None:
            return Choice(min(asked, most), f"train.plane={asked}")
        folder = None if workbench.cache_folder is None else workbench.cache_folder / "planes"
        split = data.splits["train"]
        return choose(trained, split, config, device, most=most, num_alike=num_alike, folder=folder)
    finally:
        if trained is not model:
            trained.unload()  # type: ignore[operator] - gives the shared base model back without adapters


def run_plane(
    members: Sequence[Member],
    choice: Choice,
    *,
    workbench: Workbench,
    model_identity: str,
    dataset_identity: str,
    should_stop: Callable[[], bool],
    ended: Ended,
    spent_s: float = 0.0,
) -> None:
    """Train and measure runs that have all but weights and rates in common (`train.stacked.company`).

    ended    hears of each run once, as soon as it is over: its record, or what `train.run.run` would have raised
    spent_s  seconds that the choice took: part of the first stack's set-up
    Raises   Interrupted once every run that isn't over is saved; OSError and the like where the machine is at fault.
    """
    plane = _Plane(Setting(workbench, model_identity, dataset_identity, should_stop, ended), spent_s)
    stacks = deque(plane.stacks(members, choice.size))
    while stacks:
        if should_stop():
            raise Interrupted("stopped between two stacks")
        stack = stacks.popleft()
        if len(stack) == 1:
            plane.alone(stack[0], choice)
            continue
        problem = plane.together(stack, choice)
        if problem == "memory":
            half = (len(stack) + 1) // 2
            choice = replace(choice, size=half, why=f"{len(stack)} together did not fit in memory")
            print(f"{choice.why}: {half} and {len(stack) - half} one after another", flush=True)
            stacks.extendleft((stack[half:], stack[:half]))
        elif problem:
            choice = replace(choice, size=1, why=problem)
            print(f"each run alone: {problem}", flush=True)
            stacks.extendleft([member] for member in reversed(stack))


class _Plane:
    """Runs to stacks, and stacks to records."""

    def __init__(self, setting: Setting, spent_s: float) -> None:
        self.setting, self._spent_s = setting, spent_s

    def _take_spent(self) -> float:
        """Seconds of set-up that were spent before, once."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def stacks(self, members: Sequence[Member], size: int) -> list[list[Member]]:
        """Runs whose rows end alike and that stand at the same step, in parts of `size` at most, evenly."""
        config = members[0].config
        model = self.setting.workbench.model(config, self.setting.model_identity, device_of(config))
        data = self.setting.workbench.data(config, model, **self.setting.identities)
        groups: dict[tuple[Any, ...], list[Member]] = {}
        ends: dict[bytes, tuple[int, ...]] = {}
        for member in members:
            try:
                check_roles(data.splits["train"], member.config.objective, member.config.model.template)
            except TemplateError as error:
                self.setting.ended(member, error)
                continue
            key = (
                _ends(data.splits["train"], member.config, ends),
                saved_step(member.folder, member.fingerprint),
            )
            groups.setdefault(key, []).append(member)
        return [part for group in groups.values() for part in _parts(group, size)]

    def alone(self, member: Member, choice: Choice) -> None:
        """A run as it would be by itself."""
        try:
            record = run(
                member.config,
                run_id=member.run_id,
                fingerprint=member.fingerprint,
                folder=member.folder,
                attempt=member.attempt,
                workbench=self.setting.workbench,
                should_stop=lambda: self.setting.should_stop() or member.should_stop(),
                on_progress=member.on_progress,
                asked=member.asked,
                model_identity=self.setting.model_identity,
                dataset_identity=self.setting.dataset_identity,
            )
        except Exception as error:
            if self.setting.should_stop() or failure_kind(error) in OF_THE_MACHINE:
                raise
            self.setting.ended(member, error)
            return
        about = {**record.environment, "plane": choice.described(1)}
        setup_s = record.setup_s + self._take_spent()
        self.setting.ended(member, replace(record, environment=about, setup_s=setup_s))

    def together(self, stack: Sequence[Member], choice: Choice) -> str:
        """Train and measure a stack. Why it has to be done otherwise: memory, or words; "" once all are over."""
        started = monotonic() - self._take_spent()
        config = stack[0].config
        torch.set_num_threads(config.train.num_threads)
        device = device_of(config)
        model = self.setting.workbench.model(config, self.setting.model_identity, device)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        trained = fitted(model, config)
        try:
            if reason := cannot_stack(trained, [member.config for member in stack]):
                return reason
            with Cells(self.setting, stack, trained, choice, device, started, num_parameters) as cells:
                return cells.run()
        finally:
            if trained is not model:
                trained.unload()  # type: ignore[operator] - gives the shared base model back without adapters


def _ends(split: TokenSplit, config: RunConfig, known: dict[bytes, tuple[int, ...]]) -> tuple[int, ...]:
    """Where the rows end for this run: alike for weights that are 0 for the same roles."""
    weights_R = role_weights(config.objective)
    key = (weights_R != 0).tobytes()
    if key not in known:
        known[key] = tuple(used_lengths(with_target_roles(split, config.objective), weights_R))
    return known[key]


def _parts(group: Sequence[Member], size: int) -> list[list[Member]]:
    """At most `size` in each, and as even as can be."""
    number = -(-len(group) // max(1, size))
    width, more = divmod(len(group), number)
    starts = [k * width + min(k, more) for k in range(number + 1)]
    return [list(group[start:end]) for start, end in pairwise(starts)]

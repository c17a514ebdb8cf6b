"""One stack of runs, from its trackers to its records."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import nn

from train.checkpoint import Progress
from train.conclusion import concluded, parameters_sha256
from train.config import RunConfig
from train.evaluate import Evaluation
from train.failures import (
    MEMORY,
    OF_THE_MACHINE,
    NonFiniteLossError,
    failure_from_exception,
    failure_kind,
)
from train.fingerprint import own_protocol
from train.footprint import Footprint
from train.items import FOLDER as ITEMS
from train.items import write_items
from train.loop import Hooks, Interrupted
from train.model import trainable_parameters
from train.provenance import environment, git_state
from train.record import RunRecord
from train.stacked.choice import Choice
from train.stacked.evaluating import cells_at_once, evaluate_cells
from train.stacked.loop import CellResult, CellRun, train_stacked
from train.tracking import Tracker, start_tracker
from train.tracking_values import Asked, mirrored_run
from train.weights import save_weights
from train.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A run of a plane and who listens to it; its own `should_stop` takes it out, saved."""

    config: RunConfig
    run_id: str
    fingerprint: str
    folder: Path
    attempt: int
    should_stop: Callable[[], bool]
    on_progress: Callable[[int, int], None]
    asked: Asked = Asked()


Ended = Callable[[Member, RunRecord | Exception], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all stacks of a plane share. should_stop: of them all; `ended` hears of each run once."""

    workbench: Workbench
    model_identity: str
    dataset_identity: str
    should_stop: Callable[[], bool]
    ended: Ended

    @property
    def identities(self) -> dict[str, str]:
        """Of model and data, by name."""
        return {"model_identity": self.model_identity, "dataset_identity": self.dataset_identity}


class Cells:
    """One stack, from its trackers to its records."""

    def __init__(
        self,
        setting: Setting,
        stack: Sequence[Member],
        model: nn.Module,
        choice: Choice,
        device: torch.device,
        started: float,
        num_parameters: int,
    ) -> None:
        self.setting, self.stack, self.model, self.choice, self.device = setting, stack, model, choice, device
        config, identities = stack[0].config, setting.identities
        self.tokenizer = setting.workbench.tokenizer(config, identities["model_identity"])
        self.data = setting.workbench.data(config, model, **identities)
        self.counts = {**self.data.counts, "model_parameters": num_parameters}
        self.footprint = Footprint(device)
        self.setup_s = (monotonic() - started) / len(stack)
        commit = git_state().get("git_commit")
        self.trackers: dict[str, Tracker] = {
            member.fingerprint: start_tracker(
                member.config,
                mirrored_run(
                    member.config, member.run_id, member.fingerprint, identities, commit, member.asked
                ),
                member.folder,
            )
            for member in stack
        }

    def __enter__(self) -> "Cells":
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers.values():  # of runs that go on elsewhere
            tracker.finish(None)

    def run(self) -> str:
        """Why it has to be done otherwise: memory, or words; "" once all are over."""
        try:
            results = train_stacked(
                self.model,
                self.data.splits["train"],
                [self._cell(member) for member in self.stack],
                device=self.device,
                should_stop=self.setting.should_stop,
            )
        except Interrupted:
            if self.setting.should_stop():
                raise
            return ""  # all left, and said so
        except Exception as error:
            kind = failure_kind(error)
            if kind in OF_THE_MACHINE:
                raise
            if kind not in MEMORY:
                traceback.print_exc()
            words = failure_from_exception(error).message
            problem = "memory" if kind in MEMORY else f"a stack of them broke ({words})"
        else:
            self._conclude(results)
            return ""
        if self.device.type == "cuda":  # not before the error, and what it holds, is gone
            torch.cuda.empty_cache()
        return problem

    def _cell(self, member: Member) -> CellRun:
        def told(step: int, num_steps: int) -> None:
            self.footprint.sample()
            member.on_progress(step, num_steps)

        def leave(why: Interrupted) -> None:
            self._close(member, why)

        hooks = Hooks(member.should_stop, told, self.trackers[member.fingerprint])
        return CellRun(
            self.choice.way.applied(member.config), member.fingerprint, member.folder, hooks, leave
        )

    def _conclude(self, results: Sequence[CellResult]) -> None:
        """Measure the cells, as many as one pass holds at a time, and tell of each."""
        left = [(member, result) for member, result in zip(self.stack, results, strict=True)]
        left = [pair for pair in left if not isinstance(pair[1].failure, Interrupted)]
        at_once = cells_at_once(self.stack[0].config.eval, self.device)
        while left:
            if self.setting.should_stop():
                raise Interrupted("stopped before its evaluation")
            some, left = left[:at_once], left[at_once:]
            called = [member for member, _ in some if member.should_stop()]
            for member in called:
                self._close(member, Interrupted("stopped before its evaluation"))
            self._measure([pair for pair in some if pair[0] not in called])

    def _measure(self, cells: Sequence[tuple[Member, CellResult]]) -> None:
        config = self.stack[0].config
        about = environment(self.device) | self.footprint.numbers()
        about["plane"] = self.choice.described(len(self.stack))
        started = monotonic()
        try:
            found = evaluate_cells(
                self.model,
                [result for _, result in cells],
                self.data,
                config,
                self.tokenizer,
                self.device,
                protocol=own_protocol(config, self.setting.dataset_identity),
            )
        except Exception as error:
            if failure_kind(error) in OF_THE_MACHINE:
                raise
            if failure_kind(error) not in MEMORY or len(cells) == 1:
                for member, _ in cells:
                    self._close(member, error)
                return
            found = None
        if found is None:
            for pair in cells:
                self._measure([pair])
            return
        evaluation_s = (monotonic() - started) / max(1, sum(each is not None for each in found))
        for (member, result), measured in zip(cells, found, strict=True):
            try:
                record = self._record(member, result, measured, evaluation_s, about)
            except Exception as error:
                if failure_kind(error) in OF_THE_MACHINE:
                    raise
                self._close(member, error)
            else:
                self.setting.ended(member, record)

    def _close(self, member: Member, why: Exception) -> None:
        """It has no record."""
        if member.fingerprint in self.trackers:
            self.trackers.pop(member.fingerprint).finish(None)
        self.setting.ended(member, why)

    def _record(
        self,
        member: Member,
        result: CellResult,
        measured: Evaluation | None,
        evaluation_s: float,
        about: dict[str, Any],
    ) -> RunRecord:
        config, identities = member.config, self.setting.identities
        with torch.no_grad():
            for name, parameter in trainable_parameters(self.model).items():
                parameter.copy_(result.parameters[name])
        digest, failure, progress = parameters_sha256(self.model), None, result.progress
        if measured is None:
            assert isinstance(result.failure, NonFiniteLossError)
            failure, measured = failure_from_exception(result.failure), Evaluation({})
            progress, evaluation_s = Progress(0, 0.0, None), 0.0  # as a run alone
        else:
            for items in measured.items:
                write_items(member.folder / ITEMS, items)
            if config.keep != "none":
                named = {"run_id": member.run_id, "fingerprint": member.fingerprint, **identities}
                about_weights = {**named, "parameters_sha256": digest}
                save_weights(self.model, self.tokenizer, config, member.folder, about_weights)
        return concluded(
            config,
            self.data,
            self.trackers.pop(member.fingerprint),
            run_id=member.run_id,
            fingerprint=member.fingerprint,
            attempt=member.attempt,
            progress=progress,
            metrics=measured.metrics,
            measured=measured.measured,
            counts=self.counts,
            parameters_sha256=digest,
            setup_s=self.setup_s,
            evaluation_s=evaluation_s,
            environment=about | dict(progress.how),
            failure=failure,
        )

"""What a worker trains with: the real trainer, or one named by module:function, such as a toy.

The one place of `sweep` that imports torch's side of the house, and only once there is a run to train.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sweep.asked import asked_of
from sweep.evaluations import is_evaluation
from sweep.ledger import Ledger
from sweep.spec import RunSpec
from train.record import RunRecord
from train.stacked.company import largest_asked

TRAINER = "sweep.trainers:make_trainer"


class GivenBack(Exception):
    """A trainer stopped because it was asked to."""


@dataclass(frozen=True, slots=True)
class Together:
    """One of several runs that are trained at once; its own `should_stop` takes it out, saved."""

    spec: RunSpec
    folder: Path
    attempt: int
    should_stop: Callable[[], bool]
    on_progress: Callable[[int, int], None]


class RunOne(Protocol):
    """Trains one run; raises GivenBack once its state is saved after `should_stop` became true.

    With `pause_at`, a share of its steps, it raises train.rungs.Paused there, measured and saved.
    """

    def __call__(
        self,
        spec: RunSpec,
        *,
        folder: Path,
        attempt: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        pause_at: float | None = None,
    ) -> RunRecord: ...


@runtime_checkable
class RunMany(Protocol):
    """What a trainer may also be able to do: train several runs at once; see `Trainer`."""

    def company(self, spec: RunSpec, num_alike: int, most: int) -> int: ...

    def together(
        self,
        runs: Sequence[Together],
        *,
        should_stop: Callable[[], bool],
        ended: Callable[[str, RunRecord | Exception], None],
    ) -> None: ...


def load_trainer(name: str) -> Callable[[str], RunOne]:
    """The function behind module:function."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def make_trainer(root: str) -> RunOne:
    """The real trainer; models and tokenised data stay in memory from run to run."""
    return Trainer(root)


class Trainer:
    """Trains and measures one run, or several of one plane at once (`RunMany`); evaluates them likewise."""

    def __init__(self, root: str) -> None:
        from train.libraries import load_libraries

        load_libraries()  # torch begins here
        from train import run as training

        self._root, self._training = root, training
        self._workbench = training.Workbench(Path(root) / ".cache")
        self._choices: dict[
            str, tuple[Any, float]
        ] = {}  # by run: how many at once, and what finding out took

    def __call__(
        self,
        spec: RunSpec,
        *,
        folder: Path,
        attempt: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        pause_at: float | None = None,
    ) -> RunRecord:
        try:
            if is_evaluation(spec):
                from train.benchmarks.run import evaluate_run

                return evaluate_run(
                    spec.config,
                    run_id=spec.run_id,
                    fingerprint=spec.fingerprint,
                    folder=folder,
                    attempt=attempt,
                    workbench=self._workbench,
                    model_identity=spec.model_identity,
                    parent_folder=Ledger(self._root).folder(spec.parent_fingerprint),
                    should_stop=should_stop,
                    on_progress=on_progress,
                )
            parent = spec.parent_fingerprint
            record = self._training.run(
                spec.config,
                run_id=spec.run_id,
                fingerprint=spec.fingerprint,
                folder=folder,
                attempt=attempt,
                workbench=self._workbench,
                model_identity=spec.model_identity,
                dataset_identity=spec.dataset_identity,
                should_stop=should_stop,
                on_progress=on_progress,
                asked=asked_of(self._root, spec),
                parent_folder=Ledger(self._root).folder(parent) if parent else None,
                pause_at=pause_at,
            )
        except self._training.Interrupted as error:
            raise GivenBack(str(error)) from error
        if spec.fingerprint not in self._choices:
            return record
        choice, spent_s = self._choices.pop(spec.fingerprint)
        about = {**record.environment, "plane": choice.described(1)}
        return dataclasses.replace(record, environment=about, setup_s=record.setup_s + spent_s)

    def company(self, spec: RunSpec, num_alike: int, most: int) -> int:
        """How many runs are best trained at once with this one, `most` at most.

        num_alike   runs that are as long, for which the choice will be made only once
        """
        if is_evaluation(spec):  # which part themselves by what there is room for
            number = min(most, largest_asked(spec.config) or most)
            print(f"runs at once: {number} over one base", flush=True)
            return number
        from train.plane import best_company

        started = time.monotonic()
        choice = best_company(
            spec.config,
            most=most,
            num_alike=num_alike,
            workbench=self._workbench,
            model_identity=spec.model_identity,
            dataset_identity=spec.dataset_identity,
        )
        print(f"runs at once: {choice.size} of {most}: {choice.why}", flush=True)
        self._choices[spec.fingerprint] = choice, time.monotonic() - started
        return choice.size

    def together(
        self,
        runs: Sequence[Together],
        *,
        should_stop: Callable[[], bool],
        ended: Callable[[str, RunRecord | Exception], None],
    ) -> None:
        """Train and measure several; `ended` hears of each as soon as it is over. Raises as a run does."""
        from train.plane import Member, run_plane

        first = runs[0].spec
        if is_evaluation(first):
            self._evaluate(runs, should_stop, ended)
            return
        choice, spent_s = self._choices.pop(first.fingerprint)

        def over(member: Member, what: RunRecord | Exception) -> None:
            is_back = isinstance(what, self._training.Interrupted)
            ended(member.fingerprint, GivenBack(str(what)) if is_back else what)

        try:
            run_plane(
                [
                    Member(
                        config=one.spec.config,
                        run_id=one.spec.run_id,
                        fingerprint=one.spec.fingerprint,
                        folder=one.folder,
                        attempt=one.attempt,
                        should_stop=one.should_stop,
                        on_progress=one.on_progress,
                        asked=asked_of(self._root, one.spec),
                    )
                    for one in runs
                ],
                choice,
                workbench=self._workbench,
                model_identity=first.model_identity,
                dataset_identity=first.dataset_identity,
                should_stop=should_stop,
                ended=over,
                spent_s=spent_s,
            )
        except self._training.Interrupted as error:
            raise GivenBack(str(error)) from error

    def _evaluate(
        self,
        runs: Sequence[Together],
        should_stop: Callable[[], bool],
        ended: Callable[[str, RunRecord | Exception], None],
    ) -> None:
        from train.benchmarks.run import Evaluated, evaluate_runs

        def over(one: Evaluated, what: RunRecord | Exception) -> None:
            is_back = isinstance(what, self._training.Interrupted)
            ended(one.fingerprint, GivenBack(str(what)) if is_back else what)

        try:
            evaluate_runs(
                [
                    Evaluated(
                        config=one.spec.config,
                        run_id=one.spec.run_id,
                        fingerprint=one.spec.fingerprint,
                        folder=one.folder,
                        attempt=one.attempt,
                        parent_folder=Ledger(self._root).folder(one.spec.parent_fingerprint),
                        should_stop=one.should_stop,
                        on_progress=one.on_progress,
                    )
                    for one in runs
                ],
                workbench=self._workbench,
                model_identity=runs[0].spec.model_identity,
                should_stop=should_stop,
                ended=over,
            )
        except self._training.Interrupted as error:
            raise GivenBack(str(error)) from error


def train_again(root: str, spec: RunSpec, folder: Path) -> RunRecord:
    """Train a run in this process and in a folder of its own; whatever breaks is raised."""
    threads = str(spec.config.train.num_threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, keep="none"))
    return make_trainer(root)(
        spec, folder=folder, attempt=1, should_stop=lambda: False, on_progress=lambda step, num_steps: None
    )

"""What a worker trains with: the real trainer, or one named by module:function, such as a toy.

The one place of `sweep` that imports torch's side of the house, and only once there is a run to train.
"""

import dataclasses
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

from sweep.asked import asked_of
from sweep.evaluations import is_evaluation
from sweep.ledger import Ledger
from sweep.spec import RunSpec
from train.record import RunRecord

TRAINER = "sweep.trainers:make_trainer"


class GivenBack(Exception):
    """A trainer stopped because it was asked to."""


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


def load_trainer(name: str) -> Callable[[str], RunOne]:
    """The function behind module:function."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def make_trainer(root: str) -> RunOne:
    """The real trainer; models and tokenised data stay in memory from run to run."""
    from train import run as training  # torch begins here

    workbench = training.Workbench(Path(root) / ".cache")

    def run_one(
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
                    workbench=workbench,
                    model_identity=spec.model_identity,
                    parent_folder=Ledger(root).folder(spec.parent_fingerprint),
                    should_stop=should_stop,
                    on_progress=on_progress,
                )
            return training.run(
                spec.config,
                run_id=spec.run_id,
                fingerprint=spec.fingerprint,
                folder=folder,
                attempt=attempt,
                workbench=workbench,
                model_identity=spec.model_identity,
                dataset_identity=spec.dataset_identity,
                should_stop=should_stop,
                on_progress=on_progress,
                asked=asked_of(root, spec),
                parent_folder=Ledger(root).folder(spec.parent_fingerprint)
                if spec.parent_fingerprint
                else None,
                pause_at=pause_at,
            )
        except training.Interrupted as error:
            raise GivenBack(str(error)) from error

    return run_one


def train_again(root: str, spec: RunSpec, folder: Path) -> RunRecord:
    """Train a run in this process and in a folder of its own; whatever breaks is raised."""
    threads = str(spec.config.train.num_threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, keep="none"))
    return make_trainer(root)(
        spec, folder=folder, attempt=1, should_stop=lambda: False, on_progress=lambda step, num_steps: None
    )

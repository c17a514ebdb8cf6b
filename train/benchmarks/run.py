"""Benchmarks on finished runs: their weights found or trained again, their scores as records of their own.

Adapters of one base are measured together, over one resident copy of it; whole models one after another.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.benchmarks.config import evaluation_fingerprint
from train.benchmarks.evaluation import Measured, MeasuredRun, Stopped, evaluate_together
from train.benchmarks.identity import asked_protocols
from train.benchmarks.models import Models, Source
from train.config import RunConfig
from train.distributed import local_device
from train.errors import DataError
from train.failures import MEMORY, OF_THE_MACHINE, failure_from_exception, failure_kind
from train.files import read_json
from train.kept import remove_weights
from train.loop import Interrupted
from train.provenance import environment
from train.record import RunRecord
from train.run import device_of
from train.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation: the measured run's configuration with the benchmarks that are asked and stage "evaluate".

    parent_folder   of the measured run, whose evaluations/ the results are written to
    should_stop     takes this one out of its company; what it has is kept
    """

    config: RunConfig
    run_id: str
    fingerprint: str
    folder: Path
    attempt: int
    parent_folder: Path
    should_stop: Callable[[], bool] = lambda: False
    on_progress: Callable[[int, int], None] = lambda done, total: None


Ended = Callable[[Evaluated, RunRecord | Exception], None]


def evaluate_runs(
    evaluations: Sequence[Evaluated],
    *,
    workbench: Workbench,
    model_identity: str,
    should_stop: Callable[[], bool],
    ended: Ended,
) -> None:
    """Measure runs that are alike (`train.benchmarks.company`), or one alone.

    As many at once as there is room for. A group that runs out of memory is halved, one that breaks is measured run
    by run; whatever was written or scored by then is kept, and not done again.

    ended    hears of each once, as soon as it is over: its record, or what it failed with
    Raises   Interrupted once what isn't over is saved; OSError and the like where the machine is at fault.
    """
    config = evaluations[0].config
    torch.set_num_threads(config.train.num_threads)
    started = time.monotonic()
    protocols = asked_protocols(config.eval, workbench.cache_folder)
    plane = _Plane(
        config,
        protocols,
        workbench,
        model_identity,
        should_stop,
        (time.monotonic() - started) / len(evaluations),
    )
    left = {one.fingerprint: one for one in evaluations}

    def over(one: Evaluated, what: RunRecord | Exception) -> None:
        if left.pop(one.fingerprint, None) is None:
            return  # what broke afterwards costs it nothing
        ended(one, Interrupted(str(what)) if isinstance(what, Stopped) else what)

    size = len(evaluations)
    while left:
        if should_stop():
            raise Interrupted("stopped between two groups")
        group = list(left.values())[:size]
        problem = plane.measure(group, over)
        if problem and len(group) > 1:
            size = (len(group) + 1) // 2 if problem == "memory" else 1
            why = f"{len(group)} together did not fit in memory" if problem == "memory" else problem
            print(f"{why}: evaluated {size} at a time", flush=True)


class _Plane:
    """Groups of evaluations to records."""

    def __init__(
        self,
        config: RunConfig,
        protocols: dict[str, str],
        workbench: Workbench,
        model_identity: str,
        should_stop: Callable[[], bool],
        spent_s: float,
    ) -> None:
        self._config, self._protocols, self._spent_s = config, protocols, spent_s
        self._workbench, self._model_identity, self._should_stop = workbench, model_identity, should_stop
        self._device = local_device(device_of(config))

    def measure(self, group: Sequence[Evaluated], ended: Ended) -> str:
        """Why those that aren't over have to be done otherwise: memory, or words; "" without a reason.

        Not all of a group need be over: it is cut to what there is room for.
        """
        try:
            self._measure(self._known(group, ended), ended)
        except Stopped as error:
            raise Interrupted(str(error)) from None
        except Interrupted:
            raise
        except Exception as error:
            kind = failure_kind(error)
            if kind in OF_THE_MACHINE:
                raise
            if len(group) == 1:
                ended(group[0], error)
                return ""
            if kind not in MEMORY:
                traceback.print_exc()
            words = failure_from_exception(error).message
            problem = "memory" if kind in MEMORY else f"a group of them broke ({words})"
        else:
            return ""
        if self._device.type == "cuda":  # not before the error, and what it holds, is gone
            torch.cuda.empty_cache()
        return problem

    def _known(self, group: Sequence[Evaluated], ended: Ended) -> list[tuple[Evaluated, dict[str, Any]]]:
        """Those whose runs are what the plan says, with their records."""
        found = []
        for one in group:
            parent = read_json(one.parent_folder / "record.json") or {}
            asked = evaluation_fingerprint(
                str(parent.get("fingerprint")), self._protocols, one.config.eval.aggregates
            )
            if asked == one.fingerprint:
                found.append((one, parent))
                continue
            ended(
                one,
                DataError(
                    f"what {', '.join(self._protocols)} are asked with changed since the plan was made: "
                    f"files of eval.data={one.config.eval.data}, or the installed lm-eval",
                    "the same files and version",
                    "run the same line again: it makes a new plan",
                ),
            )
        return found

    def _measure(self, group: Sequence[tuple[Evaluated, dict[str, Any]]], ended: Ended) -> None:
        sources = [
            Source(one.parent_folder, one.folder, parent["stage"] == "base", one.should_stop)
            for one, parent in group
        ]
        models = Models(
            self._config,
            sources,
            self._workbench,
            self._model_identity,
            self._device,
            should_stop=self._should_stop,
            failed=lambda n, error: ended(group[n][0], error),
        )

        def over(n: int, what: Measured | Exception) -> None:
            one, parent = group[n]
            ended(
                one, what if isinstance(what, Exception) else self._record(one, parent, what, models.setup_s)
            )

        try:
            evaluate_together(
                self._config.eval,
                self._protocols,
                models.backends,
                [
                    MeasuredRun(one.parent_folder, parent["parameters_sha256"], one.should_stop)
                    for one, parent in group
                ],
                cache_folder=self._workbench.cache_folder,
                should_stop=self._should_stop,
                on_progress=lambda n, done, total: group[n][0].on_progress(done, total),
                ended=over,
            )
        finally:
            models.close()

    def _record(self, one: Evaluated, parent: dict[str, Any], found: Measured, setup_s: float) -> RunRecord:
        """seconds: each has an even share of what was done for all."""
        if one.config.eval.retrain and (one.folder / "retrained").exists():
            remove_weights(one.parent_folder)
        setup_s /= found.num_together
        together = {"evaluated_with": found.num_together} if found.num_together > 1 else {}
        return RunRecord(
            run_id=one.run_id,
            fingerprint=one.fingerprint,
            outcome="finished",
            stage=one.config.stage,
            metrics=found.metrics,
            measured=found.details,
            parameters_sha256=parent["parameters_sha256"],
            evaluation_s=max(0.0, self._spent_s + found.seconds - setup_s),
            setup_s=setup_s,
            attempt=one.attempt,
            environment=environment(self._device) | together,
            finished_at=time.time(),
        )


def evaluate_run(
    config: RunConfig,
    *,
    run_id: str,
    fingerprint: str,
    folder: Path,
    attempt: int,
    workbench: Workbench,
    model_identity: str,
    parent_folder: Path,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> RunRecord:
    """One of them; raises what it fails with."""
    found: list[RunRecord | Exception] = []
    evaluate_runs(
        [
            Evaluated(
                config=config,
                run_id=run_id,
                fingerprint=fingerprint,
                folder=folder,
                attempt=attempt,
                parent_folder=parent_folder,
                on_progress=on_progress,
            )
        ],
        workbench=workbench,
        model_identity=model_identity,
        should_stop=should_stop,
        ended=lambda one, what: found.append(what),
    )
    (what,) = found
    if isinstance(what, Exception):
        raise what
    return what

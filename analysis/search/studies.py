"""Records as Optuna studies in memory: a cache that is made anew from the ledger whenever it is needed.

Optuna's own storages stay out of it. A database on a cluster's disk loses writes or locks up when several processes
share it, and a study that remembers what the ledger doesn't know could disagree with it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from analysis.search.questions import Told
from analysis.search.space import Space
from train.metrics import Metric

LEAST_PAIRS = 3  # runs measured at a rung and at the end, before a paused run's end is guessed from its rung


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's lines about every study."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def make_study(
    space: Space, metrics: Sequence[Metric], told: Sequence[Told], pending: Sequence[Told], sampler: Any
) -> Any:
    """An optuna.Study in memory: told runs as complete trials, pending ones as running."""
    import optuna
    from optuna.trial import TrialState

    with quiet():
        study = optuna.create_study(
            sampler=sampler,
            directions=["maximize" if metric.better == "higher" else "minimize" for metric in metrics],
        )
    parameters, names = space.parameters(), [metric.name for metric in metrics]
    trials = []
    for run, is_told in [*((run, True) for run in told), *((run, False) for run in pending)]:
        values = space.values_of(run)
        if values and (not is_told or all(name in run.metrics for name in names)):
            trials.append(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE if is_told else TrialState.RUNNING,
                    params=values,
                    distributions=parameters,
                    values=[run.metrics[name] for name in names] if is_told else None,
                    user_attrs={"seed": run.seed},
                )
            )
    study.add_trials(trials)
    return study


def with_guessed_ends(told: Sequence[Told], metrics: Sequence[Metric]) -> list[Told]:
    """Paused runs with the metrics that they would probably have had in the end; those that can't be guessed go.

    A run paused at a share of its steps is told as its number there plus the mean change from there to the end over
    the runs that have both: a biased number, but of a cell that was judged not worth its end.
    """
    found: list[Told] = []
    for run in told:
        if run.metrics:
            found.append(run)
            continue
        share = max(run.rungs, default=None)
        guessed = {} if share is None else _guess(run, share, told, [metric.name for metric in metrics])
        if guessed:
            found.append(Told(weights=run.weights, settings=run.settings, seed=run.seed, metrics=guessed))
    return found


def _guess(run: Told, share: float, told: Sequence[Told], names: Sequence[str]) -> dict[str, float]:
    ends: dict[str, float] = {}
    for name in names:
        changes = [
            other.metrics[name] - other.rungs[share][name]
            for other in told
            if name in other.metrics and name in other.rungs.get(share, {})
        ]
        if len(changes) < LEAST_PAIRS or name not in run.rungs[share]:
            return {}
        ends[name] = run.rungs[share][name] + sum(changes) / len(changes)
    return ends

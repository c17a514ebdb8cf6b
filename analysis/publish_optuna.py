"""A sweep as Optuna studies in one SQLite file, for `optuna-dashboard`: a view, written anew each time.

One study per plane, one trial per cell and seed. A cell that an alias answers is a trial, too, and says so:
otherwise the dashboard's contour would have holes where the grid has none.
"""

import datetime
import os
import secrets
import warnings
from pathlib import Path
from typing import Any

from analysis.study import Study
from analysis.table import Table
from sweep.spec import PlannedCell

FILE_NAME = "optuna.db"


def publish_optuna(table: Table, studies: tuple[Study, ...], folder: Path) -> str:
    """Write the file and return what to print."""
    import optuna

    path = folder / FILE_NAME
    temporary = folder / f".{FILE_NAME}.{secrets.token_hex(6)}.tmp"
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
        for study in studies:
            _write_study(storage, table, study)
        storage.engine.dispose()
        os.replace(temporary, path)
    finally:
        optuna.logging.set_verbosity(verbosity)
        temporary.unlink(missing_ok=True)
    return (
        f"optuna: {path}\nlook at it: optuna-dashboard sqlite:///{path}   (pip install 'weight-sweep[dash]')"
    )


def _write_study(storage: Any, table: Table, study: Study) -> None:
    import optuna

    model, dataset, settings = study.group
    name = " ".join([table.plan.name, model, dataset, *(f"{key}={value}" for key, value in settings)])
    metric = study.chosen.metric
    written = optuna.create_study(
        storage=storage, study_name=name, direction="maximize" if metric.better == "higher" else "minimize"
    )
    with warnings.catch_warnings():  # experimental, and only a label
        warnings.simplefilter("ignore")
        written.set_metric_names([metric.name])
    written.set_user_attr("unit", metric.unit)
    planned = table.cells_by_group[study.group]
    distributions = {
        key: optuna.distributions.CategoricalDistribution(
            sorted({getattr(item.cell, key) for item in planned})
        )
        for key in ("prompt_weight", "response_weight", "seed")
    }
    written.add_trials([_trial(table, item, metric.name, distributions) for item in planned])


def _trial(table: Table, planned: PlannedCell, metric: str, distributions: dict[str, Any]) -> Any:
    import optuna

    cell, record = planned.cell, table.record_by_fingerprint.get(planned.fingerprint)
    value = None if record is None else record.metrics.get(metric)
    attributes: dict[str, Any] = {
        "run_id": table.spec_by_fingerprint[planned.fingerprint].run_id,
        "is_alias": planned.is_alias,
        "status": str(table.status_by_fingerprint[planned.fingerprint]),
    }
    trial = optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE,
        value=value,
        params={key: getattr(cell, key) for key in distributions},
        distributions=distributions,
        user_attrs={**attributes, **(record.metrics if record is not None else {})},
    )
    if record is not None and record.finished_at:
        trial.datetime_complete = datetime.datetime.fromtimestamp(record.finished_at)
        trial.datetime_start = trial.datetime_complete - datetime.timedelta(
            seconds=record.training_s + record.evaluation_s + record.setup_s
        )
    return trial

"""A sweep as Optuna studies in a file or a database, for `optuna-dashboard`: a view, written anew each time.

One study per plane, one trial per cell and seed. A cell that an alias answers is a trial, too, and says so:
otherwise the dashboard's contour would have holes where the grid has none.
"""

import datetime
import hashlib
import warnings
from pathlib import Path
from typing import Any

from analysis.search.storages import SWEEP, export
from analysis.study import Study
from analysis.table import Table
from sweep.spec import PlannedCell

FILE_NAME = "optuna.db"


def publish_optuna(table: Table, studies: tuple[Study, ...], folder: Path, target: str = "") -> str:
    """Write the studies and return what to print. target: see `analysis.search.storages`; "" is optuna.db."""
    owner = owner_of(table)
    names = [_study_name(table, study) for study in studies]

    def fill(storage: Any) -> None:
        for study, name in zip(studies, names, strict=True):
            _write_study(storage, table, study, name, owner)

    return export(target or str(folder / FILE_NAME), owner, names, fill)


def owner_of(table: Table) -> str:
    """Whose a study is: the sweep's name, and the models and data that it is about."""
    about = " ".join(sorted(base.fingerprint for base in table.plan.bases))
    return f"{table.plan.name} {hashlib.sha256(about.encode()).hexdigest()[:12]}"


def _study_name(table: Table, study: Study) -> str:
    model, dataset, settings = study.group
    return " ".join([table.plan.name, model, dataset, *(f"{key}={value}" for key, value in settings)])


def _write_study(storage: Any, table: Table, study: Study, name: str, owner: str) -> None:
    import optuna

    metric = study.chosen.metric
    written = optuna.create_study(
        storage=storage, study_name=name, direction="maximize" if metric.better == "higher" else "minimize"
    )
    with warnings.catch_warnings():  # experimental, and only a label
        warnings.simplefilter("ignore")
        written.set_metric_names([metric.name])
    written.set_user_attr("unit", metric.unit)
    written.set_user_attr(SWEEP, owner)
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

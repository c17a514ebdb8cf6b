"""Studies are shown in files of their own and in databases, never over another sweep's, never half."""

import optuna
import pytest

from analysis.search.storages import SWEEP, StorageError, check_target, export


def filled(value=0.5, name="wit embedded", owner="wit 1"):
    def fill(storage):
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        study.set_user_attr(SWEEP, owner)
        study.add_trial(
            optuna.trial.create_trial(
                value=value,
                params={"angle": 0.5},
                distributions={"angle": optuna.distributions.FloatDistribution(0, 1)},
            )
        )

    return fill


def opened(path):
    if path.suffix == ".db":
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_a_file_holds_what_was_written_last(tmp_path, name):
    path = tmp_path / name
    for value in (0.5, 0.75):
        words = export(str(path), "wit 1", ["wit embedded"], filled(value))
        assert f"optuna: {path}" in words
    study = optuna.load_study(study_name="wit embedded", storage=opened(path))
    assert [trial.value for trial in study.trials] == [0.75]
    assert [one.name for one in tmp_path.iterdir()] == [name], "no temporary file is left"


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_another_sweeps_file_is_left_alone(tmp_path, name):
    path = tmp_path / name
    export(str(path), "wit 1", ["wit embedded"], filled())
    before = path.read_bytes()
    with pytest.raises(StorageError, match="holds the study 'wit embedded' of another sweep"):
        export(str(path), "wit 2", ["wit embedded"], filled(owner="wit 2"))
    assert path.read_bytes() == before


def test_an_export_that_breaks_leaves_the_last_one(tmp_path):
    path = tmp_path / "study.db"
    export(str(path), "wit 1", [], filled())
    before = path.read_bytes()

    def breaks(storage):
        filled(0.9)(storage)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(str(path), "wit 1", [], breaks)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["study.db"]


def test_what_is_no_study_is_named(tmp_path):
    (tmp_path / "study.db").write_text("not a database, but a text of some length" * 40)
    with pytest.raises(StorageError, match=r"study\.db is no SQLite study"):
        export(str(tmp_path / "study.db"), "wit 1", [], filled())


@pytest.mark.parametrize("target", ["study.foo", "study", "redis://host"])
def test_places_that_cant_hold_a_study(target):
    with pytest.raises(StorageError, match=r"publish=optuna:"):
        check_target(target)


def test_a_stopped_database_is_one_line_without_its_password():
    pytest.importorskip("psycopg", reason="no driver: pip install 'weight-sweep[dash]'")
    with pytest.raises(StorageError) as caught:
        export("postgresql://me:secret@127.0.0.1:9/studies", "wit 1", [], filled())
    assert "postgresql://me:***@127.0.0.1:9/studies doesn't answer" in str(caught.value)
    assert "expected a running database server" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)

"""Where a study can be shown: a file of its own, written anew and renamed into place, or a database server.

A file database is never shared: concurrent writers lock SQLite up, and tear an Optuna journal's lines on network file
systems. So every export writes a temporary file and renames it. A server is locked for the moment of the export.
Nothing is ever read back: the ledger is the truth.
"""

import contextlib
import importlib.util
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from analysis.search.studies import quiet
from train.errors import UserError

SWEEP = "sweep"  # the attribute that says whose a study is
_SERVERS = ("postgresql", "mysql")

Fill = Callable[[Any], None]  # writes every study into an Optuna storage


class StorageError(UserError):
    """A study that can't be written where it should."""


def check_target(target: str) -> None:
    """StorageError for a place that can't hold a study: publish=optuna:TARGET."""
    if "://" in target and not target.startswith(_SERVERS):
        raise StorageError(
            f"publish=optuna:{target.partition('://')[0]}://... is no database server known here",
            "postgresql://user@host/database, or a file ending in .db or .log",
            "say publish=optuna:study.db",
        )
    if "://" not in target and Path(target).suffix not in (".db", ".log"):
        raise StorageError(
            f"publish=optuna:{target}",
            "a file ending in .db (SQLite) or .log (Optuna's journal), or postgresql://...",
            "say publish=optuna:study.db",
        )


def export(target: str, owner: str, names: list[str], fill: Fill) -> str:
    """Make `target` hold the studies that `fill` writes, and nothing else of this sweep; what to print.

    owner: of this sweep's studies, by which those of another one are known. names: of the studies.
    Raises   StorageError for a study of another sweep, a server that doesn't answer, a missing driver.
    """
    check_target(target)
    with quiet():
        if "://" in target:
            return _to_server(target, owner, names, fill)
        return _to_file(Path(target), owner, fill)


def _to_file(path: Path, owner: str, fill: Fill) -> str:
    if path.exists():
        with _opened_file(path) as storage:
            _check_owner(storage, owner, str(path), None)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        with _opened_file(temporary, is_new=True) as storage:
            fill(storage)
        os.replace(temporary, path)
    finally:
        for left in (temporary, temporary.with_name(temporary.name + ".lock")):
            left.unlink(missing_ok=True)
    url = f"sqlite:///{path}" if path.suffix == ".db" else str(path)
    return f"optuna: {path}\nlook at it: optuna-dashboard {url}   (pip install 'weight-sweep[dash]')"


@contextlib.contextmanager
def _opened_file(path: Path, is_new: bool = False) -> Iterator[Any]:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if path.suffix == ".log":
        yield JournalStorage(JournalFileBackend(str(path)))
        return
    from sqlalchemy import event
    from sqlalchemy.exc import DatabaseError

    try:
        storage = RDBStorage(f"sqlite:///{path}")
    except DatabaseError as error:
        raise StorageError(f"{path} is no SQLite study", "a study of this sweep", "move it away") from error
    if is_new:  # nobody sees it before it is whole, so it needn't reach the disk trial by trial
        event.listen(storage.engine, "connect", lambda one, _: one.execute("PRAGMA synchronous=OFF"))
        storage.engine.dispose()
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _to_server(target: str, owner: str, names: list[str], fill: Fill) -> str:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, OperationalError

    shown = target.partition("://")[0]
    try:
        url = make_url(target)
        shown = url.render_as_string(hide_password=True)
        if url.drivername == "postgresql" and importlib.util.find_spec("psycopg"):
            url = url.set(drivername="postgresql+psycopg")
        storage = RDBStorage(url.render_as_string(hide_password=False))
        try:
            with _locked(storage.engine, owner):
                _check_owner(storage, owner, shown, names)
                for study in storage.get_all_studies():
                    if study.user_attrs.get(SWEEP) == owner:
                        storage.delete_study(study._study_id)
                fill(storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (OperationalError, StorageInternalError) as error:
        words = " ".join(str(getattr(error, "orig", None) or error).split())[:160]
        raise StorageError(
            f"{shown} doesn't answer: {words}",
            "a running database server",
            "start it, or say publish=optuna:study.db",
        ) from error
    except (ImportError, ModuleNotFoundError) as error:
        raise StorageError(
            f"{shown} needs a driver: {error}",
            "one that SQLAlchemy knows",
            "try: pip install 'psycopg[binary]'",
        ) from error
    except ArgumentError as error:
        raise StorageError(
            f"publish=optuna:{shown}", "postgresql://user@host/database", "mend the address"
        ) from error
    return f"optuna: {len(names)} {'study' if len(names) == 1 else 'studies'} in {shown}"


@contextlib.contextmanager
def _locked(engine: Any, owner: str) -> Iterator[None]:
    """One exporter of a sweep at a time; a server's own lock, which ends with its connection."""
    from sqlalchemy import text

    number = zlib.crc32(owner.encode())
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": number})
        else:
            connection.execute(text("SELECT GET_LOCK(:name, 600)"), {"name": f"weight-sweep-{number}"})
        yield


def _check_owner(storage: Any, owner: str, where: str, names: list[str] | None) -> None:
    """StorageError if what would be replaced is another sweep's."""
    for study in storage.get_all_studies():
        found = study.user_attrs.get(SWEEP)
        if found != owner and (names is None or study.study_name in names):
            raise StorageError(
                f"{where} holds the study {study.study_name!r} of another sweep",
                "a place of this sweep's own",
                "say another file or database, or another name= for the sweep",
            )

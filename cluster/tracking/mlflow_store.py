"""MLflow's store of runs if it is a SQLite file: one process at a time creates and opens it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from io import FileIO
from pathlib import Path

from metatrain import files

log = logging.getLogger(__name__)

BUSY_S = 20.0  # how long another process may write to a database, as in MLflow


def database(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for any other store."""
    scheme, _, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    if scheme not in ("sqlite", "sqlite+pysqlite") or not path:
        return None
    if "%" in path:
        from sqlalchemy import make_url

        path = str(make_url(uri).database)
    return Path(path)


def sqlite_uri(path: Path) -> str:
    """Return the URI of a database file, quoted as SQLAlchemy reads it."""
    if not {"%", "?"} & set(str(path)):
        return f"sqlite:///{path}"
    from sqlalchemy import URL

    # Without the driver's name MLflow would create a folder of the quoted name beside the real one.
    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string()


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Create a SQLite store if there is none, check it, and keep other runs waiting in the context.

    MLflow itself creates a store neither for two processes at once nor whole if it is killed.
    """
    path = database(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            _create(path, uri)
        check(path, "BEGIN IMMEDIATE")
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, and remove it afterwards."""
    lock = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def _lock(path: Path) -> FileIO:
    waited = False
    while True:
        lock = files.lock_file(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                log.info("waiting for another process that opens this MLflow store (%s)", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
            waited = True
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
        lock.close()  # its holder has removed it: another file is the lock now


def _create(path: Path, uri: str) -> None:
    """Create a store beside its place, then move it there."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = path.with_name(f".{path.name}.making")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    # MLflow puts the artifacts' root into SQL as it is: quoted, because a working folder may be
    # called :b.
    root = Path("mlruns").absolute().as_uri()
    SqlAlchemyStore(sqlite_uri(folder / path.name), root).engine.dispose()
    (folder / path.name).replace(path)
    folder.rmdir()
    # This process may still be connected to a store that was deleted.
    SqlAlchemyStore(uri, root).engine.dispose()


def check(path: Path, statement: str) -> None:
    """Run a statement on a database, and raise SQLite's error at once.

    MLflow would retry for minutes and print pages.
    """
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=BUSY_S, uri=True)
    ) as connection:
        connection.execute(statement)

"""The store that MLflow keeps runs in: a SQLite file that is made and opened by one process at a
time, or a server.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

BUSY_S = 20.0  # how long another process may write to a database, as in MLflow


def database(uri: str) -> Path | None:
    """The file of a SQLite store."""
    scheme, _, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    if scheme not in ("sqlite", "sqlite+pysqlite") or not path:
        return None
    if "%" in path:
        from sqlalchemy import make_url

        path = str(make_url(uri).database)
    return Path(path)


def sqlite_uri(path: Path) -> str:
    """The URI of a database file, with what SQLAlchemy would read as something else in the spelling
    that it takes.
    """
    if not {"%", "?"} & set(str(path)):
        return f"sqlite:///{path}"
    from sqlalchemy import URL

    # Without the driver's name MLflow would make a folder of the quoted name beside the real one.
    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string()


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Make a SQLite store if there is none, check it, and keep other runs waiting until the end of
    the context.

    MLflow's own making is neither for two processes at once nor whole if it is killed.
    """
    path = database(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            _make(path, uri)
        check(path, "BEGIN IMMEDIATE")
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file that is gone afterwards."""
    lock = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def _lock(path: Path) -> IO[str]:
    waited = False
    while True:
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                log.info("waiting for another process that opens the MLflow store here (%s)", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
            waited = True
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
        lock.close()  # its holder has removed it: another file is the lock now


def _make(path: Path, uri: str) -> None:
    """Make a store beside its place, then put it there."""
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
    SqlAlchemyStore(
        uri, root
    ).engine.dispose()  # this process may still be connected to one that was deleted


def check(path: Path, statement: str) -> None:
    """Raise what SQLite has against a statement on a database: MLflow would try for minutes, and
    print pages.
    """
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=BUSY_S, uri=True)
    ) as connection:
        connection.execute(statement)


def shown(uri: str) -> str:
    """The URI without its password, for messages."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


def be_brief() -> None:
    """MLflow's defaults retry for four minutes, and tell of each. These are read at each
    request.
    """
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault(
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
    )  # we say it where it is of use
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def trouble(error: Exception, uri: str) -> str:
    """What an error of MLflow's means, and what to do."""
    why, where = reason(error, uri), shown(uri)
    if unanswered(error, uri):
        return f"MLflow does not answer at {where} ({why}): start it, or set tracking.uri"
    if "out-of-date database schema" in str(error) or "locate revision" in str(error):
        return (
            f"the MLflow store {where} is of another version than MLflow "
            f"{metadata.version('mlflow')} "
            f"({why.partition('. ')[0]}): install that version, or back the store up and run "
            "`mlflow db upgrade` on it "
            "if that version is older"
        )
    if "duplicate column name" in str(error):
        return (
            f"the MLflow store {where} was left half made ({why}): move it away, or set "
            "tracking.uri to another store"
        )
    return (
        f"MLflow cannot use {where} ({why}): put that right, or set tracking.uri to another store"
    )


def unanswered(error: BaseException | None, uri: str) -> bool:
    """Whether no server answered; MLflow wraps what its requests raise."""
    import requests

    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            return not isinstance(error, requests.exceptions.SSLError)
        if (
            type(error).__name__ == "OperationalError" and database(uri) is None
        ):  # SQLAlchemy's, or its driver's
            return (
                re.search("refused|timed? ?out|resolve|translate|connect to", str(error), re.I)
                is not None
            )
        error = error.__cause__ or error.__context__
    return False


def reason(error: Exception, uri: str) -> str:
    """An error of MLflow's in a line, without the address's password."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OSError) and error.strerror:
        first = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    for pattern in (
        r"\[Errno -?\d+\] ([^'\")]+)",
        r"\(Caused by (.+)\)$",
    ):  # at the end of what its requests say
        cause = re.search(pattern, first)
        first = cause[1] if cause else first
    password = urlsplit(uri).password
    return (first.replace(password, "***") if password else first)[:200]

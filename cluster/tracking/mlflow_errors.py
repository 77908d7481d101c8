"""Errors of MLflow in one line, without passwords, and after seconds instead of minutes."""

from __future__ import annotations

import logging
import os
import re
from importlib import metadata

from cluster.tracking.mlflow_store import database
from metatrain.addresses import hide, misread, without_secrets
from metatrain.core import InputError

log = logging.getLogger(__name__)

PROBE_S = 10.0  # for a server to say anything


class Health:
    """Whether MLflow answers, and how often it failed; the first failure is a warning."""

    def __init__(self, uri: str) -> None:
        """uri: the store's address."""
        self._uri = uri
        self.errors = 0
        # Whether the last request had no answer: each further one may then take half a minute.
        self.away = False

    def failed(self, error: Exception, consequence: str) -> None:
        """Count a failure of a request, and say at the first one what follows from it."""
        self.errors += 1
        self.away = unanswered(error, self._uri)
        if self.errors == 1:
            log.warning("MLflow failed (%s): %s", short_error(error, self._uri), consequence)


def limit_retries() -> None:
    """Limit MLflow's retries, which last four minutes by default, and what it prints about them."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # commands print it
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def check_address(uri: str) -> None:
    """Refuse an address whose password would be taken for a host, or whose server is silent."""
    if misread(uri):
        raise InputError(
            f"MLflow's address {without_secrets(uri)} has /, ? or # in its user or password",
            remedy="write %2F, %3F and %23 there, or set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD",
        )
    if uri.startswith(("http://", "https://")):
        _check_answers(uri)


def _check_answers(uri: str) -> None:
    """Refuse a server that takes connections and says nothing: MLflow would try it three times."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_S, stream=True).close()
    except requests.Timeout as error:
        raise refusal(error, uri) from None
    except (requests.RequestException, ValueError):
        pass  # MLflow's own requests say it


def refusal(error: Exception, uri: str) -> InputError:
    """Say what an error of MLflow's means for the store at `uri`, and what to do."""
    why, where = short_error(error, uri), without_secrets(uri)
    if unanswered(error, uri):
        return InputError(
            f"MLflow does not answer at {where} ({why})", remedy="start it, or set tracking.uri"
        )
    if "out-of-date database schema" in str(error) or "locate revision" in str(error):
        return InputError(
            f"the MLflow store {where} is of another version than MLflow "
            f"{metadata.version('mlflow')} ({why.partition('. ')[0]})",
            remedy="install the store's version; if that is the older one, you may also back the "
            "store up and run `mlflow db upgrade` on it",
        )
    if "duplicate column name" in str(error):
        return InputError(
            f"the MLflow store {where} is only half made ({why})",
            remedy="move it away, or set tracking.uri to another store",
        )
    return InputError(
        f"MLflow cannot use {where} ({why})",
        remedy="fix that, or set tracking.uri to another store",
    )


def unanswered(error: BaseException | None, uri: str) -> bool:
    """Whether no server answered; MLflow wraps what its requests raise."""
    import requests

    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            return not isinstance(error, requests.exceptions.SSLError)
        # SQLAlchemy's, or its driver's
        if type(error).__name__ == "OperationalError" and database(uri) is None:
            said = "refused|timed? ?out|resolve|translate|connect to"
            return re.search(said, str(error), re.IGNORECASE) is not None
        error = error.__cause__ or error.__context__
    return False


def short_error(error: Exception, uri: str) -> str:
    """Return an error of MLflow's in one line, without the secrets of `uri`."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OSError) and error.strerror:
        first = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    # The cause stands at the end of what its requests say.
    for pattern in (r"\[Errno -?\d+\] ([^'\")]+)", r"\(Caused by (.+)\)$"):
        cause = re.search(pattern, first)
        first = cause[1] if cause else first
    return hide(first, uri)[:200]

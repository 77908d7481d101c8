"""The dashboard of a Ray cluster: find out whether it asks for a token, and connect to it."""

from __future__ import annotations

import json
import logging
import os
import platform
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError

from metatrain.addresses import hide, without_secrets
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.storage import MOST_JSON

if TYPE_CHECKING:
    # Ray decides about tokens when it is imported: functions import it after `use_token`.
    from ray.job_submission import JobSubmissionClient

ANSWER_S = 15.0  # for a dashboard to answer


def connect(address: str) -> JobSubmissionClient:
    """Connect to the dashboard at `address`.

    Raises InputError if no dashboard answers there, if the token is missing or wrong, or if its
    versions of Ray and Python are not the ones of this machine.
    """
    address = address.rstrip("/")
    with awaiting(f"connecting to {without_secrets(address)}"):
        return _connect(address)


def use_token(address: str) -> None:
    """Make Ray look for a token if the dashboard at `address` asks for one.

    Ray decides about tokens when it is imported, so this comes first.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"--address {without_secrets(address)} is not a dashboard's address",
            remedy="give one such as http://HEAD:8265",
        )
    if _asks_for_token(address.rstrip("/")):
        os.environ["RAY_AUTH_MODE"] = "token"


def _connect(address: str) -> JobSubmissionClient:
    use_token(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers the variable to its argument
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        # Ray's public interface does not tell the cluster's version of Python.
        answer = client._do_request("GET", "/api/v0/cluster_metadata")
        there = answer.json()["data"]
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # it reports each upload
    except AuthenticationError as error:
        wrong = "invalid" in str(error).lower()
        what = "refuses the token that is" if wrong else "asks for a token, and none is"
        raise InputError(
            f"the cluster at {without_secrets(address)} {what} set here",
            remedy="set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it",
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _no_dashboard(address, error) from error
    for what, theirs, ours in (
        ("Ray", there["rayVersion"], ray.__version__),
        ("Python", _minor(there["pythonVersion"]), _minor(platform.python_version())),
    ):
        if theirs != ours:
            raise InputError(
                f"the cluster at {without_secrets(address)} runs {what} {theirs}, and this machine "
                f"{ours}",
                remedy="install the same version on both",
            )
    return client


def _asks_for_token(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_S) as answer:
            json.loads(answer.read(MOST_JSON))["ray_version"]
        return False
    except HTTPError as error:
        if error.code in (401, 403):
            return True
        raise _no_dashboard(address, error) from error
    except (OSError, HTTPException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_dashboard(address, error) from error


def _no_dashboard(address: str, error: Exception) -> InputError:
    reason = getattr(error, "reason", None) or "the server at that address is not a Ray dashboard"
    return InputError(
        f"no Ray dashboard answers at {without_secrets(address)} ({hide(str(reason), address)})",
        remedy="give the head node's, such as http://HEAD:8265",
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])

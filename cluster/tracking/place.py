"""Where a run's numbers can be looked at: the store, the experiment and the run in MLflow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from cluster.config import Tracking
from cluster.tracking.mlflow_store import database, sqlite_uri
from metatrain import storage
from metatrain.core import InputError

# The side of MLflow's pages that shows runs: the other one shows traces.
TRAINING = "workflowType=machine_learning"


class Place(NamedTuple):
    """Where a run's numbers are: its folder has this as mlflow.json."""

    uri: str  # without its password
    experiment_id: str = ""
    run_id: str = ""
    compared: tuple[str, ...] = ()  # ids of the runs to show side by side: a sweep's best trials

    def address(self) -> str:
        """Return the server's address without the user's name."""
        parts = urlsplit(self.uri)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"

    def page(self) -> str:
        """Return the path of its page in MLflow."""
        if self.compared:
            runs = quote(json.dumps(self.compared))
            experiments = quote(json.dumps([self.experiment_id]))
            return f"/#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"
        if self.run_id:
            return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}?{TRAINING}"
        return f"/#/experiments?{TRAINING}"


def place_of(folder: Path | str | None) -> Place:
    """Return the place of the run in `folder`; without a folder, the store of a run started here.

    Raises InputError if the folder has no record of it, or a damaged one.
    """
    if folder is None:
        return Place(store_uri(Tracking()))
    try:
        found = json.loads(storage.read(f"{folder}/mlflow.json", storage.MOST_JSON))
        place = Place(**found | {"compared": tuple(found.get("compared", ()))})
        if not all(isinstance(value, str) for value in place[:3] + place.compared):
            raise TypeError("its values are not text")
        return place
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no run that was logged to MLflow",
            remedy="give the folder that `train` named",
        ) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder}/mlflow.json is damaged ({error})",
            remedy="leave the folder out to open the store",
        ) from error


def store_uri(tracking: Tracking) -> str:
    """Return the tracking URI of a run; a local database with its absolute path."""
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path, (_, mark, options) = database(uri), uri.partition("?")
    return uri if path is None else f"{sqlite_uri(path.absolute())}{mark}{options}"

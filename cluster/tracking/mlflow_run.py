"""A run in MLflow: create it or find it again, in which experiment, and mark that it ended."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cluster.config import Tracking
from cluster.jobs.job import JOB
from cluster.tracking import description
from cluster.tracking.mlflow_errors import check_address, limit_retries, refusal, short_error
from cluster.tracking.mlflow_store import database, opening
from cluster.tracking.parameters import as_text, changes
from cluster.tracking.place import store_uri
from cluster.tracking.provenance import JOB_TAG
from cluster.tracking.tracker import RunParameters
from metatrain.addresses import without_secrets
from metatrain.core import InputError

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

EXPERIMENT = "metatrain"  # of a run that names none
PARENT = "mlflow.parentRunId"  # the tag that puts a run under another one
SEED = "metatrain.seed"  # the tag of a run that is one of several seeds


class Opened(NamedTuple):
    """A run that is open for more."""

    client: MlflowClient
    experiment_id: str
    run_id: str
    metrics: set[str]  # names of the metrics that it has
    trial: bool  # whether it is one of a sweep's


def open_run(
    tracking: Tracking,
    name: str,
    params: RunParameters,
    run_id: str | None,
    tags: Mapping[str, str],
    step: int,
    about: Mapping[str, str],
) -> Opened:
    """Find the run of this id or with all these tags, or create one; see `start_tracker`.

    Raises InputError if MLflow does not answer or its store cannot be used.
    """
    limit_retries()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import has set another level
    uri = store_uri(tracking)
    check_address(uri)
    try:
        with opening(uri):
            client = MlflowClient(uri)
            known = _known(client, run_id) if run_id else None
            beside = known or (_known(client, tags[PARENT]) if PARENT in tags else None)
            experiment_id = (
                beside.info.experiment_id
                if beside
                else _experiment(client, uri, tracking.experiment or EXPERIMENT).experiment_id
            )
        found = known or _tagged(client, experiment_id, tags)
        run = found or client.create_run(experiment_id, run_name=name, tags={**about, **tags})
        trial = PARENT in run.data.tags and SEED not in run.data.tags
        opened = Opened(client, experiment_id, run.info.run_id, set(run.data.metrics), trial)
        if found is None:
            log_params(opened, params)
        else:
            log_params(opened, changes(found.data.params, as_text(params), step).items())
            if JOB in os.environ:  # another job may continue it
                client.set_tag(opened.run_id, JOB_TAG, os.environ[JOB])
        client.update_run(opened.run_id, status="RUNNING")
    except InputError:
        raise
    except Exception as error:  # MLflow raises what its stores and requests raise
        raise refusal(error, uri) from None  # the error names the address with its password
    if run_id and known is None:
        log.warning(
            "MLflow's run %s is deleted or unknown at %s: all of its metrics go to a new one, %s",
            *(run_id, without_secrets(uri), opened.run_id),
        )
    return opened


def log_params(run: Opened, params: RunParameters) -> None:
    """Record parameters of a run."""
    from mlflow.entities import Param

    named = [Param(name, value) for name, value in as_text(params).items()]
    if named:
        run.client.log_batch(run.run_id, params=named)


def show_columns(run: Opened, columns: Sequence[str]) -> None:
    """Make the table of the experiment's runs show these metrics."""
    if not columns:
        return
    known = run.client.get_experiment(run.experiment_id).tags
    state = description.view(known.get(description.VIEW_TAG, ""), columns)
    for name, value in ((description.VIEW_TAG, state), (description.PRIMARY_TAG, columns[0])):
        if known.get(name) != value:
            run.client.set_experiment_tag(run.experiment_id, name, value)


def mark_ended(tracking: Tracking, run_id: str, name: str, status: str, at_s: float) -> bool:
    """Record how and when a run ended whose process could not, and its name; False if that failed.

    at_s: time of its end in seconds since 1970.
    """
    from mlflow.tracking import MlflowClient

    uri = store_uri(tracking)
    try:
        client = MlflowClient(uri)
        client.set_terminated(run_id, status, int(1000 * at_s))
        client.update_run(run_id, name=name)
        return True
    except Exception as error:
        log.warning(
            "MLflow did not record that run %s is %s: %s", run_id, status, short_error(error, uri)
        )
        return False


def ended(tracking: Tracking, run_id: str) -> str | None:
    """Return how a run ended, as MLflow says; None if it has no end there.

    Raises InputError if MLflow does not answer or does not know the run.
    """
    limit_retries()
    from mlflow.entities import RunStatus
    from mlflow.tracking import MlflowClient

    uri = store_uri(tracking)
    check_address(uri)
    path = database(uri)
    try:
        missing = path is not None and not path.exists()  # MLflow would make a new one
        found = None if missing else _known(MlflowClient(uri), run_id)
    except Exception as error:
        raise refusal(error, uri) from None
    if found is None:
        raise InputError(
            f"MLflow's run {run_id} is deleted or unknown at {without_secrets(uri)}",
            remedy="resume the run: all of its metrics then go to a new one",
        )
    status = found.info.status
    return status if RunStatus.is_terminated(RunStatus.from_string(status)) else None


def _known(client: MlflowClient, run_id: str) -> Run | None:
    """Return the run, if this store has it and nobody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _tagged(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """Return the run that has all these tags; None without tags."""
    if not tags:
        return None
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return next(iter(client.search_runs([experiment_id], wanted)), None)


def _experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    """Return the experiment of this name, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = Path("mlartifacts").absolute().as_uri() if database(uri) else None
        try:
            return client.get_experiment(client.create_experiment(name, artifact_location=local))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:  # else another run was faster
                raise
    if experiment.lifecycle_stage == "deleted":
        store = shlex.quote(without_secrets(uri))
        restore = f"MLFLOW_TRACKING_URI={store} mlflow experiments restore"
        raise InputError(
            f"MLflow's experiment {name!r} at {without_secrets(uri)} was deleted",
            remedy=f"restore it by `{restore} --experiment-id {experiment.experiment_id}`, or set "
            "tracking.experiment to another name",
        )
    return experiment

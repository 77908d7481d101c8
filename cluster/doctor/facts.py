"""Facts that a process sees on its machine: versions, disk, storage, MLflow, kernels, GPUs."""

from __future__ import annotations

import platform
import re
import shutil
import uuid
from importlib import metadata
from typing import NamedTuple

from cluster.doctor.gpus import Gpus, look
from cluster.tracking.mlflow_errors import limit_retries, short_error
from metatrain import storage
from metatrain.core import InputError
from metatrain.ops.block import KERNELS
from metatrain.ops.build import KernelsUnavailable, library
from metatrain.storage import cache

COMPARED = ("ray", "torch", "numpy", "pyarrow", "pydantic", "safetensors", "mlflow")


class Facts(NamedTuple):
    """What works on a machine; `not_...` is the reason why something does not, else empty."""

    versions: dict[str, str]
    free_gb: float
    cache: str  # the folder of data sets
    not_cached: str
    not_stored: str
    not_tracked: str
    token: bool
    not_built: str = ""  # the kernels for convolutional networks on a CPU
    gpus: Gpus = Gpus()


def collect_facts(output: str | None, server: str | None) -> Facts:
    """Look at this machine.

    output: a place to write to; server: MLflow's address.
    """
    folder = cache()
    disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    python = {"Python": platform.python_version()}
    return Facts(
        versions=python | {name: _version(name) for name in COMPARED},
        free_gb=shutil.disk_usage(disk).free / 1e9,
        cache=str(folder),
        not_cached=_not_writable(str(folder)),
        not_stored=_not_writable(output) if output else "",
        not_tracked=_not_tracked(server) if server else "",
        token=_token(),
        not_built=_not_built(),
        gpus=look(),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _not_writable(uri: str) -> str:
    """Say why nothing can be written to `uri`; empty if it can."""
    name = f"{uri}/.doctor-{uuid.uuid4().hex}"
    try:
        storage.write(name, b"doctor")
        same = storage.read(name) == b"doctor"
        storage.remove(name)
        return "" if same else "a file that was read differs from the one that was written"
    except (InputError, OSError) as error:
        why = str(error).partition("): ")[0].partition(" (")[2] or str(error)
        return re.sub(r"\.doctor-\w+", ".doctor", why)  # the same words from every node


def _not_tracked(server: str) -> str:
    """Say why MLflow does not answer here; empty if it does."""
    limit_retries()
    try:
        from mlflow.tracking import MlflowClient

        MlflowClient(server).search_experiments(max_results=1)
        return ""
    except Exception as error:  # MLflow raises what requests raise
        return short_error(error, server)


def _not_built() -> str:
    """Say why a kernel cannot be compiled; empty if all can."""
    try:
        for name in KERNELS:
            library(name)
    except KernelsUnavailable as reason:
        return str(reason)
    return ""


def _token() -> bool:
    """Whether Ray asks for a token."""
    try:
        # Ray's public interface does not say it.
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ModuleNotFoundError:
        return False
    return bool(is_token_auth_enabled())

"""Whether the machines that a run would use have what it needs: this one, the driver's, and every
node of a cluster.

Each problem names its place and what to do about it.
"""

from __future__ import annotations

import platform
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cluster.config import Tracking
from cluster.tracking import mlflow_errors
from cluster.tracking.place import store_uri
from metatrain import storage
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.ops.block import KERNELS
from metatrain.ops.build import Unavailable, library
from metatrain.storage import cache

COMPARED = ("ray", "torch", "numpy", "pyarrow", "pydantic", "safetensors", "mlflow")
LEAST_GB = 2.0  # free where data sets are kept
PROBE_S = 120.0  # for a node to answer
DRIVER = "driver"


class Finding(NamedTuple):
    """One line about one place."""

    place: str
    what: str
    found: str
    remedy: str = ""  # empty if all is well


class Facts(NamedTuple):
    """What a process sees on its machine; the reason of each thing that does not work, else
    nothing.
    """

    versions: dict[str, str]
    free_gb: float
    cache: str
    not_cached: str
    not_stored: str
    not_tracked: str
    token: bool
    not_built: str = ""  # the kernels for convolutional networks on a CPU


def collect_facts(output: str | None, server: str | None) -> Facts:
    """Look at this machine: its versions, its disk, whether it can write to `output` and reach
    MLflow's `server`.
    """
    folder = cache()
    return Facts(
        {"Python": platform.python_version()} | {name: _version(name) for name in COMPARED},
        shutil.disk_usage(
            next(path for path in (folder, *folder.absolute().parents) if path.exists())
        ).free
        / 1e9,
        str(folder),
        _writable(str(folder)),
        _writable(output) if output else "",
        _tracked(server) if server else "",
        _token(),
        _built(),
    )


def examine(address: str | None, output: str | None) -> list[Finding]:
    """This process's findings, and those of each node of the cluster at `address`."""
    uri = store_uri(Tracking())
    server = uri if uri.startswith("http") else None
    with awaiting("looking at this machine"):
        here = collect_facts(output, server)
    if address is None:
        return evaluate_facts(DRIVER, here, here, output, server, None)
    from cluster.pools.ray_connection import connected

    with connected(address):
        import ray

        findings = evaluate_facts(DRIVER, here, here, output, server, None)
        nodes = {_name(node): node for node in ray.nodes() if node["Alive"]}
        with awaiting(f"waiting for {len(nodes)} nodes to answer"):
            answers = _ask_nodes(nodes, output, server)
        for name, facts in answers.items():
            if isinstance(facts, Facts):
                findings += evaluate_facts(
                    name, facts, here, output, server, nodes[name]["Resources"]
                )
            else:
                findings.append(
                    Finding(
                        name, "probe", facts, "look at Ray's logs there, and start Ray on it again"
                    )
                )
    return findings


def evaluate_facts(
    place: str,
    facts: Facts,
    driver: Facts,
    output: str | None,
    server: str | None,
    resources: Mapping[str, float] | None,
) -> list[Finding]:
    """Compare facts with the driver's, and with what a run needs."""
    findings = []
    there, here = (
        {name: found.split("+")[0] for name, found in of.versions.items()} for of in (facts, driver)
    )
    differ = {
        name: facts.versions[name] for name in there if there[name] != here[name]
    }  # whatever the build
    lacks = [name for name, found in facts.versions.items() if not found]
    shown = ", ".join(
        f"{name} {found or 'missing'}" for name, found in (differ or facts.versions).items()
    )
    remedy = (
        f"install {', '.join(f'{name}=={here[name]}' for name in differ)}, as the driver has"
        * bool(differ)
    )
    if lacks and not differ:
        remedy = f"install {', '.join(lacks)}: pip install -c constraints.txt -e . in the checkout"
    findings.append(Finding(place, "versions", shown, remedy))
    if resources is not None:
        gpus = resources.get("GPU", 0.0)
        blind = gpus > 0 and facts.versions["torch"].endswith("+cpu")
        remedy = "install a build of torch with CUDA, or start Ray there with --num-gpus=0" * blind
        findings.append(
            Finding(
                place, "resources", f"{resources.get('CPU', 0.0):g} CPUs, {gpus:g} GPUs", remedy
            )
        )
    short = facts.free_gb < LEAST_GB
    room = f"make room: at least {LEAST_GB:g} GB, or set METATRAIN_CACHE to another disk" * short
    findings.append(Finding(place, "free disk", f"{facts.free_gb:.0f} GB at {facts.cache}", room))
    findings.append(
        Finding(
            place,
            "data cache",
            facts.not_cached or "writable",
            f"make {facts.cache} writable, or set METATRAIN_CACHE to a folder that is"
            * bool(facts.not_cached),
        )
    )
    lacks_kernels = (
        bool(facts.not_built) and not driver.not_built and not facts.not_cached
    )  # which is why, then
    kernels = (
        "install g++ or clang there, as on the driver's machine: the driver chooses "
        "what all workers compute with"
    )
    found = facts.not_built and f"none, so convolutions take twice the time: {facts.not_built}"
    findings.append(Finding(place, "kernels", found or "built", kernels * lacks_kernels))
    if output:
        remedy = (
            f"create it, let this machine's user or keys write to {output}, or give another output"
        )
        findings.append(
            Finding(
                place, "output", facts.not_stored or "writable", remedy * bool(facts.not_stored)
            )
        )
    mlflow = facts.not_tracked or (
        f"answers at {mlflow_errors.redact(server)}" if server else "no server is set"
    )
    findings.append(Finding(place, "MLflow", mlflow, _mlflow_remedy(facts.not_tracked, server)))
    if resources is not None:
        remedy = (
            "anyone who reaches its ports can run code: start Ray with RAY_AUTH_MODE=token and a "
            "token" * (not facts.token)
        )
        findings.append(Finding(place, "token", "in use" if facts.token else "none", remedy))
    return findings


def grouped(findings: Sequence[Finding]) -> list[Finding]:
    """One line for what is the same in several places; problems come last."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for place, *rest in findings:
        places.setdefault((rest[0], rest[1], rest[2]), []).append(place)
    everywhere = {finding.place for finding in findings} - {DRIVER}
    lines = []
    for (what, found, remedy), where in places.items():
        nodes = [place for place in where if place != DRIVER]
        named = (
            [f"all {len(nodes)} nodes"] if len(nodes) > 1 and set(nodes) == everywhere else nodes
        )
        lines.append(Finding(", ".join([DRIVER] * (DRIVER in where) + named), what, found, remedy))
    return sorted(lines, key=lambda line: bool(line.remedy))


def _ask_nodes(
    nodes: Mapping[str, Any], output: str | None, server: str | None
) -> dict[str, Facts | str]:
    """Each node's facts, or why it gave none."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(collect_facts)
    asked = {}
    for name, node in nodes.items():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[name] = probe.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(
            output, server
        )
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_S)
    found: dict[str, Facts | str] = {}
    for name, ref in asked.items():
        try:
            found[name] = ray.get(ref, timeout=0.1)
        except GetTimeoutError:
            found[name] = f"no answer in {PROBE_S:g} s"
        except RayError as error:
            found[name] = str(error).strip().rpartition("\n")[2][:200]
    return found


def _name(node: Mapping[str, Any]) -> str:
    """A node's name or address, and enough of its id to tell it from others there."""
    return f"{node.get('NodeName') or node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _writable(uri: str) -> str:
    """Why nothing can be written there; empty if it can."""
    name = f"{uri}/.doctor-{uuid.uuid4().hex}"
    try:
        storage.write(name, b"doctor")
        same = storage.read(name) == b"doctor"
        storage.remove(name)
        return "" if same else "what is read is not what was written"
    except (InputError, OSError) as error:
        why = str(error).partition("): ")[0].partition(" (")[2] or str(error)
        return re.sub(r"\.doctor-\w+", ".doctor", why)  # the same words from every node


def _tracked(server: str) -> str:
    """Why MLflow does not answer here; empty if it does."""
    mlflow_errors.limit_retries()
    try:
        from mlflow.tracking import MlflowClient

        MlflowClient(server).search_experiments(max_results=1)
        return ""
    except Exception as error:  # MLflow raises what requests raise
        return mlflow_errors.short_error(error, server)


def _mlflow_remedy(why: str, server: str | None) -> str:
    if not why or not server:
        return ""
    parts = urlsplit(server)
    if "Host header" in why:
        return f"start MLflow's server with --allowed-hosts {parts.netloc.rpartition('@')[2]}"
    if "401" in why or "Unauthorized" in why:
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there"
    where = mlflow_errors.redact(server)
    return (
        f"start MLflow at {where}, or set MLFLOW_TRACKING_URI to where it can be reached from there"
    )


def _built() -> str:
    try:
        for name in KERNELS:
            library(name)
    except Unavailable as reason:
        return str(reason)
    return ""


def _token() -> bool:
    try:
        from ray._private.authentication.authentication_utils import (
            is_token_auth_enabled,
        )  # nothing public says it
    except ModuleNotFoundError:
        return False
    return bool(is_token_auth_enabled())

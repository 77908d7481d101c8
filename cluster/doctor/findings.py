"""The problems that facts about a machine cause for a run, and a remedy for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from cluster.doctor.facts import Facts
from metatrain.addresses import without_secrets

LEAST_GB = 2.0  # free on the disk of data sets
DRIVER = "driver"


class Finding(NamedTuple):
    """One line about one place."""

    place: str
    what: str
    found: str
    remedy: str = ""  # empty if all is well


def evaluate_facts(
    place: str,
    facts: Facts,
    driver: Facts,
    output: str | None,
    server: str | None,
    resources: Mapping[str, float] | None,
    models: Collection[str] = (),
) -> list[Finding]:
    """Compare the facts of a place with the driver's, and with what a run needs.

    output, server: where results go, and MLflow's address, if a run has them.
    resources: of a node of a cluster, as Ray counts them; None for this process.
    models: of all GPUs of the cluster.
    """

    def found() -> Iterator[tuple[str, str, str]]:
        yield "versions", *_versions(facts, driver)
        if resources is not None:
            yield "resources", *_resources(facts, resources)
        if facts.gpus.driver:
            yield "GPUs", *_gpus(facts, models)
        yield "free disk", *_free_disk(facts)
        writable = f"make {facts.cache} writable, or set METATRAIN_CACHE to a folder that is"
        yield "data cache", facts.not_cached or "writable", writable if facts.not_cached else ""
        yield "kernels", *_kernels(facts, driver)
        if output:
            give = f"let this machine's user or keys write to {output}, or give another output"
            yield (
                "output",
                facts.not_stored or "writable",
                f"create it, {give}" if facts.not_stored else "",
            )
        yield "MLflow", *_mlflow(facts, server)
        if resources is not None:
            yield "token", *_token(facts)

    return [Finding(place, *line) for line in found()]


def grouped(findings: Sequence[Finding]) -> list[Finding]:
    """Join what is the same in several places into one line; problems come last."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for place, *rest in findings:
        places.setdefault((rest[0], rest[1], rest[2]), []).append(place)
    everywhere = {finding.place for finding in findings} - {DRIVER}
    lines = []
    for (what, found, remedy), where in places.items():
        named = [place for place in where if place != DRIVER]
        if len(named) > 1 and set(named) == everywhere:
            named = [f"all {len(named)} nodes"]
        lines.append(Finding(", ".join([DRIVER] * (DRIVER in where) + named), what, found, remedy))
    return sorted(lines, key=lambda line: bool(line.remedy))


def _versions(facts: Facts, driver: Facts) -> tuple[str, str]:
    # A build's label, such as +cpu, makes no difference.
    there, here = (
        {name: version.split("+")[0] for name, version in each.versions.items()}
        for each in (facts, driver)
    )
    differ = {name: facts.versions[name] for name in there if there[name] != here[name]}
    shown = (differ or facts.versions).items()
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in shown)
    lacks = [name for name, version in facts.versions.items() if not version]
    if differ:
        wanted = ", ".join(f"{name}=={here[name]}" for name in differ)
        return found, f"install {wanted}, as the driver has"
    if lacks:
        checkout = "pip install -c constraints.txt -e . in the checkout"
        return found, f"install {', '.join(lacks)}: {checkout}"
    return found, ""


def _resources(facts: Facts, resources: Mapping[str, float]) -> tuple[str, str]:
    gpus = resources.get("GPU", 0.0)
    found = f"{resources.get('CPU', 0.0):g} CPUs, {gpus:g} GPUs"
    if gpus <= len(facts.gpus.models):
        return found, ""
    cause = "update NVIDIA's driver there"
    if facts.versions["torch"].endswith("+cpu"):
        cause = "install a build of torch with CUDA"
    return f"{found}, of which torch sees {len(facts.gpus.models)}", (
        f"{cause}, or start Ray there with --num-gpus={len(facts.gpus.models)}"
    )


def _gpus(facts: Facts, models: Collection[str]) -> tuple[str, str]:
    counted = Counter(facts.gpus.models).items()
    seen = ", ".join(f"{count} x {model}" for model, count in counted)
    reason = f"torch sees none: {facts.gpus.not_seen or 'no GPU is visible'}"
    found = f"{seen or reason}; driver {facts.gpus.driver}"
    if len(models) > 1 and seen:
        return found, (
            "a ticket has other bits on another model: for a run that can be repeated, start Ray "
            f"with --num-gpus=0 except on nodes of one of {', '.join(sorted(models))}"
        )
    return found, ""


def _free_disk(facts: Facts) -> tuple[str, str]:
    found = f"{facts.free_gb:.0f} GB at {facts.cache}"
    if facts.free_gb < LEAST_GB:
        least = f"at least {LEAST_GB:g} GB"
        return found, f"free some space: {least}, or set METATRAIN_CACHE to another disk"
    return found, ""


def _kernels(facts: Facts, driver: Facts) -> tuple[str, str]:
    if not facts.not_built:
        return "built", ""
    found = f"none, so convolutions take twice the time: {facts.not_built}"
    # A cache that is not writable is the cause, and has a line of its own.
    if driver.not_built or facts.not_cached:
        return found, ""
    return found, (
        "install g++ or clang there, as on the driver's machine: the driver chooses what all "
        "workers compute with"
    )


def _mlflow(facts: Facts, server: str | None) -> tuple[str, str]:
    why = facts.not_tracked
    if not server:
        return why or "no server is set", ""
    if not why:
        return f"answers at {without_secrets(server)}", ""
    if "Host header" in why:
        host = urlsplit(server).netloc.rpartition("@")[2]
        return why, f"start MLflow's server with --allowed-hosts {host}"
    if "401" in why or "Unauthorized" in why:
        return why, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there"
    return why, (
        f"start MLflow at {without_secrets(server)}, or set MLFLOW_TRACKING_URI to an address that "
        "can be reached from there"
    )


def _token(facts: Facts) -> tuple[str, str]:
    if facts.token:
        return "in use", ""
    return "none", (
        "anyone who reaches its ports can run code: start Ray with RAY_AUTH_MODE=token and a token"
    )

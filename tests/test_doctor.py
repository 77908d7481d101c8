"""What a run would find on two real nodes: green where all is well; else red, with the node and
what to do.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from services import S3, Nodes, command, free_port, until

from cluster.doctor import gpus
from cluster.doctor.facts import Facts
from cluster.doctor.findings import Finding, evaluate_facts, grouped
from cluster.doctor.gpus import Gpus, look

HERE = Facts(
    {"Python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0"}, 50.0, "/cache", "", "", "", True
)


@pytest.mark.ray
def test_of_three_nodes_the_one_that_is_not_well_is_named(
    nodes: Nodes, s3: S3, tmp_path: Path
) -> None:
    """tests/test_infra.py has two that are well."""
    other_torch = tmp_path / "other" / "torch-9.9.dist-info"
    other_torch.mkdir(parents=True)
    (other_torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    server = f"http://127.0.0.1:{free_port()}"
    third = nodes.start(
        "worker",
        "--node-name=third",
        AWS_ENDPOINT_URL=s3.read_only,
        METATRAIN_CACHE="/proc/cache",
        PYTHONPATH=str(tmp_path / "other"),
    )
    try:
        ill = nodes.run(
            *(
                "metatrain",
                "doctor",
                "--address",
                f"127.0.0.1:{nodes.port}",
                "--output",
                "s3://bucket/runs",
            ),
            MLFLOW_TRACKING_URI=server,
        )
    finally:
        third.terminate()
        third.wait()
    assert ill.returncode == 1
    assert "no problems found" not in ill.stdout
    *awaited, last = ill.stderr.splitlines()
    bad = [line for line in awaited if line.startswith(("driver", "third"))]
    assert "waiting for 3 nodes to answer" in awaited
    assert last == f"error: {len(bad)} problems found (see above)"
    address = f"{server}, or set MLFLOW_TRACKING_URI to an address that can be reached from there"
    for sentence in (
        r"third \(\w{6}\): versions: torch 9\.9: install torch==\S+, as the driver has",
        r"third \(\w{6}\): output: .*ACCESS_DENIED.*: create it, let this machine's user or keys "
        r"write to "
        "s3://bucket/runs, or give another output",
        r"third \(\w{6}\): data cache: .*: make /proc/cache writable, or set METATRAIN_CACHE to a "
        r"folder that is",
        rf"driver, all 3 nodes: MLflow: Connection refused: start MLflow at {address}",
        r"third \(\w{6}\): free disk: 0 GB at /proc/cache: free some space: at least 2 GB, .*",
    ):
        assert any(re.fullmatch(sentence, line) for line in bad), ill.stderr
    assert len(bad) == 5
    until(lambda: "third" not in [node["node_name"] for node in nodes.alive("nodes")])


@pytest.mark.ray
def test_without_a_cluster_it_looks_at_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("doctor", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no problems found" in done.stdout
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = command("doctor")
    assert done.returncode == 1
    assert re.search(
        r"^driver: MLflow: Connection refused: start MLflow at http://127.0.0.1:\d+, or set",
        done.stderr,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("facts", "resources", "what", "remedy"),
    [
        (
            HERE._replace(not_built="there is no C++ compiler"),
            None,
            "kernels",
            "install g++ or clang there",
        ),
        (
            HERE._replace(free_gb=0.5),
            {},
            "free disk",
            "free some space: at least 2 GB, or set METATRAIN_CACHE to another disk",
        ),
        (HERE._replace(token=False), {}, "token", "start Ray with RAY_AUTH_MODE=token and a token"),
        (
            HERE._replace(versions=HERE.versions | {"torch": ""}),
            {},
            "versions",
            "install torch==2.15.0, as the driver has",
        ),
        (
            HERE._replace(versions=HERE.versions | {"torch": "2.15.0+cpu"}),
            {"GPU": 2.0},
            "resources",
            "with CUDA",
        ),
        (
            HERE._replace(gpus=Gpus("550.54", ("H100",))),
            {"GPU": 2.0},
            "resources",
            "update NVIDIA's driver there, or start Ray there with --num-gpus=1",
        ),
        (
            HERE._replace(not_tracked="Invalid Host header"),
            {},
            "MLflow",
            "with --allowed-hosts mlflow:5000",
        ),
        (
            HERE._replace(not_tracked="error code 401"),
            {},
            "MLflow",
            "set MLFLOW_TRACKING_USERNAME and",
        ),
    ],
)
def test_each_finding_says_what_to_do(
    facts: Facts, resources: dict[str, float], what: str, remedy: str
) -> None:
    findings = evaluate_facts(
        "node", facts, HERE, "s3://bucket", "http://me:word@mlflow:5000", resources
    )
    (found,) = [finding for finding in findings if finding.what == what]
    assert remedy in found.remedy
    assert "word" not in str(findings)


def test_nodes_that_are_alike_share_a_line() -> None:
    findings = [Finding(place, "disk", "50 GB") for place in ("driver", "a", "b")]
    findings += [Finding("a", "cache", "writable"), Finding("b", "cache", "full", "make room")]
    assert grouped(findings) == [
        Finding("driver, all 2 nodes", "disk", "50 GB"),
        Finding("a", "cache", "writable"),
        Finding("b", "cache", "full", "make room"),
    ]


def test_gpus_of_two_models_are_named_on_each_node() -> None:
    """A ticket has other bits on another model."""
    facts = HERE._replace(gpus=Gpus("550.54", ("A100", "A100")))
    for models, remedy in ((["A100"], ""), (["A100", "H100"], "one of A100, H100")):
        findings = evaluate_facts("node", facts, HERE, None, None, {"GPU": 2.0}, models)
        (line,) = [each for each in findings if each.what == "GPUs"]
        assert line.found == "2 x A100; driver 550.54"
        assert line.remedy.endswith(remedy)
        assert bool(line.remedy) is bool(remedy)


def test_a_machine_without_a_gpu_has_none_and_one_with_a_driver_says_why_torch_sees_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "version")
    assert look() == Gpus()
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15\n")
    monkeypatch.setattr(gpus, "LOOK", "print('[[], \"the driver is too old\"]')")
    assert look() == Gpus("550.54.15", (), "the driver is too old")
    monkeypatch.setattr(gpus, "LOOK", "raise SystemExit(1)")
    assert look().not_seen == "torch does not start (CalledProcessError)"

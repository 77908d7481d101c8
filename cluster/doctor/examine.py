"""Look at this machine, and at every node of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.config import Tracking
from cluster.doctor.facts import Facts, collect_facts
from cluster.doctor.findings import DRIVER, Finding, evaluate_facts
from cluster.tracking.place import store_uri
from metatrain.awaiting import awaiting

ANSWER_S = 120.0  # for a node to answer


def examine(address: str | None, output: str | None) -> list[Finding]:
    """Return the findings of this process, and of each node of the cluster at `address`."""
    uri = store_uri(Tracking())
    server = uri if uri.startswith("http") else None
    with awaiting("looking at this machine"):
        here = collect_facts(output, server)
    findings = evaluate_facts(DRIVER, here, here, output, server, None)
    if address is None:
        return findings
    from cluster.pools.ray_connection import connected

    with connected(address):
        import ray

        nodes = {_name(node): node for node in ray.nodes() if node["Alive"]}
        with awaiting(f"waiting for {len(nodes)} nodes to answer"):
            answers = _ask_nodes(nodes, output, server)
    answered = [facts for facts in answers.values() if isinstance(facts, Facts)]
    models = {model for facts in answered for model in facts.gpus.models}
    for name, facts in answers.items():
        if isinstance(facts, Facts):
            resources = nodes[name]["Resources"]
            findings += evaluate_facts(name, facts, here, output, server, resources, models)
        else:
            remedy = "look at Ray's logs there, and start Ray on it again"
            findings.append(Finding(name, "answer", facts, remedy))
    return findings


def _ask_nodes(
    nodes: Mapping[str, Any], output: str | None, server: str | None
) -> dict[str, Facts | str]:
    """Return each node's facts, or why it gave none."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    collect = ray.remote(collect_facts)
    asked = {}
    for name, node in nodes.items():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        on_node = collect.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[name] = on_node.remote(output, server)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    found: dict[str, Facts | str] = {}
    for name, ref in asked.items():
        try:
            found[name] = ray.get(ref, timeout=0.1)
        except GetTimeoutError:
            found[name] = f"no answer in {ANSWER_S:g} s"
        except RayError as error:
            found[name] = str(error).strip().rpartition("\n")[2][:200]
    return found


def _name(node: Mapping[str, Any]) -> str:
    """Return a node's name or address, and enough of its id to tell it from others there."""
    return f"{node.get('NodeName') or node['NodeManagerAddress']} ({node['NodeID'][:6]})"

"""Arrows point down: metatrain knows neither Ray nor MLflow, and the loop neither of them nor what
stands above it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["metatrain", "cluster", "tuning"]
FILES = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
DOOR = ROOT / "metatrain" / "__init__.py"  # of all layers: it names them and imports none


# A Python imports a chain. After each row, what it and the rows below it name is not loaded.
CHAINS = [
    [
        ("metatrain", "torch pydantic numpy"),
        ("metatrain.recipe metatrain.bundle metatrain.inference", "cluster"),
        ("cluster.loop cluster.checkpoint cluster.api.train", "tuning"),
        ("tuning.api", "matplotlib pandas IPython"),
        ("cluster.run cluster.tracking.tracker", "ray mlflow torchvision optuna"),
    ],
    [("cluster.pools.ray_pool", "mlflow torchvision matplotlib tuning")],
    [("tuning.cli", "ray mlflow torch torchvision matplotlib pydantic")],
]
PRINT = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


@pytest.mark.ray  # takes seconds
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0][0])
def test_importing_brings_no_more_than_the_layer_knows(chain: list[tuple[str, str]]) -> None:
    code = "\n".join(f"import {', '.join(modules.split())}; {PRINT}" for modules, _ in chain)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for i, (line, (modules, _)) in enumerate(zip(done.stdout.splitlines(), chain, strict=True)):
        absent = {name for _, later in chain[i:] for name in later.split()}
        assert not set(line.split()) & absent, modules


def imports(path: Path, known: set[str]) -> set[str]:
    """The project's own modules that a file imports at its top."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= modules or {node.module}
    return found & known


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path in FILES if path != DOOR], ids=module)
def test_imports_point_down(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    inside = {name for node in ast.walk(ast.parse(path.read_text())) for name in _names(node)}
    assert not {name for name in inside if name in LAYERS[layer + 1 :]}


def test_the_front_door_imports_no_layer_and_type_checkers_see_what_it_names() -> None:
    import metatrain

    body = ast.parse(DOOR.read_text()).body
    hints = [
        node
        for node in body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    rest = [inside for node in body if node not in hints for inside in ast.walk(node)]
    assert not {name for node in rest for name in _names(node)} & set(LAYERS)
    imported = [node for hint in hints for node in hint.body if isinstance(node, ast.ImportFrom)]
    assert {
        alias.asname: node.module for node in imported for alias in node.names
    } == metatrain.MODULES


def _names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module.split(".")[0]}
    return set()


def test_no_two_files_import_each_other() -> None:
    known = {module(path) for path in FILES}
    TopologicalSorter(
        {module(path): imports(path, known) for path in FILES}
    ).prepare()  # raises CycleError


def test_a_sweep_is_resolved_without_a_run_a_pool_or_a_worker() -> None:
    known = {module(path): path for path in FILES}
    reached: set[str] = set()
    rest = {"tuning.search"}
    while rest:
        name = rest.pop()
        reached.add(name)
        rest |= imports(known[name], set(known)) - reached
    assert {name for name in reached if name.startswith("cluster.")} == {"cluster.config"}


@pytest.mark.parametrize("layer", LAYERS)
def test_the_packages_are_those_of_this_checkout(layer: str) -> None:
    code = f"import {layer}; print({layer}.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert Path(found.stdout.strip()).is_relative_to(ROOT)


NEUTRAL = [
    "cluster/loop.py",
    "cluster/workers/worker.py",
    "cluster/pools/pool.py",
    "cluster/pools/local_pool.py",
    "cluster/pools/ray_pool.py",
    "cluster/pools/ray_worker.py",
    "cluster/pools/wire.py",
    "cluster/collector.py",
    "cluster/evaluation.py",
    "metatrain/learner.py",
    "metatrain/evaluate.py",
]


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_runs_every_algorithm_knows_none(name: str) -> None:
    """No family, model, problem or algorithm is named there, be it to import it or to ask whether
    it is one.
    """
    import typing

    from metatrain import algorithms, models, tasks

    kinds = {
        kind for union in (algorithms, models, tasks) for kind in typing.get_args(union.BuiltIn)
    }
    known = (
        {kind.__name__ for kind in kinds}
        | {kind.name for kind in kinds}
        | {"Supervised", "Episodes"}
    )
    nodes = list(ast.walk(ast.parse((ROOT / name).read_text())))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {
        alias.name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    names |= {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not names & known

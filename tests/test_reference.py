"""The tables of docs/ say what is in the code: keys and their defaults, recipe lines, files."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_args

import pytest
import yaml
from pages import ROOT
from pydantic import TypeAdapter

from cluster.config import Checkpoint, Tracking, Workers
from metatrain import algorithms, models, tasks
from metatrain.learner import Outer
from metatrain.models import heads
from metatrain.recipe import AnyAlgorithm, AnyModel, Evaluation, Validation
from tuning.config import ASHA, PBT, Sweep

COMPONENTS = [
    kind
    for union in (algorithms.BuiltIn, tasks.BuiltIn, models.BuiltIn, get_args(heads.Head)[0])
    for kind in get_args(union)
]
GROUPS = [Outer, Validation, Evaluation, Workers, Checkpoint, Tracking]
LANGUAGES = {"": "required", ".zh": "必填"}


def section(name: str, title: str) -> str:
    """What stands on a page below a heading and above the next one."""
    found = re.search(
        rf"^#+ `{re.escape(title)}`\n(.*?)(?=^#|\Z)",
        (ROOT / name).read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None, f"{name} has no section {title}"
    return found[1]


def rows(text: str) -> dict[str, str]:
    """The first two columns of a table whose first one is code."""
    return dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|", text, re.MULTILINE))


def keys(kind: Any, required: str) -> dict[str, str]:
    """A dataclass's fields with their defaults as a page shows them."""
    found = {}
    for field in dataclasses.fields(kind):
        value = (
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        if value is dataclasses.MISSING:
            found[field.name] = required
        elif field.name != "name":  # by which it is chosen
            found[field.name] = f"`{shown(value)}`"
    return found


def shown(value: Any) -> str:
    """A default as YAML, without what follows from its own defaults."""
    if dataclasses.is_dataclass(value):
        value = {"name": value.name} if hasattr(value, "name") else {}
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", [*COMPONENTS, *GROUPS])
def test_every_key_is_on_the_page_with_its_default(kind: Any, language: str) -> None:
    title = kind.name if kind in COMPONENTS else kind.__name__.lower()
    assert rows(section(f"docs/algorithms{language}.md", title)) == keys(kind, LANGUAGES[language])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_of_a_sweep_is_on_the_page(language: str) -> None:
    text, required = (ROOT / f"docs/sweeps{language}.md").read_text(), LANGUAGES[language]
    assert keys(Sweep, required).items() <= rows(text).items()
    for kind in (ASHA, PBT):
        for key, default in keys(kind, required).items():
            assert f"| `{key}` | {default} |" in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_recipe_lines_on_the_page_are_valid(language: str) -> None:
    text = (ROOT / f"docs/algorithms{language}.md").read_text()
    lines = re.findall(r"`((?:algorithm|model): \{name: [^`]*\})`", text)
    assert len(lines) >= 8
    for line in lines:
        ((key, tree),) = yaml.safe_load(line).items()
        if "..." not in tree:  # which stands for what is left out
            TypeAdapter(AnyAlgorithm if key == "algorithm" else AnyModel).validate_python(tree)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_file_is_on_the_page(language: str) -> None:
    page = f"docs/architecture{language}.md"
    folders = {
        path.parent
        for layer in ("metatrain", "cluster", "tuning")
        for path in (ROOT / layer).rglob("*.py")
    }
    for folder in folders:
        there = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
        named = rows(section(page, f"{folder.relative_to(ROOT).as_posix()}/"))
        assert named.keys() == there, f"{page} and the files of {folder.relative_to(ROOT)}"

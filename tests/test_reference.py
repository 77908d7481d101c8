"""The tables of docs/ say what is in the code: keys, defaults, meanings, recipe lines, files.

`python tests/test_reference.py` writes the meanings from the docstrings of the fields.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from pages import ROOT
from pydantic import TypeAdapter

from cluster.config import Checkpoint, RunConfig, Tracking, Workers
from metatrain import aggregation, algorithms, corruptions, ensembles, models, schema, tasks
from metatrain.algorithms.proximal import Proximal
from metatrain.bounds import bounds_of
from metatrain.core import Attack, Penalty
from metatrain.models import heads
from metatrain.outer import Outer
from metatrain.problems.advantages import Estimator
from metatrain.recipe import AnyAlgorithm, AnyModel, Evaluation, Pretraining, Validation
from metatrain.tasks.augment import Augment
from tuning.config import ASHA, PBT, Sweep

COMPONENTS = [
    kind
    for union in (
        algorithms.BuiltIn,
        tasks.BuiltIn,
        models.BuiltIn,
        get_args(heads.Head)[0],
        get_args(aggregation.BuiltIn)[0],
        get_args(corruptions.BuiltIn)[0],
        get_args(ensembles.BuiltIn)[0],
        Attack,
    )
    for kind in get_args(union)
]
GROUPS = [
    Proximal,
    Augment,
    Estimator,
    Penalty,
    Outer,
    Validation,
    Evaluation,
    Pretraining,
    Workers,
    Checkpoint,
    Tracking,
]
LANGUAGES = {"": "required", ".zh": "必填"}


def section(name: str, title: str) -> str:
    """What stands on a page below a heading and above the next one."""
    return part_of((ROOT / name).read_text(), title)


def part_of(text: str, title: str) -> str:
    """What stands below a heading and above the next one."""
    title = rf"^#+ `{re.escape(title)}`\n"
    found = re.search(rf"{title}(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {title}"
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


def heading(kind: Any) -> str:
    """The heading of the section that has a dataclass's keys."""
    return str(kind.name) if kind in COMPONENTS else kind.__name__.lower()


def meanings(kind: Any, *, ranges: bool = False) -> dict[str, str]:
    """A dataclass's fields with their docstrings, but for the name by which it is chosen."""
    chosen = {"name"} if hasattr(kind, "name") else set()
    found = schema.fields_explained(kind, ranges=ranges)
    return {
        field.name: found.get(field.name, "")
        for field in dataclasses.fields(kind)
        if field.name not in chosen
    }


def last_cell(row: re.Match[str], meaning: str) -> str:
    return f"{row[1]} {meaning} |"


def with_ranges(text: str, kind: Any, title: str = "") -> str:
    """A Chinese page's text with the bounds of each number at the end of its row."""
    part = part_of(text, title) if title else text
    new = part
    for key, bounds in bounds_of(kind).items():
        least, _, most = (
            str(bounds).removeprefix("above ").replace(", at most ", " to ").partition(" to ")
        )
        without = f"\uff0c不含 {least}" if bounds.above else ""
        said = f"\uff08{least}\u2013{most}{without}\uff09"
        cells = re.escape(f"`{key}` | {keys(kind, '必填')[key]} |")
        row = re.compile(
            rf"^(.*{cells} .*?)(?:\uff08[^\uff09]*\u2013[^\uff09]*\uff09)? \|$", re.MULTILINE
        )
        new = row.sub(lambda row, said=said: f"{row[1]}{said} |", new)
    return text.replace(part, new)


def with_meanings(text: str, kind: Any, title: str = "") -> str:
    """A page's text whose table of a dataclass's keys has their docstrings in its last column."""
    part = part_of(text, title) if title else text
    defaults, new = keys(kind, "required"), part
    for key, meaning in meanings(kind, ranges=True).items():
        cells = re.escape(f"`{key}` | {defaults[key]} |")
        row = re.compile(rf"^(.*{cells}) .* \|$", re.MULTILINE)
        new = row.sub(partial(last_cell, meaning=meaning.replace("|", r"\|")), new)
    return text.replace(part, new)


def reference() -> dict[str, str]:
    """The pages with tables of keys, as they must be."""
    found = {page: (ROOT / page).read_text() for page in ("docs/algorithms.md", "docs/sweeps.md")}
    for kind in [*COMPONENTS, *GROUPS]:
        found["docs/algorithms.md"] = with_meanings(
            found["docs/algorithms.md"], kind, heading(kind)
        )
    for kind in (Sweep, ASHA, PBT):
        found["docs/sweeps.md"] = with_meanings(found["docs/sweeps.md"], kind)
    page = "docs/algorithms.zh.md"
    found[page] = (ROOT / page).read_text()
    for kind in [*COMPONENTS, *GROUPS]:
        found[page] = with_ranges(found[page], kind, heading(kind))
    page = "docs/sweeps.zh.md"
    found[page] = (ROOT / page).read_text()
    for kind in (Sweep, ASHA, PBT):
        found[page] = with_ranges(found[page], kind)
    return found


def named(hint: Any) -> set[Any]:
    """The dataclasses that a file can name which is read as this type."""
    if not dataclasses.is_dataclass(hint):
        return {kind for part in get_args(hint) for kind in named(part)}
    hints = get_type_hints(hint, include_extras=True)
    return {hint} | {
        kind for field in dataclasses.fields(hint) for kind in named(hints[field.name])
    }


NAMED = sorted(named(RunConfig) | named(Sweep), key=lambda kind: str(kind.__qualname__))


def test_the_files_of_runs_and_sweeps_name_every_component() -> None:
    assert {*COMPONENTS, *GROUPS, ASHA, PBT} < set(NAMED)


@pytest.mark.parametrize("kind", NAMED)
def test_every_key_has_a_docstring_of_one_line(kind: Any) -> None:
    modules = {sys.modules[base.__module__] for base in kind.__mro__ if base is not object}
    source = "".join(map(inspect.getsource, modules))
    for key, meaning in meanings(kind).items():
        assert re.fullmatch(r"[A-Z`\d].*\.", meaning), f"{kind.__name__}.{key}: {meaning!r}"
        assert f'    """{meaning}"""\n' in source


def test_the_pages_give_the_meaning_of_each_key_in_the_words_of_its_docstring() -> None:
    for page, text in reference().items():
        assert (ROOT / page).read_text() == text, "run `python tests/test_reference.py`"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", [*COMPONENTS, *GROUPS])
def test_every_key_is_on_the_page_with_its_default(kind: Any, language: str) -> None:
    page = section(f"docs/algorithms{language}.md", heading(kind))
    assert rows(page) == keys(kind, LANGUAGES[language])


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


def defined(page: str) -> set[tuple[str, str]]:
    """The names on a page that stand before the file that defines them."""
    text = (ROOT / page).read_text()
    return set(re.findall(r"`(\w+(?:\.\w+)?)`(?: in | \| |\W)`([\w/]+\.py)`", text))


def test_a_function_is_in_the_file_that_the_page_names() -> None:
    named = defined("docs/architecture.md")
    assert len(named) > 50
    assert named == defined("docs/architecture.zh.md")
    for name, path in named:
        source = (ROOT / path).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(?:def |class )?{part}\b", source, re.MULTILINE), (name, path)


def imported(path: Path) -> set[str]:
    """The files of this project that a file imports, also in a function; a package ends in /."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {place for name in found for place in [place_of(name)] if place}


def place_of(name: str) -> str:
    """The file or package that has an imported name, or "" if none of this project has it."""
    inside = name.replace(".", "/")
    places = (f"{inside}.py", f"{inside}/", f"{inside.rpartition('/')[0]}.py")
    packages = (f"{inside.rpartition('/')[0]}/",)
    there = [place for place in places + packages if place[0] != "/" and (ROOT / place).exists()]
    return there[0] if there else ""


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_room_imports_what_the_page_allows(language: str) -> None:
    text = (ROOT / f"docs/architecture{language}.md").read_text()
    cells = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    allowed = {room: re.findall(r"`([\w/]+(?:/|\.py))`", names) for room, names in cells}
    tools = allowed["所有目录" if language else "every room"]
    assert all((ROOT / name).exists() for names in allowed.values() for name in names)
    for layer in ("metatrain", "cluster", "tuning"):
        for path in (ROOT / layer).rglob("*.py"):
            if path == ROOT / "metatrain" / "__init__.py":
                continue  # the door to all layers
            room = f"{path.parent.relative_to(ROOT).as_posix()}/"
            may = (room, *tools, *allowed[f"`{room}`"])
            assert not {name for name in imported(path) if not name.startswith(may)}, path


if __name__ == "__main__":
    for page, text in reference().items():
        (ROOT / page).write_text(text)

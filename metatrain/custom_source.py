"""The source that classes of the user's own need.

That is their modules and all that these import, but for the standard library, what is installed,
and this project. It goes where they are imported elsewhere, and is recorded with what was trained.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import SOURCE_SUFFIXES
from pathlib import Path
from typing import NamedTuple

from metatrain.core import InputError
from metatrain.custom import own

log = logging.getLogger(__name__)

MOST_BYTES = (
    1 << 20
)  # of recorded source, and of a module that goes along because another one imports it
OURS = ("metatrain", "cluster", "tuning")
IMPORTS = ("import_module", "__import__")


class Sources(NamedTuple):
    """Where own classes come from."""

    roots: dict[str, Path]  # top-level module -> its file, or its package's folder
    files: dict[str, Path]  # name below such a place -> file, of each module that is imported
    missing: dict[str, str]  # what cannot be sent, and why


def find(names: Iterable[str]) -> Sources:
    """Find the modules of these classes, and all that they import, without importing anything."""
    modules = [name.partition(":")[0] for name in own(names)]
    found, seen = Sources({}, {}, {}), set[str]()
    first = {_top(module) for module in modules}
    while modules:
        module = modules.pop()
        top = _top(module)
        if module in seen or top in found.missing:
            continue
        seen.add(module)
        try:
            root = found.roots.get(top) or _root(top, limited=top not in first)
        except InputError as error:
            found.missing[top] = str(error)
            continue
        if root is None:
            continue
        if top not in found.roots:  # what it has imported in ways that its text does not show
            modules += [name for name in list(sys.modules) if _top(name) == top]
        found.roots[top] = root
        modules.append(module.rpartition(".")[0] or top)
        file = _file(root, module)
        if file is not None:
            found.files[file.relative_to(root.parent).as_posix()] = file
            modules += _imports(file, module)
    return found


def folders(names: Iterable[str], *, whole: bool) -> list[Path]:
    """The files and package folders that own classes need and that are not installed.

    If some cannot be sent, that is an InputError if it has to be the `whole` of them, and otherwise
    a warning.
    """
    found = find(names)
    for module, reason in found.missing.items():
        if whole:
            raise InputError(
                f"{module}, which your own classes need, cannot be sent", remedy=f"{reason}"
            )
        log.warning("%s, which your own classes need, is not sent to workers: %s", module, reason)
    return sorted(found.roots.values())


def texts(names: Iterable[str]) -> dict[str, bytes]:
    """The text of all modules that own classes need, by name below a folder to import them from."""
    files = {name: file.read_bytes() for name, file in sorted(find(names).files.items())}
    size = sum(map(len, files.values()))
    if size > MOST_BYTES:
        log.warning(
            "the source of your own modules is not recorded: it is %.1f MiB, at most 1 is",
            size / MOST_BYTES,
        )
        return {}
    return files


def changed(recorded: Mapping[str, bytes]) -> list[str]:
    """The files of recorded source that are not the same here."""
    return [name for name, data in recorded.items() if data not in _here(name)]


def _here(name: str) -> list[bytes]:
    first, _, rest = name.partition("/")
    places = [
        place / rest if rest else place
        for place in _places(first if rest else first.removesuffix(".py"))
    ]
    return [place.read_bytes() for place in places if place.is_file()]


def _top(module: str) -> str:
    return module.partition(".")[0]


def _root(top: str, *, limited: bool) -> Path | None:
    """A top-level module's file or folder; None if it need not be sent, InputError with the reason
    if it cannot be.
    """
    if top in OURS or top in sys.stdlib_module_names:
        return None
    if top == "__main__":
        raise InputError("it is the program itself; put its classes into a module")
    places = _places(top)
    if all(map(_is_installed, places)):
        return None
    if len(places) > 1:
        raise InputError(
            f"it lies in several folders ({', '.join(map(str, places))}); put it into one"
        )
    root = places[0]
    if not root.exists() or (root.is_file() and root.suffix not in SOURCE_SUFFIXES):
        raise InputError(f"{root} is no source; install it on the nodes")
    if root.name.removesuffix(".py") != top:
        raise InputError(f"{root} has another name; install it on the nodes, or rename it")
    if limited and _is_large(root):
        raise InputError(
            f"{root} has more than 1 MiB; install it on the nodes, or move its data away"
        )
    return root


def _is_large(folder: Path) -> bool:
    size = 0
    for file in folder.rglob("*"):
        size += file.stat().st_size if file.is_file() and "__pycache__" not in file.parts else 0
        if size > MOST_BYTES:
            return True
    return False


@cache
def _installation() -> list[Path]:
    paths = [sysconfig.get_path(key) for key in ("purelib", "platlib", "stdlib", "platstdlib")]
    return [
        Path(path).resolve()
        for path in [*paths, *site.getsitepackages(), site.getusersitepackages()]
    ]


def _is_installed(place: Path) -> bool:
    inside = {"site-packages", "dist-packages"} & set(place.parts)
    return bool(inside) or any(place.resolve().is_relative_to(folder) for folder in _installation())


def _places(top: str) -> list[Path]:
    """The file or the folders of a top-level module; none if it is unknown or built in."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        places = [Path(place) for place in spec.submodule_search_locations]
        return list({place.resolve(): place for place in reversed(places)}.values())[
            ::-1
        ]  # paths may come twice
    return [Path(spec.origin)] if spec.has_location and spec.origin is not None else []


def _file(root: Path, module: str) -> Path | None:
    """The text of a module below a file or a package's folder; None if it is not one of its
    modules.
    """
    place = root.joinpath(*module.split(".")[1:])
    files = (
        [root]
        if root.is_file() and place == root
        else [place / "__init__.py", place.with_name(f"{place.name}.py")]
    )
    return next((file for file in files if file.is_file() and file.is_relative_to(root)), None)


def _imports(file: Path, module: str) -> Iterator[str]:
    """The modules that a file may import, at its top or later."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [
                base,
                *(f"{base}{'' if base.endswith('.') else '.'}{alias.name}" for alias in node.names),
            ]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", None)
            )
            names = (
                [node.args[0].value]
                if called in IMPORTS and isinstance(node.args[0].value, str)
                else []
            )
        for name in names:
            try:
                yield importlib.util.resolve_name(name, package)
            except (ImportError, ValueError):
                continue

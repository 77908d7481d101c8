"""The source that classes of the user's own need.

These are their modules and all that the modules import, except for the standard library, what is
installed, and this project. Workers get the source, and it is recorded with what was trained.
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

# Of recorded source, and of a module that is sent because another one imports it.
MOST_BYTES = 1 << 20
OURS = ("metatrain", "cluster", "tuning")
IMPORTS = ("import_module", "__import__")


class Sources(NamedTuple):
    """Where own classes come from."""

    roots: dict[str, Path]  # top-level module -> its file, or its package's folder
    files: dict[str, Path]  # name below such a place -> file, of each module that is imported
    missing: dict[str, InputError]  # top-level module -> why it cannot be sent


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
            found.missing[top] = error
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
    """Return the files and package folders that own classes need and that are not installed.

    If some cannot be sent, that is an InputError if it has to be the `whole` of them, and otherwise
    a warning.
    """
    found = find(names)
    for module, error in found.missing.items():
        if whole:
            raise InputError(
                f"{module}, which your own classes need, cannot be sent ({error.what})",
                remedy=error.remedy,
            )
        log.warning("%s, which your own classes need, is not sent to workers: %s", module, error)
    return sorted(found.roots.values())


def texts(names: Iterable[str]) -> dict[str, bytes]:
    """Read all modules that own classes need, by name below a folder to import them from."""
    files = {name: file.read_bytes() for name, file in sorted(find(names).files.items())}
    size = sum(map(len, files.values()))
    if size > MOST_BYTES:
        log.warning(
            "the source of your own modules is not recorded: it is %.1f MiB, the limit is 1",
            size / MOST_BYTES,
        )
        return {}
    return files


def changed(recorded: Mapping[str, bytes]) -> list[str]:
    """Name the files of recorded source that are not the same here."""
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
    """Return a top-level module's file or folder, or None if it need not be sent.

    Raises InputError if it cannot be sent.
    """
    if top in OURS or top in sys.stdlib_module_names:
        return None
    if top == "__main__":
        raise InputError("it is the program itself", remedy="put its classes into a module")
    places = _places(top)
    if all(map(_is_installed, places)):
        return None
    if len(places) > 1:
        among = ", ".join(map(str, places))
        raise InputError(f"it lies in several folders: {among}", remedy="put it into one")
    root = places[0]
    if not root.exists() or (root.is_file() and root.suffix not in SOURCE_SUFFIXES):
        raise InputError(f"{root} is not source", remedy="install it on the nodes")
    if root.name.removesuffix(".py") != top:
        remedy = "install it on the nodes, or rename it"
        raise InputError(f"{root} has another name", remedy=remedy)
    if limited and _is_large(root):
        remedy = "install it on the nodes, or move its data away"
        raise InputError(f"{root} has more than 1 MiB", remedy=remedy)
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
    """Return the file or the folders of a top-level module, none if it is unknown or built in."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        places = [Path(place) for place in spec.submodule_search_locations]
        first = {place.resolve(): place for place in reversed(places)}  # a place may be there twice
        return list(first.values())[::-1]
    return [Path(spec.origin)] if spec.has_location and spec.origin is not None else []


def _file(root: Path, module: str) -> Path | None:
    """Return the file of a module below a root, or None if it is not one of the root's modules."""
    place = root.joinpath(*module.split(".")[1:])
    if root.is_file() and place == root:
        return root
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in files if file.is_file() and file.is_relative_to(root)), None)


def _imports(file: Path, module: str) -> Iterator[str]:
    """Yield the modules that a file may import, at its top or later."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                base = "." * node.level + (node.module or "")
                dot = "" if base.endswith(".") else "."
                names = [base, *(f"{base}{dot}{alias.name}" for alias in node.names)]
            case (
                ast.Call(func=ast.Name(id=called), args=[ast.Constant(value=str(name)), *_])
                | ast.Call(
                    func=ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
                )
            ) if called in IMPORTS:
                names = [name]
            case _:
                names = []
        for name in names:
            try:
                yield importlib.util.resolve_name(name, package)
            except (ImportError, ValueError):
                continue

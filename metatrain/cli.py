"""Commands that need no cluster."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Meta-training on Ray: sample tasks, adapt to them in parallel, learn to learn.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Data sets: list, import, check.", no_args_is_help=True)
app.add_typer(data, name="data")


def main(app: typer.Typer) -> None:
    """Run a command; what the user can mend is one sentence and exit code 2."""
    from metatrain.core import InputError

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that cannot be written
        logging.getLogger(__name__).debug("the operating system refused", exc_info=True)
        print(f"error: {error.strerror or error}: {error.filename or 'see --help'}", file=sys.stderr)
        sys.exit(2)


@data.command("list")
def list_() -> None:
    """Show the data sets that can be used. Example: metatrain data list"""
    from metatrain.tasks.images import SOURCES, ImageStore, cache

    for name in SOURCES:
        if not (cache() / name / "manifest.json").exists():
            how = "drawn at first use" if name == "glyphs" else f"not imported: metatrain data import {name}"
            print(f"{name:12} {how}")
            continue
        store = ImageStore.open(name)
        splits = ", ".join(scheme.name for scheme in store.schemes)
        print(f"{name:12} {len(store.sizes)} classes, {len(store.images)} images {list(store.shape)}; splits {splits}")


@data.command("import")
def import_(
    name: str,
    source: Annotated[Path | None, typer.Option(help="Folder with the original files, instead of a download.")] = None,
) -> None:
    """Bring a data set into the cache. Example: metatrain data import omniglot --source ~/omniglot"""
    from metatrain.core import InputError
    from metatrain.tasks.images import cache, import_data

    if source is not None and not source.is_dir():
        raise InputError(f"--source {source} is not a folder")
    store = import_data(name, source)
    print(f"imported {name}: {len(store.sizes)} classes, {len(store.images)} images into {cache() / name}")


@data.command()
def check(name: str) -> None:
    """Verify a data set's checksum, counts and splits. Example: metatrain data check glyphs"""
    from metatrain.tasks.images import ImageStore

    store = ImageStore.open(name)
    print(f"{name}: checksum and counts are right; {len(store.sizes)} classes, {len(store.images)} images")
    for scheme in store.schemes:
        sizes = ", ".join(f"{split} {len(members)}" for split, members in scheme.classes.items())
        print(f"  {scheme.name}: {sizes} classes, disjoint")

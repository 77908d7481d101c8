"""The commands `metatrain data`: list, import, check and push data sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metatrain.console import AsJson, print_table, program

if TYPE_CHECKING:
    from metatrain.data.folders import Report
    from metatrain.data.images import ImageStore

WAYS = 5  # of recipes/own_images.yaml, whose data set is "mine"

app = typer.Typer(help="Data sets: list, import, check.", no_args_is_help=True)


@app.command("list")
def list_(json: AsJson = False) -> None:
    """List the data sets that can be used.

    Example: metatrain data list
    """
    from rich.table import Table

    from metatrain.data import tables
    from metatrain.data.sources import SOURCES
    from metatrain.names import printable
    from metatrain.plain import to_json
    from metatrain.storage import cache

    imported = {path.parent.name for path in cache().glob("*/manifest.json")}
    rows = [
        {"name": name} | (_facts(name) if name in imported else {"state": _absent(name)})
        for name in sorted(imported | {*SOURCES, tables.NAME})
    ]
    if json:
        print(to_json(rows, indent=1))
        return
    table = Table.grid("name", "state", padding=(0, 2))
    for row in rows:
        table.add_row(printable(str(row["name"])), printable(str(row["state"])))
    print_table(table)


def _absent(name: str) -> str:
    """Say how to get a known data set that is not imported."""
    if name == "glyphs":
        return "drawn at first use"
    return f"not imported: {program()} data import {name}"


def _facts(name: str) -> dict[str, object]:
    """Return the row of an imported data set, or the reason why it cannot be used."""
    from metatrain.core import InputError
    from metatrain.data import tables
    from metatrain.data.images import ImageStore

    try:
        if name == tables.NAME:
            return {"state": tables.report(tables.open_tables())[0]}
        store = ImageStore.open(name)
    except InputError as error:
        return {"state": str(error)}
    splits = [scheme.name for scheme in store.schemes]
    classes, images = len(store.sizes), len(store.images)
    state = f"{classes} classes, {images} {_examples(store)}; splits {', '.join(splits)}"
    counts = {"classes": classes, "images": images, "shape": store.shape, "splits": splits}
    return {"state": state, **counts, "checksum": store.checksum}


@app.command("import")
def import_(
    name: Annotated[
        str,
        typer.Argument(
            help="A known data set of `metatrain data list`, or a new name for your own data."
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            help="Folder with one folder of images or texts per class, CSV or Parquet file of "
            "texts, or the original files of a known data set."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Width and height in pixels; default: the median of the images, at most 84. Of "
            "texts: bytes; default: 256."
        ),
    ] = None,
    least: Annotated[int, typer.Option(help="Leave out classes with fewer examples.")] = 2,
) -> None:
    """Copy a data set into the cache: a known one, or your own folder of class folders.

    Example: metatrain data import mine --source photos
    """
    from rich.console import Console
    from rich.progress import track

    from metatrain.core import InputError
    from metatrain.data import tables
    from metatrain.data.folders import read_folder
    from metatrain.data.images import folder_of
    from metatrain.data.sources import SOURCES, import_data
    from metatrain.data.texts import is_text

    folder = folder_of(name)
    if name in (*SOURCES, tables.NAME) and (size is not None or least != 2):
        raise InputError(
            f"{name} comes in its published size",
            remedy="leave out --size and --least, which are for folders of your own",
        )
    if name == tables.NAME:
        lines = tables.report(tables.import_tables(source))
        print("\n".join([f"imported {lines[0]} into {folder}", *lines[1:]]))
        return
    if name in SOURCES:
        store = import_data(name, source)
        print(
            f"imported {name}: {len(store.sizes)} classes, {len(store.images)} {_examples(store)} "
            f"into {folder}"
        )
        return
    if source is None:
        raise InputError(
            f"{name!r} is none of {', '.join(SOURCES)}",
            remedy="for images or texts of your own give --source with a folder that holds a "
            "folder for each class",
        )
    if is_text(source):
        _import_texts(name, source, size, least)
        return
    console = Console(stderr=True)

    def watch(paths: list[Path]) -> Iterable[Path]:
        return track(
            paths, "reading", console=console, transient=True, disable=not console.is_terminal
        )

    store, report = read_folder(name, source, size, least, watch)
    _save(store)
    _print_report(report)
    print(
        f"imported {name}: {len(store.sizes)} classes, {report.taken} images ({report.resized} "
        f"resized) {_shape(store)} into {folder}"
    )
    _print_next(store, "images")


def _import_texts(name: str, source: str, size: int | None, least: int) -> None:
    from metatrain.data.images import folder_of
    from metatrain.data.texts import read_texts
    from metatrain.names import printable

    store, notes = read_texts(name, source, size, least)
    _save(store)
    for note in notes:
        print(printable(f"note: {note}"))
    print(
        f"imported {name}: {len(store.sizes)} classes, {len(store.images)} {_examples(store)} "
        f"into {folder_of(name)}"
    )
    _print_next(store, "texts")


def _save(store: ImageStore) -> None:
    """Write a data set of one's own, and say if it takes the place of another one."""
    from metatrain.data.images import checksum_of

    earlier = checksum_of(store.name)
    store.save()
    if earlier not in (None, checksum_of(store.name)):
        print(
            f"replaced the earlier data set {store.name}: runs that were trained on it cannot be "
            "resumed with this one"
        )


def _print_report(report: Report) -> None:
    from metatrain.names import first, printable

    for line in first([f"refused {what}: {why}" for what, why in report.refused]):
        print(printable(line))
    for note in report.notes:
        print(printable(f"note: {note}"))
    if report.twins:
        print(
            f"note: {len(report.twins)} images have the pixels of an earlier one; a query may be "
            "its support image:"
        )
    for line in first([f"  {later} = {earlier}" for later, earlier in report.twins]):
        print(printable(line))


def _print_next(store: ImageStore, kind: str) -> None:
    """Print the splits of a data set of one's own, and the command that trains on it."""
    from metatrain.names import few

    splits = store.schemes[0].classes
    for split, members in splits.items():
        print(f"  {split} {len(members)} classes: {few([store.class_names[c] for c in members])}")
    fewest = min(map(len, splits.values()))
    sets = [f"family.data={store.name}"] if store.name != "mine" else []
    grouped = _ways_of_groups(store) if kind == "texts" else None
    if grouped is not None:
        sets.append("family.grouped=true")
        fewest = grouped
    sets += [f"family.ways={fewest}"] if fewest < WAYS else []
    sets += ["validation.every_steps=0"] if "val" not in splits else []
    print(f"next: {program()} train recipes/own_{kind}.yaml", *(f"--set {item}" for item in sets))


def _ways_of_groups(store: ImageStore) -> int | None:
    """Return how many classes the smallest group has; None if tasks cannot be of one group."""
    from collections import Counter

    from metatrain.data.texts import group_of

    groups = [group_of(name) for name in store.class_names]
    fewest = min(Counter(groups).values())
    whole = all(
        max(Counter(groups[c] for c in members).values()) >= fewest
        for members in store.schemes[0].classes.values()
    )
    return fewest if "" not in groups and fewest > 1 and whole else None


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A data set of `metatrain data list`.")],
) -> None:
    """Verify a data set: checksum, counts, sizes, splits, duplicates.

    Example: metatrain data check glyphs
    """
    from metatrain.data import tables
    from metatrain.data.images import duplicates, twins
    from metatrain.data.sources import open_data
    from metatrain.names import few

    if name == tables.NAME:
        print("\n".join(tables.report(tables.open_tables())))
        return

    def place(image: int) -> str:
        c = store.class_of(image)
        return f"{store.class_names[c]} {unit} {1 + image - int(store.offsets[c])}"

    store = open_data(name)
    sizes, unit = store.sizes, "text" if store.text else "image"
    print(
        f"{name}: the checksum is right; {len(sizes)} classes, {len(store.images)} "
        f"{_examples(store)}"
    )
    print(f"  {sizes.min()} to {sizes.max()} {unit}s a class, median {sizes.median()}")
    pairs = twins(store)
    for what, same in (("twice in their class", True), ("in two classes", False)):
        equal = [
            f"{place(a)} = {place(b)}"
            for a, b in pairs
            if (store.class_of(a) == store.class_of(b)) is same
        ]
        if equal:
            print(f"  {len(equal)} {unit}s are {what}: {few(equal)}")
    for scheme in store.schemes:
        counts = ", ".join(f"{split} {len(members)}" for split, members in scheme.classes.items())
        shared = duplicates(store, scheme)
        twice = (
            f"{len(shared)} {unit}s are in two splits: {few(shared)}"
            if shared
            else f"no {unit} is in two of them"
        )
        print(f"  splits {scheme.name}: {counts} classes, disjoint; {twice}")


@app.command()
def embed(
    name: Annotated[str, typer.Argument(help="A data set of texts of `metatrain data list`.")],
    new: Annotated[str, typer.Argument(help="The name of its embeddings.")],
) -> None:
    """Make a data set of sentence embeddings of texts, which a frozen network gives.

    Example: metatrain data embed intents intents_embedded
    """
    from metatrain.data import embeddings, sources

    store = embeddings.embedded(sources.open_data(name), new)
    _save(store)
    print(f"embedded {name}: {len(store.images)} {store.kind} as {new}")


@app.command()
def push(
    name: Annotated[str, typer.Argument(help="A data set of `metatrain data list`.")],
    uri: Annotated[
        str, typer.Argument(help="A folder, or an address such as s3://bucket/omniglot.")
    ],
) -> None:
    """Copy a data set to a place that all machines of a cluster can read.

    Recipes name that place: family.data=URI.

    Example: metatrain data push glyphs /mnt/data/glyphs
    """
    from metatrain.core import InputError
    from metatrain.data import remote
    from metatrain.data.sources import open_data

    if not remote.is_elsewhere(uri):
        raise InputError(
            f"{uri!r} could be the name of a data set", remedy="give a path with a /, or an address"
        )
    store = open_data(name)
    remote.push(store, uri)
    print(f"pushed {name} (checksum {store.checksum}) to {uri}")
    print(f"use it with --set family.data={uri}")


def _examples(store: ImageStore) -> str:
    """What the examples are, such as "images of 28x28 pixels, grey"."""
    return store.kind if store.text else f"images {_shape(store)}"


def _shape(store: ImageStore) -> str:
    channels, height, width = store.shape
    return f"of {width}x{height} pixels, {'grey' if channels == 1 else 'RGB'}"
